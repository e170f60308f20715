package imagebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// maxOutput bounds what is kept of a program's output, in bytes: its end,
// where the reason of a failure stands.
const maxOutput = 64 << 10

// tail keeps the last maxOutput bytes written to it.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.b.Write(p)
	if n := t.b.Len() - maxOutput; n > maxOutput {
		t.b.Next(n)
	}
	return len(p), nil
}

// lastLines gives the last n lines that say something.
func (t *tail) lastLines(n int) string {
	lines := strings.FieldsFunc(t.b.String(), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// command prepares a program that dies with this process: a killed build must
// not leave an apt behind that holds locks.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// isolate gives cmd mounts and processes of its own, which end with it in
// whatever way it ends: no mount and no daemon that a package starts can leak.
// Without net it also has no network. It keeps the cache's lock open, so that
// after a kill the next build waits for the last of its processes.
func isolate(opt *Options, cmd *exec.Cmd, net bool) {
	cmd.ExtraFiles = append(cmd.ExtraFiles, opt.lock)
	flags := uintptr(syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS)
	if !net {
		flags |= syscall.CLONE_NEWNET
	}
	cmd.SysProcAttr.Cloneflags = flags
	// Unshareflags, not Cloneflags: only then the os/exec package makes the
	// mounts private, too.
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
}

// run runs cmd and gives its standard output. An error has the end of what the
// program said.
func run(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	var said tail
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &said
	if err := runCmd(cmd); err != nil {
		if said.b.Len() == 0 {
			said.Write(out.Bytes())
		}
		return "", explain(cmd, err, &said)
	}
	return out.String(), nil
}

// runAll is run for a program that says the reason of a failure anywhere.
func runAll(cmd *exec.Cmd) error {
	var said tail
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := runCmd(cmd); err != nil {
		return explain(cmd, err, &said)
	}
	return nil
}

// runCmd keeps to one thread: Pdeathsig is sent when the thread that started
// the child ends, not the process (prctl(2)).
func runCmd(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

func explain(cmd *exec.Cmd, err error, said *tail) error {
	name := cmd.Args[0]
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed: install the Debian package that has it (mmdebstrap, zstd, apt, dpkg, kmod, xz-utils): %w", name, err)
	}
	if lines := said.lastLines(15); lines != "" {
		return fmt.Errorf("%s: %w:\n\t%s", name, err, lines)
	}
	return fmt.Errorf("%s: %w", name, err)
}
