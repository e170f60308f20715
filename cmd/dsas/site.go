package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"dsas"
	"dsas/client"
)

type siteCmd struct {
	Ls   siteLsCmd   `cmd:"" help:"List sites."`
	Add  siteAddCmd  `cmd:"" help:"Add a site."`
	Set  siteSetCmd  `cmd:"" help:"Change a site."`
	Show siteShowCmd `cmd:"" help:"Show a site and the nodes that serve it."`
	Rm   siteRmCmd   `cmd:"" help:"Remove sites."`
}

// siteFields are the flags that say what a site is. What is not given is nil.
type siteFields struct {
	Address   *string `help:"Service address, which the balancer holds." placeholder:"IP"`
	Port      *uint16 `help:"Port; default 80." placeholder:"N"`
	Role      *string `help:"Role whose ready nodes serve it; default web."`
	Balancer  *string `help:"Role that balances it; default lb." placeholder:"ROLE"`
	Scheduler *string `help:"IPVS scheduler: rr, wrr, lc, wlc (default), sh." placeholder:"NAME"`
	Check     *string `help:"Health check: http (default) or tcp." placeholder:"KIND"`
	Path      *string `help:"Path of the http check; default /." placeholder:"PATH"`
	Status    *int    `help:"HTTP status that is healthy; default 200." placeholder:"N"`
}

func (f *siteFields) patch() map[string]any {
	p, check := map[string]any{}, map[string]any{}
	put(p, "address", f.Address)
	put(p, "port", f.Port)
	put(p, "role", f.Role)
	put(p, "balancer", f.Balancer)
	put(p, "scheduler", f.Scheduler)
	put(check, "kind", f.Check)
	put(check, "path", f.Path)
	put(check, "status", f.Status)
	if len(check) > 0 {
		p["check"] = check
	}
	return p
}

func put[T any](m map[string]any, key string, v *T) {
	if v != nil {
		m[key] = *v
	}
}

type siteLsCmd struct{}

