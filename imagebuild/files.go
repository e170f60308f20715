package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
)

// maxRoleFile bounds one file of a definition, in bytes: larger things come in
// packages.
const maxRoleFile = 64 << 20

// roleFile is one file of a role's definition, at its place in the image.
type roleFile struct {
	Path string // without leading slash
	Mode int64
	Link string // target, for a symlink
	Data []byte
	// Attrs are its extended attributes. It is empty for most, and part of keys.
	Attrs xattr.List `json:",omitempty"`
}

type roleFiles []roleFile

// sum hashes all there is, for keys.
func (f roleFiles) sum() string { return key("files", f) }

// usrmerge are links to the folders of the same name below usr; a folder of
// that name in a layer would take the link's place, and no program would start.
var usrmerge = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// readFiles collects files/ and services/ of a definition, sorted by path.
func readFiles(def Definition) (roleFiles, error) {
	var out roleFiles
	if def.FS == nil {
		return nil, nil
	}
	for _, top := range []struct{ from, to string }{{"files", ""}, {"services", "etc/dsas/services"}} {
		err := fs.WalkDir(def.FS, top.from, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				if p == top.from && errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			f, err := readRoleFile(def.FS, p, e)
			if err != nil {
				return err
			}
			f.Path = path.Join(top.to, strings.TrimPrefix(p, top.from+"/"))
			if top.from == "services" {
				switch path.Base(p) {
				case "run", "finish", "check":
					f.Mode = 0o755
				}
			}
			if first, _, _ := strings.Cut(f.Path, "/"); slices.Contains(usrmerge, first) {
				return fmt.Errorf("%s: put it into files/usr/%s: /%s is a link to /usr/%s: %w", p, f.Path, first, first, dsas.ErrInvalid)
			}
			if strings.HasPrefix(path.Base(f.Path), layers.WhiteoutPrefix) {
				return fmt.Errorf("%s: names that begin with %s mean removal in an image: %w", p, layers.WhiteoutPrefix, dsas.ErrInvalid)
			}
			out = append(out, f)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("role definition: %w", err)
		}
	}
	slices.SortFunc(out, func(a, b roleFile) int { return strings.Compare(a.Path, b.Path) })
	if err := out.readAttrs(def.FS); err != nil {
		return nil, fmt.Errorf("role definition: %s: %w", AttrsFile, err)
	}
	return out, nil
}

// AttrsFile is the file of a definition with the extended attributes of its
// files/ and services/, by their paths in the image, as getfattr --dump writes
// them. They do not stand on the files themselves: version control loses them
// there, and a capability would count on the machine that builds, too.
const AttrsFile = "attributes"

// readAttrs gives the files the attributes that the definition names. It wants
// a file for each, so that a slip is told.
func (f roleFiles) readAttrs(fsys fs.FS) error {
	b, err := fs.ReadFile(fsys, AttrsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	attrs, err := xattr.ParseDump(b)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		i, ok := slices.BinarySearchFunc(f, name, func(f roleFile, name string) int { return strings.Compare(f.Path, name) })
		switch {
		case !ok:
			return fmt.Errorf("%s is none of the role's own files, files/... or services/...: put it there, or take it out here: %w", name, dsas.ErrInvalid)
		case f[i].Link != "":
			return fmt.Errorf("%s is a symlink, which has no attributes: name the file it leads to: %w", name, dsas.ErrInvalid)
		}
		f[i].Attrs, f[i].Mode = attrs[name], int64(attrs[name].Mode(uint32(f[i].Mode)))
	}
	return nil
}

// readRoleFile reads one file. A mode is 0755 or 0644, by the executable bit
// or, where the file system keeps none (embed), by a "#!" at the beginning.
func readRoleFile(fsys fs.FS, p string, e fs.DirEntry) (roleFile, error) {
	f := roleFile{Mode: 0o644}
	var err error
	switch {
	case e.Type() == fs.ModeSymlink:
		f.Mode = 0o777
		f.Link, err = fs.ReadLink(fsys, p)
		return f, err
	case !e.Type().IsRegular():
		return f, fmt.Errorf("%s: neither a file nor a symlink: %w", p, dsas.ErrInvalid)
	}
	fi, err := e.Info()
	if err != nil {
		return f, err
	}
	if fi.Size() > maxRoleFile {
		return f, fmt.Errorf("%s has %d bytes, at most %d may be: put it into a package: %w", p, fi.Size(), maxRoleFile, dsas.ErrInvalid)
	}
	if f.Data, err = fs.ReadFile(fsys, p); err != nil {
		return f, err
	}
	if fi.Mode()&0o111 != 0 || bytes.HasPrefix(f.Data, []byte("#!")) {
		f.Mode = 0o755
	}
	return f, nil
}

// filesLayer writes the role's own files; the folders they are in keep the
// owner and mode that the layers below gave them (the last one named wins).
func filesLayer(ctx context.Context, opt *Options, files roleFiles, below ...map[string]dirAttr) (*layer, error) {
	id := key("files", files, below)
	if l, ok := cachedLayer(opt, "files", id); ok {
		return l, nil
	}
	return makeLayer(ctx, opt, "files", id, func(w *layerWriter) error {
		for _, f := range files {
			if err := w.parents(f.Path, below...); err != nil {
				return err
			}
			h := &tar.Header{Name: f.Path, Typeflag: tar.TypeReg, Mode: f.Mode, Size: int64(len(f.Data)), ModTime: contentTime(f.Data), PAXRecords: f.Attrs.Records()}
			if f.Link != "" {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
			}
			if err := w.add(h, bytes.NewReader(f.Data)); err != nil {
				return err
			}
		}
		return nil
	})
}

// parents writes the folders above name that this layer does not have yet.
func (w *layerWriter) parents(name string, below ...map[string]dirAttr) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if _, ok := w.layer.Dirs[dir]; ok {
		return nil
	}
	if err := w.parents(dir, below...); err != nil {
		return err
	}
	attr := dirAttr{Mode: 0o755}
	for _, dirs := range below {
		if d, ok := dirs[dir]; ok {
			attr = d
		}
	}
	return w.add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: attr.Mode, Uid: attr.UID, Gid: attr.GID, ModTime: time.Unix(epoch, 0)}, nil)
}

// contentTime gives a time stamp that follows from the content, up to 194 days
// before the epoch: were it the same for all, a changed file of the same size
// would keep its ETag, and browsers their copy.
func contentTime(data []byte) time.Time {
	sum := sha256.Sum256(data)
	return time.Unix(epoch-int64(binary.BigEndian.Uint32(sum[:])>>8), 0)
}
