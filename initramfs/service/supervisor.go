// Package service supervises a role's services inside PID 1, the daemontools
// way: a folder per service with run and, where they exist, log/run, finish
// and check; restarts with back-off, health checks, an order by readiness.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"dsas"
)

// State is where a service is.
type State string

// The states.
const (
	Waiting  State = "waiting"  // for the services it comes after
	Starting State = "starting" // runs and is not healthy yet, or is about to be started again
	Healthy  State = "healthy"
	Ill      State = "ill"     // was healthy; its check fails, or it does not come back
	Stopped  State = "stopped" // by an operator, or because the node goes down
	Failed   State = "failed"  // not healthy for the first time within its timeout; still tried
)

// Event is one change of a service's state, or its end while it starts.
type Event struct {
	Time    time.Time
	Service string
	From    State
	State   State
	Reason  string        // why, for people
	Tail    string        // the end of its output, up to 4 KiB, where something went wrong
	Took    time.Duration // to Healthy: since it was started
}

// String is one line for people: "nginx healthy: after 1.2s".
func (e Event) String() string {
	if e.Reason == "" {
		return e.Service + " " + string(e.State)
	}
	return e.Service + " " + string(e.State) + ": " + e.Reason
}

// Status is a service as it is now.
type Status struct {
	Name   string    `json:"name"`
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	PID    int       `json:"pid,omitempty"` // of run; 0: none
	Starts int       `json:"starts"`        // of run, so far
	Down   bool      `json:"down,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Tail   string    `json:"tail,omitempty"`
}

// Times are the supervisor's waits; zero values mean the defaults.
type Times struct {
	Backoff    time.Duration // before the first restart, 1 s; doubles
	MaxBackoff time.Duration // 30 s
	Steady     time.Duration // healthy for so long: the back-off begins anew; 60 s
	Settle     time.Duration // without a check: healthy when it has run for so long; 1 s
	CheckFast  time.Duration // between checks until healthy, 2 s
	CheckSlow  time.Duration // between checks from then on, 10 s; a check's Interval replaces it
	CheckTime  time.Duration // a check's own limit, 5 s; a check's Timeout replaces it
	First      time.Duration // to become healthy, 120 s; a service's Timeout replaces it
	Stop       time.Duration // from TERM to KILL, 10 s
	Finish     time.Duration // for finish and for a reload command, 30 s
}

func (t Times) withDefaults() Times {
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{
		{&t.Backoff, time.Second}, {&t.MaxBackoff, 30 * time.Second}, {&t.Steady, time.Minute}, {&t.Settle, time.Second},
		{&t.CheckFast, 2 * time.Second}, {&t.CheckSlow, 10 * time.Second}, {&t.CheckTime, 5 * time.Second},
		{&t.First, 120 * time.Second}, {&t.Stop, 10 * time.Second}, {&t.Finish, 30 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.def
		}
	}
	return t
}

// Options say what a Supervisor supervises.
type Options struct {
	Dir      string // of the services' folders; default /etc/dsas/services
	Services []dsas.Service
	// Env is added to PATH, HOME and DSAS_SERVICE: a service does not see the
	// init's own, which the kernel fills from its command line.
	Env []string
	// LogDir has NAME/current for services without a log/run; default
	// /var/log/dsas.
	LogDir string
	// Socket is where Control reaches Run; default SocketPath.
	Socket string
	Log    *slog.Logger
	// Events hears of each change, one at a time and in order. A slow one
	// holds up the next event only.
	Events func(Event)
	Reaper *Reaper // the one that PID 1 runs; nil where there is none
	Times  Times
}

// Supervisor keeps services running.
type Supervisor struct {
	o     Options
	units []*unit // in the order of Options
	ready chan struct{}

	mu     sync.Mutex
	events []Event
	wake   chan struct{} // an event is there; capacity 1
}

// New checks names and order. What is missing in a service's folder is no
// error here: it fails on its own, and the others run.
func New(o Options) (*Supervisor, error) {
	if o.Dir == "" {
		o.Dir = "/etc/dsas/services"
	}
	if o.LogDir == "" {
		o.LogDir = "/var/log/dsas"
	}
	if o.Socket == "" {
		o.Socket = SocketPath
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Times = o.Times.withDefaults()
	s := &Supervisor{o: o, ready: make(chan struct{}), wake: make(chan struct{}, 1)}
	for _, def := range o.Services {
		if def.Name == "" || strings.ContainsAny(def.Name, "/\x00") || strings.HasPrefix(def.Name, ".") {
			return nil, fmt.Errorf("services: %q cannot be a folder's name: %w", def.Name, dsas.ErrInvalid)
		}
		if s.unit(def.Name) != nil {
			return nil, fmt.Errorf("services: %s is there twice: %w", def.Name, dsas.ErrInvalid)
		}
		s.units = append(s.units, newUnit(s, def, filepath.Join(o.Dir, def.Name)))
	}
	for _, u := range s.units {
		for _, name := range u.def.After {
			before := s.unit(name)
			if before == nil {
				return nil, fmt.Errorf("services: %s is to come after %s, which the role does not have: %w", u.def.Name, name, dsas.ErrInvalid)
			}
			u.after = append(u.after, before)
			before.dependents = append(before.dependents, u)
		}
	}
	for _, u := range s.units {
		if way := u.circle(nil); way != nil {
			return nil, fmt.Errorf("services: each waits for the next: %s: %w", strings.Join(way, " → "), dsas.ErrInvalid)
		}
	}
	return s, nil
}

// circle finds a way along After from u back to u.
func (u *unit) circle(way []*unit) []string {
	if i := slices.Index(way, u); i >= 0 {
		var names []string
		for _, w := range append(way[i:], u) {
			names = append(names, w.def.Name)
		}
		return names
	}
	for _, a := range u.after {
		if names := a.circle(append(slices.Clip(way), u)); names != nil {
			return names
		}
	}
	return nil
}

func (s *Supervisor) unit(name string) *unit {
	for _, u := range s.units {
		if u.def.Name == name {
			return u
		}
	}
	return nil
}

// Run starts all services, each when those it comes after have been healthy,
// and keeps them running until ctx ends. Then it stops them, dependents first,
// and returns nil when the last has ended.
func (s *Supervisor) Run(ctx context.Context) error {
	var control, running sync.WaitGroup
	controlCtx, endControl := context.WithCancel(context.WithoutCancel(ctx))
	defer endControl()
	control.Go(func() {
		if err := s.serve(controlCtx); err != nil {
			s.o.Log.Warn("services cannot be controlled by hand", "err", err)
		}
	})
	for _, u := range s.units {
		// A unit ends when its dependents have, not when ctx does.
		unitCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		running.Go(func() {
			defer stop()
			<-ctx.Done()
			for _, d := range u.dependents {
				<-d.done
			}
		})
		running.Go(func() {
			defer close(u.done)
			u.run(unitCtx)
		})
	}
	if len(s.units) == 0 {
		s.events = append(s.events, Event{}) // nothing to wait for
		s.wake <- struct{}{}
	}
	ended := make(chan struct{})
	go func() { running.Wait(); <-ctx.Done(); close(ended) }()
	for {
		select {
		case <-s.wake:
			s.dispatch()
		case <-ended:
			s.dispatch()
			endControl()
			control.Wait()
			return nil
		}
	}
}

// Ready is closed when all services have been healthy at the same time.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// Status gives all services in the role's order.
func (s *Supervisor) Status() []Status {
	out := make([]Status, 0, len(s.units))
	for _, u := range s.units {
		out = append(out, u.status())
	}
	return out
}

func (s *Supervisor) emit(e Event) {
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// dispatch hands events on. Ready comes after the event that made it so.
func (s *Supervisor) dispatch() {
	s.mu.Lock()
	events := s.events
	s.events = nil
	s.mu.Unlock()
	for _, e := range events {
		if e.Service == "" {
			continue
		}
		s.o.Log.Info("service", "service", e.Service, "state", e.State, "reason", e.Reason)
		if s.o.Events != nil {
			s.o.Events(e)
		}
	}
	select {
	case <-s.ready:
		return
	default:
	}
	for _, u := range s.units {
		if u.status().State != Healthy {
			return
		}
	}
	close(s.ready)
}
