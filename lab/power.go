package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"dsas"
)

// The states of a node.
const (
	On  = "on"
	Off = "off"
)

// State tells whether the node is on.
func (n *Node) State() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc.running() {
		return On
	}
	return Off
}

// current gives the running process, or nil.
func (n *Node) current() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc.running() {
		return n.proc
	}
	return nil
}

// PowerOn starts the node; one that is on stays as it is.
func (n *Node) PowerOn(ctx context.Context) error {
	n.power.Lock()
	defer n.power.Unlock()
	return n.powerOn(ctx)
}

// PowerOff stops the node: hard as when the plug is pulled, otherwise by the
// power button, and waits until it is off or ctx ends.
func (n *Node) PowerOff(ctx context.Context, hard bool) error {
	n.power.Lock()
	defer n.power.Unlock()
	return n.powerOff(ctx, hard)
}

// Cycle takes the node's power away and gives it back. One that is off is
// switched on.
func (n *Node) Cycle(ctx context.Context) error {
	n.power.Lock()
	defer n.power.Unlock()
	if err := n.powerOff(ctx, true); err != nil {
		return err
	}
	return n.powerOn(ctx)
}

// Reset presses the reset button; a node that is off gives dsas.ErrConflict.
func (n *Node) Reset(ctx context.Context) error {
	n.power.Lock()
	defer n.power.Unlock()
	p := n.current()
	if p == nil {
		return fmt.Errorf("reset node %s: it is off: %w", n.spec.Name, dsas.ErrConflict)
	}
	return n.wrap("reset", p.qmp.do(ctx, "system_reset", nil, nil))
}

func (n *Node) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s node %s: %w", what, n.spec.Name, err)
}

func (n *Node) powerOn(ctx context.Context) error {
	if n.current() != nil {
		return nil
	}
	if err := n.start(ctx); err != nil {
		return n.wrap("power on", err)
	}
	return n.wrap("power on", n.lab.save())
}

func (n *Node) start(ctx context.Context) error {
	n.lab.mu.Lock()
	down := n.lab.down
	n.lab.mu.Unlock()
	if down {
		return errClosed
	}
	if err := n.lab.checkMemory(n.spec.Memory); err != nil {
		return err
	}
	if n.spec.Firmware != BIOS {
		// Fresh each time: OVMF keeps boot entries, and what one boot wrote
		// would change the next.
		_, vars := n.spec.Firmware.ovmf()
		b, err := os.ReadFile(vars)
		if err != nil {
			return fmt.Errorf("UEFI firmware: %w (apt-get install ovmf)", err)
		}
		if err := os.WriteFile(n.varsPath(), b, 0o644); err != nil {
			return err
		}
	}
	os.Remove(n.qmpPath()) // left behind by a QEMU that was killed
	os.Remove(n.consolePath())
	n.mu.Lock()
	n.starts++
	from, err := n.logMark()
	n.logFrom = from
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("serial log: %w", err)
	}
	errlog, err := os.OpenFile(n.qemuLog(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer errlog.Close()
	cmd := exec.Command("qemu-system-x86_64", n.qemuArgs()...)
	cmd.Stdout, cmd.Stderr = errlog, errlog
	if err := n.lab.rack.start(cmd); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		close(p.done)
		if err != nil && !p.killed.Load() {
			said, _ := os.ReadFile(n.qemuLog())
			n.lab.log.Warn("QEMU died", "node", n.spec.Name, "error", err, "stderr", tail(said, 500))
			return
		}
		n.lab.log.Debug("QEMU ended", "node", n.spec.Name)
	}()
	if err := n.release(ctx, p); err != nil {
		p.killed.Store(true)
		cmd.Process.Kill()
		<-p.done
		said, _ := os.ReadFile(n.qemuLog())
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(tail(said, 2000)))
	}
	if n.spec.Firmware != BIOS {
		go n.retryUEFI(p, from)
	}
	n.lab.log.Info("node on", "node", n.spec.Name, "pid", cmd.Process.Pid)
	return nil
}

