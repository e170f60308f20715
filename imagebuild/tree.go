package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
)

// The extended attribute by which overlayfs marks a folder that hides the one
// below it.
const (
	overlayOpaque = "trusted.overlay.opaque"
	// userOverlay is in place of "trusted.overlay." in a user namespace.
	userOverlay = "user.overlay."
)

// page is the granularity of tmpfs, in bytes.
const page = 4096

// layerWriter writes one layer's tar.
type layerWriter struct {
	ctx   context.Context
	tar   *tar.Writer
	layer *layer
	links map[[2]uint64]string // first name of a file with several
	below map[string]dirAttr   // folders of the layers below
	allow *allowance

	fraction func(done, total int64) // nil: nobody asks
	told     int64
	buf      []byte
}

// add writes one entry; names have no leading slash.
func (w *layerWriter) add(h *tar.Header, content io.Reader) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	name := strings.TrimSuffix(h.Name, "/")
	if h.Typeflag == tar.TypeDir {
		h.Name = name + "/"
		w.layer.Dirs[name] = dirAttr{h.Mode, h.Uid, h.Gid}
	} else {
		w.layer.note(h)
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	w.layer.Part.Unpacked += (h.Size + page - 1) / page * page
	if n := w.layer.Part.Unpacked; w.fraction != nil && n-w.told > 1<<20 {
		w.told = n
		w.fraction(n, 0)
	}
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, content, w.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if n != h.Size {
		return fmt.Errorf("%s: it has %d bytes, %d were announced: changed during the build", h.Name, n, h.Size)
	}
	return nil
}

// verdict is what becomes of a path of a tree.
type verdict int

const (
	keep  verdict = iota
	drop          // with all below it
	empty         // the file without its content, the folder without what is in it
)

// tree writes what is below root, sorted by name, after the rule for each path
// (relative, no leading slash). Overlay markers become whiteouts.
func (w *layerWriter) tree(root string, rule func(name string, dir bool) verdict) error {
	w.links = map[[2]uint64]string{}
	if err := w.folder(root, "", rule); err != nil {
		return err
	}
	// Before the content is in the store, from where anybody can fetch it.
	if refused, _ := w.allow.split(w.layer.Found); len(refused) > 0 {
		return &CheckError{refused}
	}
	return nil
}

func (w *layerWriter) folder(root, rel string, rule func(string, bool) verdict) error {
	// overlayfs marks every folder it makes; where there was none before, the
	// mark says nothing.
	if _, covers := w.below[rel]; covers && isOpaque(filepath.Join(root, rel)) {
		if err := w.whiteout(path.Join(rel, layers.WhiteoutOpaque)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, rel)) // sorted
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(rel, e.Name())
		v := rule(name, e.IsDir())
		if v == drop {
			continue
		}
		if err := w.entry(root, name, v); err != nil {
			return err
		}
		if e.IsDir() && v == keep {
			if err := w.folder(root, name, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *layerWriter) whiteout(name string) error {
	return w.add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(epoch, 0)}, nil)
}

// entry writes one file, link or folder of a tree.
func (w *layerWriter) entry(root, name string, v verdict) error {
	file := filepath.Join(root, name)
	fi, err := os.Lstat(file)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no owner known", name)
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: clamp(fi.ModTime())}
	switch fi.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(file); err != nil {
			return err
		}
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice | fs.ModeCharDevice:
		if st.Rdev == 0 { // overlayfs's whiteout
			return w.whiteout(path.Join(path.Dir(name), layers.WhiteoutPrefix+path.Base(name)))
		}
		return nil // /dev is made by the kernel
	case fs.ModeDevice, fs.ModeSocket:
		return nil
	case 0:
		return w.regular(file, h, st, v)
	default:
		return fmt.Errorf("%s: a file of type %v cannot be in an image: %w", name, fi.Mode().Type(), dsas.ErrInvalid)
	}
	attrs, err := xattr.Read(file)
	if err != nil {
		return err
	}
	h.PAXRecords = attrs.Records()
	return w.add(h, nil)
}

func (w *layerWriter) regular(file string, h *tar.Header, st *syscall.Stat_t, v verdict) error {
	h.Typeflag = tar.TypeReg
	if v == empty {
		return w.add(h, nil)
	}
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := w.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return w.add(h, nil)
		}
		w.links[id] = h.Name
	}
	attrs, err := xattr.Read(file)
	if err != nil {
		return err
	}
	h.PAXRecords = attrs.Records()
	found, err := checkSecrets(h.Name, file, st.Size)
	if err != nil {
		return err
	}
	w.layer.Found = append(w.layer.Found, found...)
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Size = st.Size
	return w.add(h, io.LimitReader(f, st.Size))
}

// clamp gives whole seconds, none later than the epoch: what a build touched
// has the build's time.
func clamp(t time.Time) time.Time {
	return time.Unix(min(t.Unix(), epoch), 0)
}

func isOpaque(dir string) bool {
	return getXattr(dir, overlayOpaque) == "y" || getXattr(dir, userOverlay+"opaque") == "y"
}

func getXattr(file, name string) string {
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(file, name, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// moduleTree writes a staged module folder as root's, without the symbol
// tables of depmod, which only building modules needs. Its files are hard
// links into the cache, which is no business of the image's.
func (w *layerWriter) moduleTree(dir, top string) error {
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(e.Name(), "modules.symbols") {
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path.Join(top, filepath.ToSlash(rel)), Mode: 0o644, Typeflag: tar.TypeReg, ModTime: time.Unix(epoch, 0)}
		if e.IsDir() {
			h.Mode, h.Typeflag = 0o755, tar.TypeDir
			return w.add(h, nil)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		h.Size = int64(len(b))
		return w.add(h, bytes.NewReader(b))
	})
}
