package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// Hold keeps GC from removing anything until release is called: for who relies
// on content that no release refers to yet, and for who reads a release that
// nobody may be using. It asks for no right to write. waiting, which may be nil,
// is called once where a GC that runs has to end first, with who that is as far as
// it can be seen. The only errors are those of the file system, and ctx's.
//
// The server holds nothing, or its nodes would keep GC waiting for ever: what it
// gives out is in use, and a file that is open when it is removed is read to its end.
func (s *Store) Hold(ctx context.Context, waiting func(users []string)) (release func(), err error) {
	return s.lockUse(ctx, unix.LOCK_SH, func(users []string) {
		if waiting != nil {
			waiting(users)
			waiting = nil
		}
	})
}

// lockForGC is lockUse for who removes, within the time that gc gives it.
func (s *Store) lockForGC(ctx context.Context, gc GC) (func(), error) {
	if gc.Wait <= 0 {
		return s.lockUse(ctx, unix.LOCK_EX, gc.Waiting)
	}
	limited, cancel := context.WithTimeout(ctx, gc.Wait)
	defer cancel()
	who := "somebody who cannot be seen from here (fuser -v " + s.dir + " lists who has it open)"
	unlock, err := s.lockUse(limited, unix.LOCK_EX, func(users []string) {
		if len(users) > 0 {
			who = strings.Join(users, ", ")
		}
		gc.Waiting(users)
	})
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("after %s the image store is still used by %s; nothing was removed: run it again when that has ended, or give it longer with --wait: %w", gc.Wait, who, dsas.ErrConflict)
	}
	return unlock, err
}

// lockUse takes the lock that users of content share and GC has alone. It is on
// the store's folder: that is there from the beginning, and flock(2) asks for no
// right to write, so who may only read can share it. waiting gets who else has
// it, at first and when others do.
func (s *Store) lockUse(ctx context.Context, how int, waiting func(users []string)) (func(), error) {
	f, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	var told []string
	for tries := 0; ; tries++ {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock image store %s: %w", s.dir, err)
		}
		// Once is no matter: gcRuns has it for a moment.
		if tries > 0 {
			if users := lockUsers(f); tries == 1 || !slices.Equal(users, told) && len(users) > 0 {
				told = users
				waiting(users)
			}
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock image store %s: %w", s.dir, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// gcRuns tells whether a GC runs, in whatever process, this one too.
func (s *Store) gcRuns() (bool, error) {
	f, err := os.Open(s.dir)
	if err != nil {
		return false, fmt.Errorf("lock image store: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock image store %s: %w", s.dir, err)
	}
	return false, nil
}

// maxCommand is how much of a command line people are shown, in bytes.
const maxCommand = 120

// lockUsers names who has f locked, as "COMMAND LINE (process PID)", by PID. It is
// for people: what cannot be found out, as of other users' processes, is missing.
func lockUsers(f *os.File) (users []string) {
	fi, err := f.Stat()
	if err != nil {
		return nil
	}
	// proc_locks(5). Its device is not stat's on every file system, so the inode's
	// number finds candidates, and their open files tell.
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil
	}
	inode := ":" + strconv.FormatUint(stampOf(fi).inode, 10)
	var pids []int
	for line := range strings.Lines(string(table)) {
		w := strings.Fields(line)
		if len(w) < 6 || w[1] != "FLOCK" || !strings.HasSuffix(w[5], inode) {
			continue // also who waits, whose line has an arrow as its second word
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 && hasOpen(pid, fi) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range slices.Compact(pids) {
		cmd, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil || len(cmd) == 0 {
			continue // it has ended
		}
		said := string(bytes.ReplaceAll(bytes.TrimRight(cmd, "\x00"), []byte{0}, []byte{' '}))
		if len(said) > maxCommand {
			said = strings.ToValidUTF8(said[:maxCommand], "") + "..."
		}
		users = append(users, fmt.Sprintf("%s (process %d)", said, pid))
	}
	return users
}

func hasOpen(pid int, fi os.FileInfo) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, _ := os.ReadDir(dir)
	for _, fd := range fds {
		if at, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(at, fi) {
			return true
		}
	}
	return false
}
