package store

import (
	"container/heap"
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"dsas"
)

// pools is the leases in memory: what is asked for every packet. The database
// is written from it and read into it when the store opens. Offers are here
// alone.
type pools struct {
	mu       sync.Mutex
	leases   map[netip.Addr]*lease
	byMAC    map[dsas.MAC][]*lease
	byID     map[string][]*lease // by client ids that outlive a MAC (lasting)
	reserved map[netip.Addr]int  // nodes' and sites' addresses, counted
	pools    []*pool             // made when first asked of; forgotten when reserved changes
	longest  time.Duration       // that a lease was ever given for, as it is on disk
}

// lease is an address that somebody had or was offered.
type lease struct {
	dsas.Lease
	bound bool
	// disk is the row as it is known to be on disk.
	disk   leaseRow
	stored bool // there is such a row
	// pending counts the writes of it that are under way; seq its changes.
	pending int
	seq     uint64
	gone    bool // it is no longer in leases

	// What is known of who has it, in memory alone. After a restart a lease is
	// taken for proven: it may be, and ends by itself.
	proven bool      // somebody was found to use it
	since  time.Time // its MAC has it as a lease
	asked  time.Time // Unproven named it last

	heap *leaseHeap // that orders it; nil: none does
	at   int        // its place there
}

// leaseRow is a row of leases.
type leaseRow struct {
	mac      dsas.MAC
	clientID string
	expires  time.Time // ahead of what was promised
	bound    bool
	declined bool
}

// holds tells whether the lease keeps others from its address at now.
func (l *lease) holds(now time.Time) bool { return l.Expires.After(now) }

// conflict says why nobody else can have the lease's address before it ends.
func (l *lease) conflict() error {
	if l.Declined {
		return fmt.Errorf("address %s is in use by a box that is not known (seen by DHCP); take another: %w", l.Address, dsas.ErrConflict)
	}
	return fmt.Errorf("address %s is leased to %s until %s; take one outside the pool, or wait: %w",
		l.Address, l.MAC, l.Expires.UTC().Format(time.RFC3339), dsas.ErrConflict)
}

// load reads leases and reserved addresses.
func (p *pools) load(ctx context.Context, q querier, now time.Time) error {
	p.leases, p.byMAC, p.byID, p.reserved = map[netip.Addr]*lease{}, map[dsas.MAC][]*lease{}, map[string][]*lease{}, map[netip.Addr]int{}
	rows, err := collect(ctx, q, scanLease, `SELECT `+leaseColumns+` FROM leases`)
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	for _, l := range rows {
		l.stored, l.proven = true, true
		l.disk = leaseRow{l.MAC, l.ClientID, l.Expires, l.bound, l.Declined}
		if !l.Expires.IsZero() {
			// With now's monotonic reading, so that from here on a clock that
			// is set neither ends nor prolongs it.
			l.Expires = now.Add(l.Expires.Sub(now))
		}
		p.add(l)
	}
	var longest sql.NullInt64
	if err := q.QueryRowContext(ctx, `SELECT max(CAST(value AS INTEGER)) FROM settings WHERE key = ?`, longestLease).Scan(&longest); err != nil {
		return fmt.Errorf("read longest lease: %w", err)
	}
	p.longest = time.Duration(longest.Int64)
	taken, err := collect(ctx, q, scanAddr, `SELECT address FROM addresses UNION ALL SELECT address FROM sites`)
	if err != nil {
		return fmt.Errorf("read addresses: %w", err)
	}
	for _, a := range taken {
		p.reserved[a]++
	}
	return nil
}

func (p *pools) add(l *lease) {
	p.leases[l.Address] = l
	p.index(l)
}

// index has byMAC and byID find l.
func (p *pools) index(l *lease) {
	p.byMAC[l.MAC] = append(p.byMAC[l.MAC], l)
	if lasting(l.ClientID) {
		p.byID[l.ClientID] = append(p.byID[l.ClientID], l)
	}
}

