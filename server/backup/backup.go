// Package backup writes a server's state into one file and reads it back.
//
// The file is a tar, compressed with zstd and, where asked for, encrypted with
// age. Its first entry is the Manifest, with the digest of every other; then
// come the files below "state", "etc", "roles", "keys" and "images". It holds the key
// that opens the database's secrets: whoever has the file has all of them.
package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/internal/diskio"
)

// Format is the version of the file's layout.
const Format = 1

// manifestName is the first entry of the tar.
const manifestName = "dsas-backup.json"

// Bounds on what is read back.
const (
	maxManifest = 16 << 20 // bytes
	maxFiles    = 100_000
)

// File is one file of a backup.
type File struct {
	Name   string      `json:"name"` // "state/key", with slashes
	Size   int64       `json:"size"` // bytes
	Mode   os.FileMode `json:"mode"`
	Digest dsas.Digest `json:"digest"`
	// Link is where a symbolic link leads; it has no content. Role definitions
	// have them, nothing else.
	Link string `json:"link,omitempty"`

	source string // where it lies while a backup is written
}

// Manifest says what a backup holds.
type Manifest struct {
	Format  int       `json:"format"`
	Version string    `json:"version"` // of the program
	Schema  int       `json:"schema"`  // of the database
	Created time.Time `json:"created"`
	Host    string    `json:"host"`
	Config  string    `json:"config"` // path of etc/dsas.yaml
	// Releases are those of the image store, whether they are in the backup or not.
	Releases   []dsas.Release `json:"releases"`
	WithImages bool           `json:"withImages"`
	Files      []File         `json:"files"`
}

// Add notes the file at path under a name; a file that is not there is left
// out, which is no error.
func (m *Manifest) Add(name, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", path, dsas.ErrInvalid)
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	m.Files = append(m.Files, File{Name: name, Size: n, Mode: st.Mode().Perm(), Digest: digestOf(h.Sum(nil)), source: path})
	return nil
}

