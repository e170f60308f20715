package dsas

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Signed is what the signatures of a release are about, and these.
type Signed struct {
	// Manifest is the OCI image manifest byte for byte. It fixes the image
	// config, the layers as they travel, the role and the boot set.
	Manifest []byte `json:"manifest,omitempty"`
	// Signatures are texts as minisign writes them (jedisct1.github.io/minisign),
	// each by another key.
	Signatures []string `json:"signatures,omitempty"`
}

// Annotations of a release's OCI image manifest, of its layers and of its boot
// artifact. Role, kernel and memory are labels of the image config too, and
// LabelBoot and LabelDefinition are so alone.
const (
	AnnotationRole     = "dsas.role"
	AnnotationKernel   = "dsas.kernel.release" // uname -r of the modules in the image
	AnnotationMemory   = "dsas.memory"         // bytes the role needs beside its image
	AnnotationBoot     = "dsas.boot"           // digest of the boot artifact's manifest
	AnnotationTitle    = "dsas.title"          // of a layer: "base", "packages"
	AnnotationUnpacked = "dsas.unpacked"       // of a layer: bytes of tmpfs it takes
	AnnotationKeys     = "dsas.keys"           // of a boot artifact: public keys in its initramfs, each in base64, with a space between
	AnnotationDiffID   = "dsas.diff-id"        // of a boot artifact's layer: digest of the plain content

	LabelBoot       = "dsas.boot."      // and kernel, initramfs, firmware: digest of the plain content
	LabelDefinition = "dsas.definition" // of the role, frozen, in base64

	// BootArtifact is the type of the artifact that a release boots with.
	BootArtifact = "application/vnd.dsas.boot.v1"
)

// Bounds on what a node reads of a manifest.
const (
	maxManifestBytes = 4 << 20
	maxManifestParts = 127 // about where overlayfs and Docker stop
)

// ParseImageManifest reads an OCI image manifest (image specification 1.1,
// manifest.md) as far as a node needs it: what is in the image config alone, the
// DiffIDs, is not known. It does without OCI's libraries, which an initramfs has
// no room for.
func ParseImageManifest(raw []byte) (Manifest, error) {
	var m struct {
		SchemaVersion int
		Config        struct{ Digest string }
		Layers        []manifestLayer
		Annotations   map[string]string
	}
	fail := func(err error) (Manifest, error) { return Manifest{}, fmt.Errorf("image manifest: %w", err) }
	if len(raw) > maxManifestBytes {
		return fail(fmt.Errorf("larger than %d bytes: %w", maxManifestBytes, ErrInvalid))
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fail(fmt.Errorf("%w: %w", err, ErrInvalid))
	}
	if _, err := ParseDigest(m.Config.Digest); err != nil || m.SchemaVersion != 2 {
		return fail(fmt.Errorf("schema version %d, config %.80q: want 2 and a digest: %w", m.SchemaVersion, m.Config.Digest, ErrInvalid))
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxManifestParts {
		return fail(fmt.Errorf("it has %d layers; 1 to %d may be: %w", len(m.Layers), maxManifestParts, ErrInvalid))
	}
	out := Manifest{Role: m.Annotations[AnnotationRole], Kernel: m.Annotations[AnnotationKernel]}
	if err := CheckName("role", out.Role); err != nil {
		return fail(err)
	}
	var err error
	if out.Memory, err = bytesOf(m.Annotations, AnnotationMemory); err != nil {
		return fail(err)
	}
	for i, l := range m.Layers {
		p, err := l.part()
		if err != nil {
			return fail(fmt.Errorf("layer %d: %w", i+1, err))
		}
		out.Parts = append(out.Parts, p)
	}
	return out, nil
}

// ParseBootManifest reads the manifest of the artifact that a release boots with
// (image specification 1.1, manifest.md, "Guidelines for Artifact Usage"). A part
// that is not known is an error: a node would boot without it. Errors are
// ErrInvalid. Whether the content is there, and the set's own digest, the caller
// knows.
func ParseBootManifest(raw []byte) (BootSet, error) {
	var m struct {
		ArtifactType string
		Layers       []manifestLayer
		Annotations  map[string]string
	}
	fail := func(err error) (BootSet, error) { return BootSet{}, fmt.Errorf("boot manifest: %w", err) }
	if len(raw) > maxManifestBytes {
		return fail(fmt.Errorf("larger than %d bytes: %w", maxManifestBytes, ErrInvalid))
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fail(fmt.Errorf("%w: %w", err, ErrInvalid))
	}
	if m.ArtifactType != BootArtifact {
		return fail(fmt.Errorf("a manifest of type %.80q is no kernel with initramfs: %w", m.ArtifactType, ErrInvalid))
	}
	b := BootSet{Release: m.Annotations[AnnotationKernel], Keys: strings.Fields(m.Annotations[AnnotationKeys])}
	seen := map[string]bool{}
	for _, l := range m.Layers {
		p, err := l.part()
		if seen[p.Title] {
			return fail(fmt.Errorf("two parts named %.40q: %w", p.Title, ErrInvalid))
		}
		seen[p.Title] = true
		if err == nil {
			p.DiffID, err = ParseDigest(l.Annotations[AnnotationDiffID])
		}
		if err != nil {
			return fail(fmt.Errorf("part %.40q: %w", p.Title, err))
		}
		switch p.Title {
		case "kernel":
			b.Kernel = p
		case "initramfs":
			b.Initramfs = p
		case "firmware":
			b.Firmware = &p
		default:
			return fail(fmt.Errorf("a part named %.40q is not known here: %w", p.Title, ErrInvalid))
		}
	}
	if b.Kernel.Digest == "" || b.Initramfs.Digest == "" {
		return fail(fmt.Errorf("kernel %.80q or its initramfs is not there: %w", b.Release, ErrInvalid))
	}
	return b, nil
}

// manifestLayer is a descriptor among a manifest's layers.
type manifestLayer struct {
	MediaType   string
	Digest      string
	Size        int64
	Annotations map[string]string
}

// part gives what it says, but for the digest of the content inside. Its title and
// media type are there with an error, too.
func (l manifestLayer) part() (p Part, err error) {
	p = Part{Size: l.Size, MediaType: l.MediaType, Title: l.Annotations[AnnotationTitle]}
	if p.Digest, err = ParseDigest(l.Digest); err != nil {
		return p, err
	}
	if p.Size < 0 {
		return p, fmt.Errorf("%d bytes: %w", p.Size, ErrInvalid)
	}
	p.Unpacked, err = bytesOf(l.Annotations, AnnotationUnpacked)
	return p, err
}

// bytesOf reads a number of bytes; 0 where it is not said.
func bytesOf(notes map[string]string, name string) (int64, error) {
	s, ok := notes[name]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %.40q is no number of bytes: %w", name, s, ErrInvalid)
	}
	return n, nil
}
