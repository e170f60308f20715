package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/netns"
)

// State is what a lab writes to RunDir/NAME/state.json, for other processes.
type State struct {
	Name    string       `json:"name"`  // also the network namespace
	Owner   ProcID       `json:"owner"` // the lab's own process
	Started time.Time    `json:"started"`
	Address netip.Prefix `json:"address"`
	Dir     string       `json:"dir"`
	TempDir bool         `json:"tempDir,omitempty"`
	Nodes   []NodeState  `json:"nodes"`
	// Forwarding tells of each switch whether it passes packets.
	Forwarding [Switches]bool `json:"forwarding"`
	Alive      bool           `json:"-"` // its process lives; told by ReadState
}

// NodeState is one node in State.
type NodeState struct {
	Name     string     `json:"name"`
	State    string     `json:"state"` // on, off
	MACs     []dsas.MAC `json:"macs"`
	Links    []bool     `json:"links"`
	Firmware Firmware   `json:"firmware"`
	Memory   int        `json:"memory"`        // MiB
	BMC      string     `json:"bmc,omitempty"` // host:port
	Serial   string     `json:"serial"`        // path of the log
	Console  string     `json:"console"`       // path of the socket
	QEMU     *ProcID    `json:"qemu,omitempty"`
	Sim      *ProcID    `json:"sim,omitempty"` // the BMC's process
}

// ProcID names a process for good: numbers are used again, but not with the
// same start time (clock ticks since boot, proc_pid_stat(5) field 22).
type ProcID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func procID(pid int) *ProcID {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The second field is the name in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return nil
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return nil
	}
	return &ProcID{pid, start}
}

func (p *ProcID) alive() bool {
	now := procID(p.PID)
	return now != nil && *now == *p
}

// State gives what the lab is like now.
func (l *Lab) State() State {
	s := State{Name: l.cfg.Name, Owner: *procID(os.Getpid()), Started: l.started, Address: l.cfg.Address, Dir: l.cfg.Dir, TempDir: l.tempDir, Alive: true}
	l.mu.Lock()
	s.Forwarding = l.forwards
	l.mu.Unlock()
	for _, n := range l.Nodes() {
		s.Nodes = append(s.Nodes, n.state())
	}
	return s
}

func (n *Node) state() NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := NodeState{Name: n.spec.Name, State: Off, MACs: n.spec.MACs, Links: append([]bool(nil), n.links...), Firmware: n.spec.Firmware,
		Memory: n.spec.Memory, Serial: n.serialPath(), Console: n.consolePath()}
	if n.bmc != nil {
		s.BMC = n.bmc.addr
		s.Sim = procID(n.bmc.cmd.Process.Pid)
	}
	if n.proc.running() {
		s.State = On
		s.QEMU = procID(n.proc.cmd.Process.Pid)
	}
	return s
}

// save writes the state file.
func (l *Lab) save() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if down {
		return nil // its folder goes
	}
	b, err := json.MarshalIndent(l.State(), "", "\t")
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if err := os.MkdirAll(l.cfg.runDir(), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(statePath(l.cfg.RunDir, l.cfg.Name), b, 0o600)
}

func statePath(runDir, name string) string { return filepath.Join(runDir, name, "state.json") }

// ReadState gives the state of a lab, of this process or another; runDir
// empty: DefaultRunDir. Without such a lab: dsas.ErrNotFound.
func ReadState(runDir, name string) (State, error) {
	cfg, err := Config{Name: name, RunDir: runDir}.withDefaults()
	if err != nil {
		return State{}, err
	}
	var s State
	b, err := os.ReadFile(statePath(cfg.RunDir, cfg.Name))
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("lab %s: %w (start it with: dsas lab up)", cfg.Name, dsas.ErrNotFound)
	}
	if err != nil {
		return s, fmt.Errorf("lab %s: %w", cfg.Name, err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("lab %s: state file: %w", cfg.Name, err)
	}
	for i := range s.Nodes { // a node may have gone off by itself
		if q := s.Nodes[i].QEMU; q != nil && !q.alive() {
			s.Nodes[i].State = Off
		}
	}
	s.Alive = s.Owner.alive()
	return s, nil
}

