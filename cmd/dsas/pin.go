package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dsas"
)

type imagePinCmd struct {
	Release string   `arg:"" help:"As web:7."`
	Nodes   []string `arg:"" help:"Nodes of that role."`
	DryRun  bool     `help:"Check everything and only say what would be done."`
}

func (*imagePinCmd) Help() string {
	return `A change of the node's role ends the pin.

Examples:

    dsas image pin web:6 w101 w[110-119]
    dsas image unpin w101`
}

func (cmd *imagePinCmd) Run(ctx context.Context, a *app) error {
	// A node's name has no colon, a release's mostly has one.
	if i := slices.IndexFunc(cmd.Nodes, func(n string) bool { return strings.Contains(n, ":") }); i >= 0 {
		if strings.Contains(cmd.Release, ":") {
			return usagef("%s is no node: name one release and then its nodes: dsas image pin %s w101", cmd.Nodes[i], cmd.Release)
		}
		nodes := append([]string{cmd.Release}, slices.Delete(slices.Clone(cmd.Nodes), i, i+1)...)
		return pinOrder(cmd.Nodes[i], nodes)
	}
	if _, err := releaseRef(cmd.Release); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	views, err := a.nodes(ctx, c, cmd.Nodes)
	if errors.Is(err, dsas.ErrNotFound) && len(cmd.Nodes) == 1 {
		if _, swapped := a.nodes(ctx, c, []string{cmd.Release}); swapped == nil { // a role's name, without a number
			return pinOrder(cmd.Nodes[0], []string{cmd.Release})
		}
	}
	if err != nil {
		return err
	}
	v, err := c.Release(ctx, cmd.Release)
	if err != nil {
		return err
	}
	changed, err := c.ChangeNodes(ctx, namesOf(views), map[string]any{"release": v.ID}, cmd.DryRun)
	if err != nil || a.JSON {
		return a.orJSON(changed, err)
	}
	verb := "boots"
	if cmd.DryRun {
		verb = "would boot"
	}
	return a.done(namesOf(views), fmt.Sprintf("%s release %s from its next boot on, whatever is published", verb, v.Name))
}

// pinOrder is the error of arguments that were swapped.
func pinOrder(release string, nodes []string) error {
	return usagef("the release comes first, then the nodes: dsas image pin %s %s", release, strings.Join(nodes, " "))
}

// orJSON prints v for programs, unless there is an error.
func (a *app) orJSON(v any, err error) error {
	if err != nil {
		return err
	}
	return a.writeJSON(v)
}

type imageUnpinCmd struct {
	Nodes  []string `arg:"" help:"Nodes that are to follow their role."`
	DryRun bool     `help:"Check everything and only say what would be done."`
}

func (cmd *imageUnpinCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	views, err := a.nodes(ctx, c, cmd.Nodes)
	if err != nil {
		return err
	}
	changed, err := c.ChangeNodes(ctx, namesOf(views), map[string]any{"release": nil}, cmd.DryRun)
	if err != nil || a.JSON {
		return a.orJSON(changed, err)
	}
	for _, v := range views {
		what := "follows its role again"
		switch {
		case v.Node.Release == "":
			what = "is not pinned; nothing to change"
		case cmd.DryRun:
			what = "would follow its role again"
		}
		a.printf("%s %s\n", v.Node.Name, what)
	}
	return nil
}
