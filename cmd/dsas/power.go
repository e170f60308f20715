package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dsas"
	"dsas/client"
)

type powerCmd struct {
	On     powerOnCmd     `cmd:"" help:"Switch nodes on."`
	Off    powerOffCmd    `cmd:"" help:"Switch nodes off, hard."`
	Cycle  powerCycleCmd  `cmd:"" help:"Boot nodes anew from the network; one that is off is switched on."`
	Status powerStatusCmd `cmd:"" help:"Ask for the nodes' power state."`
}

// powerNodes is what the power commands share.
type powerNodes struct {
	Nodes []string `arg:"" help:"Nodes, as w101 or w[101-140]."`
}

type powerOnCmd struct {
	powerNodes
	DryRun bool `help:"Only say what would be done."`
}

type powerOffCmd struct {
	powerNodes
	DryRun bool `help:"Only say what would be done."`
}

type powerStatusCmd struct{ powerNodes }

type powerCycleCmd struct {
	powerNodes
	DryRun  bool          `help:"Only say what would be done."`
	Wait    string        `help:"Wait until the nodes' new boots are ready." enum:",ready" default:"" placeholder:"ready"`
	Timeout time.Duration `help:"How long to wait." default:"15m"`
}

func (*powerCycleCmd) Help() string {
	return `With --wait ready, the exit status is 3 when a node failed or was not ready in
time.

Examples:

    dsas power cycle w102
    dsas power cycle w[101-140] --wait ready --timeout 5m`
}

func (cmd *powerOnCmd) Run(ctx context.Context, a *app) error {
	return powerNow(ctx, a, dsas.PowerOn, cmd.Nodes, cmd.DryRun, powerRun{})
}

func (cmd *powerOffCmd) Run(ctx context.Context, a *app) error {
	return powerNow(ctx, a, dsas.PowerOff, cmd.Nodes, cmd.DryRun, powerRun{})
}

func (cmd *powerStatusCmd) Run(ctx context.Context, a *app) error {
	return powerNow(ctx, a, dsas.PowerStatus, cmd.Nodes, false, powerRun{})
}

func (cmd *powerCycleCmd) Run(ctx context.Context, a *app) error {
	if err := checkTimeout(cmd.Timeout); err != nil {
		return err
	}
	return powerNow(ctx, a, dsas.PowerCycle, cmd.Nodes, cmd.DryRun, powerRun{wait: cmd.Wait != "", timeout: cmd.Timeout})
}

func powerNow(ctx context.Context, a *app, action string, patterns []string, dry bool, p powerRun) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	p.action = action
	if p.views, err = a.nodes(ctx, c, patterns); err != nil {
		return err
	}
	if dry {
		return a.done(namesOf(p.views), "would get power "+action)
	}
	// From here on events count for the boots that this call makes.
	if p.mark, err = c.LastEvent(ctx); err != nil {
		return err
	}
	return p.run(ctx, a, c)
}

// powerRun is one action on nodes and, maybe, the wait for their new boots.
type powerRun struct {
	action  string
	views   []dsas.NodeView // as they were before the action
	wait    bool
	timeout time.Duration
	mark    int64 // ID of the last event before the action
}

// powerOutcome is what is printed as JSON for one node.
type powerOutcome struct {
	dsas.PowerResult
	Phase dsas.Phase `json:"phase,omitempty"` // of the boot that was waited for
}

func (p *powerRun) run(ctx context.Context, a *app, c *client.Client) error {
	results, err := c.Power(ctx, p.action, namesOf(p.views), false)
	if err != nil {
		return err
	}
	var bad []string
	waitFor := p.views[:0:0]
	for i, r := range results {
		if r.Error != "" {
			bad = append(bad, r.Node)
		} else if i < len(p.views) {
			waitFor = append(waitFor, p.views[i])
		}
	}
	if !a.JSON {
		if err := a.powerTable(results); err != nil {
			return err
		}
	}
	outcomes := make([]powerOutcome, len(results))
	for i, r := range results {
		outcomes[i].PowerResult = r
	}
	if p.wait {
		w := newWait(waitFor, p.mark)
		if err := w.follow(ctx, a, c, p.timeout); err != nil {
			return err
		}
		bad = append(bad, w.notReady()...)
		for i := range outcomes {
			if n := w.nodes[outcomes[i].Node]; n != nil {
				outcomes[i].Phase = n.phase
				if n.why != "" {
					outcomes[i].Error = n.why
				}
			}
		}
	}
	if a.JSON {
		if err := a.writeJSON(outcomes); err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return nodeError{fmt.Sprintf("power %s: %s", p.action, failedText(bad, len(results)))}
	}
	return nil
}

// waitOnly waits for boots that somebody else makes.
func (p *powerRun) waitOnly(ctx context.Context, a *app, c *client.Client) error {
	if !a.JSON {
		a.printf("waiting for the next boot of %s\n", nodesText(namesOf(p.views)))
	}
	w := newWait(p.views, p.mark)
	if err := w.follow(ctx, a, c, p.timeout); err != nil {
		return err
	}
	if a.JSON {
		var outcomes []powerOutcome
		for _, v := range p.views {
			n := w.nodes[v.Node.Name]
			outcomes = append(outcomes, powerOutcome{dsas.PowerResult{Node: v.Node.Name, Error: n.why}, n.phase})
		}
		if err := a.writeJSON(outcomes); err != nil {
			return err
		}
	}
	if bad := w.notReady(); len(bad) > 0 {
		return nodeError{failedText(bad, len(p.views))}
	}
	return nil
}

func failedText(bad []string, all int) string {
	return fmt.Sprintf("%d of %s failed: %s", len(bad), dsas.Count(all, "node"), nodesText(bad))
}

func (a *app) powerTable(results []dsas.PowerResult) error {
	t := &table{head: []string{"NODE", "POWER", "ERROR"}}
	for _, r := range results {
		state := cell{text: or(r.State)}
		if r.State == dsas.PowerOn {
			state.style = green
		}
		t.cells(cell{text: r.Node}, state, cell{message(errors.New(r.Error)), red})
	}
	return a.table(t, "No nodes.")
}
