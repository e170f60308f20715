package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"dsas"
)

// powerAtOnce bounds how many BMCs are spoken to at the same time.
const powerAtOnce = 8

// power does one action on many nodes. It answers 200 with a result per node,
// errors included, once the request itself is right.
func (a *api) power(r *http.Request) (answer, error) {
	ctx := r.Context()
	req, err := decode[dsas.PowerRequest](r)
	if err != nil {
		return answer{}, err
	}
	if !slices.Contains([]string{dsas.PowerOn, dsas.PowerOff, dsas.PowerCycle, dsas.PowerStatus}, req.Action) {
		return answer{}, fmt.Errorf("power action %q: use on, off, cycle or status: %w", req.Action, dsas.ErrInvalid)
	}
	if len(req.Nodes) == 0 || len(req.Nodes) > maxPerCall {
		return answer{}, fmt.Errorf("power %s: %d nodes; name from 1 to %d: %w", req.Action, len(req.Nodes), maxPerCall, dsas.ErrInvalid)
	}
	if a.Power == nil {
		return answer{}, fmt.Errorf("power %s: this server drives no power: %w", req.Action, dsas.ErrInvalid)
	}
	// All names are looked up before anything is switched.
	known, err := a.Store.Nodes(ctx)
	if err != nil {
		return answer{}, err
	}
	byName := make(map[string]dsas.Node, len(known))
	for _, n := range known {
		byName[n.Name] = n
	}
	var nodes []dsas.Node
	for _, name := range req.Nodes {
		n, ok := byName[name]
		if !ok {
			return answer{}, fmt.Errorf("node %s: %w", name, dsas.ErrNotFound)
		}
		if !slices.ContainsFunc(nodes, func(o dsas.Node) bool { return o.Name == name }) {
			nodes = append(nodes, n)
		}
	}
	if dryRun(r) {
		results := make([]dsas.PowerResult, len(nodes))
		for i, n := range nodes {
			results[i].Node = n.Name
		}
		return answer{body: results}, nil
	}
	return answer{body: a.powerAll(ctx, nodes, req.Action)}, nil
}

func (a *api) powerAll(ctx context.Context, nodes []dsas.Node, action string) []dsas.PowerResult {
	results := make([]dsas.PowerResult, len(nodes))
	slots := make(chan struct{}, powerAtOnce)
	var wg sync.WaitGroup
	for i, n := range nodes {
		results[i].Node = n.Name
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			// A caller who has gone stops what has not begun; an exchange with
			// a BMC is not left in the middle.
			if err := ctx.Err(); err != nil {
				results[i].Error = "not done: the request was cancelled"
				return
			}
			state, err := a.powerOne(context.WithoutCancel(ctx), n, action)
			results[i].State = state
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	return results
}

func (a *api) powerOne(ctx context.Context, n dsas.Node, action string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.PowerTime)
	defer cancel()
	if action == dsas.PowerOn {
		// Switching on what is on changes nothing, and must not make a ready
		// node look as if it were booting.
		if state, err := a.Power.Power(ctx, n, dsas.PowerStatus); err == nil && state == dsas.PowerOn {
			return state, nil
		}
	}
	state, err := a.Power.Power(ctx, n, action)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("node %s: no answer from its BMC within %s: %w", n.Name, a.PowerTime.Round(time.Millisecond), err)
	}
	if action == dsas.PowerStatus {
		return state, err
	}
	by := "by " + a.Who(ctx)
	if err != nil {
		// Nothing is known to have changed: the phase must not either, since a
		// node that serves would leave its sites.
		a.event(ctx, dsas.Event{Node: n.Name, Kind: dsas.KindWarning, Message: fmt.Sprintf("power %s failed, %s", action, by), Detail: err.Error()})
		return state, err
	}
	// The message is the bare action: the phase is derived from it.
	a.event(ctx, dsas.Event{Node: n.Name, Kind: dsas.KindPower, Message: action, Detail: by})
	return state, nil
}
