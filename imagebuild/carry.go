package imagebuild

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dsas"
)

// LeftOut tells whether a path of a tree (no leading slash) is no part of an
// image, or only without its content.
func LeftOut(name string, dir bool) bool { return imageRule(name, dir) != keep }

// ShellOptions say what Shell runs.
type ShellOptions struct {
	Root    string   // folder with the tree
	Command []string // in the tree; the first is looked up in its PATH
	Network bool     // the machine's own; else there is none
	// Lock stays open as long as something runs in the tree; nil: nothing does.
	Lock *os.File

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// shellScript enters a tree as the first process of its own mounts, processes
// and, without network, network: all it mounts or starts ends with it.
const shellScript = `
root=$1 resolv=$2; shift 2
mount -t proc proc /proc
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755,size=64m tmpfs "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/run/lock"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
if [ "$resolv" ]; then
	# On top of what is there, and gone with these mounts: no change.
	rm -f "$root/etc/resolv.conf"
	: >"$root/etc/resolv.conf"
	mount --bind "$resolv" "$root/etc/resolv.conf"
else
	ip link set lo up 2>/dev/null || :
fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec chroot "$root" "$@"
`

// Shell runs a command in a tree that opt.Cache holds, with namespaces of its
// own, on the terminal it is given. It needs root. The error is an
// *exec.ExitError where the command's own status is not 0.
func Shell(ctx context.Context, opt Options, s ShellOptions) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("enter a role's tree: it needs root: run it with sudo: %w", dsas.ErrDenied)
	}
	if len(s.Command) == 0 {
		return fmt.Errorf("enter a role's tree: no command: %w", dsas.ErrInvalid)
	}
	resolv := ""
	if s.Network {
		var err error
		if resolv, err = filepath.EvalSymlinks("/etc/resolv.conf"); err != nil {
			return fmt.Errorf("enter a role's tree with network: %w", err)
		}
	}
	// It may take a person hours: builds go on meanwhile, so the cache's lock is
	// not held, and what isolate passes on is the folder's.
	opt.lock = s.Lock
	cmd := command(ctx, "sh", append([]string{"-ec", shellScript, "edit", s.Root, resolv}, s.Command...)...)
	isolate(&opt, cmd, s.Network)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	if tty, ok := s.Stdin.(*os.File); ok && isTerminal(tty) {
		// The terminal's foreground, so that an interrupt is for what runs in the
		// tree. A shell in process numbers of its own cannot give it back to us.
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(tty.Fd())
		defer takeTerminal(tty)
	}
	return runCmd(cmd)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// takeTerminal puts this process into the terminal's foreground. It fails where
// the terminal is gone, and then there is nothing to take.
func takeTerminal(tty *os.File) {
	// Who is in the background is stopped for it, unless it ignores that (tcsetpgrp(3)).
	signal.Ignore(unix.SIGTTOU)
	defer signal.Reset(unix.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
}
