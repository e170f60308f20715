package auth

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"dsas"
)

const (
	freeTries  = 5                // of one address before it has to wait
	maxWait    = 15 * time.Minute // the wait doubles from 1 s up to this
	tryMemory  = time.Hour        // after this long without a try an address begins anew
	maxTracked = 10_000           // addresses
	totalTries = 30               // of all addresses together at once
	totalEvery = 2 * time.Second  // one more of them
)

// TooManyError: too many log-in attempts, of one address or of all.
type TooManyError struct {
	RetryAfter time.Duration // at least a second
}

// Error implements error.
func (e *TooManyError) Error() string {
	return fmt.Sprintf("too many attempts to log in; try again in %s", e.RetryAfter)
}

// Unwrap makes it a dsas.ErrDenied.
func (e *TooManyError) Unwrap() error { return dsas.ErrDenied }

// limiter slows down guessing. It lives in memory: a restart costs a guesser
// more time than it gains.
type limiter struct {
	mu    sync.Mutex
	tries map[netip.Prefix]*tries
	total float64   // tries left of all addresses
	at    time.Time // when total was right
}

type tries struct {
	count int
	last  time.Time // the latest that was let through
	until time.Time // none is before this
}

func newLimiter() *limiter {
	return &limiter{tries: map[netip.Prefix]*tries{}, total: totalTries}
}

// attempt counts an attempt from an address: 0, or for how long to wait with
// it. One that has to wait does not count.
func (l *limiter) attempt(from netip.Prefix, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tries[from]
	if t != nil && now.Sub(t.last) > tryMemory {
		delete(l.tries, from)
		t = nil
	}
	if t != nil && now.Before(t.until) {
		return wholeSeconds(t.until.Sub(now))
	}
	if d := now.Sub(l.at); d > 0 {
		l.total = min(totalTries, l.total+d.Seconds()/totalEvery.Seconds())
		l.at = now
	}
	if l.total < 1 {
		return wholeSeconds(time.Duration((1 - l.total) * float64(totalEvery)))
	}
	l.total--
	if t == nil {
		l.makeRoom(now)
		t = &tries{}
		l.tries[from] = t
	}
	t.count++
	t.last = now
	if over := t.count - freeTries; over >= 0 {
		t.until = now.Add(min(maxWait, time.Second<<min(over, 20)))
	}
	return 0
}

// makeRoom keeps the number of addresses bounded: those that are forgotten
// anyway go, else the one that tried longest ago.
func (l *limiter) makeRoom(now time.Time) {
	if len(l.tries) < maxTracked {
		return
	}
	var oldest netip.Prefix
	for p, t := range l.tries {
		if now.Sub(t.last) > tryMemory {
			delete(l.tries, p)
		} else if o, ok := l.tries[oldest]; !ok || t.last.Before(o.last) {
			oldest = p
		}
	}
	if len(l.tries) >= maxTracked {
		delete(l.tries, oldest)
	}
}

// forget takes back what an address tried before it had the right password.
func (l *limiter) forget(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.tries[from]; ok {
		delete(l.tries, from)
		l.total = min(totalTries, l.total+1)
	}
}

func wholeSeconds(d time.Duration) time.Duration {
	return max(time.Second, (d + time.Second - 1).Truncate(time.Second))
}

// addressOf gives r's address; for IPv6 its /64, since one box has all of it.
func addressOf(r *http.Request) netip.Prefix {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}