func (*siteLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	sites, err := c.Sites(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(sites)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	t := &table{head: []string{"NAME", "ADDRESS", "ROLE", "READY", "BALANCER", "SCHEDULER", "CHECK"}}
	for _, s := range sites {
		ready, all := readyOf(nodes, s.Role)
		t.row(s.Name, netip.AddrPortFrom(s.Address, s.Port).String(), s.Role, fmt.Sprintf("%d of %d", ready, all), s.Balancer, s.Scheduler, checkText(s.Check))
	}
	return a.table(t, "No sites. Add one with: dsas site add NAME --address IP")
}

// readyOf counts the nodes of a role: those that are ready, and all.
func readyOf(nodes []dsas.NodeView, role string) (ready, all int) {
	for _, v := range nodes {
		if v.Node.Role != role {
			continue
		}
		all++
		if v.Status.Phase == dsas.PhaseReady {
			ready++
		}
	}
	return ready, all
}

func checkText(c dsas.SiteCheck) string {
	if c.Kind == "http" {
		return fmt.Sprintf("http %s = %d", c.Path, c.Status)
	}
	return c.Kind
}

type siteAddCmd struct {
	Name string `arg:"" help:"Name of the site."`
	siteFields
	DryRun bool `help:"Check everything and only say what would be added."`
}

func (*siteAddCmd) Help() string {
	return `Examples:

    dsas site add shop --address 10.77.0.80 --role web
    dsas site add sql --address 10.77.0.81 --port 3306 --role db --check tcp`
}

func (cmd *siteAddCmd) Run(ctx context.Context, a *app) error {
	if cmd.Address == nil {
		return usagef("a site needs a service address: dsas site add %s --address IP", cmd.Name)
	}
	addr, err := netip.ParseAddr(*cmd.Address)
	if err != nil {
		return usagef("--address %s: write it as 10.77.0.80", *cmd.Address)
	}
	s := dsas.Site{Name: cmd.Name, Address: addr, Port: deref(cmd.Port), Role: deref(cmd.Role), Balancer: deref(cmd.Balancer),
		Scheduler: deref(cmd.Scheduler), Check: dsas.SiteCheck{Kind: deref(cmd.Check), Path: deref(cmd.Path), Status: deref(cmd.Status)}}
	c, err := a.client()
	if err != nil {
		return err
	}
	if s, err = c.AddSite(ctx, s, cmd.DryRun); err != nil {
		return err
	}
	return a.siteDone(s, "added", cmd.DryRun)
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func (a *app) siteDone(s dsas.Site, what string, dry bool) error {
	if a.JSON {
		return a.writeJSON(s)
	}
	if dry {
		what = "would be " + what
	}
	a.printf("%s %s: %s by role %s, balanced by %s\n", clean(s.Name), what, netip.AddrPortFrom(s.Address, s.Port), clean(s.Role), clean(s.Balancer))
	return nil
}

type siteSetCmd struct {
	Name string `arg:"" help:"Site to change."`
	siteFields
	DryRun bool `help:"Check everything and only say what would be done."`
}

func (*siteSetCmd) Help() string {
	return `Examples:

    dsas site set shop --scheduler rr
    dsas site set shop --check http --path /health --status 204`
}

func (cmd *siteSetCmd) Run(ctx context.Context, a *app) error {
	patch := cmd.patch()
	if len(patch) == 0 {
		return usagef("nothing to change; name what by a flag, as --scheduler rr")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	s, err := c.ChangeSite(ctx, cmd.Name, patch, cmd.DryRun)
	if err != nil {
		return siteError(ctx, c, cmd.Name, err)
	}
	return a.siteDone(s, "changed", cmd.DryRun)
}

// siteError adds to a not-found error the name that was perhaps meant.
func siteError(ctx context.Context, c *client.Client, name string, err error) error {
	if !isNotFound(err) {
		return err
	}
	sites, listErr := c.Sites(ctx)
	if listErr != nil {
		return err
	}
	var names []string
	for _, s := range sites {
		names = append(names, s.Name)
	}
	return fmt.Errorf("site %s: %w%s", name, dsas.ErrNotFound, dsas.DidYouMean(name, names))
}

type siteShowCmd struct {
	Name string `arg:"" help:"Site to show."`
}

func (cmd *siteShowCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	s, err := c.Site(ctx, cmd.Name)
	if err != nil {
		return siteError(ctx, c, cmd.Name, err)
	}
	if a.JSON {
		return a.writeJSON(s)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	t := &table{}
	for _, kv := range [][2]string{{"site", s.Name}, {"address", netip.AddrPortFrom(s.Address, s.Port).String()},
		{"scheduler", s.Scheduler}, {"check", checkText(s.Check)}} {
		t.cells(cell{kv[0], bold}, cell{text: kv[1]})
	}
	for _, what := range [][2]string{{"served by", s.Role}, {"balanced by", s.Balancer}} {
		t.cells(cell{what[0], bold}, cell{text: what[1] + ": " + nodesOfRole(nodes, what[1])})
	}
	return t.write(a.stdout, 0, a.colours())
}

func nodesOfRole(nodes []dsas.NodeView, role string) string {
	var out []string
	for _, v := range nodes {
		if v.Node.Role == role {
			out = append(out, v.Node.Name+" ("+string(v.Status.Phase)+")")
		}
	}
	if len(out) == 0 {
		return "no node has this role"
	}
	return strings.Join(out, ", ")
}

type siteRmCmd struct {
	Names  []string `arg:"" help:"Sites to remove."`
	Yes    bool     `short:"y" help:"Do not ask."`
	DryRun bool     `help:"Only say what would be done."`
}

func (cmd *siteRmCmd) Run(ctx context.Context, a *app) error {
	names, err := expand(cmd.Names)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, err := c.Site(ctx, n); err != nil {
			return siteError(ctx, c, n, err)
		}
	}
	if cmd.DryRun {
		return a.done(names, "would be removed")
	}
	if err := a.confirm(fmt.Sprintf("Remove %s?", strings.Join(names, ", ")), cmd.Yes); err != nil {
		return err
	}
	for i, n := range names {
		if err := c.RemoveSite(ctx, n); err != nil {
			return partly(names[:i], "removed", err)
		}
	}
	return a.done(names, "removed")
}
