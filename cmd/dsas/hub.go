package main

import (
	"context"
	"sync"
	"time"

	"dsas"
)

// changeHub tells the long polls of running nodes that something happened
// which may have changed their files: a node became ready or left, a site or
// a node was changed.
type changeHub struct {
	mu sync.Mutex
	ch chan struct{}
}

func newChangeHub() *changeHub { return &changeHub{ch: make(chan struct{})} }

// Changed gives a channel that is closed at the next change.
func (h *changeHub) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ch
}

func (h *changeHub) notify() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.ch)
	h.ch = make(chan struct{})
}

// settle is how long a burst of events (40 nodes becoming ready together) is
// gathered before everybody renders again.
const settle = 200 * time.Millisecond

// Run follows events until ctx ends. Where their IDs have a gap, some were lost
// on the way here, and any of them may have changed something.
func (h *changeHub) Run(ctx context.Context, events <-chan dsas.Event) error {
	var timer <-chan time.Time
	var last int64
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				events = nil // the store was closed: the end is near
				continue
			}
			gap := last > 0 && e.ID > last+1
			last = max(last, e.ID)
			if (gap || mayChangeFiles(e.Kind)) && timer == nil {
				timer = time.After(settle)
			}
		case <-timer:
			timer = nil
			h.notify()
		}
	}
}

func mayChangeFiles(k dsas.Kind) bool {
	switch k {
	case dsas.KindInit, dsas.KindReady, dsas.KindFailed, dsas.KindPartBad, dsas.KindBack, dsas.KindPower,
		dsas.KindAssigned, dsas.KindChanged, dsas.KindSiteChanged:
		return true
	}
	return false
}
