package dhcp

import (
	"context"
	"sync"
	"time"

	"dsas"
)

// recordAgain: a port that did not change is recorded anew after this long, so
// that its time tells something.
const recordAgain = time.Hour

// recentPorts remembers what was recorded, so that most requests write nothing.
type recentPorts struct {
	mu  sync.Mutex
	m   map[dsas.MAC]dsas.Port
	max int
}

func newRecentPorts(max int) *recentPorts {
	return &recentPorts{m: map[dsas.MAC]dsas.Port{}, max: max}
}

// news tells whether p says something that was not recorded lately.
func (r *recentPorts) news(p dsas.Port) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.m[p.MAC]
	age := p.Seen.Sub(old.Seen)
	old.Seen = p.Seen
	if ok && old == p && age >= 0 && age < recordAgain {
		return false
	}
	if len(r.m) >= r.max {
		clear(r.m)
	}
	r.m[p.MAC] = p
	return true
}

// recordPort keeps which relay and switch port a box's request came through.
// A request without either tells nothing.
func (s *Server) recordPort(ctx context.Context, c *client) {
	if c == nil || !c.relay.agent.IsValid() && len(c.relay.circuit) == 0 && len(c.relay.remote) == 0 {
		return
	}
	p := dsas.Port{MAC: c.mac, Relay: c.relay.agent, CircuitID: idText(c.relay.circuit), RemoteID: idText(c.relay.remote), Interface: c.link.name, Seen: s.Now()}
	if !s.ports.news(p) {
		return
	}
	if err := s.Store.RecordPort(ctx, p); err != nil && s.seen.first("record port", s.Now(), time.Minute) {
		s.Log.Warn("switch port of a box not recorded", "mac", c.mac, "err", err)
	}
}
