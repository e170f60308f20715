// Package figures is what the programs that measure have in common: what they
// ran on, and how figures are written for people and for programs.
package figures

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
	"time"

	"dsas"
)

// Machine is what figures were measured on.
type Machine struct {
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

// DescribeMachine looks at the machine, and at the checkout at root.
func DescribeMachine(ctx context.Context, root string) Machine {
	m := Machine{Time: time.Now().UTC().Truncate(time.Second), Commit: "unknown", Go: runtime.Version(), Cores: runtime.NumCPU(), LoadBefore: LoadAverage()}
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	cmd.Dir = root
	if out, err := cmd.Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	if out, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(out))
	}
	m.CPU = ProcField("/proc/cpuinfo", "model name")
	var kib int64
	if _, err := fmt.Sscanf(ProcField("/proc/meminfo", "MemTotal"), "%d kB", &kib); err == nil {
		m.Memory = kib << 10
	}
	return m
}

// ProcField gives what stands after "name:" in the first such line of a file
// of proc(5), "" where there is none.
func ProcField(path, name string) string {
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

// OSRelease reads an os-release(5) file; what cannot be read is missing.
func OSRelease(path string) map[string]string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[k] = strings.Trim(v, `"'`)
		}
	}
	return fields
}

// LoadAverage gives the three figures of /proc/loadavg.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}

// Busy tells whether the machine had other work when we came: the one minute's
// load was more than half its cores.
func (m Machine) Busy() bool {
	var load float64
	_, err := fmt.Sscan(m.LoadBefore, &load)
	return err == nil && load > float64(m.Cores)/2
}

// WriteHead writes the lines above a table.
func (m Machine) WriteHead(w io.Writer) {
	fmt.Fprintf(w, "dsas %s, %s, %s\n%d cores (%s), %.1f GiB, Linux %s, load %s before and %s after\n\n", m.Commit, m.Go, m.Time.Format(time.DateTime),
		m.Cores, m.CPU, float64(m.Memory)/(1<<30), m.Kernel, m.LoadBefore, m.LoadAfter)
	if m.Busy() {
		fmt.Fprint(w, "Others used this machine before: times are longer than its own, and ratios of programs that use both cores less even.\n\n")
	}
}

// Verdict says whether a goal was met, "" where that is not known.
func Verdict(ok *bool) string {
	switch {
	case ok == nil:
		return ""
	case *ok:
		return "ok"
	}
	return "MISSED"
}

// Number writes v with as many digits as its size is worth.
func Number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 1000:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// WriteJSON writes a report to a file, whose folder is made.
func WriteJSON(name string, report any) error {
	b, err := json.MarshalIndent(report, "", "  ")
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

// FindRoot finds the checkout: the programs that are measured lie in it. target
// is what make is to be asked for there.
func FindRoot(target string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if b, err := os.ReadFile(filepath.Join(d, "go.mod")); err == nil && strings.HasPrefix(string(b), "module dsas\n") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("checkout above %s: %w; run it there: make %s", dir, dsas.ErrNotFound, target)
		}
	}
}
