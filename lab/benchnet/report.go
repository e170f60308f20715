package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is all that one run found, as build/bench-net.json has it.
type report struct {
	Machine machine `json:"machine"`
	Rows    []row   `json:"rows"`
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

// machine is what the figures were measured on.
type machine struct {
	Time       time.Time `json:"time"`
	Commit     string    `json:"commit"` // git describe --always --dirty
	Go         string    `json:"go"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	LoadBefore string    `json:"loadBefore"`
	LoadAfter  string    `json:"loadAfter"` // 1, 5 and 15 minutes: whether others used the machine too
}

func describeMachine(ctx context.Context, root string) machine {
	m := machine{Time: time.Now().UTC().Truncate(time.Second), Commit: "unknown", Go: runtime.Version(), Cores: runtime.NumCPU(), LoadBefore: loadAverage()}
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	cmd.Dir = root
	if out, err := cmd.Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	if out, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(out))
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	return m
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}

// writeTable writes the report for people.
func (r *report) writeTable(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "dsas %s, %s, %s\n%d cores (%s), Linux %s, load %s before and %s after\n\n", m.Commit, m.Go, m.Time.Format(time.DateTime),
		m.Cores, m.CPU, m.Kernel, m.LoadBefore, m.LoadAfter)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORK\tOURS\tPEERS\tRATIO\tAIM\t\tNOTE")
	for _, f := range r.Rows {
		ours, ratio, verdict := "-", "", ""
		if f.Ours != nil {
			ours = number(*f.Ours) + " " + f.Unit
		}
		if f.Ratio != nil {
			ratio = fmt.Sprintf("%.2f × %s", *f.Ratio, f.BestPeer)
		}
		if f.OK != nil {
			verdict = map[bool]string{true: "ok", false: "MISSED"}[*f.OK]
		}
		var peers []string
		for _, name := range slices.Sorted(maps.Keys(f.Peers)) {
			peers = append(peers, name+" "+number(f.Peers[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(f.Others)) {
			peers = append(peers, "("+name+" "+number(f.Others[name])+")")
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

// number writes v with as many digits as its size is worth.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func (r *report) writeJSON(name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(name, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
