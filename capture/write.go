package capture

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
	"dsas/internal/xattr"
)

// Content is what a chosen path has.
type Content struct {
	Data []byte // of a file
	Link string // target of a symlink
	Mode uint32
}

// ReadContents reads the chosen files out of the tar that PackCommand wrote. What
// was not chosen, is of another kind than it was listed as, or too large is an
// error, and so is one that is missing.
func ReadContents(r io.Reader, chosen []Change) (map[string]Content, error) {
	want := map[string]Change{}
	for _, c := range chosen {
		want[c.name()] = c
	}
	out := map[string]Content{}
	left := int64(MaxContent)
	tr := tar.NewReader(&bounded{r: r, left: MaxContent + int64(len(chosen)+2)*64<<10})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the node's files: %w", err)
		}
		c, ok := want[h.Name]
		if _, twice := out[h.Name]; !ok || twice {
			return nil, fmt.Errorf("the node sends %.200q, which was not asked for: %w", h.Name, dsas.ErrInvalid)
		}
		switch {
		case h.Typeflag == tar.TypeSymlink && c.now.Type == 'l':
			out[h.Name] = Content{Link: h.Linkname}
		case h.Typeflag == tar.TypeReg && c.now.Type == 'f':
			if h.Size > MaxFile || h.Size > left {
				return nil, fmt.Errorf("%s: %d bytes are too many; at most %d MiB for one file and %d MiB for all: %w", c.Path, h.Size, MaxFile>>20, MaxContent>>20, dsas.ErrInvalid)
			}
			left -= h.Size
			data, err := io.ReadAll(tr)
			if err != nil {
				return nil, fmt.Errorf("the node's file %s: %w", c.Path, err)
			}
			out[h.Name] = Content{Data: data, Mode: uint32(h.Mode) & emptyPerm}
		default:
			return nil, fmt.Errorf("%s is of another type than it was: try again: %w", c.Path, dsas.ErrConflict)
		}
	}
	for name := range want {
		if _, ok := out[name]; !ok {
			return nil, fmt.Errorf("/%s is gone from the node: try again: %w", name, dsas.ErrConflict)
		}
	}
	return out, nil
}

// ReadLocal is ReadContents of a tree on this machine.
func ReadLocal(root string, chosen []Change) (map[string]Content, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := map[string]Content{}
	left := int64(MaxContent)
	for _, c := range chosen {
		name := c.name()
		if c.now.Type == 'l' {
			link, err := r.Readlink(name)
			if err != nil {
				return nil, err
			}
			out[name] = Content{Link: link}
			continue
		}
		if left -= c.Size; c.Size > MaxFile || left < 0 {
			return nil, fmt.Errorf("%s: too large; at most %d MiB for one file and %d MiB for all: %w", c.Path, MaxFile>>20, MaxContent>>20, dsas.ErrInvalid)
		}
		data, err := r.ReadFile(name)
		if err != nil {
			return nil, err
		}
		out[name] = Content{Data: data, Mode: c.now.Mode}
	}
	return out, nil
}

// SumLocal puts the digests of files of a tree on this machine into t.
func (t Tree) SumLocal(root string, names []string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, name := range names {
		f, err := r.Open(name)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		e := t[name]
		e.Sum = fmt.Sprintf("%x", h.Sum(nil))
		t[name] = e
	}
	return nil
}

// Conflicts gives the chosen changes whose place in the definition has, since the
// release was built, become something else: writing them would undo that. def is
// the definition as it is now.
func Conflicts(def fs.FS, chosen []Change, contents map[string]Content) ([]Change, error) {
	attrs, err := readAttrs(def)
	if err != nil {
		return nil, err
	}
	var out []Change
	for _, c := range chosen {
		st, err := fs.Lstat(def, c.To)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		new := contents[c.name()]
		if st.Mode().Type() == fs.ModeSymlink {
			link, err := fs.ReadLink(def, c.To)
			if err != nil {
				return nil, err
			}
			if c.was.Link != link && new.Link != link {
				out = append(out, c)
			}
			continue
		}
		if !st.Mode().IsRegular() {
			out = append(out, c)
			continue
		}
		data, err := fs.ReadFile(def, c.To)
		if err != nil {
			return nil, err
		}
		has := attrs[c.name()]
		if fmt.Sprintf("%x", sha256.Sum256(data)) != c.was.Sum && !(new.Link == "" && bytes.Equal(data, new.Data)) || has != c.was.Attrs && has != c.now.Attrs {
			out = append(out, c)
		}
	}
	return out, nil
}

