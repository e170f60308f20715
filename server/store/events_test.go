package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/store"
)

func TestAddEvent(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	_, err := f.AddEvent(f.ctx, dsas.Event{Node: "w1"})
	wantErr(t, "AddEvent(no kind)", err, dsas.ErrInvalid, "kind")
	_, err = f.AddEvent(f.ctx, dsas.Event{Kind: dsas.Kind(strings.Repeat("x", 1000))})
	wantErr(t, "AddEvent(long kind)", err, dsas.ErrInvalid, "kind")

	e := dsas.Event{Time: t0.Add(-time.Second), Node: "w1", MAC: mac(1), Boot: "b1", Kind: dsas.KindFailed,
		Message: "m\xff", Duration: time.Second, Bytes: 7, Detail: "begin" + strings.Repeat("x", 1<<20) + "end"}
	got := must(f.AddEvent(f.ctx, e))(t)
	if got.ID != 1 || got.Message != "m" || len(got.Detail) > 1<<15 || !strings.HasSuffix(got.Detail, "end") {
		t.Errorf("AddEvent = ID %d, message %q, %d bytes of detail; want 1, m, the last of it", got.ID, got.Message, len(got.Detail))
	}
	list := must(f.Events(f.ctx, store.EventFilter{}))(t)
	if len(list) != 1 || list[0] != got {
		t.Errorf("Events = %+v; want what AddEvent gave", list)
	}
	want := dsas.NodeStatus{Phase: dsas.PhaseFailed, Since: e.Time, LastSeen: e.Time, LastEvent: &got, Boot: "b1"}
	st := must(f.Status(f.ctx, "w1"))(t)
	if *st.LastEvent != got {
		t.Errorf("Status.LastEvent = %+v; want %+v", *st.LastEvent, got)
	}
	st.LastEvent = &got
	if st != want {
		t.Errorf("Status = %+v; want %+v", st, want)
	}
	// Without a time it is now; a node that does not exist is no error.
	got = must(f.AddEvent(f.ctx, dsas.Event{Node: "gone", Kind: dsas.KindReady}))(t)
	if got.ID != 2 || !got.Time.Equal(t0) {
		t.Errorf("AddEvent = ID %d at %s; want 2 at %s", got.ID, got.Time, t0)
	}
	if all := must(f.Statuses(f.ctx))(t); len(all) != 1 || all["w1"].Phase != dsas.PhaseFailed {
		t.Errorf("Statuses = %+v; want w1 alone, failed", all)
	}
}

func TestStatusFollowsEvents(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	boot := func(id string) {
		t.Helper()
		noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: id, Node: "w1", MAC: mac(1), Role: "role-" + id, Image: "sha256:" + dsas.Digest(id), TokenHash: []byte(id), Session: []byte("s")}))
	}
	at := t0.Add(-time.Hour)
	step := func(kind dsas.Kind, boot string, want dsas.Phase, since, seen time.Time) {
		t.Helper()
		must(f.AddEvent(f.ctx, dsas.Event{Time: at, Node: "w1", Boot: boot, Kind: kind}))(t)
		st := must(f.Status(f.ctx, "w1"))(t)
		if st.Phase != want || !st.Since.Equal(since) || !st.LastSeen.Equal(seen) || st.LastEvent.Kind != kind {
			t.Errorf("after %s of %q: phase %s since %s, seen %s, last %s; want %s, %s, %s, %s",
				kind, boot, st.Phase, st.Since, st.LastSeen, st.LastEvent.Kind, want, since, seen, kind)
		}
	}
	never := time.Time{}
	step(dsas.KindDHCP, "", dsas.PhaseDHCP, at, never)
	boot("b1")
	st := must(f.Status(f.ctx, "w1"))(t)
	if st.Boot != "b1" || st.Running != "role-b1" || st.Image != "sha256:b1" || st.Phase != dsas.PhaseDHCP {
		t.Errorf("Status after CreateBoot = %+v; want b1 with its role and image, phase dhcp", st)
	}
	at1 := at.Add(time.Second)
	at = at1
	step(dsas.KindScript, "b1", dsas.PhaseLoader, at1, never)
	at2 := at.Add(time.Second)
	at = at2
	step(dsas.KindReady, "b1", dsas.PhaseReady, at2, at2)
	at3 := at.Add(time.Second)
	at = at3
	step(dsas.KindService, "b1", dsas.PhaseReady, at2, at3)
	at = at.Add(time.Second)
	// Said of the node by others: no sign of life.
	step(dsas.KindAssigned, "", dsas.PhaseReady, at2, at3)
	lost := at
	step(dsas.KindLost, "", dsas.PhaseLost, lost, at3)
	step(dsas.KindBack, "", dsas.PhaseReady, lost, at3)

	boot("b2")
	at = at.Add(time.Second)
	init := at
	step(dsas.KindInit, "b2", dsas.PhaseInit, init, init)
	// What the old boot still had to say changes nothing more.
	at = at.Add(time.Second)
	step(dsas.KindFailed, "b1", dsas.PhaseInit, init, init)
	step(dsas.KindReady, "never-heard-of", dsas.PhaseInit, init, init)
	if st := must(f.Status(f.ctx, "w1"))(t); st.Boot != "b2" || st.Running != "role-b2" {
		t.Errorf("Status = boot %s, running %s; want b2, role-b2", st.Boot, st.Running)
	}
	seen := at
	at = at.Add(time.Second)
	step(dsas.KindReady, "b2", dsas.PhaseReady, at, at)
	ready := at
	// A node whose clock is off is not seen in the future, nor earlier than it was.
	at = t0.Add(time.Hour)
	step(dsas.KindWarning, "b2", dsas.PhaseReady, ready, t0)
	at = seen
	step(dsas.KindWarning, "b2", dsas.PhaseReady, ready, t0)
}