// release connects to the monitor, sets the links as wanted and lets the
// stopped CPU go.
func (n *Node) release(ctx context.Context, p *process) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p.qmp, err = dialQMP(ctx, n.qmpPath(), p.done, func(event string) {
		// RESET, SHUTDOWN, WATCHDOG tell what the box did by itself.
		n.lab.log.Debug("QEMU event", "node", n.spec.Name, "event", event)
	})
	if err != nil {
		return err
	}
	// With the lock held, so that a SetLink is either seen here or finds
	// the process.
	n.mu.Lock()
	defer n.mu.Unlock()
	for port, up := range n.links {
		if !up {
			if err := setLink(ctx, p.qmp, port, false); err != nil {
				return err
			}
		}
	}
	if err := p.qmp.do(ctx, "cont", nil, nil); err != nil {
		return err
	}
	n.proc = p
	return nil
}

func (n *Node) powerOff(ctx context.Context, hard bool) error {
	p := n.current()
	if p == nil {
		return nil
	}
	if hard {
		// SIGKILL cannot be put off, so the wait is short.
		p.killed.Store(true)
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return n.wrap("power off", err)
		}
		<-p.done
	} else {
		if err := p.qmp.do(ctx, "system_powerdown", nil, nil); err != nil {
			return n.wrap("power off", err)
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return n.wrap("power off", fmt.Errorf("it does not go off by its power button: %w", ctx.Err()))
		}
	}
	p.qmp.close()
	n.lab.log.Info("node off", "node", n.spec.Name)
	return n.wrap("power off", n.lab.save())
}

// retryUEFI resets a box whose firmware has given up on the network and sits
// in its shell, so that it tries for ever as the BIOS ones do
// (reboot-timeout): OVMF has no such setting.
func (n *Node) retryUEFI(p *process, offset int64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-p.done; cancel() }()
	shell := regexp.MustCompile(`starting Boot[0-9A-F]{4} "EFI Internal Shell"`)
	for {
		if _, err := n.waitSerial(ctx, offset, shell, time.Second); err != nil {
			return // it is off
		}
		offset = n.SerialSize()
		n.lab.log.Info("firmware found nothing to boot; reset", "node", n.spec.Name)
		if err := p.qmp.do(ctx, "system_reset", nil, nil); err != nil && ctx.Err() == nil {
			n.lab.log.Warn("reset", "node", n.spec.Name, "error", err)
			return
		}
	}
}

// SetLink pulls or plugs the cable of a port, as the node sees it; it holds
// over power cycles.
func (n *Node) SetLink(ctx context.Context, port int, up bool) error {
	if port < 0 || port >= len(n.spec.MACs) {
		return fmt.Errorf("link of node %s: port %d: it has %d, from 0: %w", n.spec.Name, port, len(n.spec.MACs), dsas.ErrInvalid)
	}
	n.mu.Lock()
	n.links[port] = up
	var err error
	if n.proc.running() {
		err = setLink(ctx, n.proc.qmp, port, up)
	}
	n.mu.Unlock()
	if err != nil {
		return n.wrap("link of", err)
	}
	n.lab.log.Info("link", "node", n.spec.Name, "port", port, "up", up)
	return n.lab.save()
}

func setLink(ctx context.Context, q *qmp, port int, up bool) error {
	return q.do(ctx, "set_link", map[string]any{"name": fmt.Sprintf("nic%d", port), "up": up}, nil)
}

// checkMemory refuses to start a node that the machine has no memory for:
// what is free, less what the running nodes were promised and have not taken
// yet, less the reserve.
func (l *Lab) checkMemory(want int) error {
	free, err := memAvailable()
	if err != nil {
		return fmt.Errorf("free memory: %w", err)
	}
	promised := 0
	for _, n := range l.Nodes() {
		if p := n.current(); p != nil {
			if rss, err := residentMiB(p.cmd.Process.Pid); err == nil {
				promised += max(0, n.spec.Memory-rss)
			}
		}
	}
	if left := free - promised - l.cfg.Reserve; left < want {
		return fmt.Errorf("memory: a node of %d MiB does not fit: %d MiB are free, %d of them promised to running nodes and %d kept in reserve; stop a node or give nodes less memory",
			want, free, promised, l.cfg.Reserve)
	}
	return nil
}
