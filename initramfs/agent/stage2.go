package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/client"
	"dsas/initramfs/netcfg"
	"dsas/initramfs/service"
)

// servicesDir is where an image has its services.
const servicesDir = "/etc/dsas/services"

// node is a running node: PID 1 in the role's root.
type node struct {
	con   *Console
	log   *slog.Logger
	st    *state
	api   *client.Node
	out   *client.Outbox
	sup   *service.Supervisor
	alive *Watchdog
}

// stage2 runs until the operator ends the system.
func stage2(ctx context.Context, con *Console, log *slog.Logger) error {
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	st, err := loadState(statePath)
	if err != nil {
		return err
	}
	n := &node{con: con, log: log, st: st, api: client.RestoreNode(st.Node), alive: NewWatchdog(90 * time.Second)}
	n.out = client.NewOutbox(n.api, log)
	var box client.OutboxState
	if err := json.Unmarshal(st.Outbox, &box); err == nil {
		n.out.Restore(box)
	}
	n.event(dsas.Event{Kind: dsas.KindSwitched, Message: "role " + st.Config.Role.Name})
	var how int
	err = recovered(func() (err error) { how, err = n.run(ctx); return err })
	if err != nil {
		n.event(dsas.Event{Kind: dsas.KindFailed, Message: err.Error(), Detail: con.Tail()})
	}
	n.flush(ctx)
	n.leaveDisks()
	if err != nil {
		return err
	}
	con.Say("ending: %s", map[bool]string{true: "power off", false: "reboot"}[how == unix.LINUX_REBOOT_CMD_POWER_OFF])
	return reboot(how)
}

// flush gives the last events a moment to reach the server.
func (n *node) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := n.out.Flush(ctx); err != nil {
		n.con.Say("%v", err)
	}
}

func (n *node) event(e dsas.Event) {
	if e.Message != "" {
		n.con.Say("%s: %s", e.Kind, e.Message)
	}
	n.out.Add(e)
}

// run keeps everything going until a signal says how to end.
func (n *node) run(ctx context.Context) (how int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR)
	// Ctrl-Alt-Del becomes SIGINT to PID 1 instead of an instant reset.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)

	reaper := service.NewReaper(n.log)
	n.sup, err = service.New(service.Options{
		Dir: servicesDir, Services: n.st.Config.Role.Services, Env: n.st.Env, Log: n.log, Reaper: reaper,
		Events: n.serviceEvent,
	})
	if err != nil {
		return 0, err
	}
	supCtx, stopSup := context.WithCancel(ctx)
	defer stopSup()
	supervised := make(chan error, 1)
	go func() { supervised <- recovered(func() error { return n.sup.Run(supCtx) }) }()
	loops := map[string]func(context.Context){
		"reaper": func(ctx context.Context) { reaper.Run(ctx) }, "events": func(ctx context.Context) { n.out.Run(ctx) },
		"heartbeats": n.heartbeats, "files": n.followFiles, "bond": n.watchBond, "ready": n.reportReady,
	}
	if n.consoleLogin() {
		loops["console log-in"] = n.gettys
	}
	for name, loop := range loops {
		go n.guard(ctx, name, loop)
	}
	// Not ended with ctx: it guards the way down too.
	go n.feed(context.WithoutCancel(ctx))
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.alive.Alive()
		case s := <-sig:
			n.con.Say("%s: stopping services", s)
			stopSup()
			n.awaitStop(supervised)
			if s == unix.SIGUSR2 || s == unix.SIGUSR1 || s == unix.SIGPWR {
				return unix.LINUX_REBOOT_CMD_POWER_OFF, nil
			}
			return unix.LINUX_REBOOT_CMD_RESTART, nil
		case err := <-supervised:
			return 0, fmt.Errorf("the supervisor ended by itself: %v", err)
		}
	}
}

// guard runs one of the node's loops again when it panics: a slip in what
// follows a bond must not take the database with it.
func (n *node) guard(ctx context.Context, name string, loop func(context.Context)) {
	for ctx.Err() == nil {
		err := recovered(func() error { loop(ctx); return nil })
		if err == nil {
			return
		}
		n.event(dsas.Event{Kind: dsas.KindWarning, Message: name + ": " + err.Error()})
		sleep(ctx, 5*time.Second)
	}
}

// awaitStop waits until the services have stopped, for as long as they may
// take together; a process that cannot even be killed holds up no reboot.
func (n *node) awaitStop(supervised <-chan error) {
	limit := time.Minute
	for _, s := range n.st.Config.Role.Services {
		limit += s.Stop.Or(10*time.Second) + 30*time.Second
	}
	deadline := time.After(limit)
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-supervised:
			return
		case <-tick.C:
			n.alive.Alive() // stopping a database may take longer than the watchdog's patience
		case <-deadline:
			n.con.Say("services do not stop within %s; going on without them", limit)
			return
		}
	}
}

