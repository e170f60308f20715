// Package agent is the order of a node's boot. It is one program in two
// stages: in the initramfs it brings the network up, takes the node config,
// fetches the image and obeys /etc/dsas.conf (stage1.go, apply.go); then it
// becomes PID 1 of the role's root, where it supervises the services and tells
// the server how they are (stage2.go).
package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"dsas/initramfs/service"
)

// initPath is where the init lives from switch_root on.
const initPath = runDir + "/init"

// Main is the program. As PID 1 it does not return; by other names and with
// arguments it is the operators' tool on a node.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := filepath.Base(args[0])
	switch {
	case os.Getpid() == 1 && len(args) > 1 && args[1] == "stage2":
		return pid1(ctx, stage2)
	case os.Getpid() == 1:
		return pid1(ctx, stage1)
	case name == "svc":
		return service.Control(ctx, args[1:], stdout)
	case len(args) > 1 && args[1] == "svc":
		return service.Control(ctx, args[2:], stdout)
	case name == "reboot":
		return unix.Kill(1, unix.SIGTERM)
	case name == "poweroff" || name == "halt" || name == "shutdown":
		return unix.Kill(1, unix.SIGUSR2)
	}
	return fmt.Errorf("dsas-init is a node's PID 1; on a node use: svc status | svc restart NAME | reboot | poweroff")
}

// giveUpWait is how long a node whose boot failed shows why before it tries
// again from the firmware on: nobody needs to walk there, and a server that is
// away is not hammered.
const giveUpWait = 60 * time.Second

// pid1 runs a stage for ever: its failure is shown, and the box reboots. PID 1
// must not end, since the kernel would panic (which panic=30 turns into a
// reboot too, but without a word of why).
func pid1(ctx context.Context, stage func(context.Context, *Console, *slog.Logger) error) error {
	mountErr := mountBasics() // first: the console is below /dev
	c := OpenConsole()
	if mountErr != nil {
		c.Say("%v", mountErr)
	}
	log := slog.New(slog.NewTextHandler(consoleWriter{c}, &slog.HandlerOptions{
		Level: slog.LevelWarn, // what is worth a line is said as an event
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{} // the kernel log has one
			}
			return a
		},
	}))
	// Go's default ends the program at these, and PID 1's end is a panic; HUP
	// is an old habit towards an init. Nobody reads them (Ignore would be
	// inherited by the services).
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGABRT)
	err := recovered(func() error { return stage(ctx, c, log) })
	if err != nil {
		c.Say("FAILED: %v", err)
		if wantsShell() {
			rescueShell(ctx, c)
		}
		c.Say("rebooting in %s", giveUpWait)
		time.Sleep(giveUpWait)
	}
	return reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// recovered makes an error of a panic: PID 1 has nobody to catch it.
func recovered(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

type consoleWriter struct{ c *Console }

// Write implements io.Writer: one log record, one line.
func (w consoleWriter) Write(b []byte) (int, error) {
	w.c.Say("%s", trimNewline(b))
	return len(b), nil
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}
