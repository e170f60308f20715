package dsas

import (
	"strings"
	"testing"
)

func TestDidYouMean(t *testing.T) {
	known := []string{"web", "db", "lb", "storage", "w101", "w102"}
	for _, c := range []struct{ written, want string }{
		{"wbe", ` (did you mean "web"?)`},
		{"WEB", ` (did you mean "web"?)`},
		{"storgae", ` (did you mean "storage"?)`},
		{"w10", ` (did you mean "w101"?)`},
		{"memtest", ""},
		{"", ""},
		{strings.Repeat("x", 200), ""},
	} {
		if got := DidYouMean(c.written, known); got != c.want {
			t.Errorf("DidYouMean(%.20q) = %q; want %q", c.written, got, c.want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"web", "web", 0}, {"", "web", 3}, {"web", "", 3},
		{"web", "wbe", 1}, {"kitten", "sitting", 3}, {"db", "lb", 1},
	} {
		if got := editDistance(c.a, c.b, 10); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
}
