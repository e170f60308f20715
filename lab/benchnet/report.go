package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"dsas/lab/figures"
)

// report is all that one run found, as build/bench-net.json has it.
type report struct {
	Machine figures.Machine `json:"machine"`
	Rows    []row           `json:"rows"`
}

// row is one piece of work, ours beside the peers'.
type row struct {
	Name string   `json:"name"`
	Unit string   `json:"unit,omitempty"`
	Less bool     `json:"less,omitempty"` // a smaller value is the better one
	Ours *float64 `json:"ours"`           // median; null: not measured, Note says why
	// Peers are medians by program; Others are medians of what is no peer:
	// ours otherwise set up, and references.
	Peers  map[string]float64 `json:"peers,omitempty"`
	Others map[string]float64 `json:"others,omitempty"`
	// Ratio says how many times better ours is than the best peer; below 1, worse.
	Ratio    *float64 `json:"ratio,omitempty"`
	BestPeer string   `json:"bestPeer,omitempty"`
	Goal     string   `json:"goal,omitempty"`
	OK       *bool    `json:"ok,omitempty"` // the goal is met
	// Extra are further medians by program and name: lost, retries, CPU seconds.
	Extra map[string]map[string]float64 `json:"extra,omitempty"`
	// Turns are the single values behind the medians, in the order they were taken.
	Turns map[string][]float64 `json:"turns,omitempty"`
	Note  string               `json:"note,omitempty"`
}

func (r *row) turns(name string, v float64) {
	if r.Turns == nil {
		r.Turns = map[string][]float64{}
	}
	r.Turns[name] = append(r.Turns[name], v)
}

func (r *row) addNote(format string, a ...any) {
	if r.Note != "" {
		r.Note += "; "
	}
	r.Note += fmt.Sprintf(format, a...)
}

// compare finds the best peer and fills in the ratio.
func (r *row) compare() {
	for _, name := range slices.Sorted(maps.Keys(r.Peers)) {
		v := r.Peers[name]
		if r.BestPeer == "" || r.Less == (v < r.Peers[r.BestPeer]) {
			r.BestPeer = name
		}
	}
	if r.BestPeer == "" || r.Ours == nil {
		return
	}
	ours, best := *r.Ours, r.Peers[r.BestPeer]
	if r.Less {
		ours, best = best, ours
	}
	if best > 0 {
		ratio := ours / best
		r.Ratio = &ratio
	}
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

// writeTable writes the report for people.
func (r *report) writeTable(w io.Writer) error {
	r.Machine.WriteHead(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORK\tOURS\tPEERS\tRATIO\tAIM\t\tNOTE")
	for _, f := range r.Rows {
		ours, ratio, verdict := "-", "", figures.Verdict(f.OK)
		if f.Ours != nil {
			ours = figures.Number(*f.Ours) + " " + f.Unit
		}
		if f.Ratio != nil {
			ratio = fmt.Sprintf("%.2f × %s", *f.Ratio, f.BestPeer)
		}
		var peers []string
		for _, name := range slices.Sorted(maps.Keys(f.Peers)) {
			peers = append(peers, name+" "+figures.Number(f.Peers[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(f.Others)) {
			peers = append(peers, "("+name+" "+figures.Number(f.Others[name])+")")
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, ours, strings.Join(peers, ", "), ratio, f.Goal, verdict, f.Note)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, f := range r.Rows {
		for _, name := range slices.Sorted(maps.Keys(f.Extra)) {
			if len(f.Extra[name]) > 0 {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Name, name, strings.Trim(extraText(f.Extra[name]), " ()"))
			}
		}
	}
	return tw.Flush()
}
