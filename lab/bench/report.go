package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report is all that one run found, as build/bench.json has it.
type report struct {
	Machine machine    `json:"machine"`
	Rows    []row      `json:"rows"`
	Boots   []bootTime `json:"boots,omitempty"`
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

// machine is what the figures were measured on.
type machine struct {
	Time       time.Time `json:"time"`
	Commit     string    `json:"commit"` // git describe --always --dirty
	Go         string    `json:"go"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	Memory     int64     `json:"memory"` // bytes
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
	m.CPU = procField("/proc/cpuinfo", "model name")
	var kib int64
	if _, err := fmt.Sscanf(procField("/proc/meminfo", "MemTotal"), "%d kB", &kib); err == nil {
		m.Memory = kib << 10
	}
	return m
}

// procField gives what stands after "name:" in the first such line of a file
// of proc(5), "" where there is none.
func procField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}

// busy tells whether the machine had other work when we came: the one minute's
// load was more than half its cores.
func (m machine) busy() bool {
	var load float64
	_, err := fmt.Sscan(m.LoadBefore, &load)
	return err == nil && load > float64(m.Cores)/2
}

// writeTable writes the report for people.
func (r *report) writeTable(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "dsas %s, %s, %s\n%d cores (%s), %.1f GiB, Linux %s, load %s before and %s after\n\n", m.Commit, m.Go, m.Time.Format(time.DateTime),
		m.Cores, m.CPU, float64(m.Memory)/(1<<30), m.Kernel, m.LoadBefore, m.LoadAfter)
	if m.busy() {
		fmt.Fprint(w, "Others used this machine before: times are longer than its own, and ratios of programs that use both cores less even.\n\n")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FIGURE\tVALUE\tAIM\t\tNOTE")
	for _, f := range r.Rows {
		value, goal, verdict := "-", "", ""
		if f.Value != nil {
			value = number(*f.Value) + " " + f.Unit
		}
		if f.Goal != nil {
			goal = "≤ " + number(*f.Goal)
		}
		if f.OK != nil {
			verdict = map[bool]string{true: "ok", false: "MISSED"}[*f.OK]
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", f.Name, strings.TrimSpace(value), goal, verdict, f.Note)
	}
	if len(r.Boots) > 0 {
		writeBoots(tw, r.Boots)
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
	}
	return fmt.Sprintf("%.1f", v)
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
