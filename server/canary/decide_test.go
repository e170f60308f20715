package canary

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
)

var began = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func at(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }

// TestDecide: a canary of web:8 on w101 and w102 since 0 s; a boot may take a
// minute, and the server is up all the time.
func TestDecide(t *testing.T) {
	trial := func(node string, s int, more ...any) dsas.Trial {
		tr := dsas.Trial{Node: node, Boot: node + "-boot", Began: at(s)}
		for _, m := range more {
			switch m := m.(type) {
			case int:
				tr.Proven = at(m)
			case bool:
				tr.Ready = m
			case string:
				tr.Failed = m
			}
		}
		return tr
	}
	seen := func(s int) dsas.NodeStatus { return dsas.NodeStatus{LastSeen: at(s)} }
	runs := dsas.NodeStatus{Phase: dsas.PhaseReady, Image: "8", Running: "web"}
	type status = map[string]dsas.NodeStatus
	for _, tt := range []struct {
		name   string
		now    int
		up     int
		gone   bool
		ready  []string // known already
		nodes  map[string]*dsas.Node
		status status
		trials []dsas.Trial
		want   string
	}{
		{name: "nobody has booted", now: 100000, want: "wait"},
		{name: "one boots", now: 30, trials: []dsas.Trial{trial("w101", 10, 15)}, want: "wait until 70"},
		{name: "two boot: the first late one", now: 30, trials: []dsas.Trial{trial("w102", 10, 15), trial("w101", 20, 25)}, want: "wait until 70"},
		{name: "one is ready", now: 30, trials: []dsas.Trial{trial("w101", 10, 15, true)}, want: "wait, w101 is ready"},
		{name: "one is ready, as is known", now: 30, ready: []string{"w101"}, trials: []dsas.Trial{trial("w101", 10, 15, true)}, want: "wait"},
		{name: "both are", now: 30, trials: []dsas.Trial{trial("w101", 10, 15, true), trial("w102", 11, 15, true)}, want: "promote, w101 is ready, w102 is ready"},
		{name: "both are, the events of one are pruned", now: 30, ready: []string{"w101"}, trials: []dsas.Trial{trial("w102", 11, 15, true)}, want: "promote, w102 is ready"},
		{name: "one ran it before", now: 30, status: status{"w101": runs}, trials: []dsas.Trial{trial("w102", 11, 15, true)}, want: "promote, w101 is ready, w102 is ready"},
		{name: "ready and late alike", now: 1000, trials: []dsas.Trial{trial("w101", 10, 15, true), trial("w102", 11, 15, true)}, want: "promote, w101 is ready, w102 is ready"},
		{name: "one failed", now: 30, ready: []string{"w101"}, trials: []dsas.Trial{trial("w102", 11, 15, "nginx is ill")}, want: "roll back, w102 w102-boot failed: nginx is ill"},
		{name: "one failed and then was ready", now: 30, trials: []dsas.Trial{trial("w102", 11, 15, "nginx is ill", true), trial("w101", 11, 15, true)}, want: "roll back, w102 w102-boot failed: nginx is ill"},
		{name: "ready once, and failed when it booted again", now: 50, ready: []string{"w101"}, trials: []dsas.Trial{trial("w101", 10, 15, true), trial("w101", 40, 45, "no disk")}, want: "roll back, w101 w101-boot failed: no disk"},
		{name: "late", now: 70, trials: []dsas.Trial{trial("w101", 10, 15)}, want: "roll back, w101 w101-boot was not ready within 1m0s of its boot"},
		{name: "late, and nothing was signed", now: 70, status: status{"w101": seen(9)}, trials: []dsas.Trial{trial("w101", 10)}, want: "roll back, w101 w101-boot was not ready within 1m0s of its boot"},
		{name: "reset again and again", now: 70, status: status{"w101": seen(9)}, trials: []dsas.Trial{trial("w101", 10), trial("w101", 40), trial("w101", 69)}, want: "roll back, w101 w101-boot was not ready within 1m0s of its boot"},
		{name: "somebody else asked for its script", now: 1000, status: status{"w101": seen(999)}, trials: []dsas.Trial{trial("w101", 10)}, want: "wait"},
		{name: "ready once, boots again", now: 50, ready: []string{"w101"}, trials: []dsas.Trial{trial("w101", 10, 15, true), trial("w101", 40, 45), trial("w102", 10, 15, true)}, want: "wait until 100, w102 is ready"},
		{name: "ready once, hangs the second time", now: 100, ready: []string{"w101"}, trials: []dsas.Trial{trial("w101", 10, 15, true), trial("w101", 40, 45)}, want: "roll back, w101 w101-boot was not ready within 1m0s of its boot"},
		{name: "the server was away: what was said meanwhile comes yet", now: 1000, up: 990, trials: []dsas.Trial{trial("w101", 10, 15)}, want: "wait until 1050"},
		{name: "the server was away, and nothing came", now: 1050, up: 990, trials: []dsas.Trial{trial("w101", 10, 15)}, want: "roll back, w101 w101-boot was not ready within 1m0s of its boot"},
		{name: "one was removed", now: 30, nodes: map[string]*dsas.Node{"w102": nil}, trials: []dsas.Trial{trial("w101", 10, 15, true)}, want: "promote, w101 is ready, w102 dropped: it was removed"},
		{name: "one has another role", now: 30, nodes: map[string]*dsas.Node{"w102": {Role: "db"}}, want: "wait, w102 dropped: its role is db now"},
		{name: "one has none", now: 30, nodes: map[string]*dsas.Node{"w102": {}}, want: "wait, w102 dropped: it has no role any more"},
		{name: "one is pinned", now: 30, nodes: map[string]*dsas.Node{"w102": {Role: "web", Release: "3"}}, want: "wait, w102 dropped: it was pinned to another release"},
		{name: "one is pinned to this", now: 30, nodes: map[string]*dsas.Node{"w102": {Role: "web", Release: "8"}}, trials: []dsas.Trial{trial("w101", 10, 15, true)}, want: "wait, w101 is ready"},
		{name: "late, but no longer of it", now: 1000, nodes: map[string]*dsas.Node{"w102": {Role: "db"}}, trials: []dsas.Trial{trial("w102", 10, 15)}, want: "wait, w102 dropped: its role is db now"},
		{name: "failed, and then was given another role", now: 30, nodes: map[string]*dsas.Node{"w102": {Role: "db"}}, trials: []dsas.Trial{trial("w102", 10, 15, "no disk")}, want: "roll back, w102 w102-boot failed: no disk"},
		{name: "none is left", now: 30, nodes: map[string]*dsas.Node{"w101": nil, "w102": {}}, want: "end: none of its nodes is left, w101 dropped: it was removed, w102 dropped: it has no role any more"},
		{name: "another node's boot", now: 1000, trials: []dsas.Trial{trial("w109", 10, 15, "no disk")}, want: "wait"},
		{name: "the release was removed", now: 30, gone: true, want: "end: its release is no longer in the store"},
	} {
		s := State{Limit: time.Minute, Gone: tt.gone, Now: at(tt.now), Up: at(tt.up), Status: tt.status, Trials: tt.trials, Nodes: map[string]dsas.Node{},
			Published: dsas.Published{Role: "web", Current: "7", Canary: &dsas.Canary{Release: "8", Nodes: []string{"w101", "w102"}, Since: began, Ready: tt.ready}}}
		for _, name := range s.Published.Canary.Nodes {
			n, changed := tt.nodes[name]
			switch {
			case !changed:
				s.Nodes[name] = dsas.Node{Name: name, Role: "web"}
			case n != nil:
				s.Nodes[name] = *n
			}
		}
		if got := text(Decide(s)); got != tt.want {
			t.Errorf("%s: Decide = %q; want %q", tt.name, got, tt.want)
		}
	}
}

