package httpboot

import (
	"sync"
	"time"
)

// nonces remembers which signed requests were answered, so that a batch sent
// again after a lost reply is not stored twice, and a replay does nothing.
type nonces struct {
	mu   sync.Mutex
	seen map[string]struct{}
	ring []string
	next int
}

const nonceMemory = 1 << 16

// first tells whether key was not seen before, and remembers it.
func (n *nonces) first(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil {
		n.seen, n.ring = map[string]struct{}{}, make([]string, nonceMemory)
	}
	if _, ok := n.seen[key]; ok {
		return false
	}
	delete(n.seen, n.ring[n.next])
	n.ring[n.next], n.seen[key] = key, struct{}{}
	n.next = (n.next + 1) % nonceMemory
	return true
}

// forget takes a nonce back whose request could not be carried out.
func (n *nonces) forget(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.seen, key)
}

// limiter lets one event per key and period through: what an unproven sender
// says may not fill the event log.
type limiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// maxKeys bounds the keys remembered. Callers use keys of known nodes and
// boots alone, so that a stranger cannot push them out.
const maxKeys = 1 << 14

func (l *limiter) allow(key string, now time.Time, period time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil || len(l.last) > maxKeys {
		l.last = map[string]time.Time{}
	}
	if now.Sub(l.last[key]) < period {
		return false
	}
	l.last[key] = now
	return true
}

// budget lets so many things per key and minute through.
type budget struct {
	mu   sync.Mutex
	used map[string]spent
}

type spent struct {
	since time.Time
	n     int
}

func (b *budget) allow(key string, now time.Time, perMinute int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used == nil || len(b.used) > maxKeys {
		b.used = map[string]spent{}
	}
	u := b.used[key]
	if now.Sub(u.since) >= time.Minute {
		u = spent{since: now}
	}
	if u.n >= perMinute {
		return false
	}
	u.n++
	b.used[key] = u
	return true
}
