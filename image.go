package dsas

import (
	"fmt"
	"strings"
)

// Digest names content, as OCI writes it: "sha256:" and 64 hex digits.
type Digest string

// ParseDigest refuses anything but sha256 with 64 lower-case hex digits, so
// that a digest can be used as a file name.
func ParseDigest(s string) (Digest, error) {
	// By hand: it is asked several times for every DHCP packet.
	hex, ok := strings.CutPrefix(s, "sha256:")
	for i := 0; ok && i < len(hex); i++ {
		ok = '0' <= hex[i] && hex[i] <= '9' || 'a' <= hex[i] && hex[i] <= 'f'
	}
	if !ok || len(hex) != 64 {
		return "", fmt.Errorf("digest %.80q: want sha256: and 64 hex digits: %w", s, ErrInvalid)
	}
	return Digest(s), nil
}

// Hex gives the digits after "sha256:".
func (d Digest) Hex() string {
	if len(d) < 7 {
		return ""
	}
	return string(d[7:])
}

// Short gives the first 12 digits, for tables.
func (d Digest) Short() string {
	if h := d.Hex(); len(h) >= 12 {
		return h[:12]
	}
	return string(d)
}

// MediaTarZstd is an image layer as a tar compressed with zstd (OCI image
// specification, layer media types).
const MediaTarZstd = "application/vnd.oci.image.layer.v1.tar+zstd"

// Part is one layer of an image, as it travels.
type Part struct {
	Digest    Digest `json:"digest"`             // of the compressed bytes
	DiffID    Digest `json:"diffId"`             // of the tar inside
	Size      int64  `json:"size"`               // compressed bytes
	Unpacked  int64  `json:"unpacked,omitempty"` // bytes of tmpfs it takes
	MediaType string `json:"mediaType"`
	Title     string `json:"title,omitempty"` // "base", "packages", "files", "modules"
}

// Manifest is an image: a role's root file system at one version. Parts apply
// in order; later parts win, and whiteouts (".wh.NAME") remove.
type Manifest struct {
	Role   string `json:"role"`
	Kernel string `json:"kernel"` // release whose modules it holds, "6.1.0-41-amd64"
	Parts  []Part `json:"parts"`
	Memory int64  `json:"memory,omitempty"` // bytes the role needs, from its definition
	Digest Digest `json:"digest,omitempty"` // of the OCI manifest: this image, its layers compressed as they are
}

// Size gives the compressed bytes of all parts.
func (m Manifest) Size() (n int64) {
	for _, p := range m.Parts {
		n += p.Size
	}
	return n
}

// Unpacked gives the bytes of tmpfs that the parts take.
func (m Manifest) Unpacked() (n int64) {
	for _, p := range m.Parts {
		n += p.Unpacked
	}
	return n
}

// BootSet is the kernel and initramfs that a release boots with.
type BootSet struct {
	Release   string `json:"release"` // kernel release
	Kernel    Part   `json:"kernel"`
	Initramfs Part   `json:"initramfs"`
	Firmware  *Part  `json:"firmware,omitempty"` // optional second cpio: NIC firmware, microcode
	Digest    Digest `json:"digest,omitempty"`   // of its OCI manifest
	// Keys are the public keys in the initramfs, by one of which a release must
	// be signed that boots with it; none in one of before releases were signed.
	Keys []string `json:"keys,omitempty"`
}

// Parts lists what there is of b.
func (b BootSet) Parts() []Part {
	parts := []Part{b.Kernel, b.Initramfs}
	if b.Firmware != nil {
		parts = append(parts, *b.Firmware)
	}
	return parts
}
