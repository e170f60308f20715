// Package dhcptest is a dhcp.Store in memory for tests: one that keeps what it
// was told, so that a test can ask.
package dhcptest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"dsas"
)

// Store holds nodes, leases and what was recorded.
type Store struct {
	mu       sync.Mutex
	nodes    []*dsas.Node
	were     []string // as they were added
	leases   map[netip.Addr]dsas.Lease
	offers   map[dsas.MAC]netip.Addr
	proven   map[netip.Addr]dsas.MAC
	unknown  map[dsas.MAC]dsas.Unknown
	events   []dsas.Event
	ports    []dsas.Port
	releases map[string]*dsas.Release
	// Written is called, unlocked, after a lease became durable.
	Written func(dsas.Lease)
}

// New makes a Store with nodes.
func New(nodes ...dsas.Node) *Store {
	s := &Store{leases: map[netip.Addr]dsas.Lease{}, offers: map[dsas.MAC]netip.Addr{}, proven: map[netip.Addr]dsas.MAC{}, unknown: map[dsas.MAC]dsas.Unknown{}, releases: map[string]*dsas.Release{}}
	for _, n := range nodes {
		s.AddNode(n)
	}
	return s
}

// AddNode adds a node.
func (s *Store) AddNode(n dsas.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes, s.were = append(s.nodes, &n), append(s.were, text(n))
}

// Publish makes roles bootable with b.
func (s *Store) Publish(b dsas.BootSet, roles ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range roles {
		s.releases[r] = &dsas.Release{ID: "sha256:0000000000000000000000000000000000000000000000000000000000000000", Role: r, Number: 1, Boot: b}
	}
}

// Assigned gives a role's release, nil where there is none.
func (s *Store) Assigned(_ *dsas.Node, role string) (*dsas.Release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.releases[role], nil
}

// Nodes gives all nodes.
func (s *Store) Nodes(context.Context) ([]dsas.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]dsas.Node, len(s.nodes))
	for i, n := range s.nodes {
		list[i] = *n
	}
	return list, nil
}

// SharedNode finds a node: the store's own.
func (s *Store) SharedNode(mac dsas.MAC) *dsas.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.HasMAC(mac) {
			return n
		}
	}
	return nil
}

// Changed names the nodes that somebody has changed who was only shown them.
func (s *Store) Changed() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, n := range s.nodes {
		if text(*n) != s.were[i] {
			names = append(names, n.Name)
		}
	}
	return names
}

func text(n dsas.Node) string {
	b, err := json.Marshal(n)
	return fmt.Sprint(string(b), err)
}

// NodeByMAC finds a node.
func (s *Store) NodeByMAC(_ context.Context, mac dsas.MAC) (dsas.Node, error) {
	if n := s.SharedNode(mac); n != nil {
		return *n, nil
	}
	return dsas.Node{}, fmt.Errorf("node with MAC %s: %w", mac, dsas.ErrNotFound)
}

// NodeByClientID finds a node.
func (s *Store) NodeByClientID(_ context.Context, id string) (dsas.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if string(n.ClientID) == id && id != "" {
			return *n, nil
		}
	}
	return dsas.Node{}, fmt.Errorf("node with client id %s: %w", id, dsas.ErrNotFound)
}

// Offer finds an address.
func (s *Store) Offer(_ context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.find(sub, mac, id, want, now)
	if err == nil && l.MAC == mac {
		s.offers[mac] = l.Address
	}
	return l, err
}

func (s *Store) find(sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	give := func(a netip.Addr) (dsas.Lease, error) {
		return dsas.Lease{Address: a, MAC: mac, ClientID: id, Expires: now.Add(sub.Lease)}, nil
	}
	free := func(a netip.Addr) bool {
		l, held := s.leases[a]
		return sub.MayLease(a) && (!held || l.MAC == mac && !l.Declined || !l.Expires.After(now))
	}
	for a, l := range s.leases {
		if l.MAC == mac && !l.Declined && sub.Pool.Contains(a) {
			got, err := give(a)
			got.Held = true
			return got, err
		}
	}
	if a := s.offers[mac]; sub.Pool.Contains(a) && free(a) {
		got, err := give(a)
		got.Held = true
		return got, err
	}
	for a, l := range s.leases { // a box that changed its NIC
		if strings.HasPrefix(id, "ff") && l.ClientID == id && !l.Declined && sub.Pool.Contains(a) {
			return l, nil
		}
	}
	if want.IsValid() && free(want) {
		return give(want)
	}
	for a := sub.Pool.First; a.IsValid() && a.Compare(sub.Pool.Last) <= 0; a = a.Next() {
		if free(a) {
			return give(a)
		}
	}
	return dsas.Lease{}, fmt.Errorf("free address in %s: %w", sub.Prefix, dsas.ErrNotFound)
}

