package dhcp

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"dsas"
)

// offerHold is how long an OFFER that nobody took up counts: as long as the
// store keeps its address.
const offerHold = time.Minute

// admission bounds what a flood of made-up MACs can take of a pool. Of the
// pool's addresses
//
//   - offers that nobody took up yet may hold half by one interface or relay,
//     and three quarters in all;
//   - offers and leases of MACs behind one port (a circuit id, RFC 3046) may
//     hold the subnet's PortLimit.
//
// What is counted is in memory: a server that starts counts anew, and every
// renewal is counted again.
type admission struct {
	mu     sync.Mutex
	held   map[holder]hold
	offers map[scope]int // not taken up, by interface or relay; "" for all of a subnet
	ports  map[scope]int // offers and leases, by port
	swept  time.Time
}

// holder is a MAC in a subnet; or an address that one declined, and may again.
type holder struct {
	subnet   netip.Prefix
	mac      dsas.MAC
	declined netip.Addr
}

type scope struct {
	subnet netip.Prefix
	name   string
}

type hold struct {
	via, port string
	until     time.Time
	taken     bool // a lease, and no longer an offer
}

func newAdmission() *admission {
	return &admission{held: map[holder]hold{}, offers: map[scope]int{}, ports: map[scope]int{}}
}

// admit counts an address for c until then, or says who has too many. size is
// the pool's.
func (a *admission) admit(c *client, size int, taken bool, now, until time.Time) error {
	via, port := c.relay.via(c.link.name), c.relay.port(c.link.name)
	key := holder{subnet: c.subnet.Prefix, mac: c.mac}
	a.mu.Lock()
	defer a.mu.Unlock()
	old, had := a.held[key]
	if had && old.taken && !taken && old.until.After(until) {
		taken, until = true, old.until // it is offered what it has, and keeps it
	}
	if had {
		a.forget(key, old)
	}
	err := a.full(c, size, via, port, taken)
	if err != nil && now.Sub(a.swept) >= time.Second || now.Before(a.swept) {
		a.swept = now
		a.sweep(now)
		err = a.full(c, size, via, port, taken)
	}
	if err != nil {
		if had && old.until.After(now) {
			a.remember(key, old) // it keeps what it has
		}
		return err
	}
	if taken && port == "" {
		return nil // nothing counts these
	}
	a.remember(key, hold{via, port, until, taken})
	return nil
}

func (a *admission) full(c *client, size int, via, port string, taken bool) error {
	n := c.subnet.Prefix
	portLimit := c.subnet.PortLimit
	if portLimit == 0 {
		portLimit = atLeastOne(size / 4)
	}
	switch {
	case port != "" && a.ports[scope{n, port}] >= portLimit:
		return fmt.Errorf("%s asks for more than %d pool addresses of %s with ever new MACs; raise portLimit if that is right", port, portLimit, n)
	case !taken && a.offers[scope{n, via}] >= atLeastOne(size/2):
		return fmt.Errorf("%s: %d pool addresses of %s are offered and not taken up; somebody there asks with ever new MACs", via, atLeastOne(size/2), n)
	case !taken && a.offers[scope{n, ""}] >= atLeastOne(size*3/4):
		return fmt.Errorf("%d pool addresses of %s are offered and not taken up; %s is refused for now", atLeastOne(size*3/4), n, via)
	}
	return nil
}

// atLeastOne: the smallest pool serves somebody.
func atLeastOne(n int) int { return max(n, 1) }

func (a *admission) remember(key holder, h hold) {
	a.held[key] = h
	a.count(key, h, 1)
}

func (a *admission) forget(key holder, h hold) {
	delete(a.held, key)
	a.count(key, h, -1)
}

func (a *admission) count(key holder, h hold, by int) {
	add := func(m map[scope]int, name string) {
		s := scope{key.subnet, name}
		if m[s] += by; m[s] <= 0 {
			delete(m, s)
		}
	}
	if !h.taken {
		add(a.offers, h.via)
		add(a.offers, "")
	}
	if h.port != "" {
		add(a.ports, h.port)
	}
}

// sweep forgets what ran out.
func (a *admission) sweep(now time.Time) {
	for key, h := range a.held {
		if !h.until.After(now) {
			a.forget(key, h)
		}
	}
}

// release forgets a MAC's address.
func (a *admission) release(c *client) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := holder{subnet: c.subnet.Prefix, mac: c.mac}
	if h, ok := a.held[key]; ok {
		a.forget(key, h)
	}
}

// declined counts an address against c's port as long as it is out of use.
func (a *admission) declined(c *client, addr netip.Addr, until time.Time) {
	port := c.relay.port(c.link.name)
	if port == "" {
		return // nothing counts these
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := holder{c.subnet.Prefix, dsas.MAC{}, addr}
	if h, ok := a.held[key]; ok {
		a.forget(key, h)
	}
	a.remember(key, hold{port: port, until: until, taken: true})
}

// window lets a number of things through in each span of time.
type window struct {
	mu    sync.Mutex
	since time.Time
	n     int
}

func (w *window) allow(now time.Time, span time.Duration, max int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := now.Sub(w.since); d >= span || d < 0 {
		w.since, w.n = now, 0
	}
	w.n++
	return w.n <= max
}
