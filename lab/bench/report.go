package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"dsas/lab/figures"
)

// report is all that one run found, as build/bench.json has it.
type report struct {
	Machine figures.Machine `json:"machine"`
	Rows    []row           `json:"rows"`
	Boots   []bootTime      `json:"boots,omitempty"`
}

// row is one figure. Every goal is an upper bound.
type row struct {
	Name  string   `json:"name"`
	Value *float64 `json:"value"` // null: could not be measured, Note says why
	Unit  string   `json:"unit,omitempty"`
	Goal  *float64 `json:"goal,omitempty"` // in Unit; none: the figure is only noted
	OK    *bool    `json:"ok,omitempty"`   // Value is at most Goal; none without both
	Note  string   `json:"note,omitempty"`
}

// figure makes a row without a goal.
func figure(name string, value float64, unit, note string, a ...any) row {
	return row{Name: name, Value: &value, Unit: unit, Note: fmt.Sprintf(note, a...)}
}

// atMost gives the row its goal.
func (r row) atMost(goal float64) row {
	r.Goal = &goal
	if r.Value != nil {
		ok := *r.Value <= goal
		r.OK = &ok
	}
	return r
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

// writeTable writes the report for people.
func (r *report) writeTable(w io.Writer) error {
	r.Machine.WriteHead(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FIGURE\tVALUE\tAIM\t\tNOTE")
	for _, f := range r.Rows {
		value, goal, verdict := "-", "", figures.Verdict(f.OK)
		if f.Value != nil {
			value = figures.Number(*f.Value) + " " + f.Unit
		}
		if f.Goal != nil {
			goal = "≤ " + figures.Number(*f.Goal)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", f.Name, strings.TrimSpace(value), goal, verdict, f.Note)
	}
	if len(r.Boots) > 0 {
		writeBoots(tw, r.Boots)
	}
	return tw.Flush()
}
