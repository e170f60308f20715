package dhcp

import (
	"sync"
	"time"
)

// recent remembers keys for a while, so that what repeats is said once. It
// holds a bounded number of them.
type recent struct {
	mu  sync.Mutex
	m   map[string]time.Time
	max int
}

func newRecent(max int) *recent { return &recent{m: make(map[string]time.Time, max), max: max} }

// first tells whether key was not seen within d before now.
func (r *recent) first(key string, now time.Time, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.m[key]; ok && now.Sub(t) < d {
		return false
	}
	if len(r.m) >= r.max {
		// Forgetting all of it costs a few repeated lines in a flood, no more.
		clear(r.m)
	}
	r.m[key] = now
	return true
}

// within is first, but says no while as many keys as fit are fresh: a flood of
// made-up keys is then silence.
func (r *recent) within(key string, now time.Time, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.m[key]; ok && now.Sub(t) < d {
		return false
	}
	if len(r.m) >= r.max {
		for k, t := range r.m {
			if now.Sub(t) >= d {
				delete(r.m, k)
			}
		}
		if len(r.m) >= r.max {
			return false
		}
	}
	r.m[key] = now
	return true
}
