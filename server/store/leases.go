package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"dsas"
)

// ErrPoolExhausted: no address of the subnet's pool is free. It is a
// dsas.ErrNotFound.
var ErrPoolExhausted = fmt.Errorf("pool exhausted: %w", dsas.ErrNotFound)

// offerTime is how long a DHCPOFFER holds its address (RFC 2131 section 3.1
// leaves the time to the server).
const offerTime = 60 * time.Second

// lease is a row of leases.
type lease struct {
	dsas.Lease
	bound bool
}

// holds tells whether the lease keeps others from its address at now.
func (l *lease) holds(now time.Time) bool { return l.Expires.After(now) }

const leaseColumns = `address, mac, client_id, expires, bound, declined`

func scanLease(scan func(...any) error) (l lease, err error) {
	var address []byte
	var mac string
	var expires int64
	if err := scan(&address, &mac, &l.ClientID, &expires, &l.bound, &l.Declined); err != nil {
		return l, err
	}
	l.Address, l.Expires = fromAddrKey(address), fromNanos(expires)
	l.MAC, err = fromMACText(mac)
	return l, err
}

// conflict says why nobody else can have the lease's address before it ends.
func (l *lease) conflict() error {
	if l.Declined {
		return fmt.Errorf("address %s is in use by a box that is not known (seen by DHCP); take another: %w", l.Address, dsas.ErrConflict)
	}
	return fmt.Errorf("address %s is leased to %s until %s; take one outside the pool, or wait: %w",
		l.Address, l.MAC, l.Expires.Format(time.RFC3339), dsas.ErrConflict)
}

func scanAddr(scan func(...any) error) (netip.Addr, error) {
	var b []byte
	err := scan(&b)
	return fromAddrKey(b), err
}

// leaseAt gives the row of an address, nil where there is none.
func leaseAt(ctx context.Context, q querier, a netip.Addr) (*lease, error) {
	l, err := scanLease(q.QueryRowContext(ctx, `SELECT `+leaseColumns+` FROM leases WHERE address = ?`, addrKey(a)).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &l, err
}

// LeaseFor gives mac an address of subnet's pool from now on for subnet.Lease;
// it is on disk when LeaseFor returns. A MAC keeps the address it had. Else
// want is taken where it is free, else the lowest that nobody had, else the one
// whose lease ran out first. Never given: a node's or a site's address, the
// server's, the gateway's. ErrPoolExhausted when nothing is left.
func (s *Store) LeaseFor(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	if subnet.Lease <= 0 {
		return dsas.Lease{}, fmt.Errorf("lease for %s: subnet %s has lease time %s; it must be above 0: %w", mac, subnet.Prefix, subnet.Lease, dsas.ErrInvalid)
	}
	l, err := s.allocate(ctx, subnet, mac, clientID, want, now, subnet.Lease, true)
	if err != nil {
		return dsas.Lease{}, fmt.Errorf("lease for %s: %w", mac, err)
	}
	return l, nil
}

// Offer holds an address as LeaseFor does, for 60 s only: for a DHCPOFFER. A
// lease that mac still has is given back as it is.
func (s *Store) Offer(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	l, err := s.allocate(ctx, subnet, mac, clientID, want, now, offerTime, false)
	if err != nil {
		return dsas.Lease{}, fmt.Errorf("offer for %s: %w", mac, err)
	}
	return l, nil
}

func (s *Store) allocate(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time, hold time.Duration, bind bool) (dsas.Lease, error) {
	if mac.IsZero() {
		return dsas.Lease{}, fmt.Errorf("empty MAC: %w", dsas.ErrInvalid)
	}
	if !subnet.Pool.First.IsValid() {
		return dsas.Lease{}, fmt.Errorf("subnet %s has no pool: %w", subnet.Prefix, ErrPoolExhausted)
	}
	if err := subnet.Check(); err != nil {
		return dsas.Lease{}, err
	}
	write := s.write
	if !bind {
		write = s.writeLax // an offer promises nothing
	}
	var got lease
	err := write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		p := pool{ctx: ctx, tx: tx, subnet: subnet, mac: mac, now: now}
		var err error
		if got, err = p.choose(want.Unmap()); err != nil {
			return err
		}
		mine := got.MAC == mac && !got.Declined
		expires := now.Add(hold).Round(0).UTC()
		got.Held = mine
		if mine && got.Expires.After(expires) && !bind {
			return nil // an offer does not shorten a lease
		}
		got.bound = bind || mine && got.bound
		got.MAC, got.ClientID, got.Expires, got.Declined = mac, head(clientID, 4*maxWord), expires, false
		_, err = tx.ExecContext(ctx, `INSERT INTO leases (`+leaseColumns+`) VALUES (?, ?, ?, ?, ?, 0)
			ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, client_id = excluded.client_id,
			expires = excluded.expires, bound = excluded.bound, declined = 0`,
			addrKey(got.Address), mac.String(), got.ClientID, toNanos(expires), got.bound)
		return err
	})
	return got.Lease, err
}

// pool is one allocation in progress.
type pool struct {
	ctx    context.Context // of the transaction; a pool lives no longer
	tx     *sql.Tx
	subnet dsas.Subnet
	mac    dsas.MAC
	now    time.Time
}

