package liveness_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"dsas"
	"dsas/server/liveness"
	"dsas/server/store"
)

const quiet = 40 * time.Second

type fixture struct {
	*store.Store
	t *testing.T
	w *liveness.Watch
}

// open gives a watch over a real store that holds node w1.
func open(t *testing.T, dir string) *fixture {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(context.Background(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{s, t, &liveness.Watch{Store: s, Log: log, Quiet: quiet, Every: 5 * time.Second}}
	_, err = s.CreateNode(context.Background(), dsas.Node{Name: "w1", NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 0, 1}}}, Address: netip.MustParsePrefix("10.0.0.1/24")})
	if err != nil && !errors.Is(err, dsas.ErrConflict) {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) close() {
	if err := f.Close(); err != nil {
		f.t.Error(err)
	}
}

func (f *fixture) event(at time.Time, kind dsas.Kind, boot string) {
	f.t.Helper()
	if _, err := f.AddEvent(context.Background(), dsas.Event{Time: at, Node: "w1", Kind: kind, Boot: boot, Message: dsas.PowerCycle}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) boot(at time.Time, id string) {
	f.t.Helper()
	if err := f.CreateBoot(context.Background(), dsas.Boot{ID: id, Node: "w1", Role: "web", TokenHash: []byte(id), Session: []byte("k"), Created: at}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) seen(at time.Time) {
	f.t.Helper()
	if err := f.Seen(context.Background(), "w1", at); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) status() dsas.NodeStatus {
	f.t.Helper()
	st, err := f.Status(context.Background(), "w1")
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}

func (f *fixture) want(when string, phase dsas.Phase) {
	f.t.Helper()
	if st := f.status(); st.Phase != phase {
		f.t.Errorf("%s: phase %s; want %s", when, st.Phase, phase)
	}
}

// count tells how often the watch has said a thing.
func (f *fixture) count(kind dsas.Kind) int {
	f.t.Helper()
	events, err := f.Events(context.Background(), dsas.EventFilter{Node: "w1"})
	if err != nil {
		f.t.Fatal(err)
	}
	n := 0
	for _, e := range events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func TestLook(t *testing.T) {
	t0 := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	f := open(t, t.TempDir())
	defer f.close()
	look := func(s int, want dsas.Phase, lost, back int) {
		t.Helper()
		if err := f.w.Look(t.Context(), at(s)); err != nil {
			t.Fatal(err)
		}
		f.want(fmt.Sprintf("looked at %d s", s), want)
		if l, b := f.count(dsas.KindLost), f.count(dsas.KindBack); l != lost || b != back {
			t.Errorf("at %d s: said lost %d times and back %d times; want %d, %d", s, l, b, lost, back)
		}
	}
	f.boot(at(0), "b1")
	f.event(at(0), dsas.KindInit, "b1")
	look(100, dsas.PhaseInit, 0, 0) // an image may take long, and there are no heartbeats yet
	f.event(at(100), dsas.KindSwitched, "b1")
	look(100, dsas.PhaseServices, 0, 0)
	look(140, dsas.PhaseServices, 0, 0)
	look(141, dsas.PhaseLost, 1, 0)
	look(150, dsas.PhaseLost, 1, 0) // said once
	f.seen(at(155))
	look(156, dsas.PhaseServices, 1, 1) // it was not ready before
	f.event(at(160), dsas.KindReady, "b1")
	look(200, dsas.PhaseReady, 1, 1)
	look(201, dsas.PhaseLost, 2, 1)
	if st := f.status(); st.Serving != "web" {
		t.Errorf("a lost node serves %q; want web: its balancer decides", st.Serving)
	}
	f.seen(at(210))
	look(211, dsas.PhaseReady, 2, 2)

	// A power command that did not reach it.
	f.event(at(220), dsas.KindPower, "")
	f.seen(at(225)) // was on its way
	look(230, dsas.PhasePower, 2, 2)
	look(300, dsas.PhasePower, 2, 2)
	f.seen(at(305))
	look(306, dsas.PhaseReady, 2, 3)

	// One that did: it is silent until its new boot signs something.
	f.event(at(310), dsas.KindPower, "")
	f.event(at(315), dsas.KindDHCP, "")
	look(400, dsas.PhaseDHCP, 2, 3)
	f.boot(at(400), "b2")
	f.event(at(400), dsas.KindScript, "b2")
	f.event(at(500), dsas.KindInit, "b2")
	look(501, dsas.PhaseInit, 2, 3)
	f.event(at(520), dsas.KindReady, "b2")

	// It is silent for a while, and somebody else asks for its script.
	look(600, dsas.PhaseLost, 3, 3)
	f.boot(at(600), "b3")
	f.event(at(600), dsas.KindScript, "b3")
	f.event(at(601), dsas.KindLoaderFailed, "")
	f.want("spoofed", dsas.PhaseFailed)
	look(650, dsas.PhaseFailed, 3, 3)
	f.seen(at(655))
	look(656, dsas.PhaseReady, 3, 4)
	if st := f.status(); st.Boot != "b2" || st.Serving != "web" {
		t.Errorf("boot %s, serves %q; want b2, web", st.Boot, st.Serving)
	}
}

// TestServerRestart: a server that was away for an hour gives its nodes the
// time for a heartbeat before it calls one lost.
func TestServerRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := open(t, dir)
		f.boot(time.Now(), "b1")
		f.event(time.Now(), dsas.KindReady, "b1")
		f.close()

		time.Sleep(time.Hour)
		f = open(t, dir)
		defer f.close()
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- f.w.Run(ctx) }()
			return func() {
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("Run = %v; want it to end with its context", err)
				}
			}
		}
		stop := run()
		time.Sleep(quiet - time.Second)
		synctest.Wait()
		f.want("before Quiet has passed", dsas.PhaseReady)
		f.seen(time.Now())
		time.Sleep(quiet)
		synctest.Wait()
		f.want("heard once since", dsas.PhaseReady)
		if n := f.count(dsas.KindLost); n != 0 {
			t.Errorf("said lost %d times; want never", n)
		}
		time.Sleep(2 * f.w.Every)
		synctest.Wait()
		f.want("silent for longer than Quiet", dsas.PhaseLost)
		stop()

		// It does not come back just because the server does.
		stop = run()
		time.Sleep(2 * quiet)
		synctest.Wait()
		f.want("server started again", dsas.PhaseLost)
		f.seen(time.Now())
		time.Sleep(2 * f.w.Every)
		synctest.Wait()
		f.want("heard again", dsas.PhaseReady)
		stop()
	})
}
