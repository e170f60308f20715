package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dsas"
)

func TestChangeHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newChangeHub()
		ctx, cancel := context.WithCancel(t.Context())
		events := make(chan dsas.Event)
		done := make(chan error)
		go func() { done <- h.Run(ctx, events) }()

		var id int64
		say := func(kinds ...dsas.Kind) {
			for _, k := range kinds {
				id++
				events <- dsas.Event{ID: id, Kind: k}
			}
		}
		changed := func(c <-chan struct{}) bool {
			synctest.Wait()
			select {
			case <-c:
				return true
			default:
				return false
			}
		}
		first := h.Changed()
		// What anybody may bring about, and what changes nobody's files.
		say(dsas.KindDHCP, dsas.KindNBP, dsas.KindScript, dsas.KindKernel, dsas.KindConfigTaken, dsas.KindLoaderFailed, dsas.KindLost,
			dsas.KindService, dsas.KindLink, dsas.KindFiles, dsas.KindWarning, dsas.KindServer)
		time.Sleep(time.Minute)
		if changed(first) {
			t.Error("told of a change, and nothing changed")
		}
		// A rack becomes ready within the settling time: told once, at its end.
		for range 40 {
			say(dsas.KindReady)
			time.Sleep(settle / 100)
		}
		if changed(first) {
			t.Error("told before the burst has settled")
		}
		time.Sleep(settle)
		if !changed(first) {
			t.Error("not told after the burst")
		}
		second := h.Changed()
		time.Sleep(time.Minute)
		if changed(second) {
			t.Error("told twice of one burst")
		}
		for _, k := range []dsas.Kind{dsas.KindInit, dsas.KindReady, dsas.KindFailed, dsas.KindBack, dsas.KindPower, dsas.KindAssigned, dsas.KindChanged, dsas.KindSiteChanged} {
			c := h.Changed()
			say(k)
			time.Sleep(settle)
			if !changed(c) {
				t.Errorf("not told of %s", k)
			}
		}
		// Some were lost on the way here.
		third := h.Changed()
		id += 5
		say(dsas.KindService)
		time.Sleep(settle)
		if !changed(third) {
			t.Error("not told after a gap in the events")
		}
		close(events) // the store was closed
		fourth := h.Changed()
		time.Sleep(time.Minute)
		if changed(fourth) {
			t.Error("told of a change by the end of the events")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v; want it to end with its context", err)
		}
	})
}