// List gives the states of all labs below runDir, dead ones too.
func List(runDir string) ([]State, error) {
	cfg, err := Config{RunDir: runDir}.withDefaults()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(statePath(cfg.RunDir, "*"))
	if err != nil {
		return nil, fmt.Errorf("labs in %s: %w", cfg.RunDir, err)
	}
	var all []State
	for _, path := range found {
		s, err := ReadState(cfg.RunDir, filepath.Base(filepath.Dir(path)))
		if errors.Is(err, dsas.ErrNotFound) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// CleanDead cleans every lab below runDir whose process has died.
func CleanDead(ctx context.Context, runDir string, log *slog.Logger) error {
	all, err := List(runDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if s.Alive {
			continue
		}
		if err := Clean(ctx, runDir, s.Name, log); err != nil && !errors.Is(err, dsas.ErrConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lockLab takes the lab's lock, which its process holds as long as it lives,
// however it ends.
func lockLab(cfg Config) (*os.File, error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(cfg.RunDir, cfg.Name+".lock")
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("lab %s is up already, in another process (end it with: dsas lab down): %w", cfg.Name, dsas.ErrConflict)
		}
		// Whoever held it may have removed the file since it was opened.
		var ours, there unix.Stat_t
		if unix.Fstat(int(f.Fd()), &ours) == nil && unix.Stat(path, &there) == nil && ours.Ino == there.Ino {
			return f, nil
		}
		f.Close()
	}
}

func unlockLab(f *os.File) {
	os.Remove(f.Name())
	f.Close()
}

// Clean removes what a lab left whose process has died. A lab that is in use
// gives dsas.ErrConflict; none at all is no error.
func Clean(ctx context.Context, runDir, name string, log *slog.Logger) error {
	cfg, err := Config{Name: name, RunDir: runDir, Log: log}.withDefaults()
	if err != nil {
		return err
	}
	lock, err := lockLab(cfg)
	if err != nil {
		return err
	}
	defer unlockLab(lock)
	return cleanLocked(ctx, cfg.RunDir, cfg.Name, cfg.Log)
}

func cleanLocked(ctx context.Context, runDir, name string, log *slog.Logger) error {
	b, err := os.ReadFile(statePath(runDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean: %w", err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("clean: state file: %w", err)
	}
	log.Info("removing what a dead lab left", "pid", s.Owner.PID)
	for _, n := range s.Nodes {
		for _, p := range []*ProcID{n.QEMU, n.Sim} {
			// They die with their lab; this is for one that could not.
			if p != nil && p.alive() {
				if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("clean: end process %d: %w", p.PID, err)
				}
			}
		}
	}
	errs := []error{netns.Delete(ctx, rackName(name)), netns.Delete(ctx, name)}
	if s.TempDir {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(runDir, name)))...)
}

// Stop ends a lab of another process and waits until it is gone: that process
// is asked by SIGTERM to take it down. What a dead one left is cleaned.
func Stop(ctx context.Context, runDir, name string, log *slog.Logger) error {
	s, err := ReadState(runDir, name)
	if err != nil {
		return err
	}
	if s.Alive && s.Owner.PID == os.Getpid() {
		return fmt.Errorf("lab %s is this process's own: use Down: %w", s.Name, dsas.ErrConflict)
	}
	if s.Alive {
		if err := syscall.Kill(s.Owner.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop lab %s: end process %d: %w", s.Name, s.Owner.PID, err)
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := Clean(ctx, runDir, s.Name, log)
		if !errors.Is(err, dsas.ErrConflict) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("stop lab %s: process %d does not end: %w", s.Name, s.Owner.PID, ctx.Err())
		}
	}
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, dsas.ErrNotFound)
}
