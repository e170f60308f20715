package httpboot

import (
	"hash/maphash"
	"sync"
	"time"
)

// nonces remembers which signed requests were answered, so that a batch sent
// again after a lost reply is not stored twice, and a replay does nothing. It
// keeps hashes under a seed of its own: 64 bits that nobody can aim at.
type nonces struct {
	mu   sync.Mutex
	seed maphash.Seed
	seen map[uint64]struct{}
	ring []uint64
	next int
}

// nonceMemory is enough for the heartbeats and events of 1,000 nodes over
// 2*sign.MaxSkew, the time for which a signature is good: 12 MB at most.
const nonceMemory = 1 << 18

// first tells whether key was not seen before, and remembers it.
func (n *nonces) first(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil {
		n.seed, n.seen = maphash.MakeSeed(), map[uint64]struct{}{}
	}
	h := maphash.String(n.seed, key)
	if _, ok := n.seen[h]; ok {
		return false
	}
	if len(n.ring) < nonceMemory {
		n.ring = append(n.ring, h)
	} else {
		delete(n.seen, n.ring[n.next])
		n.ring[n.next] = h
		n.next = (n.next + 1) % nonceMemory
	}
	n.seen[h] = struct{}{}
	return true
}

// forget takes a nonce back whose request could not be carried out.
func (n *nonces) forget(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen != nil {
		delete(n.seen, maphash.String(n.seed, key))
	}
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

// spent tells whether key has used up its minute, without using any of it.
func (b *budget) spent(key string, now time.Time, perMinute int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.used[key]
	return u.n >= perMinute && now.Sub(u.since) < time.Minute
}
