package transfer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dsas"
)

// isCompressed tells names that people give to tars they think of as compressed:
// no folder is meant.
func isCompressed(name string) bool {
	for _, end := range []string{".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// file writes a file anew, and only whole.
func (ex Export) file(dest string, write func(io.Writer) error) error {
	dest, err := ex.place(dest)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if fi, err := os.Stat(dest); err == nil { // who may read what it replaces may read it
		mode = fi.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(dest), ".dsas-export-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	defer f.Close()
	if err := errors.Join(write(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if ex.Force {
		return os.Rename(f.Name(), dest)
	}
	return renameNew(f.Name(), dest)
}

// errThere is what an export ends with rather than replace a file.
var errThere = fmt.Errorf("the file is there already, and is left as it is; name another, or give --force to replace it: %w", dsas.ErrConflict)

// place gives where a file is to be written, before the work is done. What is no
// file, as a device, is replaced in no case; behind a link it is the link's target.
func (ex Export) place(dest string) (string, error) {
	fi, err := os.Lstat(dest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(dest)); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("there is no folder %s: %w", filepath.Dir(dest), dsas.ErrNotFound)
		}
		return dest, nil
	case err != nil:
		return "", err
	}
	if fi.Mode().Type() == fs.ModeSymlink {
		if fi, err = os.Stat(dest); err != nil {
			return "", fmt.Errorf("a link that leads nowhere is there: %w", err)
		}
		if fi.Mode().IsRegular() {
			if dest, err = filepath.EvalSymlinks(dest); err != nil {
				return "", err
			}
		}
	}
	switch {
	case fi.IsDir():
		return "", fmt.Errorf("it is a folder; name the file in it: %w", dsas.ErrConflict)
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("it is no file; name one: %w", dsas.ErrConflict)
	case !ex.Force:
		return "", errThere
	}
	return dest, nil
}

// renameNew is os.Rename where nothing is there, also not since place looked.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return errThere
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a file system that cannot, as NFS
		return linkNew(from, to)
	}
	return err
}

// linkNew is renameNew by a second name, and then the first one goes: link(2)
// replaces nothing on any file system.
func linkNew(from, to string) error {
	err := os.Link(from, to)
	if errors.Is(err, fs.ErrExist) {
		return errThere
	}
	if err != nil {
		return fmt.Errorf("give it its name without replacing a file (--force renames it): %w", err)
	}
	return os.Remove(from)
}

// whole says of what an image names and has not that it is missing, in the
// place of the name of a file that nobody knows.
func whole(err error, what string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return cut(what + " is not in it")
	}
	return err
}

// cut is the error of what is there in part.
func cut(why string) error {
	return invalid("%s: it was cut, or not copied to its end; export or copy it again", why)
}

// endsEarly tells the errors of a file that was cut. The library that reads
// docker's archives has but words for what it does not find in one.
func endsEarly(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "not found in tar")
}
