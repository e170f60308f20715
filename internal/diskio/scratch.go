package diskio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scratchPrefix begins the names of scratch folders; the letters after it say
// whose it is.
const scratchPrefix = "scratch-"

// ScratchAge is how long a scratch folder stays that nobody uses any more. The
// lock tells that; the age is beside it, for who looks into what a crash left.
const ScratchAge = time.Hour

// Scratch is a folder for one piece of work, which goes with it. Who is killed
// leaves it, and SweepScratch removes it later: it is locked while it is used.
type Scratch struct {
	Dir string
	// Lock, a file in it, is to be passed on to processes that may go on in the
	// folder when this one is killed. It is no way into the folder.
	Lock *os.File
}

// scratchLock is the name of the lock in its folder.
const scratchLock = ".lock"

// NewScratch makes a folder in parent, for its owner alone, that is empty but for
// its lock. what says what it is for, in letters.
func NewScratch(parent, what string) (*Scratch, error) {
	dir, err := os.MkdirTemp(parent, scratchPrefix+what+"-")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, scratchLock), os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			err = fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &Scratch{dir, f}, nil
}

// Remove removes the folder with all below.
func (s *Scratch) Remove() error {
	return errors.Join(os.RemoveAll(s.Dir), s.Lock.Close())
}

// SweepScratch removes the scratch folders in parent that are older than age and
// that nobody uses, and gives their names. A parent that is not there has none.
// One that cannot be removed does not keep the others from it.
func SweepScratch(parent string, age time.Duration) (removed []string, err error) {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		gone, err := sweepOne(filepath.Join(parent, e.Name()), age)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it went meanwhile
			errs = append(errs, err)
		}
		if gone {
			removed = append(removed, e.Name())
		}
	}
	return removed, errors.Join(errs...)
}

func sweepOne(dir string, age time.Duration) (gone bool, err error) {
	// First: one that is being made has no lock yet, and is young.
	fi, err := os.Lstat(dir)
	if err != nil || time.Since(fi.ModTime()) < age {
		return false, err
	}
	f, err := os.OpenFile(filepath.Join(dir, scratchLock), os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // without one it is of who was killed as it began
		return false, err
	}
	if err == nil {
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return false, err
	}
	return true, nil
}
