package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How far the heap may grow between two collections, in percent of what is in
// use. With much in use, as a thousand nodes at once make it, memory is short
// and processor time is left; with little, collections would take a fifth of
// the time that a burst of DHCP takes.
const (
	growSmall = 150
	growLarge = 30
	largeHeap = 32 << 20 // bytes in use
)

// paceGC keeps that up until ctx ends.
func paceGC(ctx context.Context) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for now := 0; ; {
		metrics.Read(live)
		want := growSmall
		if live[0].Value.Uint64() > largeHeap {
			want = growLarge
		}
		if want != now {
			debug.SetGCPercent(want)
			now = want
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
