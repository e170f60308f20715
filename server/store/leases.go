package store

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"dsas"
)

// ErrPoolExhausted: no address of the subnet's pool is free. It is a
// dsas.ErrNotFound.
var ErrPoolExhausted = fmt.Errorf("pool exhausted: %w", dsas.ErrNotFound)

// offerTime is how long a DHCPOFFER holds its address (RFC 2131 section 3.1
// leaves the time to the server).
const offerTime = 60 * time.Second

// aheadOf is how much longer a lease is on disk than on the wire when it is
// written. A client renews at half its time (RFC 2131 section 4.4.5), so that
// one renewal in five writes. After a crash, what nobody renews is held that
// much longer.
func aheadOf(lease time.Duration) time.Duration { return 2 * lease }

const leaseColumns = `address, mac, client_id, expires, bound, declined`

const sqlPutLease = `INSERT INTO leases (` + leaseColumns + `) VALUES (?, ?, ?, ?, ?, ?)
	ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, client_id = excluded.client_id,
	expires = excluded.expires, bound = excluded.bound, declined = excluded.declined`

func scanLease(scan func(...any) error) (*lease, error) {
	var address []byte
	var mac string
	var expires int64
	l := &lease{}
	if err := scan(&address, &mac, &l.ClientID, &expires, &l.bound, &l.Declined); err != nil {
		return l, err
	}
	l.Address, l.Expires = fromAddrKey(address), fromNanos(expires)
	var err error
	l.MAC, err = fromMACText(mac)
	return l, err
}

func scanAddr(scan func(...any) error) (netip.Addr, error) {
	var b []byte
	err := scan(&b)
	return fromAddrKey(b), err
}

