// Package canary ends canaries by what their nodes' boots have shown: a release
// that some nodes try is published for their whole role when all of them were
// ready with it, and given up when one of them fails.
package canary

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
)

// State is all that a decision looks at.
type State struct {
	Published dsas.Published // with a canary
	Gone      bool           // its release is no longer in the store
	Limit     time.Duration  // of the role: how long a boot may take
	Nodes     map[string]dsas.Node
	Status    map[string]dsas.NodeStatus
	Trials    []dsas.Trial // boots with the release since the canary began, in their order
	// Up is when the server began to listen: what a node says meanwhile comes
	// later, so no boot is late before it had its time from then on.
	Up  time.Time
	Now time.Time
}

// Outcome is what becomes of a canary.
type Outcome int

// The outcomes.
const (
	Wait     Outcome = iota
	Promote          // all its nodes were ready
	RollBack         // one of its nodes failed
	End              // nobody is left to tell
)

// Decision is what is to be done now.
type Decision struct {
	Outcome    Outcome
	Node, Boot string    // whose boot ended it, with RollBack
	Why        string    // with RollBack and End
	Ready      []string  // nodes that were not known to be ready before
	Drop       []Drop    // nodes that are no longer of the canary
	Cycle      []string  // nodes to power-cycle, with RollBack
	Next       time.Time // when the next boot is late; unset: only an event can change anything
}

// Drop is a node that does not count any more.
type Drop struct{ Node, Why string }

// Decide is pure: what it says depends on s alone, so that a server that was
// away comes to the same end.
func Decide(s State) Decision {
	c := s.Published.Canary
	if s.Gone {
		return Decision{Outcome: End, Why: "its release is no longer in the store"}
	}
	// A failure speaks about the release, whatever became of the node since.
	for _, t := range s.Trials {
		if t.Failed != "" && slices.Contains(c.Nodes, t.Node) {
			return s.rollBack(t, "failed: "+t.Failed)
		}
	}
	var d Decision
	left := 0
	ready := 0
	for _, name := range c.Nodes {
		if why := s.left(name); why != "" {
			d.Drop = append(d.Drop, Drop{name, why})
			continue
		}
		left++
		was, pending := s.progress(name)
		if pending != nil {
			late := pending.Began
			if s.Up.After(late) {
				late = s.Up
			}
			if late = late.Add(s.Limit); !s.Now.Before(late) {
				return s.rollBack(*pending, fmt.Sprintf("was not ready within %s of its boot", s.Limit))
			}
			if d.Next.IsZero() || late.Before(d.Next) {
				d.Next = late
			}
		}
		if was && !slices.Contains(c.Ready, name) {
			d.Ready = append(d.Ready, name)
		}
		if was && pending == nil {
			ready++
		}
	}
	switch {
	case left == 0:
		d.Outcome, d.Why = End, "none of its nodes is left"
	case ready == left:
		d.Outcome = Promote
	}
	return d
}

// left says why a node is no longer of the canary; "": it is.
func (s *State) left(name string) string {
	n, ok := s.Nodes[name]
	switch {
	case !ok:
		return "it was removed"
	case n.Role == "":
		return "it has no role any more"
	case n.Role != s.Published.Role:
		return "its role is " + n.Role + " now"
	case n.Release != "" && n.Release != s.Published.Canary.Release:
		return "it was pinned to another release"
	}
	return ""
}

// progress tells whether a node was ready with the release, and which boot it
// has begun since that is not ready yet.
//
// Anybody on the boot network can begin a boot for a node. One that has proven
// nothing does not count where the node was heard since: it goes on with
// another boot. Of several the first counts, so that a node that is reset again
// and again does not have its time anew with each.
func (s *State) progress(name string) (ready bool, pending *dsas.Trial) {
	st := s.Status[name]
	ready = slices.Contains(s.Published.Canary.Ready, name)
	for i, t := range s.Trials {
		switch {
		case t.Node != name || t.Proven.IsZero() && st.LastSeen.After(t.Began):
		case t.Ready:
			ready, pending = true, nil
		case pending == nil:
			pending = &s.Trials[i]
		}
	}
	// It may have been there before the canary began.
	if st.Phase == dsas.PhaseReady && st.Image == s.Published.Canary.Release && st.Running == s.Published.Role {
		ready = true
	}
	return ready, pending
}

func (s *State) rollBack(t dsas.Trial, why string) Decision {
	d := Decision{Outcome: RollBack, Node: t.Node, Boot: t.Boot, Why: why}
	c := s.Published.Canary
	if !c.Cycle {
		return d
	}
	for _, name := range c.Nodes {
		st := s.Status[name]
		tried := slices.ContainsFunc(s.Trials, func(t dsas.Trial) bool { return t.Node == name })
		// One that serves goes on until somebody boots it.
		if tried && s.left(name) == "" && st.Phase != dsas.PhaseReady {
			d.Cycle = append(d.Cycle, name)
		}
	}
	return d
}

// Apply does to p what was decided about its canary c, and gives the events
// that tell of it; nil, false where another canary, or none, runs by now. name
// gives a release's name.
func (d Decision) Apply(p *dsas.Published, c *dsas.Canary, at time.Time, name func(dsas.Digest) string) ([]dsas.Event, bool) {
	if !p.Canary.Is(c) {
		return nil, false
	}
	now := *p.Canary // readers hold the old one
	now.Ready, now.Nodes = slices.Clone(now.Ready), slices.Clone(now.Nodes)
	release := name(now.Release)
	var events []dsas.Event
	tell := func(kind dsas.Kind, node, format string, args ...any) {
		events = append(events, dsas.Event{Kind: kind, Node: node, Message: "role " + p.Role + ": " + fmt.Sprintf(format, args...)})
	}
	for _, n := range d.Drop {
		now.Nodes = slices.DeleteFunc(now.Nodes, func(o string) bool { return o == n.Node })
		now.Ready = slices.DeleteFunc(now.Ready, func(o string) bool { return o == n.Node })
		node := n.Node
		if n.Why == "it was removed" {
			node = "" // no such node has events
		}
		tell(dsas.KindCanary, node, "%s no longer tries release %s: %s", n.Node, release, n.Why)
	}
	for _, n := range d.Ready {
		now.Ready = append(now.Ready, n)
		tell(dsas.KindCanary, n, "%s is ready with release %s, %d of %d", n, release, len(now.Ready), len(now.Nodes))
	}
	p.Canary = &now
	switch d.Outcome {
	case Promote:
		was := *p
		p.Publish(now.Release, "its canary", at)
		tell(dsas.KindPromoted, "", "release %s was ready on %s and is promoted", release, dsas.NodesText(now.Nodes))
		for _, e := range p.Changed(was, "its canary", name) {
			if e.Kind == dsas.KindPublished {
				events = append(events, e)
			}
		}
	case RollBack:
		p.GivenUp, p.Canary = now.Release, nil
		back := "none"
		if p.Current != "" {
			back = name(p.Current)
		}
		tell(dsas.KindRolledBack, d.Node, "release %s is given up, nodes boot %s: %s %s", release, back, d.Node, strings.TrimSpace(d.Why))
		events[len(events)-1].Boot = d.Boot
		p.Cycle = slices.Compact(slices.Sorted(slices.Values(slices.Concat(p.Cycle, d.Cycle))))
	case End:
		p.Canary = nil
		tell(dsas.KindCanaryEnded, "", "the canary of release %s ends: %s", release, d.Why)
	}
	return events, true
}

// changes tells whether there is anything to write.
func (d Decision) changes() bool { return d.Outcome != Wait || len(d.Drop)+len(d.Ready) > 0 }
