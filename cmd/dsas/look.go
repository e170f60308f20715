package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"dsas"
)

// version is that of the program; the commit is added by versionText.
var version = "0.1.0" // make puts the commit here (-X main.version)

func isNotFound(err error) bool { return errors.Is(err, dsas.ErrNotFound) }

type statusCmd struct{}

func (*statusCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(s)
	}
	t := &table{}
	add := func(k, v string) { t.cells(cell{k, bold}, cell{text: v}) }
	add("server", a.Server)
	add("version", or(s.Version))
	if !s.Started.IsZero() {
		add("up for", ago(s.Started, time.Now()))
	}
	for _, name := range sortedKeys(s.Listeners) {
		add(name, s.Listeners[name])
	}
	discovery := "off: unknown MACs are recorded and boot nothing"
	if s.Discovery {
		discovery = "on: unknown MACs boot the inventory role"
	}
	add("discovery", discovery)
	for _, sub := range s.Subnets {
		pool := "no pool"
		if sub.Pool.First.IsValid() {
			pool = fmt.Sprintf("pool %s (%d addresses)", sub.Pool, sub.PoolSize())
		}
		if sub.Relayed {
			pool += ", behind relays"
		}
		add("subnet", fmt.Sprintf("%s, server %s, %s", sub.Prefix, sub.Server, pool))
	}
	var phases []string
	total := 0
	for p, n := range s.Nodes {
		phases = append(phases, fmt.Sprintf("%d %s", n, p))
		total += n
	}
	slices.Sort(phases)
	nodes := strconv.Itoa(total)
	if total > 0 {
		nodes += ": " + strings.Join(phases, ", ")
	}
	add("nodes", nodes)
	return t.write(a.stdout, 0, a.colours())
}

type versionCmd struct{}

func (*versionCmd) Run(_ context.Context, a *app) error {
	if a.JSON {
		return a.writeJSON(map[string]string{"version": version, "commit": commit()})
	}
	a.printf("dsas %s\n", versionText())
	return nil
}

func versionText() string {
	if c := commit(); c != "" {
		return version + " (" + c + ")"
	}
	return version
}

// commit is the one the program was built from, as the Go tool recorded it.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+"
		}
	}
	return rev + dirty
}

type roleCmd struct {
	Ls roleLsCmd `cmd:"" help:"List the roles."`
}

type roleLsCmd struct{}

func (*roleLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	roles, err := c.Roles(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(roles)
	}
	t := &table{head: []string{"NAME", "RELEASE", "SIZE", "MEMORY", "SOURCE", "DESCRIPTION"}}
	for _, r := range roles {
		release, bytes := cell{"none", yellow}, "-"
		if r.Release != nil {
			release, bytes = cell{text: r.Release.Name()}, size(r.Release.Manifest.Size())
		}
		if r.Canary != nil {
			release = cell{release.text + ", canary " + r.Canary.Name, yellow}
		}
		t.cells(cell{text: r.Role.Name}, release, cell{text: bytes}, cell{text: or(r.Role.Memory)}, cell{text: r.Source}, cell{text: r.Role.Description})
	}
	return a.table(t, "No roles.")
}

type unknownCmd struct {
	Ls unknownLsCmd `cmd:"" help:"List MACs that asked and belong to no node."`
	Rm unknownRmCmd `cmd:"" help:"Forget some."`
}

type unknownLsCmd struct{}

func (*unknownLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	unknown, err := c.Unknown(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(unknown)
	}
	t := &table{head: []string{"MAC", "ARCH", "ADDRESS", "FIRST", "LAST", "COUNT", "PORT", "VENDOR CLASS", "HARDWARE"}}
	now := time.Now()
	for _, u := range unknown {
		addr := "-"
		if u.Address.IsValid() {
			addr = u.Address.String()
		}
		port := "-"
		if u.Port != nil {
			port = or(clean(u.Port.String()))
		}
		t.row(u.MAC.String(), or(u.Arch), addr, ago(u.First, now)+" ago", ago(u.Last, now)+" ago", strconv.Itoa(u.Count), port, or(u.VendorClass), or(u.Hardware))
	}
	return a.table(t, "No unknown MACs.")
}

type unknownRmCmd struct {
	MACs   []string `arg:"" name:"mac" help:"MACs to forget."`
	DryRun bool     `help:"Only say what would be done."`
}

func (cmd *unknownRmCmd) Run(ctx context.Context, a *app) error {
	var macs []dsas.MAC
	var names []string
	for _, s := range cmd.MACs {
		m, err := dsas.ParseMAC(s)
		if err != nil {
			return usageError{err: err}
		}
		macs, names = append(macs, m), append(names, m.String())
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if cmd.DryRun {
		return a.done(names, "would be forgotten")
	}
	for i, m := range macs {
		if err := c.RemoveUnknown(ctx, m); err != nil {
			return partly(names[:i], "forgotten", err)
		}
	}
	return a.done(names, "forgotten")
}

type leaseCmd struct {
	Ls leaseLsCmd `cmd:"" help:"List the leases of pool addresses."`
}

type leaseLsCmd struct{}

func (*leaseLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	leases, err := c.Leases(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(leases)
	}
	t := &table{head: []string{"ADDRESS", "MAC", "ENDS", "CLIENT ID"}}
	now := time.Now()
	for _, l := range leases {
		ends := "ended"
		if l.Expires.After(now) {
			ends = "in " + short(l.Expires.Sub(now))
		}
		if l.Declined {
			ends += ", declined"
		}
		t.row(l.Address.String(), l.MAC.String(), ends, or(l.ClientID))
	}
	return a.table(t, "No leases.")
}

type explainCmd struct {
	MAC  string `arg:"" name:"mac" help:"MAC, or the name of a node."`
	Arch string `help:"Architecture to explain for: bios, uefi-x64, uefi-x64-http, uefi-arm64, ... or the number of option 93; default: the first two." placeholder:"ARCH"`
}

func (*explainCmd) Help() string {
	return `Nothing is booted and nothing changes.

Examples:

    dsas explain 52:54:00:00:01:01
    dsas explain w101 --arch uefi-x64`
}

func (cmd *explainCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	mac, err := dsas.ParseMAC(cmd.MAC)
	if err != nil {
		// Words that could be a node's name are one.
		if dsas.CheckName("node", cmd.MAC) != nil {
			return usageError{err: err}
		}
		v, nodeErr := a.oneNode(ctx, c, cmd.MAC)
		if nodeErr != nil {
			return nodeErr
		}
		if len(v.Node.NICs) == 0 {
			return fmt.Errorf("node %s: has no MAC", v.Node.Name)
		}
		mac = v.Node.NICs[0].MAC
	}
	raw, err := c.Explain(ctx, mac, cmd.Arch)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(raw)
	}
	return a.explanation(raw)
}
