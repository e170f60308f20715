// Package liveness notices running nodes that went quiet, and that came back.
package liveness

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"dsas"
)

// Store is what a Watch needs of the state.
type Store interface {
	Statuses(ctx context.Context) (map[string]dsas.NodeStatus, error)
	AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error)
}

// Watch says node.lost when a ready node has not been heard for Quiet, and
// node.back when it is heard again.
type Watch struct {
	Store Store
	Log   *slog.Logger
	Quiet time.Duration    // without a sign of life: lost
	Every time.Duration    // how often it looks
	Now   func() time.Time // nil: time.Now
}

// Run looks until ctx ends. A server that was away must not call nodes lost
// for its own absence: the first look comes after Quiet.
func (w *Watch) Run(ctx context.Context) error {
	now := w.Now
	if now == nil {
		now = time.Now
	}
	begin := time.NewTimer(w.Quiet)
	defer begin.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-begin.C:
	}
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for {
		if err := w.Look(ctx, now()); err != nil && ctx.Err() == nil {
			w.Log.Error("look for lost nodes", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Look compares every node's last sign of life with t once.
func (w *Watch) Look(ctx context.Context, t time.Time) error {
	statuses, err := w.Store.Statuses(ctx)
	if err != nil {
		return fmt.Errorf("look for lost nodes: %w", err)
	}
	for name, st := range statuses {
		quiet := t.Sub(st.LastSeen)
		e := dsas.Event{Time: t, Node: name, Boot: st.Boot}
		switch {
		case (st.Phase == dsas.PhaseReady || st.Phase == dsas.PhaseServices) && quiet > w.Quiet:
			e.Kind, e.Message = dsas.KindLost, fmt.Sprintf("nothing heard for %s", quiet.Round(time.Second))
		case st.Phase == dsas.PhaseLost && quiet <= w.Quiet:
			e.Kind, e.Message = dsas.KindBack, "heard again"
		default:
			continue
		}
		if _, err := w.Store.AddEvent(ctx, e); err != nil {
			return fmt.Errorf("look for lost nodes: %w", err)
		}
	}
	return nil
}