// Bind gives mac an address of subnet's pool from now on for subnet.Lease. The
// lease counts once onDisk has returned nil; nil instead of it says that what is
// on disk promises as much already. onDisk must be called, once. A MAC keeps the
// address it had. Else want is taken where it is free, else the lowest that nobody
// had, else the one whose lease ran out first. Never given: a node's or a site's
// address, the server's, the gateway's. ErrPoolExhausted when nothing is left.
func (s *Store) Bind(_ context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (got dsas.Lease, onDisk func(context.Context) error, err error) {
	if subnet.Lease <= 0 {
		return got, nil, fmt.Errorf("lease for %s: subnet %s has lease time %s; it must be above 0: %w", mac, subnet.Prefix, subnet.Lease, dsas.ErrInvalid)
	}
	got, l, j, err := s.allocate(&subnet, mac, clientID, want, now, subnet.Lease, true)
	if err != nil {
		return dsas.Lease{}, nil, fmt.Errorf("lease for %s: %w", mac, err)
	}
	if j == nil {
		return got, nil, nil
	}
	return got, func(ctx context.Context) error {
		if err := s.await(ctx, j); err != nil {
			return err
		}
		s.pools.mu.Lock()
		defer s.pools.mu.Unlock()
		if l.gone {
			return fmt.Errorf("address %s became a node's or a site's this moment: %w", got.Address, dsas.ErrConflict)
		}
		return nil
	}, nil
}

// Offer holds an address as Bind does, for 60 s only and in memory alone:
// for a DHCPOFFER. A lease that mac still has is given back as it is.
func (s *Store) Offer(_ context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	got, _, _, err := s.allocate(&subnet, mac, clientID, want, now, offerTime, false)
	if err != nil {
		return dsas.Lease{}, fmt.Errorf("offer for %s: %w", mac, err)
	}
	return got, nil
}

// allocate finds an address and changes its lease in memory; bind: the change is
// queued for the disk too, by the job it gives, where the disk does not promise
// as much already.
func (s *Store) allocate(subnet *dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time, hold time.Duration, bind bool) (got dsas.Lease, l *lease, j *job, err error) {
	if mac.IsZero() {
		return got, nil, nil, fmt.Errorf("empty MAC: %w", dsas.ErrInvalid)
	}
	if !subnet.Pool.First.IsValid() {
		return got, nil, nil, fmt.Errorf("subnet %s has no pool: %w", subnet.Prefix, ErrPoolExhausted)
	}
	s.watchClock(now)
	clientID = head(clientID, 4*maxWord)
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	o, err := p.of(subnet, now)
	if err != nil {
		return got, nil, nil, err
	}
	if l, err = p.choose(o, mac, clientID, want.Unmap(), now); err != nil {
		return got, nil, nil, err
	}
	mine := l.MAC == mac && !l.Declined
	expires := now.Add(hold)
	if !bind && l.Expires.After(expires) {
		// An offer does not shorten a lease: neither its own, nor that of the
		// other MAC with its client id, which becomes its own when it is taken.
		return l.given(mine), l, nil, nil
	}
	before := l.row()
	fresh := bind && !(mine && l.bound)
	p.set(l, leaseRow{mac: mac, clientID: clientID, expires: expires, bound: bind || mine && l.bound})
	if fresh {
		l.since = now
	}
	got = l.given(mine)
	if !bind || l.pending == 0 && l.covered() {
		return got, l, nil, nil
	}
	if err = s.noteLongest(hold); err == nil {
		j, err = s.save(l, aheadOf(hold), before)
	}
	return got, l, j, err
}

// MayHave tells whether Bind would give mac just this address; has: it was
// given or offered it before. Nothing is set aside: a REQUEST that gets no lease
// takes nothing from the pool.
func (s *Store) MayHave(_ context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, addr netip.Addr, now time.Time) (may, has bool, err error) {
	if !subnet.Pool.First.IsValid() {
		return false, false, nil
	}
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	o, err := p.of(&subnet, now)
	if err != nil {
		return false, false, fmt.Errorf("look up lease for %s: %w", mac, err)
	}
	addr = addr.Unmap()
	if own := p.own(o, mac); own != nil {
		has = own.Address == addr
		return has, has, nil
	}
	if l := p.sameClient(o, head(clientID, 4*maxWord)); l != nil {
		return l.Address == addr, false, nil
	}
	return p.allowed(o, addr) && p.leases[addr].free(now), false, nil
}

// given is l as it is told to others.
func (l *lease) given(held bool) dsas.Lease {
	out := l.Lease
	out.Expires = out.Expires.Round(0).UTC()
	out.Held, out.Proven = held, l.proven
	return out
}

// covered tells whether what is on disk promises all that l does.
func (l *lease) covered() bool {
	d := &l.disk
	return l.stored && d.mac == l.MAC && d.clientID == l.ClientID && d.bound == l.bound && d.declined == l.Declined &&
		!d.expires.Before(l.Expires.Round(0))
}

// longestLease is the setting that holds pools.longest: leases may have been
// given for longer than the configuration has it now.
const longestLease = "store.longest-lease"

// noteLongest has the lease time on disk before the first lease of that length
// is. The pools are locked.
func (s *Store) noteLongest(d time.Duration) error {
	if d <= s.pools.longest {
		return nil
	}
	return s.queue.add(&job{urgency: durable, plain: true, aside: true,
		fn: func(ctx context.Context, tx *txn) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE
				SET value = CAST(max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER)) AS TEXT)`,
				longestLease, strconv.FormatInt(int64(d), 10))
			return err
		},
		then: []func(){func() {
			s.pools.mu.Lock()
			defer s.pools.mu.Unlock()
			s.pools.longest = max(s.pools.longest, d)
		}},
	})
}

// row is l as it is now.
func (l *lease) row() leaseRow {
	return leaseRow{l.MAC, l.ClientID, l.Expires, l.bound, l.Declined}
}

// save queues l's row as it is now, its end ahead by that much; before is what
// it was, and is again if the row does not get to disk. The pools are locked, so
// that rows are queued in the order in which they changed.
func (s *Store) save(l *lease, ahead time.Duration, before leaseRow) (*job, error) {
	row := l.row()
	row.expires = row.expires.Round(0)
	if !row.expires.IsZero() {
		row.expires = row.expires.Add(ahead)
	}
	seq, written := l.seq, false
	j := &job{urgency: durable, plain: true, aside: true, calm: true, done: make(chan error, 1)}
	j.fn = func(ctx context.Context, tx *txn) error {
		s.pools.mu.Lock()
		gone := l.gone
		s.pools.mu.Unlock()
		if written = !gone; gone {
			return nil
		}
		_, err := tx.ExecContext(ctx, sqlPutLease, addrKey(l.Address), macText(row.mac), row.clientID, toNanos(row.expires), row.bound, row.declined)
		return err
	}
	j.then = []func(){func() {
		s.pools.mu.Lock()
		defer s.pools.mu.Unlock()
		l.pending--
		if written {
			l.disk, l.stored = row, true
		}
	}}
	j.undo = []func(){func() {
		s.pools.mu.Lock()
		defer s.pools.mu.Unlock()
		l.pending--
		if l.gone || l.seq != seq {
			return // what came later settles it
		}
		// Nothing was promised: it is what it was before. What is on disk would
		// not do: an earlier row may be on its way there, and its times are
		// wrong where the clock was set.
		s.pools.set(l, before)
	}}
	if err := s.queue.add(j); err != nil {
		return nil, err
	}
	l.pending++
	return j, nil
}

// await waits for a job of save's. Until then it is only queued, so that the
// leases of many packets that are answered at once get to disk at once.
func (s *Store) await(ctx context.Context, j *job) error {
	s.queue.hurry()
	return j.wait(ctx)
}

// Release gives mac's address back (DHCPRELEASE). It may be given to another
// from now on, and mac gets it again while nobody else has it. That there is no
// such lease is no error: the packet may come twice, or late.
func (s *Store) Release(ctx context.Context, mac dsas.MAC, addr netip.Addr) error {
	p := &s.pools
	p.mu.Lock()
	l := p.leases[addr.Unmap()]
	if l == nil || l.MAC != mac || l.Declined {
		p.mu.Unlock()
		return nil
	}
	before := l.row()
	p.set(l, leaseRow{mac: l.MAC, clientID: l.ClientID})
	if !l.stored && l.pending == 0 {
		p.mu.Unlock()
		return nil // it was only offered
	}
	j, err := s.save(l, 0, before)
	p.mu.Unlock()
	if err == nil {
		err = s.await(ctx, j)
	}
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// Decline keeps addr from everybody until then (DHCPDECLINE: someone uses it).
// The row keeps the MAC that had it.
func (s *Store) Decline(ctx context.Context, addr netip.Addr, until time.Time) error {
	if !addr.Unmap().Is4() {
		return fmt.Errorf("decline %s: not an IPv4 address: %w", addr, dsas.ErrInvalid)
	}
	addr = addr.Unmap()
	p := &s.pools
	p.mu.Lock()
	l := p.leases[addr]
	if l == nil {
		l = &lease{Lease: dsas.Lease{Address: addr}}
		p.add(l)
	}
	before := l.row()
	p.set(l, leaseRow{mac: l.MAC, clientID: l.ClientID, expires: until, bound: true, declined: true})
	j, err := s.save(l, 0, before)
	p.mu.Unlock()
	if err == nil {
		err = s.await(ctx, j)
	}
	if err != nil {
		return fmt.Errorf("decline %s: %w", addr, err)
	}
	return nil
}

// Lease gives the lease that holds addr at now, or dsas.ErrNotFound.
func (s *Store) Lease(_ context.Context, addr netip.Addr, now time.Time) (dsas.Lease, error) {
	l := s.pools.held(addr)
	if l == nil || !l.bound || l.Declined || !l.holds(now) {
		return dsas.Lease{}, fmt.Errorf("get lease: %w", notFound("lease of", addr.String()))
	}
	return l.given(true), nil
}

// Leases lists the leases and declined addresses by address, those that ran out
// and were not given to another included; offers are not among them. After a
// restart the times are those on disk, which are ahead of what was promised.
func (s *Store) Leases(context.Context) ([]dsas.Lease, error) {
	p := &s.pools
	p.mu.Lock()
	list := make([]dsas.Lease, 0, len(p.leases))
	for _, l := range p.leases {
		if l.bound {
			list = append(list, l.given(false))
		}
	}
	p.mu.Unlock()
	slices.SortFunc(list, func(a, b dsas.Lease) int { return a.Address.Compare(b.Address) })
	return list, nil
}

// clockJump is how far the clock may be off what it was before it is said.
const clockJump = time.Minute

// watchClock notices that the clock was set. Leases are counted by the
// monotonic clock, so none ends early or late while the server runs; what is on
// disk is put right here, for the next start.
func (s *Store) watchClock(now time.Time) {
	p := &s.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.clock.IsZero() {
		s.clock = now
		return
	}
	jump := now.Round(0).Sub(s.clock.Round(0)) - now.Sub(s.clock)
	if jump.Abs() < clockJump {
		return
	}
	s.clock = now
	s.log.Warn("the clock was set; leases end when they would have, by the time that has really passed", "by", jump.Round(time.Second))
	for _, l := range p.leases {
		if left := l.Expires.Sub(now); l.bound && left > 0 {
			l.Expires = now.Add(left)
			if l.covered() {
				continue // never shorter on disk: the clock may be set right again
			}
			if _, err := s.save(l, aheadOf(left), l.row()); err != nil { // nobody waits for it
				return
			}
		}
	}
}
