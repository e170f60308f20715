package transfer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/initramfs/modindex"
)

// maxEntries bounds the entries of a layer.
const maxEntries = 2_000_000

// scan looks at all of a layer's entries: counts what they take, refuses names
// that lead outside and files that must be in no image.
func (im *Import) scan(plain io.Reader, part *dsas.Part, seen *contents) error {
	tr := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if n >= maxEntries {
			return invalid("more than %d entries", maxEntries)
		}
		name, err := layers.CleanName(h.Name)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink {
			if _, err := layers.CleanName(h.Linkname); err != nil {
				return fmt.Errorf("hard link %.200q: %w", name, err)
			}
		}
		if _, _, is := layers.Whiteout(name); is {
			continue
		}
		// The length is the tar's word: of a sparse file, more than what follows.
		if part.Unpacked += layers.Pages(h); part.Unpacked > defaultMaxUnpacked {
			return invalid("%.200q: the layer is larger than nodes could hold", name)
		}
		seen.entries++
		seen.note(name, h)
		if layers.IsFile(h) && im.Check != nil && h.Size <= im.CheckSize && h.Size > 0 {
			b, err := io.ReadAll(tr)
			if err != nil {
				return fmt.Errorf("read tar: %.200q: %w", name, err)
			}
			if err := im.Check(name, b); err != nil {
				return err
			}
		}
	}
}

// note remembers what is asked of an image.
func (c *contents) note(name string, h *tar.Header) {
	if rest, ok := strings.CutPrefix(name, "usr/lib/modules/"); ok {
		// Our index, by which a node loads modules: another's image may have a
		// kernel's modules, and not that.
		if kernel, file, _ := strings.Cut(rest, "/"); file == modindex.File {
			c.kernels[kernel] = true
		}
	}
	if h.Typeflag == tar.TypeDir {
		c.folders[name] = Folder{h.Mode & 0o7777, h.Uid, h.Gid}
	}
	if name == "lib" {
		c.realLib = h.Typeflag == tar.TypeDir
	}
	if dir, ok := strings.CutPrefix(name, "etc/dsas/services/"); ok {
		if service, file := path.Split(dir); file == "run" && strings.Count(service, "/") == 1 && h.Mode&0o111 != 0 {
			c.services[strings.TrimSuffix(service, "/")] = true
		}
	}
}
