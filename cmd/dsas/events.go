package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
)

type eventsCmd struct {
	Nodes  []string `arg:"" optional:"" help:"Nodes whose events to show; none: all events."`
	Follow bool     `short:"f" help:"Go on showing what happens, until interrupted."`
	Boot   string   `help:"Only events of the boot with this id."`
	Limit  int      `short:"n" help:"How many to show." default:"50"`
	Detail bool     `help:"Show details (the ends of logs) too."`
}

func (*eventsCmd) Help() string {
	return `With --follow and --json, each event is one line.

Examples:

    dsas events
    dsas events w101 --follow
    dsas events w[101-140] --limit 500 --json`
}

func (cmd *eventsCmd) Run(ctx context.Context, a *app) error {
	if cmd.Limit < 1 || cmd.Limit > 5000 {
		return usagef("--limit %d: use 1 to 5000", cmd.Limit)
	}
	names, err := expand(cmd.Nodes)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	// The look back and the stream meet at this event: nothing is lost or
	// shown twice.
	mark, err := c.LastEvent(ctx)
	if err != nil {
		return err
	}
	var events []dsas.Event
	for _, n := range orAll(names) {
		some, err := c.Events(ctx, dsas.EventFilter{Node: n, Boot: cmd.Boot, Last: true, Limit: cmd.Limit})
		if err != nil {
			return err
		}
		events = append(events, some...)
	}
	if len(events) == 0 && len(names) > 0 {
		// A node that was removed has events all the same; without any, a
		// name that is no node's is a slip.
		if _, err := a.nodes(ctx, c, names); err != nil {
			return err
		}
	}
	slices.SortFunc(events, func(x, y dsas.Event) int { return int(x.ID - y.ID) })
	events = slices.DeleteFunc(events, func(e dsas.Event) bool { return cmd.Follow && e.ID > mark })
	events = events[max(0, len(events)-cmd.Limit):]
	if a.JSON && !cmd.Follow {
		return a.writeJSON(append([]dsas.Event{}, events...))
	}
	for _, e := range events {
		if err := cmd.print(a, e); err != nil {
			return err
		}
	}
	if !cmd.Follow {
		return nil
	}
	for e, err := range c.Stream(ctx, mark) {
		if errors.Is(err, context.Canceled) {
			return nil // that is how following ends
		}
		if err != nil {
			return err
		}
		if len(names) > 0 && !slices.Contains(names, e.Node) || cmd.Boot != "" && e.Boot != cmd.Boot {
			continue
		}
		if err := cmd.print(a, e); err != nil {
			return err
		}
	}
	return nil
}

// orAll gives the filter that means every node where none is named.
func orAll(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

func (cmd *eventsCmd) print(a *app, e dsas.Event) error {
	if a.JSON {
		return printJSON(a.stdout, e, "")
	}
	what := cell{string(e.Kind), kindStyle(e.Kind)}
	who := e.Node
	if who == "" && !e.MAC.IsZero() {
		who = e.MAC.String()
	}
	var facts []string
	if m := messageOf(e); m != "" {
		facts = append(facts, m)
	}
	if e.Duration > 0 {
		facts = append(facts, "in "+short(e.Duration))
	}
	if e.Bytes > 0 {
		facts = append(facts, size(e.Bytes))
	}
	t := &table{}
	// Fixed widths: lines come one by one, and columns should stand still.
	t.cells(cell{e.Time.Local().Format(time.DateTime), dim}, cell{text: fmt.Sprintf("%-8s", or(who))},
		cell{fmt.Sprintf("%-15s", what.text), what.style}, cell{text: strings.Join(facts, ", ")})
	if cmd.Detail && e.Detail != "" && e.Kind != dsas.KindPower {
		for line := range strings.SplitSeq(strings.TrimRight(e.Detail, "\n"), "\n") {
			t.cells(cell{"    " + line, dim})
		}
		return t.writeLoose(a.stdout, a.colours())
	}
	return t.write(a.stdout, a.width(), a.colours())
}
