package main

import (
	"context"
	"slices"
	"strings"

	"dsas/server/loaders"
)

// loaderCmd speaks of the boot loaders in the state folder.
type loaderCmd struct {
	Ls    loaderLsCmd    `cmd:"" help:"List the boot loaders and what is missing."`
	Fetch loaderFetchCmd `cmd:"" help:"Fetch optional boot loaders."`
}

type loaderLsCmd struct {
	configFlags
}

// Help gives the examples.
func (*loaderLsCmd) Help() string {
	return `Reads the state folder of this machine. What is of a set is optional: without it
the nodes that need it are refused, and told so, and all others boot.

  dsas loader ls
  dsas loader ls --json`
}

// loaderView is a line of the list.
type loaderView struct {
	Name    string `json:"name"`
	Package string `json:"package"`
	Set     string `json:"set,omitempty"`
	Size    int64  `json:"size"` // 0: missing
	Remedy  string `json:"remedy,omitempty"`
}

func (v *loaderView) has() string {
	if v.Size == 0 {
		return "missing: " + v.Remedy
	}
	return size(v.Size)
}

// Run implements the command.
func (c *loaderLsCmd) Run(_ context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	list, err := loaders.List(cfg.path("loaders"))
	if err != nil {
		return err
	}
	var views []loaderView
	t := &table{head: []string{"LOADER", "PACKAGE", "SET", "SIZE"}}
	for _, l := range list {
		v := loaderView{l.Name, l.Package, l.Set, l.Size, l.Remedy}
		views = append(views, v)
		t.row(v.Name, v.Package, or(v.Set), v.has())
	}
	if a.JSON {
		return a.writeJSON(views)
	}
	return a.table(t, "No loaders.")
}

type loaderFetchCmd struct {
	configFlags
	Sets []string `arg:"" name:"set" help:"secureboot (x64 with Secure Boot on) or arm64."`
}

// Help gives the examples.
func (*loaderFetchCmd) Help() string {
	return `Downloads Debian's packages by this machine's apt, takes the loaders out of them
and puts them where a running server finds them. Nothing is installed. Again
after a security update of shim or GRUB.

  dsas loader fetch secureboot
  dsas loader fetch secureboot arm64`
}

// Run implements the command.
func (c *loaderFetchCmd) Run(ctx context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	for _, set := range c.Sets {
		if !slices.Contains(loaders.Sets(), set) {
			return usagef("no loaders are called %q; there are %s", set, strings.Join(loaders.Sets(), " and "))
		}
	}
	if err := loaders.Fetch(ctx, cfg.path("loaders"), c.Sets); err != nil {
		return err
	}
	list, err := loaders.List(cfg.path("loaders"))
	if err != nil {
		return err
	}
	var views []loaderView
	for _, l := range list {
		if slices.Contains(c.Sets, l.Set) {
			views = append(views, loaderView{l.Name, l.Package, l.Set, l.Size, l.Remedy})
		}
	}
	if a.JSON {
		return a.writeJSON(views)
	}
	for _, v := range views {
		a.printf("%-14s %s, of %s\n", v.Name, v.has(), v.Package)
	}
	return nil
}
