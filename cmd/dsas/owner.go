package main

import (
	"errors"
	"fmt"
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