func TestSeen(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	for _, c := range []struct{ at, want time.Time }{{t0, t0}, {t0.Add(5), t0.Add(5)}, {t0, t0.Add(5)}} {
		noErr(t, f.Seen(f.ctx, "w1", c.at))
		if got := must(f.Status(f.ctx, "w1"))(t); !got.LastSeen.Equal(c.want) || got.Phase != dsas.PhaseNew {
			t.Errorf("Seen(%s): last seen %s, phase %s; want %s, new", c.at, got.LastSeen, got.Phase, c.want)
		}
	}
	wantErr(t, "Seen(unknown)", f.Seen(f.ctx, "w2", t0), dsas.ErrNotFound, "w2")
	_, err := f.Status(f.ctx, "w2")
	wantErr(t, "Status(unknown)", err, dsas.ErrNotFound, "w2")
}

func TestEventsFilter(t *testing.T) {
	f := open(t)
	for i := range 12 { // ids 1 to 12
		must(f.AddEvent(f.ctx, dsas.Event{Node: fmt.Sprintf("w%d", i%2), Boot: fmt.Sprintf("b%d", i%3), Kind: dsas.KindService}))(t)
	}
	for _, c := range []struct {
		f    store.EventFilter
		want string
	}{
		{store.EventFilter{}, "[1 2 3 4 5 6 7 8 9 10 11 12]"},
		{store.EventFilter{After: 10}, "[11 12]"},
		{store.EventFilter{After: 12}, "[]"},
		{store.EventFilter{Limit: 3}, "[1 2 3]"},
		{store.EventFilter{Limit: 3, Last: true}, "[10 11 12]"},
		{store.EventFilter{After: 11, Limit: 3, Last: true}, "[12]"},
		{store.EventFilter{Node: "w1"}, "[2 4 6 8 10 12]"},
		{store.EventFilter{Node: "w1", Last: true, Limit: 2}, "[10 12]"},
		{store.EventFilter{Boot: "b0"}, "[1 4 7 10]"},
		{store.EventFilter{Node: "w1", Boot: "b0", After: 4}, "[10]"},
		{store.EventFilter{Node: "w9"}, "[]"},
	} {
		if got := ids(must(f.Events(f.ctx, c.f))(t)); got != c.want {
			t.Errorf("Events(%+v) = %s; want %s", c.f, got, c.want)
		}
	}
}

func ids(events []dsas.Event) string {
	out := make([]int64, len(events))
	for i, e := range events {
		out[i] = e.ID
	}
	return fmt.Sprint(out)
}

func TestPruneEvents(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Kind: dsas.KindReady}))(t)
	for range 9 {
		must(f.AddEvent(f.ctx, dsas.Event{Kind: dsas.KindServer}))(t)
	}
	noErr(t, f.PruneEvents(f.ctx, 100))
	if got, want := ids(must(f.Events(f.ctx, store.EventFilter{}))(t)), "[1 2 3 4 5 6 7 8 9 10]"; got != want {
		t.Errorf("Events after PruneEvents(100) = %s; want %s", got, want)
	}
	noErr(t, f.PruneEvents(f.ctx, 3))
	if got, want := ids(must(f.Events(f.ctx, store.EventFilter{}))(t)), "[1 8 9 10]"; got != want {
		t.Errorf("Events after PruneEvents(3) = %s; want %s: the last of w1 stays", got, want)
	}
	noErr(t, f.DeleteNode(f.ctx, "w1"))
	noErr(t, f.PruneEvents(f.ctx, 0))
	// An ID is never given twice, even when all are gone.
	if e := must(f.AddEvent(f.ctx, dsas.Event{Kind: dsas.KindServer}))(t); e.ID != 11 {
		t.Errorf("AddEvent after PruneEvents(0) = ID %d; want 11", e.ID)
	}
}

