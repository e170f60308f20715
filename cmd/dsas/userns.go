package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"

	"dsas"
)

// inNamespace is set for a dsas that runs as root of its own user namespace.
const inNamespace = "DSAS_IN_USERNS"

// asRoot sees to it that the command runs as root: as it is, or once more in a
// user namespace where this user is root and its subordinate ids are the other
// users (user_namespaces(7), subuid(5)). In the second case it does not return.
func (a *app) asRoot() error {
	if os.Geteuid() == 0 || os.Getenv(inNamespace) != "" || a.stdout != os.Stdout { // the last: a test, not a process
		return nil
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		if !hasRange(name, me) {
			return fmt.Errorf("user %s has no range in %s, so that packages could be installed without root; run it with sudo, or once: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s: %w",
				me.Username, name, me.Username, dsas.ErrDenied)
		}
	}
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed, so that packages could be installed without root; run it with sudo, or install it: apt-get install uidmap: %w", program, dsas.ErrDenied)
		}
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("run without root: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("run without root: %w", err)
	}
	argv := append([]string{"unshare", "--user", "--map-root-user", "--map-auto", "--", self}, a.args...)
	return fmt.Errorf("run without root: unshare: %w", syscall.Exec(unshare, argv, append(os.Environ(), inNamespace+"=1")))
}

// hasRange tells whether subuid(5) gives the user ids.
func hasRange(name string, u *user.User) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		who, _, ok := strings.Cut(lines.Text(), ":")
		if ok && (who == u.Username || who == u.Uid) {
			return true
		}
	}
	return false
}
