package dhcp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"dsas"
)

// A pool of which more than half is in use is scarce. Then whoever it does not
// know has to ask twice, as every client does that gets no answer and no flood
// of ever new MACs; and who was not found to use an address yet gets a short
// lease (ISC dhcpd's adaptive-lease-time-threshold). What is left of the pool is
// so for those who are really there. Where all of it is gone, leases are taken
// back whose holders nobody ever saw, and whom ARP does not find.
const (
	scarceLease = 5 * time.Minute
	// askTwice is how far apart the two must be: below any client's pause (iPXE
	// 1 s, udhcpc 3 s, others 4 s), above what one packet by two ways is.
	askTwice = 500 * time.Millisecond
	maxAsked = 1 << 16 // MACs remembered; as many of those before them
	askedFor = time.Minute
	// settleTime is how long a box has to put its address to use before it may
	// be asked after.
	settleTime   = 15 * time.Second
	maxTakeBacks = 100 // in a second
	maxAskAfter  = 16  // for one client
)

// scarcity tells which pools are scarce, and who asked before.
type scarcity struct {
	mu         sync.Mutex
	pools      map[netip.Prefix]poolUse
	asked, old map[dsas.MAC]time.Time // since when; old: those before
	turned     time.Time
	takeBacks  window
	settle     time.Duration
}

// poolUse is how much of a pool was in use, and what was admitted since.
type poolUse struct {
	counted time.Time
	n       int
}

func newScarcity() *scarcity {
	return &scarcity{pools: map[netip.Prefix]poolUse{}, asked: map[dsas.MAC]time.Time{}, settle: settleTime}
}

// again tells whether mac asked before, long enough ago. It has to remember the
// MACs of a flood meanwhile, and no more than two times maxAsked.
func (a *scarcity) again(mac dsas.MAC, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.asked) >= maxAsked || now.Sub(a.turned).Abs() >= askedFor {
		a.old, a.asked, a.turned = a.asked, map[dsas.MAC]time.Time{}, now
	}
	since, ok := a.asked[mac]
	if !ok {
		since, ok = a.old[mac]
	}
	if !ok {
		since = now
	}
	a.asked[mac] = since
	return now.Sub(since) >= askTwice
}

// use gives how much of a subnet's pool is in use; counting it is not for every
// packet.
func (s *Server) use(ctx context.Context, sub dsas.Subnet, now time.Time) (int, error) {
	a := s.scarce
	a.mu.Lock()
	u, ok := a.pools[sub.Prefix]
	a.mu.Unlock()
	if ok && now.Sub(u.counted).Abs() < time.Second {
		return u.n, nil
	}
	n, err := s.Store.InUse(ctx, sub, now)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pools[sub.Prefix] = poolUse{now, n}
	return n, nil
}

// given counts an address that goes to who did not have it.
func (a *scarcity) given(sub netip.Prefix, l dsas.Lease) {
	if l.Held {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.pools[sub]
	u.n++
	a.pools[sub] = u
}

// recount has a pool counted anew: an address was given back.
func (a *scarcity) recount(sub netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pools, sub)
}

// admit counts an address of the pool for c, as an offer or as a lease, or says
// why it gets none. It sets how long c's lease is.
func (s *Server) admit(ctx context.Context, c *client, taken bool, now time.Time) error {
	size := s.sizeOf(c.subnet)
	n, err := s.use(ctx, c.subnet, now)
	if err != nil {
		return err
	}
	lease := cmp.Or(c.subnet.Lease, defaultLease)
	if 2*n > size {
		st, err := s.Store.Standing(ctx, c.subnet, c.mac, now)
		if err != nil {
			return err
		}
		if st.Offered || st.Until.After(now) {
			n-- // its own
		}
		if !st.Offered && !st.Leased && !s.scarce.again(c.mac, now) {
			s.tellScarce(c, n, size)
			return unanswered{DropScarce, nil}
		}
		if !st.Proven && 2*n > size {
			// What it has is not made shorter.
			lease = min(lease, max(scarceLease, st.Until.Sub(now)))
		}
	}
	c.subnet.Lease = lease
	until := now.Add(offerHold)
	if taken {
		until = now.Add(lease)
	}
	if err := s.limits.admit(c, size, taken, now, until); err != nil {
		s.limited(ctx, c, err)
		return unanswered{DropLimit, err}
	}
	return nil
}

