package agent

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// shellParameter on the kernel command line gives a shell on the console when
// a boot fails, instead of the next try. It is off unless the operator puts it
// there (cmdline: in dsas.yaml): who stands before a console would be root.
const shellParameter = "dsas.shell"

func wantsShell() bool {
	b, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(b)), shellParameter)
}

// rescueShell is u-root's gosh with u-root's commands, on the console, until
// the operator leaves it.
func rescueShell(ctx context.Context, c *Console) {
	c.Say("rescue shell: u-root's commands are in /bbin; leave it with exit, and the box boots again")
	tty, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		c.Say("rescue shell: %v", err)
		return
	}
	defer tty.Close()
	cmd := exec.CommandContext(ctx, "/bin/sh")
	cmd.Env = []string{"PATH=/bbin:/bin:/usr/sbin:/usr/bin:/sbin", "HOME=/", "TERM=linux"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Run(); err != nil {
		c.Say("rescue shell: %v", err)
	}
}
