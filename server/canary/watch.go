package canary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dsas"
)

// Store is what a Watch needs of the state.
type Store interface {
	AllPublished() []dsas.Published
	Publish(ctx context.Context, role string, change func(*dsas.Published) ([]dsas.Event, error)) (dsas.Published, error)
	Nodes(ctx context.Context) ([]dsas.Node, error)
	Statuses(ctx context.Context) (map[string]dsas.NodeStatus, error)
	// Trials gives the boots of role with a release since then, in their order.
	Trials(ctx context.Context, role string, release dsas.Digest, since time.Time) ([]dsas.Trial, error)
	AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error)
	// Subscribe gives events as they come.
	Subscribe() (events <-chan dsas.Event, cancel func())
}

// Watch ends canaries, by the events of their nodes and by the time. Everything
// is in the state: what happened while no Watch ran is seen by its first look.
type Watch struct {
	Store   Store
	Log     *slog.Logger
	Release func(id dsas.Digest) (*dsas.Release, error) // dsas.ErrNotFound: it is gone
	// Role gives the role as that release has it.
	Role func(name string, release dsas.Digest) (dsas.Role, error)
	// Power power-cycles a node, within a time of its own.
	Power func(ctx context.Context, n dsas.Node) error
	Up    time.Time        // when the server began to listen
	Now   func() time.Time // nil: time.Now
}

// lookEvery bounds how late a look comes where an event was not heard, and
// when a node that only seemed to boot is heard again.
const lookEvery = 10 * time.Second

// settle is how long after an event it is looked: a rack's events come together.
const settle = 100 * time.Millisecond

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	events, cancel := w.Store.Subscribe()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				events = nil // the state closes; so will ctx
			} else if soon := time.Now().Add(settle); matters(e.Kind) && soon.Before(due) {
				due = soon
				timer.Reset(settle)
			}
			continue
		case <-timer.C:
		}
		next, err := w.Look(ctx)
		if err != nil && ctx.Err() == nil {
			w.Log.Error("canary", "err", err)
		}
		due = time.Now().Add(lookEvery)
		if !next.IsZero() && next.Before(due) {
			due = next
		}
		timer.Reset(max(time.Until(due), settle))
	}
}

// matters tells whether an event of this kind can change a decision.
func matters(k dsas.Kind) bool {
	switch k {
	case dsas.KindScript, dsas.KindReady, dsas.KindFailed, dsas.KindPartBad, dsas.KindAssigned, dsas.KindChanged,
		dsas.KindCanary, dsas.KindRolledBack:
		return true
	}
	return false
}

// Look decides about every canary once, and says when the next boot is late.
func (w *Watch) Look(ctx context.Context) (next time.Time, err error) {
	var errs []error
	for _, p := range w.Store.AllPublished() {
		if p.Canary != nil {
			at, err := w.one(ctx, p)
			if err != nil {
				errs = append(errs, fmt.Errorf("canary of role %s: %w", p.Role, err))
			}
			if next.IsZero() || !at.IsZero() && at.Before(next) {
				next = at
			}
		}
	}
	// What was just rolled back is in it.
	for _, p := range w.Store.AllPublished() {
		if len(p.Cycle) > 0 {
			if err := w.cycle(ctx, p); err != nil {
				errs = append(errs, fmt.Errorf("canary of role %s: %w", p.Role, err))
			}
		}
	}
	return next, errors.Join(errs...)
}

func (w *Watch) now() time.Time {
	if w.Now != nil {
		return w.Now()
	}
	return time.Now()
}

// one decides about one role's canary.
func (w *Watch) one(ctx context.Context, p dsas.Published) (time.Time, error) {
	s := State{Published: p, Limit: dsas.DefaultBootTime, Nodes: map[string]dsas.Node{}, Up: w.Up, Now: w.now()}
	_, err := w.Release(p.Canary.Release)
	if s.Gone = errors.Is(err, dsas.ErrNotFound); err != nil && !s.Gone {
		return time.Time{}, err
	}
	if role, err := w.Role(p.Role, p.Canary.Release); err == nil { // without its definition: the default
		s.Limit = role.BootTime.Or(dsas.DefaultBootTime)
	}
	nodes, err := w.Store.Nodes(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, n := range nodes {
		s.Nodes[n.Name] = n
	}
	// The boots before the statuses: a boot that is not seen yet is seen next
	// time; a sign of life that is not seen could make it count.
	if s.Trials, err = w.Store.Trials(ctx, p.Role, p.Canary.Release, p.Canary.Since); err != nil {
		return time.Time{}, err
	}
	if s.Status, err = w.Store.Statuses(ctx); err != nil {
		return time.Time{}, err
	}
	d := Decide(s)
	if !d.changes() {
		return d.Next, nil
	}
	_, err = w.Store.Publish(ctx, p.Role, func(now *dsas.Published) ([]dsas.Event, error) {
		events, ok := d.Apply(now, p.Canary, s.Now, w.name)
		if !ok {
			return nil, errOther
		}
		return events, nil
	})
	if errors.Is(err, errOther) {
		return time.Time{}, nil
	}
	if err == nil && d.Outcome != Wait {
		w.Log.Info("canary", "role", p.Role, "release", w.name(p.Canary.Release), "promoted", d.Outcome == Promote, "node", d.Node, "why", d.Why)
	}
	return d.Next, err
}

// errOther: an operator was faster.
var errOther = errors.New("another canary runs")

func (w *Watch) name(id dsas.Digest) string {
	if r, err := w.Release(id); err == nil {
		return r.Name()
	}
	return id.Short()
}

// cyclesAtOnce bounds how many BMCs are spoken to at a time.
const cyclesAtOnce = 16

// cycle power-cycles the nodes that a roll-back left with the bad release, each
// once; where the server ends in the middle, maybe twice.
func (w *Watch) cycle(ctx context.Context, p dsas.Published) error {
	nodes, err := w.Store.Nodes(ctx)
	if err != nil {
		return err
	}
	slots := make(chan struct{}, cyclesAtOnce)
	var wg sync.WaitGroup
	for _, n := range nodes {
		// A role or pin of another is the operator's newer word.
		if !slices.Contains(p.Cycle, n.Name) || n.Role != p.Role {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			e := dsas.Event{Node: n.Name, Kind: dsas.KindPower, Message: dsas.PowerCycle, Detail: "after its canary was rolled back"}
			if err := w.Power(ctx, n); err != nil {
				e = dsas.Event{Node: n.Name, Kind: dsas.KindWarning, Message: "power cycle failed, after its canary was rolled back: it keeps the bad release until it boots", Detail: err.Error()}
			}
			if ctx.Err() != nil {
				return // it is done again after the restart
			}
			if _, err := w.Store.AddEvent(ctx, e); err != nil {
				w.Log.Error("canary", "node", n.Name, "err", err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err = w.Store.Publish(ctx, p.Role, func(now *dsas.Published) ([]dsas.Event, error) {
		now.Cycle = slices.DeleteFunc(slices.Clone(now.Cycle), func(n string) bool { return slices.Contains(p.Cycle, n) })
		return nil, nil
	})
	return err
}
