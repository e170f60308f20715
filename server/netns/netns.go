// Package netns opens sockets inside named network namespaces, those that
// ip-netns(8) knows (/run/netns/NAME). The lab and the tests keep all their
// traffic in such namespaces; the server opens its boot listeners there.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"dsas"
)

// dir is where ip-netns(8) keeps the names.
const dir = "/run/netns"

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// CheckName refuses a name that could not be a plain file name below
// /run/netns.
func CheckName(name string) error {
	if !nameRE.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("network namespace name %q: use letters, digits, dashes and dots, at most 63: %w", name, dsas.ErrInvalid)
	}
	return nil
}

// Exists tells whether the namespace is there.
func Exists(name string) bool {
	if CheckName(name) != nil {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// Create makes the namespace and brings its loopback up. It wants root. An
// existing name gives dsas.ErrConflict.
func Create(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if Exists(name) {
		return fmt.Errorf("create network namespace %s: it exists already (remove it with: ip netns del %s): %w", name, name, dsas.ErrConflict)
	}
	// ip(8) also makes /run/netns a shared mount, so that the name is seen
	// from other mount namespaces.
	if err := ip(ctx, "netns", "add", name); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	if err := ip(ctx, "-n", name, "link", "set", "lo", "up"); err != nil {
		return errors.Join(fmt.Errorf("create network namespace %s: loopback: %w", name, err), Delete(context.WithoutCancel(ctx), name))
	}
	return nil
}

// Delete takes the name away; the namespace and its links go when its last
// process and socket are gone. A name that is not there is no error.
func Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if !Exists(name) {
		return nil
	}
	if err := ip(ctx, "netns", "del", name); err != nil {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Enter moves the calling OS thread into the namespace, for good. The caller
// has locked the thread (runtime.LockOSThread) and never unlocks it, so that
// it ends with its goroutine.
func Enter(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("enter network namespace %s: %w (make it with: ip netns add %s)", name, dsas.ErrNotFound, name)
	}
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w (it needs root or CAP_SYS_ADMIN)", name, err)
	}
	return nil
}

// Do runs fn with its OS thread in the named network namespace and returns
// fn's error. A socket belongs to the namespace in which it was opened, so a
// listener opened by fn stays there when it is used elsewhere later; a
// goroutine that fn starts is not in the namespace. An empty name runs fn
// where the caller is.
func Do(name string, fn func() error) error {
	if name == "" {
		return fn()
	}
	done := make(chan error, 1)
	// A goroutine of its own: if the thread cannot be brought back it must
	// die, and that must not be the caller's.
	go func() {
		err := fmt.Errorf("network namespace %s: the function ended its goroutine", name)
		defer func() { done <- err }()
		runtime.LockOSThread()
		home, herr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if herr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("network namespace %s: open own namespace: %w", name, herr)
			return
		}
		defer func() {
			// Left locked on failure: the runtime then ends the thread
			// instead of giving it, in the wrong namespace, to others.
			if unix.Setns(home, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			unix.Close(home)
		}()
		if eerr := Enter(name); eerr != nil {
			err = eerr
			return
		}
		err = fn()
	}()
	return <-done
}

// Dialer dials from inside a namespace.
type Dialer struct {
	Namespace string // empty: where the process is
	net.Dialer
}

// DialContext dials address, whose host must be an IP address: the host's
// resolver is of no use in another namespace.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if d.Namespace == "" {
		return d.Dialer.DialContext(ctx, network, address)
	}
	if !strings.HasPrefix(network, "unix") {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return nil, fmt.Errorf("dial %s in network namespace %s: give an IP address and a port: %w", address, d.Namespace, dsas.ErrInvalid)
		}
	}
	var c net.Conn
	err := Do(d.Namespace, func() (err error) {
		c, err = d.Dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
