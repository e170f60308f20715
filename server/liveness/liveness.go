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

// Watch says node.lost when a node whose services run has not been heard for
// Quiet, and node.back when it is heard again.
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
		e := dsas.Event{Time: t, Node: name, Boot: st.Boot}
		switch {
		case w.lost(st, t):
			e.Kind, e.Message = dsas.KindLost, fmt.Sprintf("nothing heard for %s", t.Sub(st.LastSeen).Round(time.Second))
		case w.back(st, t):
			e.Kind, e.Message = dsas.KindBack, "heard again"
			if st.Phase != dsas.PhaseLost {
				e.Message = fmt.Sprintf("still heard, though it is in phase %s since %s", st.Phase, st.Since.Format(time.TimeOnly))
			}
		default:
			continue
		}
		if _, err := w.Store.AddEvent(ctx, e); err != nil {
			return fmt.Errorf("look for lost nodes: %w", err)
		}
	}
	return nil
}

func (w *Watch) lost(st dsas.NodeStatus, t time.Time) bool {
	return (st.Phase == dsas.PhaseReady || st.Phase == dsas.PhaseServices) && t.Sub(st.LastSeen) > w.Quiet
}

// back tells whether a node that was lost is heard again, or one that should be
// off or on its way to a kernel, and signs nothing then, still is after a while:
// the power command did not reach it, or somebody else asked for its script.
func (w *Watch) back(st dsas.NodeStatus, t time.Time) bool {
	if t.Sub(st.LastSeen) > w.Quiet {
		return false
	}
	switch st.Phase {
	case dsas.PhaseLost:
		return true
	case dsas.PhaseFailed:
		// Its loader failed, and yet it serves.
		return st.Serving != "" && st.LastSeen.Sub(st.Since) > w.Quiet
	case dsas.PhaseOff, dsas.PhasePower, dsas.PhaseDHCP, dsas.PhaseLoader, dsas.PhaseKernel:
		return st.LastSeen.Sub(st.Since) > w.Quiet
	}
	return false
}