// choose gives the row to be (re)written: an existing one, or a new one with
// nothing but an address.
func (p *pool) choose(want netip.Addr) (lease, error) {
	own, err := collect(p.ctx, p.tx, scanLease, `SELECT `+leaseColumns+` FROM leases
		WHERE mac = ? AND declined = 0 ORDER BY bound DESC, expires DESC`, p.mac.String())
	if err != nil {
		return lease{}, err
	}
	for _, l := range own {
		if ok, err := p.allowed(l.Address); err != nil || ok {
			return l, err
		}
	}
	if want.IsValid() {
		l, err := leaseAt(p.ctx, p.tx, want)
		if err != nil {
			return lease{}, err
		}
		if l == nil || !l.bound && !l.Declined && !l.holds(p.now) {
			if ok, err := p.allowed(want); err != nil || ok {
				return lease{Lease: dsas.Lease{Address: want}}, err
			}
		}
	}
	return p.search(want)
}

// search gives the lowest address of the pool that nobody ever had; when there
// is none, one that was offered or released and not taken up; then the one
// whose lease, or time of being declined, ended first, want before others.
func (p *pool) search(want netip.Addr) (lease, error) {
	first, last := addrKey(p.subnet.Pool.First), addrKey(p.subnet.Pool.Last)
	// Addresses alone: with a thousand leases, reading all of each row is
	// what takes the time.
	rows, err := collect(p.ctx, p.tx, scanAddr, `SELECT address FROM leases WHERE address BETWEEN ? AND ?`, first, last)
	if err != nil {
		return lease{}, err
	}
	reserved, err := p.reserved(first, last)
	if err != nil {
		return lease{}, err
	}
	had := make(map[netip.Addr]bool, len(rows))
	for _, a := range rows {
		had[a] = true
	}
	for a := p.subnet.Pool.First.Unmap(); p.subnet.Pool.Contains(a); a = a.Next() {
		if !had[a] && !reserved[a] && p.usable(a) {
			return lease{Lease: dsas.Lease{Address: a}}, nil
		}
	}
	over, err := collect(p.ctx, p.tx, scanLease, `SELECT `+leaseColumns+` FROM leases WHERE address BETWEEN ? AND ? AND expires <= ?
		ORDER BY bound, address = ? DESC, expires, address`, first, last, toNanos(p.now), addrKey(want))
	if err != nil {
		return lease{}, err
	}
	for _, l := range over {
		if !reserved[l.Address] && p.usable(l.Address) {
			return l, nil
		}
	}
	return lease{}, fmt.Errorf("pool %s-%s of subnet %s: %w", p.subnet.Pool.First, p.subnet.Pool.Last, p.subnet.Prefix, ErrPoolExhausted)
}

// usable tells whether a may be given out at all.
func (p *pool) usable(a netip.Addr) bool { return p.subnet.MayLease(a) }

// allowed tells whether a is usable and reserved for nobody.
func (p *pool) allowed(a netip.Addr) (bool, error) {
	if !p.usable(a) {
		return false, nil
	}
	r, err := p.reserved(addrKey(a), addrKey(a))
	return err == nil && !r[a], err
}

// reserved gives the nodes' and sites' addresses from first to last.
func (p *pool) reserved(first, last []byte) (map[netip.Addr]bool, error) {
	list, err := collect(p.ctx, p.tx, scanAddr, `SELECT address FROM addresses WHERE address BETWEEN ?1 AND ?2
		UNION SELECT address FROM sites WHERE address BETWEEN ?1 AND ?2`, first, last)
	out := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		out[a] = true
	}
	return out, err
}

// Release gives mac's address back (DHCPRELEASE). It may be given to another
// from now on, and mac gets it again while nobody else has it. That there is no
// such lease is no error: the packet may come twice, or late.
func (s *Store) Release(ctx context.Context, mac dsas.MAC, addr netip.Addr) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE leases SET expires = 0, bound = 0 WHERE address = ? AND mac = ? AND declined = 0`, addrKey(addr), mac.String())
		return err
	})
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
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO leases (`+leaseColumns+`) VALUES (?, '', '', ?, 1, 1)
			ON CONFLICT (address) DO UPDATE SET expires = excluded.expires, bound = 1, declined = 1`, addrKey(addr), toNanos(until))
		return err
	})
	if err != nil {
		return fmt.Errorf("decline %s: %w", addr, err)
	}
	return nil
}

// Lease gives the lease that holds addr at now, or dsas.ErrNotFound.
func (s *Store) Lease(ctx context.Context, addr netip.Addr, now time.Time) (dsas.Lease, error) {
	l, err := leaseAt(ctx, s.read, addr)
	if err == nil && (l == nil || !l.bound || l.Declined || !l.holds(now)) {
		err = notFound("lease of", addr.String())
	}
	if err != nil {
		return dsas.Lease{}, fmt.Errorf("get lease: %w", err)
	}
	return l.Lease, nil
}

// Leases lists the leases and declined addresses by address, those that ran out
// and were not given to another included; offers are not among them.
func (s *Store) Leases(ctx context.Context) ([]dsas.Lease, error) {
	list, err := collect(ctx, s.read, func(scan func(...any) error) (dsas.Lease, error) {
		l, err := scanLease(scan)
		return l.Lease, err
	}, `SELECT `+leaseColumns+` FROM leases WHERE bound = 1 ORDER BY address`)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return list, nil
}
