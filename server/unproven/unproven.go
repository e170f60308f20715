// Package unproven bounds what lands in the event log because somebody on the
// boot network asked for it: an address, a loader, a script, a kernel. Nobody
// proves who they are with that, so one box, or one that plays many, must not
// push out of the log what nodes signed and operators did.
package unproven

import (
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"dsas"
)

// Limits are bursts and how fast they are given back. A loader that fails and
// retries makes some six events of a kind in its first minute, then fewer; a
// thousand nodes that boot at once make seven thousand in all.
const (
	perBox      = 30 // events of one kind and one box (MAC, or node where it has none)
	perBoxEvery = 10 * time.Second
	known       = 100_000 // of all boxes that are nodes
	knownEvery  = 500 * time.Millisecond
	others      = 1000 // of all that are not
	othersEvery = 5 * time.Second
	// maxBoxes bounds the boxes remembered, 100 bytes each.
	maxBoxes = 1 << 16
	// sayEvery is how often it is logged that events are left out.
	sayEvery = time.Minute
)

// Gate tells which events may be stored. Its zero value works.
type Gate struct {
	Log *slog.Logger     // nil: silent
	Now func() time.Time // nil: time.Now

	mu            sync.Mutex
	boxes         map[key]*bucket
	known, others bucket
	dropped       map[dsas.Kind]uint64
	unsaid        uint64 // dropped since it was logged
	said          time.Time
}

type key struct {
	mac  dsas.MAC
	node string // where there is no MAC
	kind dsas.Kind
}

// bucket holds so many events, and is filled again by and by.
type bucket struct {
	used  int
	since time.Time // when used was right
}

// refill gives back what time has given back.
func (b *bucket) refill(now time.Time, every time.Duration) {
	n := int(min(now.Sub(b.since)/every, 1<<30))
	switch {
	case now.Before(b.since): // the clock was set back
		b.since = now
	case n >= b.used:
		b.used, b.since = 0, now
	case n > 0:
		b.used -= n
		b.since = b.since.Add(time.Duration(n) * every)
	}
}

// Is tells whether anybody on the boot network can bring e about: it is not
// signed by a node, nor an operator's doing.
func Is(e dsas.Event) bool {
	switch e.Kind {
	case dsas.KindDHCP, dsas.KindRefused, dsas.KindUnknown, dsas.KindNBP:
		return true
	case dsas.KindWarning, dsas.KindFailed:
		return e.Boot == "" && !e.MAC.IsZero() // what the server says of a box that asks
	}
	return strings.HasPrefix(string(e.Kind), "boot.")
}

// Allow tells whether e is to be stored, and counts it.
func (g *Gate) Allow(e dsas.Event) bool { return !Is(e) || g.allow(e) }

func (g *Gate) now() time.Time {
	if g.Now != nil {
		return g.Now()
	}
	return time.Now()
}

func (g *Gate) allow(e dsas.Event) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	box := g.box(e, now)
	all, limit, every := &g.known, known, knownEvery
	if e.Node == "" {
		all, limit, every = &g.others, others, othersEvery
	}
	all.refill(now, every)
	if box == nil || box.used >= perBox || all.used >= limit {
		g.drop(e.Kind, now)
		return false
	}
	box.used++
	all.used++
	return true
}

// box gives the bucket of an event's box and kind, nil where there are too many.
func (g *Gate) box(e dsas.Event, now time.Time) *bucket {
	k := key{mac: e.MAC, kind: e.Kind}
	if e.MAC.IsZero() {
		k.node = e.Node
	}
	b := g.boxes[k]
	if b == nil {
		if len(g.boxes) >= maxBoxes {
			for k, b := range g.boxes {
				if b.refill(now, perBoxEvery); b.used == 0 {
					delete(g.boxes, k)
				}
			}
			if len(g.boxes) >= maxBoxes {
				return nil
			}
		}
		if g.boxes == nil {
			g.boxes = map[key]*bucket{}
		}
		b = &bucket{since: now}
		g.boxes[k] = b
	}
	b.refill(now, perBoxEvery)
	return b
}

// drop counts an event that is left out, and says so now and then.
func (g *Gate) drop(k dsas.Kind, now time.Time) {
	if g.dropped == nil {
		g.dropped = map[dsas.Kind]uint64{}
	}
	g.dropped[k]++
	g.unsaid++
	if now.Sub(g.said) >= sayEvery && g.Log != nil {
		g.Log.Warn("too many events of the boot network; some are left out", "events", g.unsaid, "the latest", k)
		g.said, g.unsaid = now, 0
	}
}

// Stats are counters for monitoring.
type Stats struct {
	Dropped map[dsas.Kind]uint64 // events left out, by kind
}

// Stats gives the counters since the start.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{Dropped: maps.Clone(g.dropped)}
}
