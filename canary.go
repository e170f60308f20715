package dsas

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Canary is a release that some nodes try before their role gets it.
type Canary struct {
	Release Digest    `json:"release"`
	Nodes   []string  `json:"nodes"`
	Since   time.Time `json:"since"`
	By      string    `json:"by,omitempty"`
	// Ready are the nodes of Nodes that were ready with the release.
	Ready []string `json:"ready,omitempty"`
	// Cycle: its nodes are power-cycled when it is rolled back.
	Cycle bool `json:"cycle,omitempty"`
}

// Trial is one boot of a node with a canary's release.
type Trial struct {
	Node   string
	Boot   string
	Began  time.Time // when its script was asked for, which anybody on the boot network can do
	Proven time.Time // when the node first signed something in it; unset: not yet
	Ready  bool      // the node said that it is ready
	Failed string    // why it said that it failed; "": it did not
}

// StartCanary has some nodes try a release; a canary that runs ends.
func (p *Published) StartCanary(c Canary) {
	c.Nodes = slices.Compact(slices.Sorted(slices.Values(c.Nodes)))
	p.Canary = &c
}

// Is tells whether two canaries are the same one, at whatever point.
func (c *Canary) Is(other *Canary) bool {
	return c != nil && other != nil && c.Release == other.Release && c.Since.Equal(other.Since)
}

// ChooseCanaries gives percent of a role's nodes, rounded up and at least one, of those
// that are ready and not pinned. Asked again, with the same nodes, it gives the same ones, and they
// are not neighbours by name, which may hang on one switch.
func ChooseCanaries(role string, percent int, nodes []Node, ready func(name string) bool) ([]string, error) {
	if percent < 1 || percent > 100 {
		return nil, fmt.Errorf("canary of %d%%: give 1%% to 100%% or the nodes' names: %w", percent, ErrInvalid)
	}
	follow := 0
	var free []string
	for _, n := range nodes {
		if n.Role != role || n.Release != "" {
			continue
		}
		follow++
		if ready(n.Name) {
			free = append(free, n.Name)
		}
	}
	if len(free) == 0 {
		return nil, fmt.Errorf("role %s: of its nodes that are not pinned (%d) none is ready, so none can be chosen; name them: --canary w101: %w", role, follow, ErrConflict)
	}
	place := func(name string) string { h := sha256.Sum256([]byte(role + "\n" + name)); return string(h[:]) }
	slices.SortFunc(free, func(a, b string) int { return cmp.Compare(place(a), place(b)) })
	return slices.Sorted(slices.Values(free[:min(len(free), (follow*percent+99)/100)])), nil
}

// CanaryText is what the event of a canary's begin says.
func CanaryText(role, release string, c *Canary) string {
	return fmt.Sprintf("role %s: %s, by %s", role, c.Tries(release, false), c.By)
}

// Tries says which nodes try a release, or would: "w101 tries release web:8 from
// its next boot on".
func (c *Canary) Tries(release string, would bool) string {
	n := len(c.Nodes)
	verb := Agree(n, "tries", "try")
	if would {
		verb = "would try"
	}
	return fmt.Sprintf("%s %s release %s from %s next boot on", NodesText(c.Nodes), verb, release, Agree(n, "its", "their"))
}

// NodesText names nodes, so many that it is still read.
func NodesText(names []string) string {
	const most = 12
	if len(names) == 0 {
		return "no node"
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
	}
	return strings.Join(names, " ")
}

// Changed gives the events that tell how p differs from what it was before by
// has changed it: how a canary ended, that one began, that another release is
// current. name gives a release's name.
func (p *Published) Changed(was Published, by string, name func(Digest) string) []Event {
	var events []Event
	if c := was.Canary; c != nil && !c.Is(p.Canary) {
		e := Event{Kind: KindCanaryEnded, Message: fmt.Sprintf("role %s: the canary of release %s on %s was ended by %s", p.Role, name(c.Release), NodesText(c.Nodes), by)}
		if p.Current == c.Release && was.Current != c.Release {
			e = Event{Kind: KindPromoted, Message: fmt.Sprintf("role %s: release %s was promoted by %s; %d of %d canary nodes had been ready with it", p.Role, name(c.Release), by, len(c.Ready), len(c.Nodes))}
		}
		events = append(events, e)
	}
	if p.Current != was.Current {
		before := ""
		if was.Current != "" {
			before = name(was.Current)
		}
		events = append(events, Event{Kind: KindPublished, Message: PublishedText(p.Role, name(p.Current), before, by)})
	}
	if p.Canary != nil && !p.Canary.Is(was.Canary) {
		events = append(events, Event{Kind: KindCanary, Message: CanaryText(p.Role, name(p.Canary.Release), p.Canary)})
	}
	return events
}
