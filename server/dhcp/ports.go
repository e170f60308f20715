package dhcp

import (
	"context"
	"sync"
	"time"

	"dsas"
)

// recordAgain: a port that did not change is recorded anew after this long, so
// that its time tells something; one that did, not at once: two relays may both
// bring a box's packets.
const (
	recordAgain  = time.Hour
	recordChange = 10 * time.Second
)

// recentPorts remembers what was recorded, so that most requests write nothing.
type recentPorts struct {
	mu  sync.Mutex
	m   map[dsas.MAC]dsas.Port
	max int
}

func newRecentPorts(max int) *recentPorts {
	return &recentPorts{m: map[dsas.MAC]dsas.Port{}, max: max}
}

// news tells whether p is to be recorded; may is asked last.
func (r *recentPorts) news(p dsas.Port, may func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.m[p.MAC]
	age := p.Seen.Sub(old.Seen)
	old.Seen = p.Seen
	if ok && age >= 0 && (age < recordChange || old == p && age < recordAgain) || !may() {
		return false
	}
	if len(r.m) >= r.max {
		clear(r.m)
	}
	r.m[p.MAC] = p
	return true
}

// portNews gives which relay and switch port a box's request came through, where
// that is to be recorded. A request without either tells nothing.
func (s *Server) portNews(c *client) (dsas.Port, bool) {
	if c == nil || !c.relay.agent.IsValid() && len(c.relay.circuit) == 0 && len(c.relay.remote) == 0 {
		return dsas.Port{}, false
	}
	p := dsas.Port{MAC: c.mac, Relay: c.relay.agent, CircuitID: idText(c.relay.circuit), RemoteID: idText(c.relay.remote), Interface: c.link.name, Seen: s.Now()}
	// Made-up MACs shall not keep the disk from others.
	ok := s.ports.news(p, func() bool { return c.node != nil || s.strangePorts.allow(p.Seen, time.Second, maxStrangers) })
	return p, ok
}

func (s *Server) recordPort(ctx context.Context, p dsas.Port) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := s.Store.RecordPort(ctx, p); err != nil && s.seen.first("record port", s.Now(), time.Minute) {
		s.Log.Warn("switch port of a box not recorded", "mac", p.MAC, "err", err)
	}
}
