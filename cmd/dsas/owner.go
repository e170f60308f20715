package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"dsas"
)

// checkOwner refuses the state of another user: what a server that root starts
// by hand writes there, the service could not read later.
func checkOwner(dir string) error {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(dir, "dsas.db"), &st)
	if errors.Is(err, unix.ENOENT) || err == nil && int(st.Uid) == os.Geteuid() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state folder %s: %w", dir, err)
	}
	owner := userName(int(st.Uid))
	return fmt.Errorf("state folder %s belongs to user %s, and this is %s: start the server as a service (systemctl start dsas), or by `runuser -u %s -- dsas serve`: %w",
		dir, owner, userName(os.Geteuid()), owner, dsas.ErrConflict)
}

// userName gives a user's name, or the number where it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// owner is whose the state is.
type owner struct{ uid, gid int }

// stateOwner gives the user that the server runs as: the owner of the state
// there is, else the package's user, else ourselves.
func stateOwner(state string) (owner, error) {
	if os.Geteuid() != 0 {
		return owner{os.Geteuid(), os.Getegid()}, nil
	}
	for _, p := range []string{filepath.Join(state, "dsas.db"), state} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err == nil {
			return owner{int(st.Uid), int(st.Gid)}, nil
		} else if !errors.Is(err, unix.ENOENT) {
			return owner{}, fmt.Errorf("%s: %w", p, err)
		}
	}
	u, err := user.Lookup("dsas")
	if err != nil {
		return owner{}, nil // root: no service of its own was installed
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return owner{uid, gid}, errors.Join(err1, err2)
}

// makeState makes the state folder for its owner, where there is none.
func makeState(dir string, o owner) error {
	err := os.Mkdir(dir, 0o750)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chown(dir, o.uid, o.gid)
}

// ownerAndMode looks at a file, if it is one.
func ownerAndMode(path string) (st unix.Stat_t, ok bool) {
	err := unix.Lstat(path, &st)
	return st, err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}
