package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"dsas"
)

// publishCanary has some of a role's nodes try a release.
func (a *api) publishCanary(r *http.Request, rel *dsas.Release, req dsas.CanaryRequest) (answer, error) {
	nodes, err := a.canaryNodes(r.Context(), rel, req)
	if err != nil {
		return answer{}, err
	}
	return a.changePublished(r, rel.Role, func(p *dsas.Published, by string) error {
		switch p.Current {
		case "":
			return fmt.Errorf("role %s: nothing is published that a canary could go back to; publish %s for all: %w", rel.Role, rel.Name(), dsas.ErrConflict)
		case rel.ID:
			return fmt.Errorf("role %s: all nodes boot release %s already: %w", rel.Role, rel.Name(), dsas.ErrConflict)
		}
		p.StartCanary(dsas.Canary{Release: rel.ID, Nodes: nodes, Since: time.Now(), By: by, Cycle: req.Cycle})
		return nil
	})
}

// canaryNodes checks the nodes that are to try a release, or chooses them.
func (a *api) canaryNodes(ctx context.Context, rel *dsas.Release, req dsas.CanaryRequest) ([]string, error) {
	if (len(req.Nodes) > 0) == (req.Percent != 0) {
		return nil, fmt.Errorf("canary of release %s: give either its nodes or a percentage: %w", rel.Name(), dsas.ErrInvalid)
	}
	all, err := a.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	if req.Percent != 0 {
		statuses, err := a.Store.Statuses(ctx)
		if err != nil {
			return nil, err
		}
		return dsas.ChooseCanaries(rel.Role, req.Percent, all, func(n string) bool { return statuses[n].Phase == dsas.PhaseReady })
	}
	for _, name := range req.Nodes {
		i := slices.IndexFunc(all, func(n dsas.Node) bool { return n.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("canary of release %s: node %s: %w", rel.Name(), name, dsas.ErrNotFound)
		}
		switch n := all[i]; {
		case n.Role != rel.Role:
			return nil, fmt.Errorf("canary of release %s: the role of node %s is %s: %w", rel.Name(), name, orNone(n.Role), dsas.ErrInvalid)
		case n.Release != "":
			return nil, fmt.Errorf("canary of release %s: node %s is pinned; let it follow its role first: dsas image unpin %s: %w", rel.Name(), name, name, dsas.ErrConflict)
		}
	}
	return req.Nodes, nil
}

// bootsFor is how long the release of a boot is told of as one that the boot
// may still fetch: far longer than any takes.
const bootsFor = time.Hour

// bootReleases lists what boots may still fetch.
func (a *api) bootReleases(r *http.Request) (answer, error) {
	used, err := a.Store.BootReleases(r.Context(), time.Now().Add(-bootsFor))
	if err != nil {
		return answer{}, err
	}
	return answer{body: list(used)}, nil
}