// Bind makes a lease; it has to be waited for where Written is set.
func (s *Store) Bind(_ context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, func(context.Context) error, error) {
	s.mu.Lock()
	l, err := s.find(sub, mac, id, want, now)
	if err == nil {
		l.MAC, l.ClientID, l.Expires = mac, id, now.Add(sub.Lease)
		l.Proven = s.proven[l.Address] == mac
		kept := l
		kept.Held, kept.Proven = false, false
		s.leases[l.Address] = kept
	}
	s.mu.Unlock()
	if err != nil || s.Written == nil {
		return l, nil, err
	}
	return l, func(context.Context) error { s.Written(l); return nil }, nil
}

// MayHave tells whether mac would get just that address.
func (s *Store) MayHave(_ context.Context, sub dsas.Subnet, mac dsas.MAC, id string, a netip.Addr, now time.Time) (may, has bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.find(sub, mac, id, a, now)
	return err == nil && l.Address == a, err == nil && l.Address == a && l.Held, nil
}

// InUse counts leases and declined addresses; offers hold nothing here.
func (s *Store) InUse(_ context.Context, sub dsas.Subnet, now time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for a, l := range s.leases {
		if sub.Pool.Contains(a) && l.Expires.After(now) {
			n++
		}
	}
	return n, nil
}

// Standing tells what is known of a MAC.
func (s *Store) Standing(_ context.Context, sub dsas.Subnet, mac dsas.MAC, _ time.Time) (dsas.Standing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, l := range s.leases {
		if l.MAC == mac && !l.Declined && sub.Pool.Contains(a) {
			return dsas.Standing{Leased: true, Proven: s.proven[a] == mac, Until: l.Expires}, nil
		}
	}
	return dsas.Standing{Offered: sub.Pool.Contains(s.offers[mac])}, nil
}

// Prove notes who uses an address.
func (s *Store) Prove(_ context.Context, mac dsas.MAC, a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proven[a] = mac
}

// Unproven gives no lease: a real store does.
func (s *Store) Unproven(context.Context, dsas.Subnet, time.Time, time.Time) (dsas.Lease, error) {
	return dsas.Lease{}, fmt.Errorf("unused lease: %w", dsas.ErrNotFound)
}

// TakeBack takes nothing.
func (s *Store) TakeBack(_ context.Context, l dsas.Lease, _ dsas.MAC, _ string, _ time.Time) error {
	return fmt.Errorf("take back %s: %w", l.Address, dsas.ErrNotFound)
}

// Release ends a lease.
func (s *Store) Release(_ context.Context, mac dsas.MAC, a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[a].MAC == mac {
		delete(s.leases, a)
	}
	return nil
}

// Decline takes an address out of use.
func (s *Store) Decline(_ context.Context, a netip.Addr, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[a] = dsas.Lease{Address: a, Expires: until, Declined: true}
	return nil
}

// RecordUnknown notes a MAC.
func (s *Store) RecordUnknown(_ context.Context, u dsas.Unknown) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, seen := s.unknown[u.MAC]
	if seen {
		u.First, u.Count = old.First, old.Count+1
	}
	s.unknown[u.MAC] = u
	return !seen, nil
}

// RecordPort notes where a MAC hangs.
func (s *Store) RecordPort(_ context.Context, p dsas.Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = append(s.ports, p)
	return nil
}

// Ports gives what was noted, in order.
func (s *Store) Ports() []dsas.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]dsas.Port(nil), s.ports...)
}

// Event records an event.
func (s *Store) Event(_ context.Context, e dsas.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return nil
}

// Events gives the events of a kind.
func (s *Store) Events(k dsas.Kind) []dsas.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []dsas.Event
	for _, e := range s.events {
		if e.Kind == k {
			out = append(out, e)
		}
	}
	return out
}

// Lease gives the lease of an address.
func (s *Store) Lease(a netip.Addr) (dsas.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.leases[a]
	return l, ok
}

// Unknown gives what is noted of a MAC.
func (s *Store) Unknown(mac dsas.MAC) (dsas.Unknown, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.unknown[mac]
	return u, ok
}
