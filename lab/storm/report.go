package storm

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sort"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"dsas"
)

// Slow is the pause of a retry from which on it is one that a person would
// wait for.
const Slow = time.Second

// Report is what came of a storm. Durations are nanoseconds in JSON.
type Report struct {
	Nodes     int            `json:"nodes"`
	Ready     int            `json:"ready"`
	Boots     int            `json:"boots"`    // that ended ready
	Reboots   int            `json:"reboots"`  // boots that failed and were begun again
	Failed    []Failure      `json:"failed"`   // nodes that were not ready in the end
	Duration  time.Duration  `json:"duration"` // from the first DISCOVER to the last node ready
	Bytes     int64          `json:"bytes"`    // kernels, initramfs and images
	Rate      float64        `json:"rate"`     // of these, bytes per second
	Steps     []Step         `json:"steps"`
	Retries   []Retries      `json:"retries"`
	SlowTries int            `json:"slowRetries"` // retries after a second or more
	Errors    map[string]int `json:"errors,omitempty"`
	Counts    map[string]int `json:"counts,omitempty"`
	Plain     *Plain         `json:"plain,omitempty"`
	Server    *Usage         `json:"server,omitempty"`
	Strangers int            `json:"strangers,omitempty"`
	Leases    []Lease        `json:"leases,omitempty"` // what strangers were promised
}

// Failure is a node that did not become ready.
type Failure struct {
	Node   string `json:"node"`
	Step   string `json:"step"`
	Reason string `json:"reason"`
}

// Step is how long one step of a boot took, over all nodes.
type Step struct {
	Name string        `json:"name"`
	N    int           `json:"n"`
	P50  time.Duration `json:"p50"`
	P99  time.Duration `json:"p99"`
	Max  time.Duration `json:"max"`
}

// Retries are the tries of one step that were made again.
type Retries struct {
	Step string `json:"step"`
	N    int    `json:"n"`
	Slow int    `json:"slow"` // after a second or more
}

// Plain is the same bytes by plain HTTP.
type Plain struct {
	Readers  int           `json:"readers"`
	Bytes    int64         `json:"bytes"`
	Duration time.Duration `json:"duration"`
	Rate     float64       `json:"rate"`  // bytes per second
	Ratio    float64       `json:"ratio"` // the storm's rate in times of this
}

// Usage is what the server took while the nodes booted.
type Usage struct {
	RSS  int64         `json:"rss"`  // bytes, the most that was seen
	CPU  time.Duration `json:"cpu"`  // user and system
	User time.Duration `json:"user"` // of it
}

// figures gathers durations by step.
type figures struct {
	mu      sync.Mutex
	took    map[string][]time.Duration
	retries map[string]*Retries
	errs    map[string]int
	counts  map[string]int
}

func newFigures() *figures {
	return &figures{took: map[string][]time.Duration{}, retries: map[string]*Retries{}, errs: map[string]int{}, counts: map[string]int{}}
}

func (f *figures) add(step string, d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took[step] = append(f.took[step], d)
}

func (f *figures) retry(step string, pause time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.retries[step]
	if r == nil {
		r = &Retries{Step: step}
		f.retries[step] = r
	}
	r.N++
	if pause >= Slow {
		r.Slow++
	}
}

func (f *figures) count(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[what]++
}

// failure counts an error by its kind: addresses differ from node to node.
func (f *figures) failure(step string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[step+": "+kindOf(err)]++
}

func kindOf(err error) string {
	var op *net.OpError
	var ne net.Error
	switch {
	case errors.Is(err, dsas.ErrDenied), errors.Is(err, dsas.ErrNotFound), errors.Is(err, dsas.ErrInvalid), errors.Is(err, errTFTP), errors.Is(err, errScript):
		text := err.Error()
		if len(text) > 160 {
			text = text[:160]
		}
		return text
	case errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended"
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// steps in the order of a boot; others follow by name.
var order = []string{"dhcp-firmware", "tftp", "dhcp-ipxe", "script", "kernel", "firmware", "initramfs", "config", "events", "image", "boot", "post", "heartbeat", "lease", "page", "event shown"}

// report fills in the figures.
func (s *storm) report(r *Report) {
	f := s.figures
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Rate = rate(r.Bytes, r.Duration)
	names := slices.Collect(maps.Keys(f.took))
	sort.Slice(names, func(i, j int) bool {
		a, b := slices.Index(order, names[i]), slices.Index(order, names[j])
		if a < 0 || b < 0 || a == b {
			return a > b || a == b && names[i] < names[j]
		}
		return a < b
	})
	for _, n := range names {
		if n != "ready" {
			r.Steps = append(r.Steps, step(n, f.took[n]))
		}
	}
	for _, n := range slices.Sorted(maps.Keys(f.retries)) {
		r.Retries = append(r.Retries, *f.retries[n])
		r.SlowTries += f.retries[n].Slow
	}
	r.Errors, r.Counts = f.errs, f.counts
	if r.Failed == nil {
		r.Failed = []Failure{}
	}
}

func step(name string, d []time.Duration) Step {
	d = slices.Sorted(slices.Values(d))
	at := func(q float64) time.Duration { return d[min(len(d)-1, int(q*float64(len(d))))] }
	return Step{Name: name, N: len(d), P50: at(0.5), P99: at(0.99), Max: d[len(d)-1]}
}

func rate(bytes int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(bytes) / d.Seconds()
}

// Write prints the report for people.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
	fmt.Fprintln(t, "step, ms\tn\tp50\tp99\tmax\tretries\tof 1 s or more\t")
	for _, s := range r.Steps {
		var again Retries
		if i := slices.IndexFunc(r.Retries, func(x Retries) bool { return x.Step == s.Name }); i >= 0 {
			again = r.Retries[i]
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t%d\t\n", s.Name, s.N, ms(s.P50), ms(s.P99), ms(s.Max), again.N, again.Slow)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	p := func(format string, a ...any) { fmt.Fprintf(w, format+"\n", a...) }
	p("%d of %d nodes ready in %.1f s; boots begun again %d, retries of 1 s or more %d", r.Ready, r.Nodes, r.Duration.Seconds(), r.Reboots, r.SlowTries)
	p("content: %.1f MB, %.1f MB/s", float64(r.Bytes)/1e6, r.Rate/1e6)
	if r.Plain != nil {
		p("plain HTTP of the same by %d readers: %.1f s, %.1f MB/s; the storm had %.0f %% of it", r.Plain.Readers, r.Plain.Duration.Seconds(), r.Plain.Rate/1e6, 100*r.Plain.Ratio)
	}
	if r.Server != nil {
		p("server: at most %.1f MiB of memory, %.1f s of processor time (%.1f s user)", float64(r.Server.RSS)/(1<<20), r.Server.CPU.Seconds(), r.Server.User.Seconds())
	}
	for _, k := range slices.Sorted(maps.Keys(r.Counts)) {
		p("%s: %d", k, r.Counts[k])
	}
	for _, k := range slices.Sorted(maps.Keys(r.Errors)) {
		p("error, %d times: %s", r.Errors[k], k)
	}
	for i, f := range r.Failed {
		if i == 10 {
			p("... and %d more failed", len(r.Failed)-10)
			break
		}
		p("failed: %s at %s: %s", f.Node, f.Step, f.Reason)
	}
	return nil
}
