package dsas

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestParseReleaseRef(t *testing.T) {
	id := "sha256:" + string(make64('a'))
	for in, want := range map[string]ReleaseRef{
		"web:7": {Role: "web", Number: 7}, "web": {Role: "web"}, "web:latest": {Role: "web"}, "web:": {Role: "web"}, id: {ID: Digest(id)},
	} {
		got, err := ParseReleaseRef(in)
		if err != nil || got != want {
			t.Errorf("ParseReleaseRef(%q) = %+v, %v; want %+v", in, got, err, want)
		}
		if again, err := ParseReleaseRef(got.String()); err != nil || again != want {
			t.Errorf("ParseReleaseRef(%q) = %+v, %v; want %+v", got.String(), again, err, want)
		}
	}
	for _, in := range []string{"", ":7", "web:0", "web:-1", "web:07", "web:7x", "web:7:8", "../web:7", "Web:7", "sha256:ab", "web:99999999999999999999"} {
		if got, err := ParseReleaseRef(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseReleaseRef(%q) = %+v, %v; want ErrInvalid", in, got, err)
		}
	}
}

func make64(c byte) []byte { return slices.Repeat([]byte{c}, 64) }

func TestPublished(t *testing.T) {
	at := time.Unix(1, 0)
	p := Published{Role: "web"}
	if err := p.RollBack("ann", at); !errors.Is(err, ErrConflict) {
		t.Errorf("RollBack of nothing = %v; want ErrConflict", err)
	}
	for _, id := range []Digest{"1", "2", "3", "3"} {
		p.Publish(id, "ann", at)
	}
	if p.Current != "3" || !slices.Equal(p.Before, []Digest{"1", "2"}) {
		t.Fatalf("after 1, 2, 3, 3: %+v; want 3, before it 1 and 2", p)
	}
	kept := p
	for _, want := range []Digest{"2", "1"} {
		if err := p.RollBack("bob", at); err != nil || p.Current != want || p.By != "bob" {
			t.Errorf("RollBack = %v, %+v; want %s, by bob", err, p, want)
		}
	}
	p.Publish("4", "ann", at)
	if !slices.Equal(kept.Before, []Digest{"1", "2"}) {
		t.Errorf("an older copy changed to %v", kept.Before)
	}
	kept = p
	p.Publish("1", "ann", at)
	if !slices.Equal(kept.Before, []Digest{"1"}) {
		t.Errorf("an older copy changed to %v", kept.Before)
	}
	if !slices.Equal(p.Before, []Digest{"4"}) || !p.Uses("4") || !p.Uses("1") || p.Uses("3") {
		t.Errorf("after publishing 1 anew: %+v; want before it 4 alone", p)
	}
	for i := range 50 {
		p.Publish(Digest(rune('A'+i)), "ann", at)
	}
	if len(p.Before) != maxBefore {
		t.Errorf("%d releases are remembered; want %d", len(p.Before), maxBefore)
	}
}

func TestAssigned(t *testing.T) {
	p := Published{Role: "web", Current: "7", Canary: &Canary{Release: "8", Nodes: []string{"w102", "w103", "w105"}}}
	for _, tt := range []struct {
		name string
		node *Node
		want Digest
	}{
		{"a box that is no node", nil, "7"},
		{"a node", &Node{Name: "w101", Role: "web"}, "7"},
		{"a canary", &Node{Name: "w102", Role: "web"}, "8"},
		{"pinned", &Node{Name: "w104", Role: "web", Release: "3"}, "3"},
		{"pinned, and a canary", &Node{Name: "w103", Role: "web", Release: "3"}, "3"},
		{"of another role, that boots this one once", &Node{Name: "w105", Role: "db", Release: "99"}, "7"},
	} {
		if got := p.Assigned(tt.node); got != tt.want {
			t.Errorf("%s: Assigned = %q; want %q", tt.name, got, tt.want)
		}
	}
	if got := (Published{Role: "web"}).Assigned(&Node{Name: "w101", Role: "web"}); got != "" {
		t.Errorf("nothing published: Assigned = %q; want none", got)
	}
}
