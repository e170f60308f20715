// Package layers reads the layers of images: what is in them, what an image of
// several is when they are put one over the other, and how two images differ.
// Nothing is unpacked, so no rights are needed and no name can do harm.
package layers

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"dsas"
)

// The media types of what a node unpacks (OCI image specification, layer.md).
const (
	MediaTar  = "application/vnd.oci.image.layer.v1.tar"
	MediaGzip = "application/vnd.oci.image.layer.v1.tar+gzip"
	MediaZstd = dsas.MediaTarZstd
)

// maxWindow bounds a decoder's memory. It is the node's bound too
// (initramfs/rootfs): what needs more cannot be booted.
const maxWindow = 128 << 20

// Media tells by the first four bytes of a layer how it is compressed.
func Media(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return MediaGzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return MediaZstd
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.HasPrefix(head[1:], []byte{0x2a, 0x4d, 0x18}):
		// A skippable frame (RFC 8878 section 3.1.2), with which some tools begin.
		return MediaZstd
	}
	return MediaTar
}

// Decompress gives what is inside r, whatever its media type says. The caller
// closes it; r is the caller's.
func Decompress(r io.Reader) (plain io.ReadCloser, media string, err error) {
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, 256<<10)
	}
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	switch media = Media(head); media {
	case MediaGzip:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, "", fmt.Errorf("gzip: %w", err)
		}
		return z, media, nil
	case MediaZstd:
		// One decoder: it reads r in the caller's goroutine.
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, "", fmt.Errorf("zstd: %w", err)
		}
		return d.IOReadCloser(), media, nil
	}
	return io.NopCloser(br), media, nil
}

// CleanName gives an entry's name as it stands in the tree: "etc/motd", "." for
// the root itself. Names that leave the tree are dsas.ErrInvalid.
func CleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %.200q: a name with a zero byte: %w", name, dsas.ErrInvalid)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("entry %.200q leaves the image: %w", name, dsas.ErrInvalid)
		}
	}
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return ".", nil
	}
	return name, nil
}

// The names by which a layer removes what lower layers have (layer.md, "Whiteouts").
const (
	WhiteoutPrefix = ".wh."
	WhiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // aufs's own files, which are no part of an image
)

// Whiteout tells what an entry of a clean name removes: "" where it is a file;
// opaque: all that lower layers have in folder removes.
func Whiteout(name string) (removes string, opaque, is bool) {
	dir, base := path.Split(name)
	switch {
	case base == WhiteoutOpaque:
		return path.Clean(dir), true, true
	case strings.HasPrefix(base, whiteoutMeta):
		return "", false, true
	case strings.HasPrefix(base, WhiteoutPrefix) && len(base) > len(WhiteoutPrefix):
		return path.Join(dir, base[len(WhiteoutPrefix):]), false, true
	}
	return "", false, false
}

// IsFile tells whether an entry is a file with content, in whichever way tar has
// to say so: nodes write all of them.
func IsFile(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse
}

// page is the granularity of tmpfs, in bytes.
const page = 4096

// Pages gives the bytes of tmpfs that an entry takes.
func Pages(h *tar.Header) int64 {
	if !IsFile(h) || h.Size <= 0 {
		return 0
	}
	return (h.Size + page - 1) / page * page
}
