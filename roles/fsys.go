package roles

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// executableRE names what is executed: embed keeps no modes, and a user's
// forgotten chmod is no reason for a failed boot.
var executableRE = regexp.MustCompile(`^services/[^/]+/(run|finish|check|log/run)$|^files/usr/(local/)?s?bin/.`)

// LockFile is where a build writes the versions of a role's packages, in the
// role's folder. It goes with a definition and is no part of it: a build that
// writes it must not make the definition another one.
const LockFile = "role.lock"

// modeFS gives files the two modes an image needs whatever the umask or embed
// made of them: 0755 for what is executed and for folders, else 0644. It
// passes symlinks on as symlinks where the file system below knows them, and
// does not show LockFile.
type modeFS struct{ fsys fs.FS }

// Open implements fs.FS.
func (m modeFS) Open(name string) (fs.File, error) {
	if name == LockFile {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f, err := m.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	return modeFile{f, name}, nil
}

// ReadDir implements fs.ReadDirFS.
func (m modeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(m.fsys, name)
	if name == "." {
		entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == LockFile })
	}
	for i, e := range entries {
		entries[i] = modeEntry{e, path.Join(name, e.Name())}
	}
	return entries, err
}

// Lstat implements fs.ReadLinkFS.
func (m modeFS) Lstat(name string) (fs.FileInfo, error) {
	if name == LockFile {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
	}
	st, err := fs.Lstat(m.fsys, name)
	if err != nil {
		return nil, err
	}
	return modeInfo{st, name}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (m modeFS) ReadLink(name string) (string, error) { return fs.ReadLink(m.fsys, name) }

type modeInfo struct {
	fs.FileInfo
	path string
}

func (i modeInfo) Mode() fs.FileMode {
	m := i.FileInfo.Mode()
	switch {
	case m&fs.ModeSymlink != 0:
		return fs.ModeSymlink | 0o777
	case m.IsDir(), executableRE.MatchString(i.path), m&0o100 != 0:
		return m.Type() | 0o755
	}
	return m.Type() | 0o644
}

// ModTime is zero: it must not make two builds of one definition differ.
func (i modeInfo) ModTime() time.Time { return time.Time{} }

type modeEntry struct {
	fs.DirEntry
	path string
}

func (e modeEntry) Info() (fs.FileInfo, error) {
	st, err := e.DirEntry.Info()
	if err != nil {
		return nil, err
	}
	return modeInfo{st, e.path}, nil
}

type modeFile struct {
	fs.File
	path string
}

func (f modeFile) Stat() (fs.FileInfo, error) {
	st, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return modeInfo{st, f.path}, nil
}

// ReadDir implements fs.ReadDirFile.
func (f modeFile) ReadDir(n int) ([]fs.DirEntry, error) {
	d, ok := f.File.(fs.ReadDirFile)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: f.path, Err: errors.New("not a folder")}
	}
	entries, err := d.ReadDir(n)
	for i, e := range entries {
		entries[i] = modeEntry{e, path.Join(f.path, e.Name())}
	}
	return entries, err
}

// overlayFS shows several file systems as one, the first on top; folders are
// merged, anything else is the first one's. role.yaml is the top one's alone.
type overlayFS []fs.FS

// layer finds who shows name: a path whose parent is no folder in an upper
// layer is hidden there.
func (o overlayFS) layer(op, name string) (fs.FS, fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	for _, l := range o {
		st, err := fs.Lstat(l, name)
		if err == nil {
			return l, st, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || hidden(l, name) {
			return nil, nil, err
		}
	}
	return nil, nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// hidden tells whether a parent of name is something else than a folder in l.
func hidden(l fs.FS, name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if st, err := fs.Lstat(l, dir); err == nil {
			return !st.IsDir()
		}
	}
	return false
}

// Open implements fs.FS.
func (o overlayFS) Open(name string) (fs.File, error) {
	l, st, err := o.layer("open", name)
	if err != nil {
		return nil, err
	}
	f, err := l.Open(name)
	if err != nil || !st.IsDir() {
		return f, err
	}
	entries, err := o.ReadDir(name)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &overlayDir{File: f, entries: entries}, nil
}

// ReadDir implements fs.ReadDirFS.
func (o overlayFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if _, st, err := o.layer("readdir", name); err != nil {
		return nil, err
	} else if !st.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a folder")}
	}
	var out []fs.DirEntry
	seen := map[string]bool{}
	for _, l := range o {
		if st, err := fs.Lstat(l, name); err != nil || !st.IsDir() {
			if err == nil || hidden(l, name) {
				break // something else than a folder hides what lies below
			}
			continue
		}
		entries, err := fs.ReadDir(l, name)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !seen[e.Name()] {
				seen[e.Name()] = true
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

// Lstat implements fs.ReadLinkFS.
func (o overlayFS) Lstat(name string) (fs.FileInfo, error) {
	_, st, err := o.layer("lstat", name)
	return st, err
}

// ReadLink implements fs.ReadLinkFS.
func (o overlayFS) ReadLink(name string) (string, error) {
	l, _, err := o.layer("readlink", name)
	if err != nil {
		return "", err
	}
	return fs.ReadLink(l, name)
}

type overlayDir struct {
	fs.File
	entries []fs.DirEntry
	next    int
}

// ReadDir implements fs.ReadDirFile.
func (d *overlayDir) ReadDir(n int) ([]fs.DirEntry, error) {
	rest := d.entries[d.next:]
	if n > 0 {
		if len(rest) == 0 {
			return nil, io.EOF
		}
		rest = rest[:min(n, len(rest))]
	}
	d.next += len(rest)
	return slices.Clone(rest), nil
}
