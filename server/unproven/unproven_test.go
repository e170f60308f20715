package unproven

import (
	"testing"
	"time"

	"dsas"
)

// log counts what may reach the store.
type log struct {
	*Gate
	kinds map[dsas.Kind]int
}

func (l *log) add(e dsas.Event) {
	if l.Allow(e) {
		l.kinds[e.Kind]++
	}
}

func gate() (*Gate, *log, *time.Time) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	g := &Gate{Now: func() time.Time { return now }}
	return g, &log{g, map[dsas.Kind]int{}}, &now
}

func mac(i int) dsas.MAC { return dsas.MAC{0x52, 0x54, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// TestOneBox: however often a box asks, it makes so many events of a kind, and
// later some more.
func TestOneBox(t *testing.T) {
	g, l, now := gate()
	ask := func(n int, e dsas.Event) {
		for range n {
			l.add(e)
		}
	}
	nbp := dsas.Event{Node: "w1", MAC: mac(1), Kind: dsas.KindNBP}
	ask(1000, nbp)
	if l.kinds[dsas.KindNBP] != perBox {
		t.Errorf("1000 loaders fetched made %d events; want %d", l.kinds[dsas.KindNBP], perBox)
	}
	if got := g.Stats().Dropped[dsas.KindNBP]; got != 1000-perBox {
		t.Errorf("Stats: %d left out; want %d", got, 1000-perBox)
	}
	ask(5, dsas.Event{Node: "w1", MAC: mac(1), Kind: dsas.KindDHCP}) // another kind
	ask(5, dsas.Event{Node: "w2", MAC: mac(2), Kind: dsas.KindNBP})  // another box
	if l.kinds[dsas.KindDHCP] != 5 || l.kinds[dsas.KindNBP] != perBox+5 {
		t.Errorf("stored %v; want those of another kind and another box", l.kinds)
	}
	*now = now.Add(3*perBoxEvery + 1)
	ask(1000, nbp)
	if l.kinds[dsas.KindNBP] != perBox+5+3 {
		t.Errorf("after three times %s there are %d events; want %d", perBoxEvery, l.kinds[dsas.KindNBP], perBox+5+3)
	}
	*now = now.Add(-24 * time.Hour) // the clock is set back, and goes on
	ask(1, nbp)
	*now = now.Add(time.Hour)
	was := l.kinds[dsas.KindNBP]
	ask(1000, nbp)
	if got := l.kinds[dsas.KindNBP] - was; got != perBox {
		t.Errorf("an hour after the clock went back %d events pass; want %d", got, perBox)
	}
}

// TestMadeUpBoxes: a flood of MACs that belong to nobody.
func TestMadeUpBoxes(t *testing.T) {
	g, l, now := gate()
	for i := range 3 * maxBoxes {
		l.add(dsas.Event{MAC: mac(i), Kind: dsas.KindUnknown})
	}
	if l.kinds[dsas.KindUnknown] != others {
		t.Errorf("a flood of unknown boxes made %d events; want %d", l.kinds[dsas.KindUnknown], others)
	}
	if len(g.boxes) > maxBoxes {
		t.Errorf("%d boxes are remembered; want at most %d", len(g.boxes), maxBoxes)
	}
	*now = now.Add(perBoxEvery) // those who asked once are forgotten
	for i := range 100 {
		l.add(dsas.Event{Node: "w", MAC: mac(1<<20 + i), Kind: dsas.KindDHCP})
	}
	if l.kinds[dsas.KindDHCP] != 100 {
		t.Errorf("%d events of nodes after the flood; want 100", l.kinds[dsas.KindDHCP])
	}
}

// TestProven: what nodes sign and operators do always passes.
func TestProven(t *testing.T) {
	_, l, _ := gate()
	for _, e := range []dsas.Event{
		{Node: "w1", MAC: mac(1), Boot: "b", Kind: dsas.KindReady}, {Node: "w1", Kind: dsas.KindPower}, {Node: "w1", MAC: mac(1), Boot: "b", Kind: dsas.KindWarning},
		{Node: "w1", Kind: dsas.KindWarning}, {Node: "w1", Kind: dsas.KindLost}, {Node: "w1", Kind: dsas.KindAssigned}, {Kind: dsas.KindServer}, {Kind: dsas.KindSiteChanged},
		{Node: "w1", MAC: mac(1), Boot: "b", Kind: dsas.KindFailed},
	} {
		if Is(e) {
			t.Errorf("Is(%+v) = true; want false", e)
		}
		for range 2 * perBox {
			l.add(e)
		}
	}
	total := 0
	for _, n := range l.kinds {
		total += n
	}
	if total != 9*2*perBox {
		t.Errorf("%d of %d passed: %v", total, 9*2*perBox, l.kinds)
	}
	for _, k := range []dsas.Kind{dsas.KindDHCP, dsas.KindRefused, dsas.KindNBP, dsas.KindScript, dsas.KindKernel, dsas.KindInitramfs, dsas.KindConfigTaken, dsas.KindLoaderFailed, dsas.KindMenu, dsas.KindUnknown} {
		if !Is(dsas.Event{Kind: k, Boot: "b"}) {
			t.Errorf("Is(%s) = false; want true", k)
		}
	}
}
