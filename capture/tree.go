// Package capture finds what differs between a release and a tree that was made
// of it (a running node's, or one that was edited), and carries chosen changes
// back into a role's definition folder. What a node says is not believed: names
// are checked, sizes bounded, and nothing is written outside of the folder.
package capture

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"dsas"
)

// Bounds of what is read, and of what is carried (bytes).
const (
	MaxFile     = 64 << 20 // what imagebuild takes of one file of a definition
	MaxContent  = 256 << 20
	maxListing  = 512 << 20
	maxEntries  = 4 << 20
	maxPath     = 4096 // PATH_MAX of Linux
	emptyPerm   = 0o7777
	linkIsNoDir = "a symlink or file stands where a folder would have to be"
)

// Entry is one path of a tree.
type Entry struct {
	Type  byte   // as find's %y: f, d, l, p, s, b, c
	Mode  uint32 // permission, setuid, setgid and sticky bits
	UID   int
	GID   int
	Size  int64  // of a file's content, in bytes
	MTime int64  // Unix seconds
	Link  string // a symlink's target
	Sum   string // SHA-256 of a file's content in hex; "": not known
}

// Tree is a root file system: entries by path, without leading slash.
type Tree map[string]Entry

// The names of OCI whiteouts (image specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Apply puts a layer's tar over the tree, as unpacking it would. Of each file it
// has the digest then.
func (t Tree) Apply(r io.Reader) error {
	own := Tree{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if name == "." {
			continue
		}
		if !fs.ValidPath(name) {
			return fmt.Errorf("read layer: name %.200q: %w", h.Name, dsas.ErrInvalid)
		}
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case base == whiteoutOpaque:
			t.removeBelow(dir)
			continue
		case strings.HasPrefix(base, whiteoutPrefix):
			t.remove(path.Join(dir, strings.TrimPrefix(base, whiteoutPrefix)))
			continue
		}
		e := Entry{Mode: uint32(h.Mode) & emptyPerm, UID: h.Uid, GID: h.Gid, MTime: h.ModTime.Unix()}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Type = 'd'
		case tar.TypeSymlink:
			e.Type, e.Link = 'l', h.Linkname
		case tar.TypeFifo:
			e.Type = 'p'
		case tar.TypeChar:
			e.Type = 'c'
		case tar.TypeBlock:
			e.Type = 'b'
		case tar.TypeLink:
			at := path.Clean(strings.TrimLeft(h.Linkname, "/"))
			of, ok := own[at]
			if !ok {
				of, ok = t[at]
			}
			if !ok {
				return fmt.Errorf("read layer: %s is a link to %.200q, which is not there: %w", name, h.Linkname, dsas.ErrInvalid)
			}
			e = of
		case tar.TypeReg:
			e.Type = 'f'
			sum := sha256.New()
			if e.Size, err = io.Copy(sum, tr); err != nil {
				return fmt.Errorf("read layer: %s: %w", name, err)
			}
			e.Sum = fmt.Sprintf("%x", sum.Sum(nil))
		default:
			continue // what no unpacker makes either
		}
		own[name] = e
	}
	for name, e := range own {
		old, was := t[name]
		// A folder of a layer leaves a link to a folder alone, as every unpacker does.
		if e.Type == 'd' && was && old.Type == 'l' {
			continue
		}
		if was && old.Type == 'd' && e.Type != 'd' {
			t.removeBelow(name)
		}
		t[name] = e
	}
	return nil
}

func (t Tree) remove(name string) {
	delete(t, name)
	t.removeBelow(name)
}

func (t Tree) removeBelow(dir string) {
	for name := range t {
		if dir == "" || strings.HasPrefix(name, dir+"/") {
			delete(t, name)
		}
	}
}

// ReadFolder lists a tree on this machine, without digests. It does not leave
// the file system that root is on, and follows no link.
func ReadFolder(root string) (Tree, error) {
	t := Tree{}
	var dev uint64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no owner known", p)
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if rel == "." {
			dev = st.Dev
			return nil
		}
		if st.Dev != dev {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		e := Entry{Mode: st.Mode & emptyPerm, UID: int(st.Uid), GID: int(st.Gid), MTime: fi.ModTime().Unix()}
		switch fi.Mode().Type() {
		case fs.ModeDir:
			e.Type = 'd'
		case fs.ModeSymlink:
			e.Type = 'l'
			if e.Link, err = os.Readlink(p); err != nil {
				return err
			}
		case fs.ModeNamedPipe:
			e.Type = 'p'
		case fs.ModeSocket:
			e.Type = 's'
		case 0:
			e.Type, e.Size = 'f', fi.Size()
		case fs.ModeDevice:
			e.Type = 'b'
		default:
			e.Type = 'c'
		}
		t[filepath.ToSlash(rel)] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", root, err)
	}
	return t, nil
}
