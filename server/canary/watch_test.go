package canary_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/canary"
	"dsas/server/store"
)

// world is a server's state on disk, and what watches its canaries.
type world struct {
	*testing.T
	dir    string
	mu     sync.Mutex // the store and the watch read now
	now    time.Time
	store  *store.Store
	watch  *canary.Watch
	cycled []string
}

func id(n int) dsas.Digest { return dsas.Digest("sha256:" + strings.Repeat(fmt.Sprintf("%x", n), 64)) }

func name(d dsas.Digest) string { return "web:" + string(d[7]) }

func newWorld(t *testing.T) *world {
	w := &world{T: t, dir: t.TempDir(), now: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)}
	w.start()
	t.Cleanup(func() { w.store.Close() })
	for i := 1; i <= 3; i++ {
		mac, _ := dsas.ParseMAC(fmt.Sprintf("52:54:00:00:01:%02x", i))
		if _, err := w.store.CreateNode(t.Context(), dsas.Node{Name: fmt.Sprintf("w10%d", i), NICs: []dsas.NIC{{MAC: mac}}, Role: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	w.publish(func(p *dsas.Published) { p.Publish(id(7), "ann", w.now) })
	return w
}

// start opens the state anew, as a server that was killed does.
func (w *world) start() {
	w.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := store.Open(context.Background(), filepath.Join(w.dir, "db"), filepath.Join(w.dir, "key"), log)
	if err != nil {
		w.Fatal(err)
	}
	clock := func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	s.SetClock(clock)
	w.store = s
	w.watch = &canary.Watch{Store: s, Log: log, Up: w.now, Now: clock,
		Release: func(d dsas.Digest) (*dsas.Release, error) {
			return &dsas.Release{ID: d, Role: "web", Number: int(d[7] - '0')}, nil
		},
		Role: func(string, dsas.Digest) (dsas.Role, error) {
			return dsas.Role{BootTime: dsas.Duration(time.Minute)}, nil
		},
		Power: func(_ context.Context, n dsas.Node) error {
			w.cycled = append(w.cycled, n.Name)
			return nil
		},
	}
}

func (w *world) restart() {
	w.Helper()
	if err := w.store.Close(); err != nil {
		w.Fatal(err)
	}
	w.start()
}

func (w *world) publish(change func(p *dsas.Published)) {
	w.Helper()
	_, err := w.store.Publish(w.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		was := *p
		change(p)
		return p.Changed(was, "ann", name), nil
	})
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) try(nodes ...string) {
	w.Helper()
	w.publish(func(p *dsas.Published) {
		p.StartCanary(dsas.Canary{Release: id(8), Nodes: nodes, Since: w.now, By: "ann", Cycle: true})
	})
	w.pass(1)
}

// boots begins a boot of node with what it is assigned.
func (w *world) boots(node, boot string) {
	w.Helper()
	n, err := w.store.Node(w.Context(), node)
	if err != nil {
		w.Fatal(err)
	}
	err = w.store.CreateBoot(w.Context(), dsas.Boot{ID: boot, Node: node, MAC: n.NICs[0].MAC, Role: "web", Image: w.store.Published("web").Assigned(&n),
		TokenHash: []byte(boot), Session: []byte("s"), Created: w.now})
	if err != nil {
		w.Fatal(err)
	}
	w.pass(1)
}

// says is a node's signed event.
func (w *world) says(node, boot string, kind dsas.Kind, message string) {
	w.Helper()
	if err := w.store.MarkFirstEvent(w.Context(), boot, w.now); err != nil {
		w.Fatal(err)
	}
	if _, err := w.store.AddEvent(w.Context(), dsas.Event{Node: node, Boot: boot, Kind: kind, Message: message, Time: w.now}); err != nil {
		w.Fatal(err)
	}
	w.pass(1)
}

func (w *world) pass(seconds int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(time.Duration(seconds) * time.Second)
}

// look looks twice: what was done is not done again.
func (w *world) look() {
	w.Helper()
	for range 2 {
		if _, err := w.watch.Look(w.Context()); err != nil {
			w.Fatal(err)
		}
	}
}

// story is what the events say of images.
func (w *world) story() []string {
	w.Helper()
	events, err := w.store.Events(w.Context(), dsas.EventFilter{})
	if err != nil {
		w.Fatal(err)
	}
	var out []string
	for _, e := range events {
		if strings.HasPrefix(string(e.Kind), "image.") {
			out = append(out, string(e.Kind)+" "+strings.TrimPrefix(e.Message, "role web: "))
		}
	}
	return out[1:] // of the first publishing
}

func (w *world) want(current int, canary bool, story ...string) {
	w.Helper()
	p := w.store.Published("web")
	if p.Current != id(current) || (p.Canary != nil) != canary {
		w.Errorf("published = %s, canary %+v; want web:%d, canary %t", name(p.Current), p.Canary, current, canary)
	}
	if got := w.story(); !slices.Equal(got, story) {
		w.Errorf("the events say\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(story, "\n  "))
	}
}

const begun = "image.canary w101 w102 try release web:8 from their next boot on, by ann"

// TestPromoted, over a restart after each step: every fact is told once.
func TestPromoted(t *testing.T) {
	w := newWorld(t)
	steps := []func(){
		func() { w.try("w101", "w102") },
		func() { w.boots("w101", "b1") },
		func() { w.says("w101", "b1", dsas.KindReady, "") },
		func() { w.boots("w102", "b2") },
		func() { w.says("w102", "b2", dsas.KindReady, "") },
	}
	for _, step := range steps {
		step()
		w.restart()
		w.look()
	}
	w.want(8, false, begun, "image.canary w101 is ready with release web:8, 1 of 2", "image.canary w102 is ready with release web:8, 2 of 2",
		"image.promoted release web:8 was ready on w101 w102 and is promoted", "image.published nodes boot release web:8, before web:7, by its canary")
	if len(w.cycled) != 0 {
		t.Errorf("%q were power-cycled; want none", w.cycled)
	}
	w.publish(func(p *dsas.Published) {
		if err := p.RollBack("ann", w.now); err != nil {
			t.Error(err)
		}
	})
	if p := w.store.Published("web"); p.Current != id(7) {
		t.Errorf("rolled back to %s; want web:7", name(p.Current))
	}
}

// TestRolledBack: the failure happens while no server runs; afterwards the node
// boots what is current, is power-cycled, and that once.
func TestRolledBack(t *testing.T) {
	w := newWorld(t)
	w.try("w101", "w102")
	w.boots("w101", "b1")
	w.says("w101", "b1", dsas.KindReady, "")
	w.boots("w102", "b2")
	w.says("w102", "b2", dsas.KindFailed, "service nginx: not healthy within 10s")
	w.restart()
	w.look()
	w.restart()
	w.look()
	w.want(7, false, begun, "image.rolled-back release web:8 is given up, nodes boot web:7: w102 failed: service nginx: not healthy within 10s")
	if !slices.Equal(w.cycled, []string{"w102"}) {
		t.Errorf("%q were power-cycled; want w102, once", w.cycled)
	}
	if st, err := w.store.Status(t.Context(), "w102"); err != nil || st.Phase != dsas.PhasePower {
		t.Errorf("w102 is in phase %s, %v; want power", st.Phase, err)
	}
	if p := w.store.Published("web"); len(p.Cycle) != 0 {
		t.Errorf("%q are yet to be cycled; want none", p.Cycle)
	}
	w.boots("w102", "b3")
	if b, err := w.store.Boot(t.Context(), "b3"); err != nil || b.Image != id(7) {
		t.Errorf("the boot after the roll-back has %s, %v; want web:7", b.Image.Short(), err)
	}
}

// TestLate: a boot that never says anything ends it, also across a restart,
// which gives the boot its time anew.
func TestLate(t *testing.T) {
	w := newWorld(t)
	w.try("w101", "w102")
	w.boots("w101", "b1")
	w.pass(50)
	w.look()
	w.restart()
	w.pass(50)
	w.look()
	w.want(7, true, begun)
	w.pass(10)
	w.look()
	w.want(7, false, begun, "image.rolled-back release web:8 is given up, nodes boot web:7: w101 was not ready within 1m0s of its boot")
}

// TestNodesLeave: it never waits for what is not of it any more.
func TestNodesLeave(t *testing.T) {
	w := newWorld(t)
	w.try("w101", "w102", "w103")
	w.boots("w101", "b1")
	if err := w.store.DeleteNode(t.Context(), "w103"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.UpdateNode(t.Context(), "w102", func(n *dsas.Node) error { n.Release = id(7); return nil }); err != nil {
		t.Fatal(err)
	}
	w.look()
	w.says("w101", "b1", dsas.KindReady, "")
	w.look()
	w.want(8, false, "image.canary w101 w102 w103 try release web:8 from their next boot on, by ann",
		"image.canary w102 no longer tries release web:8: it was pinned to another release", "image.canary w103 no longer tries release web:8: it was removed",
		"image.canary w101 is ready with release web:8, 1 of 1", "image.promoted release web:8 was ready on w101 and is promoted",
		"image.published nodes boot release web:8, before web:7, by its canary")
}

// TestOperatorEnds: by hand, with it and without it, and by another release.
func TestOperatorEnds(t *testing.T) {
	w := newWorld(t)
	w.try("w101", "w102")
	w.publish(func(p *dsas.Published) {
		if err := p.RollBack("ann", w.now); err != nil {
			t.Error(err)
		}
	})
	w.look()
	w.try("w101", "w102")
	w.publish(func(p *dsas.Published) { p.Publish(id(9), "ann", w.now) })
	w.try("w101", "w102")
	w.publish(func(p *dsas.Published) { p.Publish(id(8), "ann", w.now) })
	w.look()
	w.want(8, false, begun, "image.canary-ended the canary of release web:8 on w101 w102 was ended by ann",
		begun, "image.canary-ended the canary of release web:8 on w101 w102 was ended by ann", "image.published nodes boot release web:9, before web:7, by ann",
		begun, "image.promoted release web:8 was promoted by ann; 0 of 2 canary nodes had been ready with it", "image.published nodes boot release web:8, before web:9, by ann")
}

// TestRun: the events themselves wake it.
func TestRun(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.watch.Run(ctx) }()
	told, cancel := w.store.Subscribe()
	defer cancel()
	w.try("w101")
	w.boots("w101", "b1")
	w.says("w101", "b1", dsas.KindReady, "")
	deadline := time.After(time.Minute)
	for promoted := false; !promoted; {
		select {
		case e := <-told:
			promoted = e.Kind == dsas.KindPromoted
		case <-deadline:
			t.Fatalf("nothing was promoted; published is %+v", w.store.Published("web"))
		}
	}
	stop()
	if err := <-ended; err != context.Canceled {
		t.Errorf("Run = %v; want context.Canceled", err)
	}
}
