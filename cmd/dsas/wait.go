package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dsas"
	"dsas/client"
)

// wait follows nodes until a boot newer than the ones they had is ready or has
// failed.
type wait struct {
	nodes map[string]*waited
	order []string
	mark  int64 // only events after this one count
}

type waited struct {
	oldBoot string // its latest boot before the call: events of that say nothing
	phase   dsas.Phase
	why     string // it failed; empty: it did not, or not yet
	done    bool
}

func newWait(views []dsas.NodeView, mark int64) *wait {
	w := &wait{nodes: map[string]*waited{}, mark: mark}
	for _, v := range views {
		w.nodes[v.Node.Name] = &waited{oldBoot: v.Status.Boot, phase: dsas.PhasePower}
		w.order = append(w.order, v.Node.Name)
	}
	return w
}

// checkTimeout refuses what nobody can be waited for in.
func checkTimeout(d time.Duration) error {
	if d <= 0 {
		return usagef("--timeout %s: give a time above 0, as 15m", d)
	}
	return nil
}

// follow reads events until all is decided or timeout has passed; then those
// that are not ready count as failed.
func (w *wait) follow(ctx context.Context, a *app, c *client.Client, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if w.decided() {
		return nil
	}
	for e, err := range c.Stream(limited, w.mark) {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			break
		}
		if err != nil {
			return err
		}
		if line := w.take(e); line != "" && !a.JSON {
			a.printf("%s\n", clean(line))
		}
		if w.decided() {
			return nil
		}
	}
	for _, name := range w.order {
		n := w.nodes[name]
		if n.done {
			continue
		}
		n.done, n.why = true, fmt.Sprintf("not ready within %s; it is in phase %s", timeout, n.phase)
		if !a.JSON {
			a.printf("%s: %s\n", clean(name), n.why)
		}
	}
	return nil
}

// take learns from an event, and says what to show of it.
func (w *wait) take(e dsas.Event) string {
	n := w.nodes[e.Node]
	if n == nil || n.done || e.ID <= w.mark {
		return ""
	}
	// A box that is being cut off may still finish its old boot.
	if e.Boot != "" && e.Boot == n.oldBoot {
		return ""
	}
	was := n.phase
	n.phase = dsas.PhaseAfter(n.phase, e)
	switch e.Kind {
	case dsas.KindReady:
		if e.Boot == "" {
			n.phase = was // of which boot? Not known: it does not count
			return ""
		}
		n.done = true
		return e.Node + ": ready"
	case dsas.KindFailed:
		n.done, n.why = true, e.Message
		if n.why == "" {
			n.why = "failed"
		}
		return e.Node + ": failed: " + e.Message
	case dsas.KindPartBad, dsas.KindLoaderFailed, dsas.KindRefused, dsas.KindWarning, dsas.KindConfError:
		// Loaders and fetches try again: this is not the end yet.
		return e.Node + ": " + string(e.Kind) + ": " + e.Message
	}
	if n.phase != was {
		return e.Node + ": " + string(n.phase)
	}
	return ""
}

func (w *wait) decided() bool {
	for _, n := range w.nodes {
		if !n.done {
			return false
		}
	}
	return true
}

// notReady names the nodes that failed.
func (w *wait) notReady() []string {
	return slices.DeleteFunc(slices.Clone(w.order), func(name string) bool { return w.nodes[name].why == "" })
}
