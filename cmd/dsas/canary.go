package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"dsas"
	"dsas/client"
)

// cycleTime is how long one BMC has to power-cycle its node.
const cycleTime = time.Minute

// cycle has a node boot anew, for the server itself.
func (d *daemon) cycle(ctx context.Context, n dsas.Node) error {
	ctx, cancel := context.WithTimeout(ctx, cycleTime)
	defer cancel()
	_, err := d.power.Power(ctx, n, dsas.PowerCycle)
	return err
}

// canaryFlags are what publishing to a few nodes is asked for by.
type canaryFlags struct {
	Canary []string `help:"Have only these nodes try it, as w101,w[105-107], or so many: 10%." placeholder:"NODES|N%" sep:"none"`
	Cycle  bool     `help:"Power-cycle the canary's nodes now, and those that failed or hang when it is rolled back."`
}

func (f *canaryFlags) check() error {
	if f.Cycle && len(f.Canary) == 0 {
		return usagef("--cycle is for a canary's nodes; name them with --canary, or use dsas power cycle")
	}
	_, err := f.percent()
	return err
}

// percent gives what "10%" says; 0 where nodes are named.
func (f *canaryFlags) percent() (int, error) {
	i := slices.IndexFunc(f.Canary, func(s string) bool { return strings.Contains(s, "%") })
	if i < 0 {
		return 0, nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(f.Canary[i], "%"))
	if err != nil || len(f.Canary) > 1 || n < 1 || n > 100 {
		return 0, usagef("--canary %s: give nodes, or one percentage from 1%% to 100%%", strings.Join(f.Canary, ","))
	}
	return n, nil
}

// start has the nodes try a release.
func (f *canaryFlags) start(ctx context.Context, a *app, c *client.Client, release dsas.Release, dry bool) error {
	req := dsas.CanaryRequest{Cycle: f.Cycle}
	var err error
	if req.Percent, err = f.percent(); err != nil {
		return err
	}
	if req.Percent == 0 {
		views, err := a.nodes(ctx, c, f.Canary)
		if err != nil {
			return fmt.Errorf("--canary: %w", err)
		}
		req.Nodes = namesOf(views)
	}
	before, err := canaryOf(ctx, c, release.Role)
	if err != nil {
		return err
	}
	p, err := c.Publish(ctx, release.Role, dsas.PublishRequest{Release: string(release.ID), Canary: &req}, dry)
	if err != nil {
		return err
	}
	if p.Canary == nil {
		return fmt.Errorf("role %s: the server knows no canaries, and has published release %s for all: it is older than this program: %w", release.Role, release.Name(), dsas.ErrConflict)
	}
	if !a.JSON {
		if before != nil && before.Release != release.ID {
			a.printf("role %s: the canary that ran on %s ends with this\n", p.Role, clean(dsas.NodesText(before.Nodes)))
		}
		a.printf("role %s: %s; all others follow when %s ready with it\n", p.Role, clean(p.Canary.Tries(release.Name(), dry)), dsas.Agree(len(p.Canary.Nodes), "it was", "these were"))
	}
	if f.Cycle && !dry {
		views, err := a.nodes(ctx, c, p.Canary.Nodes)
		if err != nil {
			return err
		}
		if !a.JSON {
			run := powerRun{action: dsas.PowerCycle, views: views}
			return run.run(ctx, a, c)
		}
		results, err := c.Power(ctx, dsas.PowerCycle, p.Canary.Nodes, false)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Error != "" {
				return fmt.Errorf("power cycle: %s", r.Error)
			}
		}
	}
	if a.JSON {
		return a.writeJSON(p)
	}
	return nil
}

// canaryOf gives a role's canary, nil where none runs.
func canaryOf(ctx context.Context, c *client.Client, role string) (*dsas.Canary, error) {
	list, err := c.Published(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(p dsas.Published) bool { return p.Role == role })
	if i < 0 {
		return nil, nil
	}
	return list[i].Canary, nil
}
