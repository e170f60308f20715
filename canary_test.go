package dsas

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChooseCanaries(t *testing.T) {
	var nodes []Node
	for i := range 40 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("w%d", 101+i), Role: "web"})
	}
	nodes = append(nodes, Node{Name: "pinned", Role: "web", Release: "3"}, Node{Name: "db1", Role: "db"})
	all := func(string) bool { return true }
	for percent, want := range map[int]int{1: 1, 2: 1, 3: 2, 10: 4, 11: 5, 100: 40} {
		got, err := ChooseCanaries("web", percent, nodes, all)
		if err != nil || len(got) != want || slices.Contains(got, "pinned") || slices.Contains(got, "db1") {
			t.Errorf("ChooseCanaries(%d%% of 40) = %v, %v; want %d nodes of role web, none pinned", percent, got, err, want)
		}
	}
	first, _ := ChooseCanaries("web", 10, nodes, all)
	slices.Reverse(nodes)
	if again, err := ChooseCanaries("web", 10, nodes, all); err != nil || !slices.Equal(again, first) {
		t.Errorf("asked again it chose %v, %v; want %v", again, err, first)
	}
	if next, err := ChooseCanaries("web", 10, nodes, func(n string) bool { return n != first[0] }); err != nil || slices.Contains(next, first[0]) || !slices.Contains(next, first[1]) {
		t.Errorf("with %s not ready it chose %v, %v; want the others of %v and one more", first[0], next, err, first)
	}
	if got, err := ChooseCanaries("web", 100, nodes, func(n string) bool { return n == "w105" }); err != nil || !slices.Equal(got, []string{"w105"}) {
		t.Errorf("with one ready it chose %v, %v; want w105", got, err)
	}
	if _, err := ChooseCanaries("web", 10, nodes, func(string) bool { return false }); !errors.Is(err, ErrConflict) {
		t.Errorf("with none ready: %v; want ErrConflict", err)
	}
	for _, percent := range []int{-1, 0, 101} {
		if _, err := ChooseCanaries("web", percent, nodes, all); !errors.Is(err, ErrInvalid) {
			t.Errorf("ChooseCanaries(%d%%) = %v; want ErrInvalid", percent, err)
		}
	}
}

// TestRollBackOfCanary: it ends the canary alone.
func TestRollBackOfCanary(t *testing.T) {
	p := Published{Role: "web", Current: "7", Before: []Digest{"6"}}
	p.StartCanary(Canary{Release: "8", Nodes: []string{"w102", "w101", "w102"}, Since: time.Unix(1, 0)})
	if want := []string{"w101", "w102"}; !slices.Equal(p.Canary.Nodes, want) {
		t.Errorf("its nodes are %v; want %v", p.Canary.Nodes, want)
	}
	if err := p.RollBack("ann", time.Unix(2, 0)); err != nil || p.Canary != nil || p.Current != "7" || len(p.Before) != 1 {
		t.Errorf("RollBack = %v, %+v; want the canary gone and 7 current, 6 before it", err, p)
	}
	if err := p.RollBack("ann", time.Unix(3, 0)); err != nil || p.Current != "6" {
		t.Errorf("RollBack again = %v, %+v; want 6", err, p)
	}
}

func TestCanaryText(t *testing.T) {
	for nodes, want := range map[string]string{
		"w101":      "role web: w101 tries release web:8 from its next boot on, by ann",
		"w101 w102": "role web: w101 w102 try release web:8 from their next boot on, by ann",
	} {
		if got := CanaryText("web", "web:8", &Canary{Nodes: strings.Fields(nodes), By: "ann"}); got != want {
			t.Errorf("CanaryText(%s) = %q; want %q", nodes, got, want)
		}
	}
}
