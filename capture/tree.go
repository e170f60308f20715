// Package capture finds what differs between a release and a tree that was made
// of it (a running node's, or one that was edited), and carries chosen changes
// back into a role's definition folder. What a node says is not believed: names
// are checked, sizes bounded, and nothing is written outside of the folder.
package capture

import (
	"archive/tar"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
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
	Size  int64      // of a file's content, in bytes
	MTime int64      // Unix seconds
	Link  string     // a symlink's target
	Sum   string     // SHA-256 of a file's content in hex; "": not known
	Attrs xattr.List // those that images keep
}

// Tree is a root file system: entries by path, without leading slash.
type Tree map[string]Entry

// OfLayers gives the tree that an image's layers make.
func OfLayers(image *layers.Tree) Tree {
	t := make(Tree, image.Len())
	for name, l := range image.All() {
		e := Entry{Mode: uint32(l.Mode) & emptyPerm, UID: l.UID, GID: l.GID, Size: l.Size, MTime: l.MTime, Link: l.Link, Attrs: l.Attrs.Kept()}
		switch l.Type {
		case tar.TypeReg:
			e.Type, e.Sum = 'f', hex.EncodeToString(l.Sum[:])
		case tar.TypeDir:
			e.Type = 'd'
		case tar.TypeSymlink:
			e.Type = 'l'
		case tar.TypeFifo:
			e.Type = 'p'
		case tar.TypeChar:
			e.Type = 'c'
		case tar.TypeBlock:
			e.Type = 'b'
		default:
			continue // a hard link to nothing, which no node unpacks
		}
		t[name] = e
	}
	return t
}

// ReadFolder lists a tree on this machine, without digests. It does not leave
// the file system that root is on, and follows no link. What that file system
// cannot hold of attributes, xattr.Unheld tells.
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
		if e.Attrs, err = xattr.Read(p); err != nil {
			return err
		}
		t[filepath.ToSlash(rel)] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", root, err)
	}
	return t, nil
}