func TestSubscribe(t *testing.T) {
	f := open(t)
	all, cancel := f.Subscribe()
	slow, _ := f.Subscribe()
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := f.AddEvent(f.ctx, dsas.Event{Kind: dsas.KindServer}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for want := int64(1); want <= writers*each; want++ {
		if e := <-all; e.ID != want {
			t.Fatalf("event = ID %d; want %d: in order, none left out", e.ID, want)
		}
	}
	wg.Wait() // nobody waited for slow
	cancel()
	cancel()
	if e, ok := <-all; ok {
		t.Errorf("event %d after cancel; want a closed channel", e.ID)
	}
	noErr(t, f.Close())
	var n, last int64
	for e := range slow {
		if e.ID <= last {
			t.Errorf("slow subscriber got %d after %d", e.ID, last)
		}
		n, last = n+1, e.ID
	}
	if n == 0 || n == writers*each {
		t.Errorf("slow subscriber got %d events; want some, not all %d", n, writers*each)
	}
}

func TestBoots(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	b := dsas.Boot{ID: "b1", Node: "w1", MAC: mac(1), Role: "web", Image: "sha256:ab", TokenHash: []byte("hash"), Session: []byte("key")}
	noErr(t, f.CreateBoot(f.ctx, b))
	b.Created = t0
	same := func(got dsas.Boot) bool { return fmt.Sprintf("%+v", got) == fmt.Sprintf("%+v", b) }
	if got := must(f.Boot(f.ctx, "b1"))(t); !same(got) {
		t.Errorf("Boot = %+v; want %+v", got, b)
	}
	if got := must(f.BootByToken(f.ctx, []byte("hash")))(t); !same(got) {
		t.Errorf("BootByToken = %+v; want %+v", got, b)
	}
	_, err := f.BootByToken(f.ctx, []byte("hasH"))
	wantErr(t, "BootByToken(wrong)", err, dsas.ErrNotFound)
	_, err = f.BootByToken(f.ctx, nil)
	wantErr(t, "BootByToken(nil)", err, dsas.ErrNotFound)
	_, err = f.Boot(f.ctx, "b2")
	wantErr(t, "Boot(unknown)", err, dsas.ErrNotFound, "b2")
	wantErr(t, "CreateBoot(again)", f.CreateBoot(f.ctx, b), dsas.ErrConflict, "b1")
	wantErr(t, "CreateBoot(no node)", f.CreateBoot(f.ctx, dsas.Boot{ID: "b2", Node: "w2", TokenHash: []byte("2"), Session: []byte("s")}), dsas.ErrNotFound, "w2")
	wantErr(t, "CreateBoot(no token)", f.CreateBoot(f.ctx, dsas.Boot{ID: "b2", Node: "w1", Session: []byte("s")}), dsas.ErrInvalid)

	noErr(t, f.MarkFirstEvent(f.ctx, "b1", t0.Add(1)))
	noErr(t, f.MarkFirstEvent(f.ctx, "b1", t0.Add(2)))
	if got := must(f.Boot(f.ctx, "b1"))(t); !got.FirstEvent.Equal(t0.Add(1)) {
		t.Errorf("FirstEvent = %s; want the first, %s", got.FirstEvent, t0.Add(1))
	}
	wantErr(t, "MarkFirstEvent(unknown)", f.MarkFirstEvent(f.ctx, "b2", t0), dsas.ErrNotFound)
}

func TestPruneBoots(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	must(f.CreateNode(f.ctx, node("w2", "", 2)))(t)
	for i := range 30 {
		for _, n := range []string{"w1", "w2", ""} {
			id := fmt.Sprintf("%s-%d", n, i)
			noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: id, Node: n, TokenHash: []byte(id), Session: []byte("s")}))
		}
	}
	for _, id := range []string{"w1-2", "w1-3"} {
		noErr(t, f.MarkFirstEvent(f.ctx, id, t0))
	}
	noErr(t, f.PruneBoots(f.ctx))
	for _, n := range []string{"w1", "w2", ""} {
		for i := range 30 {
			_, err := f.Boot(f.ctx, fmt.Sprintf("%s-%d", n, i))
			want := i >= 10 || n == "w1" && i == 3
			if got := err == nil; got != want {
				t.Errorf("boot %s-%d is kept: %v; want %v", n, i, got, want)
			}
		}
	}
}
