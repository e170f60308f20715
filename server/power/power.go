// Package power drives the BMCs of nodes by IPMI 2.0: on, off, cycle, reset,
// status. Whatever makes a box boot is preceded by telling the BMC that its
// next boot is PXE.
package power

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dsas"
)

// What can go wrong with a BMC, beside dsas.ErrInvalid for a node without one.
var (
	// ErrNoAnswer: nothing came back in time, or nobody listens there.
	ErrNoAnswer = errors.New("no answer")
	// ErrCredentials: the BMC does not take the user or the password.
	ErrCredentials = errors.New("wrong user or password")
	// ErrRefused: the BMC answered, and will not do it.
	ErrRefused = errors.New("refused")
)

// The power states, as Power gives them.
const (
	On  = "on"
	Off = "off"
)

// Actions lists what Power can be asked to do.
func Actions() []string { return []string{"on", "off", "cycle", "reset", "status"} }

const (
	actionTimeout = 15 * time.Second // of one action, all told
	pollInterval  = 500 * time.Millisecond
	// A box is off during a cycle for the BMC's power cycle interval, often
	// only a second; when it has been seen on for this long after the
	// command, the gap has been missed.
	cycleSettle = 4 * time.Second
	ipmiPort    = 623 // "asf-rmcp" (IPMI 2.0, section 13.1.2)
)

// Driver drives BMCs. It is safe for use by several goroutines; what it is
// asked of one BMC happens one after the other, since many BMCs have only a
// few sessions and do one thing at a time.
type Driver struct {
	password func(ctx context.Context, node string) (string, error)
	log      *slog.Logger

	mu   sync.Mutex
	bmcs map[string]*target // by address
}

// target is what is remembered of a BMC.
type target struct {
	busy  chan struct{} // holds one element while an action runs
	suite suite         // the cipher suite that worked, guarded by busy; 0: unknown
}

// New makes a driver that asks password for a node's BMC password whenever it
// needs it, and keeps none.
func New(password func(ctx context.Context, node string) (string, error), log *slog.Logger) *Driver {
	return &Driver{password: password, log: log, bmcs: map[string]*target{}}
}

// Power does action (see Actions) and gives the state afterwards, "on" or
// "off". It takes at most 15 s. An error wraps one of this package's, or
// dsas.ErrInvalid; it names the node and its BMC and holds no password.
func (d *Driver) Power(ctx context.Context, node dsas.Node, action string) (state string, err error) {
	if !slices.Contains(Actions(), action) {
		return "", fmt.Errorf("power %q: use one of %s: %w", action, strings.Join(Actions(), ", "), dsas.ErrInvalid)
	}
	if node.BMC == nil || node.BMC.Address == "" {
		return "", fmt.Errorf("power %s of node %s: it has no BMC; give it one with: dsas node set %s --bmc ipmi://USER@ADDR: %w", action, node.Name, node.Name, dsas.ErrInvalid)
	}
	if node.BMC.Kind != "ipmi" {
		return "", fmt.Errorf("power %s of node %s: BMC kind %q: use ipmi: %w", action, node.Name, node.BMC.Kind, dsas.ErrInvalid)
	}
	host, port, err := splitAddress(node.BMC.Address)
	if err != nil {
		return "", fmt.Errorf("power %s of node %s: %w", action, node.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("power %s of node %s, BMC %s: %w", action, node.Name, node.BMC.Address, err)
	}
	t := d.target(net.JoinHostPort(host, strconv.Itoa(port)))
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return fail(fmt.Errorf("another action is still running there: %w", ctx.Err()))
	}
	password, err := d.password(ctx, node.Name)
	if err != nil {
		return fail(fmt.Errorf("get its password: %w", err))
	}
	s, err := t.connect(ctx, host, port, node.BMC.User, password)
	if err != nil {
		return fail(err)
	}
	defer s.close(ctx)
	s.log = d.log.With("node", node.Name, "bmc", node.BMC.Address)
	if state, err = s.do(ctx, action); err != nil {
		return fail(err)
	}
	if action != "status" {
		s.log.Info("power", "action", action, "state", state)
	}
	return state, nil
}

func (d *Driver) target(address string) *target {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.bmcs[address]
	if t == nil {
		t = &target{busy: make(chan struct{}, 1)}
		d.bmcs[address] = t
	}
	return t
}

// splitAddress reads host, host:port, an IPv6 address, or [IPv6]:port.
func splitAddress(s string) (host string, port int, err error) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || h == "" {
			return "", 0, fmt.Errorf("BMC address %q: write it as host or host:port: %w", s, dsas.ErrInvalid)
		}
		return h, int(n), nil
	}
	host = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if host == "" || strings.ContainsAny(host, " /[]") || (strings.Contains(host, ":") && net.ParseIP(host) == nil) {
		return "", 0, fmt.Errorf("BMC address %q: write it as host or host:port: %w", s, dsas.ErrInvalid)
	}
	return host, ipmiPort, nil
}

// do runs an action in a session.
func (s *session) do(ctx context.Context, action string) (string, error) {
	state, err := s.status(ctx)
	if err != nil || action == "status" || action == state {
		return state, err
	}
	switch {
	case action == "off":
		if err := s.control(ctx, powerDown); err != nil {
			return "", err
		}
		return s.wait(ctx, Off)
	case action == "reset" && state == Off:
		return "", fmt.Errorf("%w: the box is off, and cannot be reset; switch it on", ErrRefused)
	}
	if err := s.nextBootPXE(ctx); err != nil {
		return "", err
	}
	switch {
	case action == "reset":
		if err := s.control(ctx, hardReset); err != nil {
			return "", err
		}
		return On, nil
	case state == Off: // on, or a cycle of a box that is off
		if err := s.control(ctx, powerUp); err != nil {
			return "", err
		}
		return s.wait(ctx, On)
	}
	err = s.control(ctx, powerCycle)
	if errors.Is(err, ErrRefused) {
		// Power cycle is optional for a BMC (IPMI 2.0, section 28.3).
		s.log.Debug("BMC has no power cycle; off and on instead", "error", err)
		if err := s.control(ctx, powerDown); err != nil {
			return "", err
		}
		if _, err := s.wait(ctx, Off); err != nil {
			return "", err
		}
		if err := s.control(ctx, powerUp); err != nil {
			return "", err
		}
		return s.wait(ctx, On)
	}
	if err != nil {
		return "", err
	}
	return s.waitCycle(ctx)
}

// wait waits until the box is as wanted: a BMC does what it accepted later.
func (s *session) wait(ctx context.Context, want string) (string, error) {
	return s.poll(ctx, want, func(state string) bool { return state == want })
}

// waitCycle waits until the box has been off and is on again.
func (s *session) waitCycle(ctx context.Context) (string, error) {
	wasOff, start := false, time.Now()
	return s.poll(ctx, On, func(state string) bool {
		wasOff = wasOff || state == Off
		return state == On && (wasOff || time.Since(start) > cycleSettle)
	})
}

func (s *session) poll(ctx context.Context, want string, done func(state string) bool) (string, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		state, err := s.status(ctx)
		if err != nil {
			return "", err
		}
		if done(state) {
			return state, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("accepted, but the box is still %s and not %s: %w", state, want, ctx.Err())
		}
	}
}