// unindex is for a lease whose MAC or client id changes, before it does.
func (p *pools) unindex(l *lease) {
	drop(p.byMAC, l.MAC, l)
	if lasting(l.ClientID) {
		drop(p.byID, l.ClientID, l)
	}
}

func drop[K comparable](m map[K][]*lease, k K, l *lease) {
	rest := slices.DeleteFunc(m[k], func(o *lease) bool { return o == l })
	if len(rest) == 0 {
		delete(m, k)
	} else {
		m[k] = rest
	}
}

// lasting tells whether a client id is of the kinds that hold no MAC themselves
// (RFC 4361; RFC 2132 section 9.14): such a one stays when a NIC is changed.
func lasting(clientID string) bool {
	return strings.HasPrefix(clientID, "ff") || strings.HasPrefix(clientID, "00")
}

// remove forgets the lease of an address, and gives it; nil: there is none.
func (p *pools) remove(a netip.Addr) *lease {
	l := p.leases[a]
	if l == nil {
		return nil
	}
	delete(p.leases, a)
	p.unindex(l)
	l.unorder()
	l.gone = true
	p.pools = nil // nobody ever had it, as it were
	return l
}

// set changes a lease that is in leases.
func (p *pools) set(l *lease, to leaseRow) {
	if l.MAC != to.mac {
		l.proven, l.since, l.asked = false, time.Time{}, time.Time{} // of who had it
	}
	if l.MAC != to.mac || l.ClientID != to.clientID {
		p.unindex(l)
		l.MAC, l.ClientID = to.mac, to.clientID
		p.index(l)
	}
	l.Expires, l.bound, l.Declined = to.expires, to.bound, to.declined
	l.seq++
	p.order(l)
}

// reserve takes addresses out of all pools, or gives them back (n is -1).
func (p *pools) reserve(n int, addrs ...netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count(n, addrs...)
}

// count is reserve with the pools locked.
func (p *pools) count(n int, addrs ...netip.Addr) {
	for _, a := range addrs {
		if p.reserved[a] += n; p.reserved[a] <= 0 {
			delete(p.reserved, a)
		}
	}
	p.pools = nil
}

// held gives a copy of the lease of an address, nil where there is none.
func (p *pools) held(a netip.Addr) *lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[a.Unmap()]; l != nil {
		c := *l
		return &c
	}
	return nil
}

// pool is the addresses of one subnet's pool, in the order they are given out.
type pool struct {
	subnet dsas.Subnet
	// next: every address before it was had by someone, or may not be given.
	next netip.Addr
	// Those that were had, in the order in which they are taken back: offers
	// and what was released; leases of whom nobody saw anything but a request;
	// leases that somebody used.
	unbound, asked, used leaseHeap
}

// of finds or makes the pool of a subnet, which is checked once.
func (p *pools) of(subnet *dsas.Subnet, now time.Time) (*pool, error) {
	for _, o := range p.pools {
		s := &o.subnet
		if s.Prefix == subnet.Prefix && s.Pool == subnet.Pool && s.Server == subnet.Server && s.Gateway == subnet.Gateway && slices.Equal(s.Exclude, subnet.Exclude) {
			return o, nil
		}
	}
	if err := subnet.Check(); err != nil {
		return nil, err
	}
	o := &pool{subnet: *subnet, next: subnet.Pool.First.Unmap()}
	p.pools = append(p.pools, o)
	longest := max(subnet.Lease, p.longest, time.Hour) + aheadOf(max(subnet.Lease, p.longest))
	for _, l := range p.leases {
		if !subnet.Pool.Contains(l.Address) {
			continue
		}
		// Written while the clock was ahead: no lease lasts as long.
		if limit := now.Add(longest); l.Expires.After(limit) && l.seq == 0 {
			l.Expires = limit
		}
		l.unorder()
		o.order(l)
	}
	return o, nil
}

// order puts a changed lease where it belongs.
func (p *pools) order(l *lease) {
	l.unorder()
	for _, o := range p.pools {
		if o.subnet.Pool.Contains(l.Address) {
			o.order(l)
			return
		}
	}
}