func text(d Decision) string {
	parts := []string{map[Outcome]string{Wait: "wait", Promote: "promote", RollBack: "roll back", End: "end: " + d.Why}[d.Outcome]}
	if d.Outcome == Wait && !d.Next.IsZero() {
		parts[0] += fmt.Sprintf(" until %.0f", d.Next.Sub(began).Seconds())
	}
	if d.Outcome == RollBack {
		parts = append(parts, d.Node+" "+d.Boot+" "+d.Why)
	}
	for _, r := range d.Ready {
		parts = append(parts, r+" is ready")
	}
	for _, x := range d.Drop {
		parts = append(parts, x.Node+" dropped: "+x.Why)
	}
	return strings.Join(parts, ", ")
}

// TestCycle: with Cycle, those that tried the release and do not serve are booted anew.
func TestCycle(t *testing.T) {
	s := State{Limit: time.Minute, Now: at(30), Nodes: map[string]dsas.Node{}, Status: map[string]dsas.NodeStatus{"w102": {Phase: dsas.PhaseReady}},
		Published: dsas.Published{Role: "web", Current: "7", Canary: &dsas.Canary{Release: "8", Nodes: []string{"w101", "w102", "w103", "w104"}, Since: began, Cycle: true}},
		Trials: []dsas.Trial{{Node: "w101", Boot: "b1", Began: at(1), Proven: at(2), Failed: "no disk"}, {Node: "w102", Began: at(1), Proven: at(2), Ready: true},
			{Node: "w104", Began: at(1), Proven: at(2)}}}
	for _, n := range []string{"w101", "w102", "w103", "w104"} {
		s.Nodes[n] = dsas.Node{Name: n, Role: "web"}
	}
	d := Decide(s)
	if want := []string{"w101", "w104"}; d.Outcome != RollBack || !slices.Equal(d.Cycle, want) {
		t.Errorf("Decide = %+v; want a roll-back that cycles %q", d, want)
	}
	p := s.Published
	events, ok := d.Apply(&p, s.Published.Canary, at(30), func(d dsas.Digest) string { return "web:" + string(d) })
	if want := "role web: release web:8 is given up, nodes boot web:7: w101 failed: no disk"; !ok || p.Canary != nil || p.Current != "7" || len(events) != 1 ||
		events[0].Kind != dsas.KindRolledBack || events[0].Node != "w101" || events[0].Boot != "b1" || events[0].Message != want || !slices.Equal(p.Cycle, d.Cycle) {
		t.Errorf("Apply = %+v, %t, and %+v; want one event: %q", events, ok, p, want)
	}
	if events, ok := d.Apply(&p, s.Published.Canary, at(31), nil); ok {
		t.Errorf("Apply of a canary that has ended = %+v; want nothing", events)
	}
	s.Published.Canary.Cycle = false
	if d := Decide(s); d.Outcome != RollBack || len(d.Cycle) != 0 {
		t.Errorf("without Cycle: %+v; want nobody cycled", d)
	}
}