func (s *Server) tellScarce(c *client, n, size int) {
	if s.seen.first("scarce "+c.subnet.Prefix.String(), s.Now(), 10*time.Minute) {
		s.Log.Warn(fmt.Sprintf("more than half of a pool is in use: unknown machines are answered when they ask a second time, and get leases of %s until they are seen to use their address", scarceLease),
			"subnet", c.subnet.Prefix, "used", n, "of", size, "interface", c.link.name)
	}
}

// canAsk tells whether ARP can find who has c's address: it is on our segment.
func (s *Server) canAsk(c *client) bool {
	st := c.link.state.Load()
	return !s.NoProbe && !c.relay.agent.IsValid() && c.onLink() && st.raw != nil && st.raw.arp != nil
}

// renewed notes that c is there, having renewed its lease: by ARP where that can
// tell, since a flood may renew too.
func (s *Server) renewed(ctx context.Context, c *client, lease dsas.Lease) {
	switch {
	case lease.Proven:
	case !s.canAsk(c):
		s.Store.Prove(ctx, c.mac, lease.Address)
	case s.checks.begin(c.mac):
		mac, l := c.mac, c.link // c is the next client's by then
		go func() {
			defer s.checks.end(mac)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
			defer cancel()
			if who, used := l.state.Load().raw.arp.inUse(ctx, lease.Address, dsas.MAC{}); used && who == mac {
				s.Store.Prove(ctx, mac, lease.Address)
			}
		}()
	}
}

// unused gives a lease that may be taken back for c, once ARP has not found who
// has it (takeBack); nil: there is none.
func (s *Server) unused(ctx context.Context, c *client, now time.Time) *dsas.Lease {
	if c.second || !s.canAsk(c) || !s.scarce.takeBacks.allow(now, time.Second, maxTakeBacks) {
		return nil
	}
	lease, err := s.Store.Unproven(ctx, c.subnet, now.Add(-s.scarce.settle), now)
	if err != nil {
		return nil
	}
	return &lease
}

// takeBack asks who has lease, then who has further ones, until it finds one
// that nobody uses, and offers that to c. Who answers has proven to be there.
func (s *Server) takeBack(ctx context.Context, c *client, lease *dsas.Lease) *reply {
	c.second = true
	work, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	for range maxAskAfter {
		st := c.link.state.Load()
		if st.raw == nil || st.raw.arp == nil {
			break
		}
		who, used := st.raw.arp.inUse(work, lease.Address, dsas.MAC{})
		if work.Err() != nil {
			return nil
		}
		switch {
		case !used:
			if s.Store.TakeBack(work, *lease, c.mac, c.id, s.Now()) != nil {
				break // something happened to it meanwhile
			}
			if s.news("take back "+c.subnet.Prefix.String(), time.Minute) {
				s.Log.Warn("a pool is used up: leases are taken back whose holders asked for them and were never seen again", "subnet", c.subnet.Prefix, "address", lease.Address, "from", lease.MAC, "for", c.mac)
			}
			return s.offerAnew(ctx, c.link, c)
		case who == lease.MAC:
			s.Store.Prove(work, lease.MAC, lease.Address)
		default:
			if !s.inUseByOther(work, c, lease.Address, who) {
				return nil
			}
		}
		next, err := s.Store.Unproven(work, c.subnet, s.Now().Add(-s.scarce.settle), s.Now())
		if err != nil {
			break
		}
		lease = &next
	}
	s.notAnswered(c.link, c.req, unanswered{DropNoAddress, fmt.Errorf("address for %s: all of the pool is in use", c.mac)})
	return nil
}