// serviceEvent passes on what the supervisor says.
func (n *node) serviceEvent(e service.Event) {
	n.event(dsas.Event{Time: e.Time, Kind: dsas.KindService, Message: e.String(), Duration: e.Took, Detail: e.Tail})
	if e.State == service.Failed {
		n.event(dsas.Event{Kind: dsas.KindFailed, Message: e.String(), Detail: e.Tail})
	}
}

// reportReady says ready once every service's check has passed.
func (n *node) reportReady(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-n.sup.Ready():
		if e, ok := inventory(inventoryPath); ok {
			n.event(e)
		}
		n.event(dsas.Event{Kind: dsas.KindReady, Duration: uptime(),
			Message: fmt.Sprintf("role %s: %d services healthy, %.1f s after the kernel's start", n.st.Config.Role.Name, len(n.st.Config.Role.Services), uptime().Seconds())})
	}
}

func (n *node) heartbeats(ctx context.Context) {
	every := max(n.st.Config.Heartbeat, time.Second)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := n.api.Heartbeat(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("heartbeat", "err", err) // the server may be away: no matter
		}
	}
}

// watchBond reports which port carries the traffic, when that changes.
func (n *node) watchBond(ctx context.Context) {
	if n.st.Bond == "" {
		return
	}
	changes, err := netcfg.Watch(ctx, n.st.Bond)
	if err != nil {
		n.event(dsas.Event{Kind: dsas.KindWarning, Message: "watch " + n.st.Bond + ": " + err.Error()})
		return
	}
	for c := range changes {
		n.event(dsas.Event{Kind: dsas.KindLink, Message: fmt.Sprintf("%s: active port %s (was %s)", n.st.Bond, orNone(c.New), orNone(c.Old))})
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (n *node) feed(ctx context.Context) {
	if _, err := n.alive.Run(ctx, "/dev/watchdog", func(s string) { n.con.Say("%s", s) }); err != nil {
		n.event(dsas.Event{Kind: dsas.KindWarning, Message: err.Error()})
	}
}

// leaveDisks ends whatever still runs (log-in shells, what they started) and
// unmounts the disks, so that they are clean at the next boot. A dead disk may
// block for ever: then the reboot goes on without it.
func (n *node) leaveDisks() {
	if len(n.st.Mounts) == 0 {
		return
	}
	n.alive.Alive()
	unix.Kill(-1, unix.SIGTERM) // PID 1 is spared (kill(2))
	time.Sleep(2 * time.Second)
	unix.Kill(-1, unix.SIGKILL)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, m := range slices.Backward(n.st.Mounts) {
			n.leave(m)
		}
		unix.Sync()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		n.con.Say("the disks do not answer; going on without them")
	}
}

func (n *node) leave(mount string) {
	var err error
	for range 50 { // killed processes take a moment to let go
		if err = unix.Unmount(mount, 0); err == nil || errors.Is(err, unix.EINVAL) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	if roErr := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); roErr != nil {
		n.con.Say("unmount %s: %v; read-only: %v", mount, err, roErr)
	}
}

// consoleLogin puts the operators' password hash into shadow(5), where they
// set one; without it nobody logs in on a console.
func (n *node) consoleLogin() bool {
	const given = "/etc/dsas/console-password"
	hash, err := os.ReadFile(given)
	if err != nil {
		return false
	}
	os.Remove(given)
	if err := setRootPassword("/etc/shadow", strings.TrimSpace(string(hash))); err != nil {
		n.event(dsas.Event{Kind: dsas.KindWarning, Message: "console log-in: " + err.Error()})
		return false
	}
	return true
}

func setRootPassword(shadow, hash string) error {
	if !strings.HasPrefix(hash, "$") || strings.ContainsAny(hash, ":\n") {
		return fmt.Errorf("the configured password hash is not one of crypt(5): %w", dsas.ErrInvalid)
	}
	b, err := os.ReadFile(shadow)
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if f := strings.Split(l, ":"); f[0] == "root" && len(f) > 2 {
			f[1] = hash
			lines[i] = strings.Join(f, ":")
		}
	}
	return os.WriteFile(shadow, []byte(strings.Join(lines, "\n")), 0o640)
}

// gettys offers a log-in on the consoles, for as long as the node runs.
func (n *node) gettys(ctx context.Context) {
	for tty, args := range map[string][]string{
		"ttyS0": {"--local-line", "115200", "ttyS0", "vt220"}, // no modem: carrier is not waited for
		"tty1":  {"tty1", "linux"},
	} {
		if _, err := os.Stat("/dev/" + tty); err != nil {
			continue
		}
		go func() {
			for ctx.Err() == nil {
				cmd := exec.CommandContext(ctx, "/sbin/agetty", append([]string{"--noclear"}, args...)...)
				cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
				if err := cmd.Run(); err != nil {
					sleep(ctx, 5*time.Second)
				}
			}
		}()
	}
}
