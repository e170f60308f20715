package web

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestFoldNames(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"", ""},
		{"w101", "w101"},
		{"w101 w102", "w101 w102"},
		{"w101 w102 w103", "w[101-103]"},
		{"db1 w8 w9 w10 w11 w13", "db1 w[8-11] w13"},
		{"w08 w09 w10", "w[08-10]"},
		{"w8 w09 w10", "w8 w09 w10"},
		{"a b c", "a b c"},
		{"1 2 3 x", "[1-3] x"},
	} {
		if got := foldNames(strings.Fields(c.names)); got != c.want {
			t.Errorf("foldNames(%s) = %s; want %s", c.names, got, c.want)
		}
	}
}

// FuzzFoldNames: what is written short names the same nodes.
func FuzzFoldNames(f *testing.F) {
	f.Add("w1 w2 w3 w03 w04 w05 w99 w100 w101")
	f.Add("w18446744073709551615 w0 w00 w000")
	f.Fuzz(func(t *testing.T, s string) {
		names := strings.Fields(s)
		for _, n := range names {
			if dsas.CheckName("node", n) != nil {
				t.Skip()
			}
		}
		var back []string
		for word := range strings.FieldsSeq(foldNames(names)) {
			more, err := dsas.ExpandNames(word)
			if err != nil {
				t.Fatalf("foldNames(%q) = %q: %v", names, foldNames(names), err)
			}
			back = append(back, more...)
		}
		if !slices.Equal(back, names) {
			t.Errorf("foldNames(%q) = %q, which names %q", names, foldNames(names), back)
		}
	})
}

func FuzzFilter(f *testing.F) {
	for _, q := range []string{"", "!", "w[1-3", "role:", "!phase:ready w[1-2,4]", "w[1-99999999]"} {
		f.Add(q)
	}
	v := dsas.NodeView{Node: dsas.Node{Name: "w1", Role: "web"}, Status: dsas.NodeStatus{Phase: dsas.PhaseReady}}
	f.Fuzz(func(t *testing.T, q string) {
		_ = parseFilter(q).fits(v)
		word := strings.TrimLeft(strings.TrimSpace(q), "!")
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r > '~' || r <= ' ' }) {
			return
		}
		if parseFilter(word).fits(v) == parseFilter("!"+word).fits(v) {
			t.Errorf("%q and !%q fit the same", word, word)
		}
	})
}

func TestLocalPath(t *testing.T) {
	for p, want := range map[string]string{
		"/": "/", "/nodes/w1?q=a": "/nodes/w1?q=a", "": "/", "nodes": "/", "//x.example": "/", `/\x.example`: "/", "/\t/x.example": "/", "/\n": "/", "https://x.example/": "/",
		"/nodes/w1?x=1": "/nodes/w1?x=1", "javascript:alert(1)": "/", "///evil": "/", "/%2f/x": "/%2f/x",
	} {
		if got := localPath(p); got != want {
			t.Errorf("localPath(%q) = %q; want %q", p, got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{-time.Minute: "0s", 59 * time.Second: "59s", 60 * time.Second: "1m", 3 * time.Hour: "3h", 47 * time.Hour: "47h", 49 * time.Hour: "2d"} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("ago(%s) = %q; want %q", d, got, want)
		}
	}
	if got := ago(now, time.Time{}); got != "" {
		t.Errorf("ago(never) = %q; want nothing", got)
	}
}

// TestBootStart writes boots as a letter for each event.
func TestBootStart(t *testing.T) {
	kinds := map[rune]dsas.Event{
		'P': {Kind: dsas.KindPower, Message: "cycle"}, 'O': {Kind: dsas.KindPower, Message: "off"}, 'd': {Kind: dsas.KindDHCP}, 'n': {Kind: dsas.KindNBP},
		's': {Kind: dsas.KindScript}, 'k': {Kind: dsas.KindKernel}, 'i': {Kind: dsas.KindInit}, 'r': {Kind: dsas.KindReady}, 'L': {Kind: dsas.KindLoaderFailed},
		'l': {Kind: dsas.KindLink}, 'a': {Kind: dsas.KindAssigned}, 'x': {Kind: dsas.KindRefused},
	}
	for _, c := range []struct{ before, boot string }{
		{"", "Pdndskir"},
		{"", "dndskir"},
		{"dndskirl", "Pd"},
		{"dndskirl", "dndsk"},      // a reboot that nobody asked for
		{"", "dndskirldd"},         // leases of a running system
		{"Pdnds", "dndskir"},       // hung, and reset by hand
		{"PdndsL", "dndskir"},      // each round of a loader is a boot
		{"dndskir", "Padndskir"},   // the role was changed meanwhile
		{"dndskirlO", "Pd"},        // off, then on
		{"", "PdndskirlO"},         // and off: its boot is still the latest
		{"dndskirO", "dndsk"},      // switched on by hand
		{"aax", ""}, {"", "xdnds"}, // a refusal is a part of what follows
		{"alll", ""}, // nothing of a boot among the latest
	} {
		var events []dsas.Event
		for _, r := range c.before + c.boot {
			events = append(events, kinds[r])
		}
		want := len(c.before)
		if c.boot == "" {
			want = len(events)
		}
		if got := bootStart(events); got != want {
			t.Errorf("bootStart(%s|%s) = %d; want %d", c.before, c.boot, got, want)
		}
	}
}