// Written is one file of a definition that was written.
type Written struct {
	Path string `json:"path"` // below the definition's folder
	Note string `json:"note,omitempty"`
}

// attrsFile is where a definition has the extended attributes of its files
// (imagebuild.AttrsFile).
const attrsFile = "attributes"

// attrsHead is what stands above them.
const attrsHead = `# Extended attributes (capabilities, ACLs, user.NAME) that files/ and services/
# get in the image, by their paths there, as getfattr --dump writes them.
# dsas image capture writes this file anew.

`

// readAttrs reads what a definition says of attributes, by path in the image.
func readAttrs(def fs.FS) (map[string]xattr.List, error) {
	b, err := fs.ReadFile(def, attrsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]xattr.List{}, nil
	}
	if err != nil {
		return nil, err
	}
	attrs, err := xattr.ParseDump(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", attrsFile, err)
	}
	return attrs, nil
}

// Write puts the contents into a definition's folder, each whole or not at all,
// and at the end what of extended attributes belongs to them; def is the whole
// definition as it is now. Nothing is followed out of the folder, nor through a
// link in it.
func Write(folder string, def fs.FS, chosen []Change, contents map[string]Content) ([]Written, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("role definition: %w", err)
	}
	defer root.Close()
	attrs, err := readAttrs(def)
	if err != nil {
		return nil, fmt.Errorf("role definition: %w", err)
	}
	others := false
	for _, c := range chosen { // all are checked before the first is written
		if !fs.ValidPath(c.To) || !strings.HasPrefix(c.To, "files/") && !strings.HasPrefix(c.To, "services/") {
			return nil, fmt.Errorf("write %.200q: %w", c.To, dsas.ErrInvalid)
		}
		if err := noLinks(root, path.Dir(c.To)); err != nil {
			return nil, fmt.Errorf("write %s: %w", filepath.Join(folder, c.To), err)
		}
		if st, err := root.Lstat(c.To); err == nil && st.IsDir() {
			return nil, fmt.Errorf("write %s: a folder stands there: %w", filepath.Join(folder, c.To), dsas.ErrConflict)
		}
		now := c.now.Attrs
		if c.now.Type == 'l' {
			now = ""
		}
		if attrs[c.name()] != now {
			others = true
			attrs[c.name()] = now
		}
	}
	var done []Written
	for _, c := range chosen {
		content, ok := contents[c.name()]
		if !ok {
			return done, fmt.Errorf("write %s: its content was not read: %w", c.To, dsas.ErrNotFound)
		}
		if err := writeOne(root, c.To, content); err != nil {
			return done, fmt.Errorf("write %s: %w", filepath.Join(folder, c.To), err)
		}
		done = append(done, Written{Path: c.To, Note: c.Note})
	}
	if others {
		if err := writeOne(root, attrsFile, Content{Data: append([]byte(attrsHead), xattr.Dump(attrs)...)}); err != nil {
			return done, fmt.Errorf("write %s: %w", filepath.Join(folder, attrsFile), err)
		}
		done = append(done, Written{Path: attrsFile})
	}
	return done, nil
}

// noLinks wants every folder down to dir that exists to be one.
func noLinks(root *os.Root, dir string) error {
	for ; dir != "."; dir = path.Dir(dir) {
		st, err := root.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fmt.Errorf("%s: %s: %w", dir, linkIsNoDir, dsas.ErrConflict)
		}
	}
	return nil
}

func writeOne(root *os.Root, to string, c Content) error {
	if err := noLinks(root, path.Dir(to)); err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return err
	}
	tmp := path.Join(path.Dir(to), ".dsas-new-"+path.Base(to))
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer root.Remove(tmp) // fails after the rename, as it should
	if c.Link != "" {
		if err := root.Symlink(c.Link, tmp); err != nil {
			return err
		}
		return root.Rename(tmp, to)
	}
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(c.Data)
	if err == nil { // whatever the umask
		err = f.Chmod(fs.FileMode(keptMode(to, c.Mode, c.Data[:min(len(c.Data), 2)])))
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return root.Rename(tmp, to)
}

// Paths gives the paths of changes as the commands read them.
func Paths(changes []Change) []string {
	out := make([]string, 0, len(changes))
	for _, c := range changes {
		out = append(out, c.name())
	}
	slices.Sort(out)
	return out
}