func (o *pool) order(l *lease) {
	switch {
	case l.Declined || l.bound && l.proven:
		l.heap = &o.used
	case l.bound:
		l.heap = &o.asked
	default:
		l.heap = &o.unbound
	}
	heap.Push(l.heap, l)
}

func (l *lease) unorder() {
	if l.heap != nil {
		heap.Remove(l.heap, l.at)
		l.heap = nil
	}
}

// choose gives the lease to be (re)written for mac: an existing one, or a new
// one with nothing but an address.
func (p *pools) choose(o *pool, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (*lease, error) {
	if l := p.own(o, mac); l != nil {
		return l, nil
	}
	if l := p.sameClient(o, clientID); l != nil {
		return l, nil
	}
	if want.IsValid() && p.allowed(o, want) {
		l := p.leases[want]
		if l == nil {
			l = &lease{Lease: dsas.Lease{Address: want}}
			p.add(l)
			return l, nil
		}
		if l.free(now) {
			return l, nil
		}
	}
	return p.search(o, want, now)
}

// own finds the lease or offer that mac has or had.
func (p *pools) own(o *pool, mac dsas.MAC) (own *lease) {
	for _, l := range p.byMAC[mac] {
		if l.Declined || !p.allowed(o, l.Address) {
			continue
		}
		if own == nil || l.bound && !own.bound || l.bound == own.bound && l.Expires.After(own.Expires) {
			own = l
		}
	}
	return own
}

// free tells whether an address may go to whoever names it: nobody ever had it
// (nil), or it was only offered, or was released.
func (l *lease) free(now time.Time) bool {
	return l == nil || !l.bound && !l.Declined && !l.holds(now)
}

// sameClient finds the lease of a box that changed its NIC: another MAC with the
// same lasting client identifier.
func (p *pools) sameClient(o *pool, clientID string) *lease {
	var found *lease
	for _, l := range p.byID[clientID] {
		if l.bound && !l.Declined && p.allowed(o, l.Address) && (found == nil || l.Expires.After(found.Expires)) {
			found = l
		}
	}
	return found
}

// search gives the lowest address of the pool that nobody ever had; when there
// is none, one that was offered or released and not taken up; then the one
// whose lease ended first of those that nobody was seen to use; then of all
// leases and declined addresses; want before others.
func (p *pools) search(o *pool, want netip.Addr, now time.Time) (*lease, error) {
	for ; o.subnet.Pool.Contains(o.next); o.next = o.next.Next() {
		if p.leases[o.next] == nil && p.allowed(o, o.next) {
			l := &lease{Lease: dsas.Lease{Address: o.next}}
			o.next = o.next.Next()
			p.add(l)
			return l, nil
		}
	}
	for _, h := range []*leaseHeap{&o.unbound, &o.asked, &o.used} {
		if l := p.leases[want]; l != nil && l.heap == h && !l.holds(now) && p.allowed(o, want) {
			return l, nil
		}
		for len(*h) > 0 && !(*h)[0].holds(now) {
			if l := (*h)[0]; p.allowed(o, l.Address) {
				return l, nil
			}
			(*h)[0].unorder() // it cannot be given before reserved changes
		}
	}
	return nil, fmt.Errorf("pool %s-%s of subnet %s: %w", o.subnet.Pool.First, o.subnet.Pool.Last, o.subnet.Prefix, ErrPoolExhausted)
}

// allowed tells whether a may be given out and is reserved for nobody.
func (p *pools) allowed(o *pool, a netip.Addr) bool {
	return p.reserved[a] == 0 && o.subnet.MayLease(a)
}

// leaseHeap orders leases by the time of their ends, then by address.
type leaseHeap []*lease

func (h leaseHeap) Len() int { return len(h) }

func (h leaseHeap) Less(i, j int) bool {
	if c := h[i].Expires.Compare(h[j].Expires); c != 0 {
		return c < 0
	}
	return h[i].Address.Less(h[j].Address)
}

func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *leaseHeap) Push(x any) {
	l := x.(*lease)
	l.at = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *leaseHeap) Pop() any {
	l := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	return l
}
