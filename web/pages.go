package web

import (
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// funcs are what the templates may call.
func (w *web) funcs() template.FuncMap {
	return template.FuncMap{
		"ago":   func(t time.Time) string { return ago(w.Now().Sub(t), t) },
		"clock": func(t time.Time) string { return t.Local().Format("15:04:05") },
		"stamp": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") },
		"secs":  secs,
		"mib":   func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) },
		"short": func(d dsas.Digest) string { return d.Short() },
	}
}

// ago says how long ago in one unit: what one wants to know of a phase.
func ago(d time.Duration, t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case d < 0:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func secs(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// nodesData is the front page.
type nodesData struct {
	Nodes   []dsas.NodeView
	Unknown []dsas.Unknown
	Roles   []dsas.RoleView
	Sites   []dsas.Site
	Counts  []count
}

type count struct {
	Phase dsas.Phase
	N     int
}

func (w *web) nodesPage(rw http.ResponseWriter, r *http.Request) {
	var d nodesData
	var err error
	if d.Nodes, err = w.API.Nodes(r.Context()); err == nil {
		if d.Unknown, err = w.API.Unknown(r.Context()); err == nil {
			if d.Roles, err = w.API.Roles(r.Context()); err == nil {
				d.Sites, err = w.API.Sites(r.Context())
			}
		}
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	d.Counts = counts(d.Nodes)
	w.render(rw, r, "nodes", page{Title: "Nodes", Data: d})
}

// counts tells how many nodes are in each phase, the bad ones first.
func counts(nodes []dsas.NodeView) []count {
	order := []dsas.Phase{dsas.PhaseFailed, dsas.PhaseLost, dsas.PhaseReady, dsas.PhaseServices, dsas.PhaseFetch, dsas.PhaseInit,
		dsas.PhaseKernel, dsas.PhaseLoader, dsas.PhaseDHCP, dsas.PhasePower, dsas.PhaseOff, dsas.PhaseNew}
	n := map[dsas.Phase]int{}
	for _, v := range nodes {
		n[v.Status.Phase]++
	}
	var out []count
	for _, p := range order {
		if n[p] > 0 {
			out = append(out, count{p, n[p]})
		}
	}
	return out
}

// nodeData is one node's page.
type nodeData struct {
	dsas.NodeView
	Steps   []step
	Earlier []dsas.Event
	Roles   []dsas.RoleView
	Total   time.Duration
}

// step is one event of the latest boot, with its place on the time line.
type step struct {
	dsas.Event
	At    time.Duration // since the boot's first event
	Bad   bool
	Width int // per mille of the boot's length, of the time until it
	Left  int // per mille, where that begins
}

func (w *web) nodePage(rw http.ResponseWriter, r *http.Request) {
	v, err := w.API.Node(r.Context(), chi.URLParam(r, "name"))
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	events, err := w.API.Events(r.Context(), dsas.EventFilter{Node: v.Node.Name, Last: true, Limit: 400})
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	roles, err := w.API.Roles(r.Context())
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	d := nodeData{NodeView: v, Roles: roles}
	latest := latestBoot(events)
	d.Steps, d.Total = timeline(events[latest:])
	d.Earlier = slices.Clone(events[:latest])
	slices.Reverse(d.Earlier)
	w.render(rw, r, "node", page{Title: v.Node.Name, Data: d})
}

// latestBoot finds where the latest boot begins: at the last power-on, or,
// where it was switched on by hand, at the first word of its firmware.
func latestBoot(events []dsas.Event) int {
	for i, e := range slices.Backward(events) {
		if e.Kind == dsas.KindPower && e.Message != dsas.PowerOff {
			return i
		}
		if e.Kind == dsas.KindDHCP && (i == 0 || running(events[i-1].Kind)) {
			return i
		}
	}
	return 0
}

// running tells whether an event is of a system that was up already.
func running(k dsas.Kind) bool { return strings.HasPrefix(string(k), "node.") }

func timeline(events []dsas.Event) ([]step, time.Duration) {
	if len(events) == 0 {
		return nil, 0
	}
	start, end := events[0].Time, events[0].Time
	for _, e := range events {
		if end.Before(e.Time) {
			end = e.Time
		}
		if e.Kind == dsas.KindReady {
			break // what comes after ready is its life, not its boot
		}
	}
	total := max(end.Sub(start), time.Millisecond)
	var out []step
	prev := start
	for _, e := range events {
		s := step{Event: e, At: e.Time.Sub(start), Bad: bad(e.Kind)}
		from := prev
		if e.Duration > 0 && e.Time.Add(-e.Duration).After(start) {
			from = e.Time.Add(-e.Duration)
		}
		s.Left = permille(from.Sub(start), total)
		s.Width = max(4, permille(s.At, total)-s.Left)
		s.Width = min(s.Width, 1000-s.Left)
		out = append(out, s)
		if prev.Before(e.Time) {
			prev = e.Time
		}
	}
	return out, total
}

func permille(d, total time.Duration) int {
	return min(max(int(1000*d/total), 0), 1000)
}

func bad(k dsas.Kind) bool {
	switch k {
	case dsas.KindFailed, dsas.KindPartBad, dsas.KindConfError, dsas.KindLost, dsas.KindRefused, dsas.KindLoaderFailed, dsas.KindWarning:
		return true
	}
	return false
}

func (w *web) eventsPage(rw http.ResponseWriter, r *http.Request) {
	events, err := w.API.Events(r.Context(), dsas.EventFilter{Last: true, Limit: 300})
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	slices.Reverse(events)
	w.render(rw, r, "events", page{Title: "Events", Data: events})
}

const maxForm = 256 << 10

// act does what the forms ask: a role for the chosen nodes, power for them, or
// both, in this order.
func (w *web) act(rw http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(rw, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		w.fail(rw, r, fmt.Errorf("form: %w: %w", err, dsas.ErrInvalid))
		return
	}
	names, back := r.PostForm["node"], r.PostForm.Get("back")
	say, err := w.carryOut(r, names)
	if err != nil {
		say = err.Error()
	}
	w.goBack(rw, r, back, say, err != nil)
}

func (w *web) carryOut(r *http.Request, names []string) (string, error) {
	if len(names) == 0 {
		return "", fmt.Errorf("choose at least one node first")
	}
	ctx, list := r.Context(), strings.Join(names, " ")
	var did []string
	if role := r.PostForm.Get("role"); r.PostForm.Get("do") == "assign" {
		if role == "" {
			return "", fmt.Errorf("choose a role first")
		}
		for _, n := range names { // all are checked before the first changes
			if _, err := w.API.ChangeNode(ctx, n, map[string]any{"role": role}, true); err != nil {
				return "", err
			}
		}
		for _, n := range names {
			if _, err := w.API.ChangeNode(ctx, n, map[string]any{"role": role}, false); err != nil {
				return "", err
			}
		}
		did = append(did, fmt.Sprintf("%s: role %s", list, role))
	}
	action := r.PostForm.Get("power")
	if r.PostForm.Get("do") == "power" && action == "" {
		return "", fmt.Errorf("choose what to do with the power first")
	}
	if action != "" {
		results, err := w.API.Power(ctx, action, names, false)
		if err != nil {
			return "", err
		}
		for _, res := range results {
			if res.Error != "" {
				return "", fmt.Errorf("%s: %s", res.Node, res.Error)
			}
		}
		did = append(did, fmt.Sprintf("%s: power %s", list, action))
	}
	return strings.Join(did, "; "), nil
}

// takeIn makes a node of a recorded MAC, or forgets it.
func (w *web) takeIn(rw http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(rw, r.Body, maxForm)
	mac, err := dsas.ParseMAC(chi.URLParam(r, "mac"))
	say := ""
	switch {
	case err != nil:
	case r.PostFormValue("do") == "forget":
		if err = w.API.RemoveUnknown(r.Context(), mac); err == nil {
			say = mac.String() + " is forgotten; it is recorded again when it asks again"
		}
	default:
		n := dsas.Node{Name: strings.TrimSpace(r.PostFormValue("name")), NICs: []dsas.NIC{{MAC: mac}}, Role: r.PostFormValue("role")}
		var made []dsas.Node
		if made, err = w.API.AddNodes(r.Context(), []dsas.Node{n}, false); err == nil {
			say = fmt.Sprintf("%s is node %s at %s", mac, made[0].Name, made[0].Address.Addr())
		}
	}
	if err != nil {
		say = err.Error()
	}
	w.goBack(rw, r, "/", say, err != nil)
}

// goBack answers a form by its page, with a word on what happened.
func (w *web) goBack(rw http.ResponseWriter, r *http.Request, path, say string, isBad bool) {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n?#") {
		path = "/"
	}
	q := url.Values{"notice": {say}}
	if isBad {
		q.Set("bad", "1")
	}
	http.Redirect(rw, r, path+"?"+q.Encode(), http.StatusSeeOther)
}