// AddTree notes all files and symbolic links below dir, which may itself be a
// link; what is neither those nor a folder is given to skipped.
func (m *Manifest) AddTree(name, dir string, skipped func(path string)) error {
	if to, err := filepath.EvalSymlinks(dir); err == nil {
		dir = to
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		case !e.Type().IsRegular() && e.Type() != os.ModeSymlink:
			skipped(path)
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		rel = name + "/" + filepath.ToSlash(rel)
		if e.Type().IsRegular() {
			return m.Add(rel, path)
		}
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, File{Name: rel, Mode: 0o777, Link: to, Digest: digestOf(sha256.New().Sum(nil))})
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// AddBlob notes content that has its digest for a name, so that it need not be
// read twice.
func (m *Manifest) AddBlob(name, path string, d dsas.Digest, size int64) {
	m.Files = append(m.Files, File{Name: name, Size: size, Mode: 0o644, Digest: d, source: path})
}

// Total gives the bytes of all files.
func (m *Manifest) Total() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// File gives the named file's entry.
func (m *Manifest) File(name string) (File, bool) {
	for _, f := range m.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// WriteFile writes m and its files to path, mode 0600: the whole of it, on
// disk, or nothing. Until it is whole it has no name where the file system can
// do that (open(2), O_TMPFILE). With recipients it is encrypted.
func WriteFile(ctx context.Context, path string, m Manifest, recipients []age.Recipient) error {
	// The rename at the end would put a file in the place of /dev/null or of the
	// link /dev/stdout as well as of an older backup.
	if st, err := os.Lstat(path); err == nil && st.IsDir() {
		return fmt.Errorf("write backup: %s is a folder; name a file in it: %w", path, dsas.ErrInvalid)
	} else if err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("write backup: %s is no file but a link or a device, and is left alone; name a file: %w", path, dsas.ErrInvalid)
	}
	dir := filepath.Dir(path)
	f, named, err := unnamed(dir)
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	defer f.Close()
	if named {
		defer os.Remove(f.Name()) // fails after the rename, as it should
	}
	if err := write(ctx, f, m, recipients); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	tmp := f.Name()
	if !named {
		tmp = filepath.Join(dir, fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, tmp, unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return fmt.Errorf("write backup: name it %s: %w", tmp, err)
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write backup: %w", err)
	}
	return diskio.SyncDir(dir)
}

// unnamed opens a file in dir that vanishes with this process, or, where the
// file system has none of these, one with a temporary name.
func unnamed(dir string) (f *os.File, named bool, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), false, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, false, &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	f, err = os.CreateTemp(dir, ".dsas-backup-*")
	return f, true, err
}

func write(ctx context.Context, out io.Writer, m Manifest, recipients []age.Recipient) error {
	m.Format = Format
	closers := []io.Closer{}
	if len(recipients) > 0 {
		enc, err := age.Encrypt(out, recipients...)
		if err != nil {
			return fmt.Errorf("encrypt: %w", err)
		}
		closers, out = append(closers, enc), enc
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	closers = append(closers, z, t)
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := putHeader(t, File{Name: manifestName, Size: int64(len(b)), Mode: 0o600}, m.Created); err != nil {
		return err
	}
	if _, err := t.Write(b); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := writeOne(ctx, t, f, m.Created); err != nil {
			return err
		}
	}
	for i := len(closers) - 1; i >= 0; i-- {
		if err := closers[i].Close(); err != nil {
			return err
		}
	}
	return nil
}

func putHeader(t *tar.Writer, f File, at time.Time) error {
	return t.WriteHeader(&tar.Header{Typeflag: f.typeflag(), Linkname: f.Link, Name: f.Name, Size: f.Size, Mode: int64(f.Mode.Perm()), ModTime: at, Format: tar.FormatPAX})
}

// writeOne writes a file, and fails where it is not what the manifest says: it
// was changed meanwhile, or is damaged.
func writeOne(ctx context.Context, t *tar.Writer, f File, at time.Time) error {
	if f.Link != "" {
		return putHeader(t, f, at)
	}
	in, err := os.Open(f.source)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := putHeader(t, f, at); err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, h), io.LimitReader(diskio.Reader(ctx, in), f.Size))
	if err != nil {
		return fmt.Errorf("%s: %w", f.source, err)
	}
	if n != f.Size || digestOf(h.Sum(nil)) != f.Digest {
		return fmt.Errorf("%s is not what its digest says: it was changed just now, or is damaged; try again, and build the image anew if it is one: %w", f.source, dsas.ErrConflict)
	}
	return nil
}

func digestOf(sum []byte) dsas.Digest { return dsas.Digest("sha256:" + hex.EncodeToString(sum)) }

func (f *File) typeflag() byte {
	if f.Link != "" {
		return tar.TypeSymlink
	}
	return tar.TypeReg
}

// checkLinks refuses links where no backup of ours has them, and files that
// would be put through one.
func checkLinks(files []File) error {
	links := map[string]bool{}
	for _, f := range files {
		if f.Link == "" {
			continue
		}
		if !strings.HasPrefix(f.Name, "roles/") || f.Size != 0 {
			return fmt.Errorf("file %q in the backup: not a link that a backup has: %w", f.Name, dsas.ErrInvalid)
		}
		links[f.Name] = true
	}
	for _, f := range files {
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if links[dir] {
				return fmt.Errorf("file %q in the backup is below a link: %w", f.Name, dsas.ErrInvalid)
			}
		}
	}
	return nil
}

// checkName refuses a name that could lead out of a folder, or that no backup
// of ours has.
func checkName(name string) error {
	top, _, ok := strings.Cut(name, "/")
	if !ok || !filepath.IsLocal(name) || filepath.Clean(name) != name ||
		top != "state" && top != "etc" && top != "roles" && top != "keys" && top != "images" {
		return fmt.Errorf("file %q in the backup: not a name that a backup has: %w", name, dsas.ErrInvalid)
	}
	return nil
}
