package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"dsas"
)

// InUse counts the addresses of subnet's pool that are leased, offered or out
// of use at now.
func (s *Store) InUse(_ context.Context, subnet dsas.Subnet, now time.Time) (int, error) {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	o, err := p.of(&subnet, now)
	if err != nil {
		return 0, fmt.Errorf("count leases: %w", err)
	}
	n := 0
	for _, h := range []leaseHeap{o.unbound, o.asked, o.used} {
		for _, l := range h {
			if l.holds(now) {
				n++
			}
		}
	}
	return n, nil
}

// Standing tells what subnet's pool knows of mac.
func (s *Store) Standing(_ context.Context, subnet dsas.Subnet, mac dsas.MAC, now time.Time) (dsas.Standing, error) {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	o, err := p.of(&subnet, now)
	if err != nil {
		return dsas.Standing{}, fmt.Errorf("look up lease of %s: %w", mac, err)
	}
	l := p.own(o, mac)
	switch {
	case l == nil || !l.bound && !l.holds(now):
		return dsas.Standing{}, nil
	case !l.bound:
		return dsas.Standing{Offered: true}, nil
	}
	return dsas.Standing{Leased: true, Proven: l.proven, Until: l.Expires}, nil
}

// askAgain is how long Unproven does not name a lease again.
const askAgain = 5 * time.Second

// Unproven gives a lease that nobody was ever found to use: of those that their
// MACs have since before then the one that ends first. Of the next calls, each
// gets another. dsas.ErrNotFound: there is none.
func (s *Store) Unproven(_ context.Context, subnet dsas.Subnet, then, now time.Time) (dsas.Lease, error) {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	o, err := p.of(&subnet, now)
	if err != nil {
		return dsas.Lease{}, fmt.Errorf("look for unused leases: %w", err)
	}
	var found *lease
	for _, l := range o.asked {
		if l.holds(now) && !l.since.After(then) && now.Sub(l.asked).Abs() >= askAgain && p.allowed(o, l.Address) &&
			(found == nil || l.Expires.Before(found.Expires)) {
			found = l
		}
	}
	if found == nil {
		return dsas.Lease{}, fmt.Errorf("unused lease in subnet %s: %w", subnet.Prefix, dsas.ErrNotFound)
	}
	found.asked = now
	return found.given(true), nil
}

// Prove notes that mac was found to use addr, which it has a lease of.
func (s *Store) Prove(_ context.Context, mac dsas.MAC, addr netip.Addr) {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[addr.Unmap()]; l != nil && l.MAC == mac && l.bound && !l.proven {
		l.proven = true
		p.order(l)
	}
}

// TakeBack ends the lease l, which Unproven gave, and offers its address to mac
// as Offer does. dsas.ErrNotFound: it is not as it was.
func (s *Store) TakeBack(_ context.Context, l dsas.Lease, mac dsas.MAC, clientID string, now time.Time) error {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	have := p.leases[l.Address]
	if have == nil || have.MAC != l.MAC || have.proven || !have.bound || have.Declined {
		return fmt.Errorf("take %s back from %s: %w", l.Address, l.MAC, dsas.ErrNotFound)
	}
	// On disk it is still l's, as with any lease that is offered to another
	// after its end; a server that ends now keeps it so.
	p.set(have, leaseRow{mac: mac, clientID: head(clientID, 4*maxWord), expires: now.Add(offerTime)})
	return nil
}
