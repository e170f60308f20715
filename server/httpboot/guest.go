package httpboot

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"dsas"
)

// notAt tells why a script that was asked for from an address is refused where
// another DHCP server gives the addresses: ARP has just found the box that the
// TCP connection is with, and it is none of those that the script is for. Where
// ARP knows nothing (the box is behind a router) nothing can be said.
func (s *Server) notAt(from netip.Addr, wanted func(dsas.MAC) bool) string {
	if s.Neighbour == nil {
		return ""
	}
	mac, ok := s.Neighbour(from)
	if !ok || wanted(mac) {
		return ""
	}
	return fmt.Sprintf("%s, which asks, is at MAC %s and is another box.", from, mac)
}

// guests are loaders whose address another DHCP server gave and which is not
// their node's: what they fetch is told of by it. Bounded; what is forgotten
// costs an event, not a boot.
type guests struct {
	mu sync.Mutex
	m  map[netip.Addr]guest
}

type guest struct {
	boot  string
	begun time.Time
}

const maxGuests = 4096

func (g *guests) add(a netip.Addr, boot string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m == nil || len(g.m) >= maxGuests {
		old := g.m
		g.m = map[netip.Addr]guest{}
		for a, x := range old {
			if now.Sub(x.begun) < tokenLife && len(g.m) < maxGuests/2 {
				g.m[a] = x
			}
		}
	}
	g.m[a] = guest{boot, now}
}

func (g *guests) boot(a netip.Addr) (id string, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x, ok := g.m[a]
	return x.boot, ok
}
