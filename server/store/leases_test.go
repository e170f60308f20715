package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/store"
)

// subnet has a pool from 10.77.0.first to 10.77.0.last.
func subnet(first, last byte) dsas.Subnet {
	return dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: ip(1), Gateway: ip(254),
		Pool: dsas.Range{First: ip(first), Last: ip(last)}, Lease: 10 * time.Minute,
	}
}

func ip(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, n}) }

var none netip.Addr

// get is LeaseFor, giving the last byte, or 0 for an exhausted pool.
func (f *fixture) get(sn dsas.Subnet, m int, want netip.Addr, at time.Time) byte {
	f.t.Helper()
	l, err := f.LeaseFor(f.ctx, sn, mac(m), "id", want, at)
	if err != nil {
		wantErr(f.t, "LeaseFor", err, store.ErrPoolExhausted, mac(m).String())
		wantErr(f.t, "LeaseFor", err, dsas.ErrNotFound)
		return 0
	}
	if l.MAC != mac(m) || !l.Expires.Equal(at.Add(sn.Lease)) || l.ClientID != "id" {
		f.t.Errorf("LeaseFor(%s) = %+v; want its MAC, until %s", mac(m), l, at.Add(sn.Lease))
	}
	return l.Address.As4()[3]
}

// offer is Offer, as get.
func (f *fixture) offer(sn dsas.Subnet, m int, want netip.Addr, at time.Time) byte {
	f.t.Helper()
	l, err := f.Offer(f.ctx, sn, mac(m), "id", want, at)
	if err != nil {
		wantErr(f.t, "Offer", err, store.ErrPoolExhausted)
		return 0
	}
	return l.Address.As4()[3]
}

func expect(t *testing.T, what string, got, want byte) {
	t.Helper()
	if got != want {
		t.Errorf("%s = .%d; want .%d", what, got, want)
	}
}

func TestLeaseFor(t *testing.T) {
	f := open(t)
	sn := subnet(10, 12)
	expect(t, "first", f.get(sn, 1, none, t0), 10)
	expect(t, "second", f.get(sn, 2, none, t0), 11)
	expect(t, "again", f.get(sn, 1, none, t0.Add(time.Minute)), 10)
	expect(t, "again, wanting what another has", f.get(sn, 1, ip(11), t0.Add(time.Minute)), 10)
	expect(t, "again, wanting a free one", f.get(sn, 1, ip(12), t0.Add(time.Minute)), 10)
	expect(t, "wanting what another has", f.get(sn, 3, ip(10), t0), 12)
	expect(t, "exhausted", f.get(sn, 4, none, t0), 0)
	got := must(f.Leases(f.ctx))(t)
	if len(got) != 3 || got[0].Address != ip(10) || got[0].MAC != mac(1) || !got[0].Expires.Equal(t0.Add(11*time.Minute)) || got[2].MAC != mac(3) {
		t.Errorf("Leases = %+v; want three by address, the first until 12:11", got)
	}
	// 11 and 12 ran out at the same time or before 10; 12's is older now.
	expect(t, "renewed", f.get(sn, 2, none, t0.Add(2*time.Minute)), 11)
	late := t0.Add(time.Hour)
	expect(t, "the oldest is taken back", f.get(sn, 4, none, late), 12)
	expect(t, "then the next", f.get(sn, 5, none, late), 10)
	expect(t, "its own, though it ran out", f.get(sn, 2, none, late), 11)
	expect(t, "who lost it", f.get(sn, 3, none, late), 0)
	expect(t, "after all ran out, the wanted one", f.get(sn, 3, ip(11), late.Add(time.Hour)), 11)

	_, err := f.LeaseFor(f.ctx, sn, dsas.MAC{}, "", none, t0)
	wantErr(t, "LeaseFor(no MAC)", err, dsas.ErrInvalid)
	sn.Lease = 0
	_, err = f.LeaseFor(f.ctx, sn, mac(1), "", none, t0)
	wantErr(t, "LeaseFor(no time)", err, dsas.ErrInvalid, "lease time")
	sn.Lease, sn.Pool = time.Minute, dsas.Range{}
	_, err = f.LeaseFor(f.ctx, sn, mac(1), "", none, t0)
	wantErr(t, "LeaseFor(no pool)", err, store.ErrPoolExhausted, "no pool")
}

func TestLeaseWant(t *testing.T) {
	f := open(t)
	sn := subnet(10, 20)
	expect(t, "wanted", f.get(sn, 1, ip(15), t0), 15)
	for i, bad := range []netip.Addr{ip(9), ip(21), ip(1), ip(255), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::1")} {
		expect(t, fmt.Sprintf("wanting %s", bad), f.get(sn, 2+i, bad, t0), byte(10+i+i/5))
	}
	// .15 ran out, but others are free: it stays with its MAC.
	late := t0.Add(time.Hour)
	expect(t, "wanting another's old one", f.get(sn, 20, ip(15), late), 17)
	expect(t, "its old one", f.get(sn, 1, none, late), 15)
}

func TestLeaseNeverReserved(t *testing.T) {
	f := open(t)
	sn := subnet(0, 255)
	sn.Pool = dsas.Range{First: netip.MustParseAddr("10.77.0.0"), Last: ip(8)}
	sn.Gateway = ip(2)
	w1 := node("w1", "10.77.0.3/24", 101)
	w1.Interfaces = []dsas.Interface{{Device: "eth1", Address: netip.MustParsePrefix("10.77.0.4/24")}}
	must(f.CreateNode(f.ctx, w1))(t)
	must(f.CreateSite(f.ctx, dsas.Site{Name: "shop", Address: ip(5)}))(t)
	for m := 1; m <= 5; m++ { // asks for each in turn
		expect(t, fmt.Sprintf("MAC %d", m), f.get(sn, m, ip(byte(m)), t0), []byte{0, 6, 7, 8, 0, 0}[m])
	}
	// A lease does not outlive the address becoming a node's.
	_, err := f.CreateNode(f.ctx, node("w2", "10.77.0.6/24", 102))
	if err == nil { // the clock stands at t0: it is held
		t.Error("CreateNode(leased address) = nil; want a conflict")
	} else {
		wantErr(t, "CreateNode(leased address)", err, dsas.ErrConflict, mac(1).String(), "10.77.0.6")
	}
	_, err = f.CreateSite(f.ctx, dsas.Site{Name: "blog", Address: ip(6)})
	wantErr(t, "CreateSite(leased address)", err, dsas.ErrConflict, mac(1).String())
	f.time = t0.Add(time.Hour)
	must(f.CreateNode(f.ctx, node("w2", "10.77.0.6/24", 102)))(t)
	expect(t, "who had it", f.get(sn, 1, ip(6), f.time), 7)
	// A node may be given what its own NIC holds.
	must(f.CreateNode(f.ctx, node("w3", "10.77.0.7/24", 1)))(t)

	all := subnet(254, 255)
	expect(t, "gateway and broadcast", f.get(all, 50, none, t0), 0)
}

func TestOffer(t *testing.T) {
	f := open(t)
	sn := subnet(10, 11)
	expect(t, "offer", f.offer(sn, 1, none, t0), 10)
	expect(t, "offer to another", f.offer(sn, 2, ip(10), t0), 11)
	expect(t, "offer to a third", f.offer(sn, 3, none, t0.Add(59*time.Second)), 0)
	if got := must(f.Leases(f.ctx))(t); len(got) != 0 {
		t.Errorf("Leases = %+v; want no offers", got)
	}
	expect(t, "accepted", f.get(sn, 1, ip(10), t0.Add(time.Second)), 10)
	expect(t, "an offer not taken up is free", f.offer(sn, 3, none, t0.Add(61*time.Second)), 11)
	// An offer does not shorten a lease.
	l := must(f.Offer(f.ctx, sn, mac(1), "", none, t0.Add(time.Minute)))(t)
	if l.Address != ip(10) || !l.Expires.Equal(t0.Add(10*time.Minute+time.Second)) {
		t.Errorf("Offer(leased) = %+v; want 10.77.0.10 until 12:10:01", l)
	}
	if got := must(f.Leases(f.ctx))(t); len(got) != 1 || !got[0].Expires.Equal(l.Expires) {
		t.Errorf("Leases = %+v; want one until %s", got, l.Expires)
	}
}

// What was only offered, or was given back, goes before leases that ran out, and
// a MAC's own old address is not given to it when it has become a node's.
func TestLeaseOrderOfTakingBack(t *testing.T) {
	f := open(t)
	sn := subnet(10, 13)
	expect(t, "leased", f.get(sn, 1, none, t0), 10)
	expect(t, "leased", f.get(sn, 2, none, t0.Add(time.Second)), 11)
	expect(t, "offered", f.offer(sn, 3, none, t0.Add(30*time.Minute)), 12)
	late := t0.Add(time.Hour)
	expect(t, "nobody's", f.get(sn, 4, none, late), 13)
	expect(t, "offered in vain", f.get(sn, 5, none, late), 12)
	f.time = late
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.11/24", 100)))(t)
	expect(t, "whose address became a node's", f.get(sn, 2, none, late), 10)
	expect(t, "another subnet's address is not its own", f.get(subnet(20, 21), 2, none, late), 20)
	expect(t, "and it keeps both", f.get(sn, 2, none, late), 10)
}

func TestReleaseAndDecline(t *testing.T) {
	f := open(t)
	sn := subnet(10, 11)
	expect(t, "first", f.get(sn, 1, none, t0), 10)
	noErr(t, f.Release(f.ctx, mac(2), ip(10)))
	if got := must(f.Leases(f.ctx))(t); len(got) != 1 {
		t.Errorf("Leases after Release by another = %+v; want one still", got)
	}
	noErr(t, f.Release(f.ctx, mac(1), ip(10)))
	if got := must(f.Leases(f.ctx))(t); len(got) != 0 {
		t.Errorf("Leases after Release = %+v; want none", got)
	}
	expect(t, "back after a release", f.get(sn, 1, none, t0), 10)
	noErr(t, f.Release(f.ctx, mac(1), ip(10)))
	expect(t, "a released one is free", f.get(sn, 2, ip(10), t0), 10)

	noErr(t, f.Decline(f.ctx, ip(10), t0.Add(time.Hour)))
	got := must(f.Leases(f.ctx))(t)
	if len(got) != 1 || !got[0].Declined || got[0].MAC != mac(2) {
		t.Errorf("Leases after Decline = %+v; want one, declined, of %s", got, mac(2))
	}
	expect(t, "who declined", f.get(sn, 2, ip(10), t0), 11)
	expect(t, "another", f.get(sn, 3, ip(10), t0), 0)
	noErr(t, f.Release(f.ctx, mac(2), ip(10))) // changes nothing: it is declined
	expect(t, "another, still", f.get(sn, 3, ip(10), t0), 0)
	expect(t, "when the lease is over", f.get(sn, 3, none, t0.Add(61*time.Minute)), 11)
	expect(t, "when that is over, too", f.get(sn, 4, none, t0.Add(61*time.Minute)), 10)
	if got := must(f.Leases(f.ctx))(t); len(got) != 2 || got[0].Declined {
		t.Errorf("Leases = %+v; want two, none declined", got)
	}
	noErr(t, f.Decline(f.ctx, ip(77), t0)) // never leased by us
	wantErr(t, "Decline(IPv6)", f.Decline(f.ctx, netip.IPv6Loopback(), t0), dsas.ErrInvalid)
}

// Every MAC gets an address of its own however many ask at once, offers before
// leases as in DHCP, and the pool is used up to the last.
func TestLeasesInParallel(t *testing.T) {
	f := open(t)
	const n = 100
	sn := subnet(100, 100+n-1)
	got := make([]netip.Addr, n)
	var wg sync.WaitGroup
	for i := range n {
		for try := range 2 { // each from two requests at the same time
			wg.Go(func() {
				o, err := f.Offer(f.ctx, sn, mac(i+1), "", none, t0)
				if err != nil {
					t.Error(err)
					return
				}
				l, err := f.LeaseFor(f.ctx, sn, mac(i+1), "", o.Address, t0)
				if err != nil {
					t.Error(err)
				} else if l.Address != o.Address {
					t.Errorf("LeaseFor(%s) = %s; want what was offered, %s", l.MAC, l.Address, o.Address)
				}
				if try == 0 {
					got[i] = l.Address
				}
			})
		}
	}
	wg.Wait()
	seen := map[netip.Addr]int{}
	for i, a := range got {
		if j, twice := seen[a]; twice {
			t.Errorf("%s was given to MAC %d and %d", a, i+1, j+1)
		}
		seen[a] = i
	}
	if l := must(f.Leases(f.ctx))(t); len(l) != n {
		t.Errorf("Leases = %d; want %d", len(l), n)
	}
	expect(t, "one more", f.get(sn, n+1, none, t0), 0)
}

func BenchmarkLeaseFor(b *testing.B) {
	dir := b.TempDir()
	s, err := openDir(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	sn := dsas.Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/16"), Server: netip.MustParseAddr("10.0.0.1"),
		Pool: dsas.Range{First: netip.MustParseAddr("10.0.1.0"), Last: netip.MustParseAddr("10.0.4.255")}, Lease: time.Hour}
	for i := 0; b.Loop(); i++ {
		if _, err := s.LeaseFor(b.Context(), sn, mac(i%1000+1), "", none, t0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddEvent(b *testing.B) {
	s, err := openDir(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.CreateNode(b.Context(), node("w1", "", 1)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.AddEvent(b.Context(), dsas.Event{Node: "w1", Kind: dsas.KindService, Message: "nginx: healthy"}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLease(t *testing.T) {
	f := open(t)
	sn := subnet(10, 12)
	expect(t, "offer", f.offer(sn, 1, none, t0), 10)
	_, err := f.Lease(f.ctx, ip(10), t0)
	wantErr(t, "Lease(only offered)", err, dsas.ErrNotFound, "10.77.0.10")
	expect(t, "lease", f.get(sn, 1, none, t0), 10)
	if l, err := f.Lease(f.ctx, ip(10), t0.Add(sn.Lease-1)); err != nil || l.MAC != mac(1) {
		t.Errorf("Lease = %+v, %v; want that of %s", l, err, mac(1))
	}
	_, err = f.Lease(f.ctx, ip(10), t0.Add(sn.Lease))
	wantErr(t, "Lease(ran out)", err, dsas.ErrNotFound)
	_, err = f.Lease(f.ctx, ip(11), t0)
	wantErr(t, "Lease(nobody's)", err, dsas.ErrNotFound)
	noErr(t, f.Decline(f.ctx, ip(10), t0.Add(time.Hour)))
	_, err = f.Lease(f.ctx, ip(10), t0)
	wantErr(t, "Lease(declined)", err, dsas.ErrNotFound)
}

// What is only looked up stays free.
func TestMayHave(t *testing.T) {
	f := open(t)
	sn := subnet(10, 11)
	expect(t, "leased", f.get(sn, 1, none, t0), 10)
	for _, tt := range []struct {
		mac      int
		addr     netip.Addr
		may, has bool
	}{{1, ip(10), true, true}, {1, ip(11), false, false}, {2, ip(10), false, false}, {2, ip(11), true, false}, {3, ip(11), true, false}, {2, ip(12), false, false}, {2, ip(1), false, false}} {
		may, has, err := f.MayHave(f.ctx, sn, mac(tt.mac), "", tt.addr, t0)
		if err != nil || may != tt.may || has != tt.has {
			t.Errorf("MayHave(%d, %s) = %t, %t, %v; want %t, %t", tt.mac, tt.addr, may, has, err, tt.may, tt.has)
		}
	}
	expect(t, "what five others may have had", f.offer(sn, 4, none, t0), 11)
}

// A box with another's client id is offered its lease (it may have changed its
// NIC), which takes nothing from who has it; a REQUEST does.
func TestSameClientID(t *testing.T) {
	f := open(t)
	sn := subnet(10, 10)
	const id = "ff00000000000100"
	must(f.LeaseFor(f.ctx, sn, mac(1), id, none, t0))(t)
	l := must(f.Offer(f.ctx, sn, mac(2), id, none, t0))(t)
	if l.Address != ip(10) || l.MAC != mac(1) || l.Held {
		t.Errorf("Offer(same client id) = %+v; want the lease as it is", l)
	}
	expect(t, "a third, when the offer would be over", f.offer(sn, 3, none, t0.Add(2*time.Minute)), 0)
	if may, has, err := f.MayHave(f.ctx, sn, mac(2), id, ip(10), t0); !may || has || err != nil {
		t.Errorf("MayHave(same client id) = %t, %t, %v; want true, false", may, has, err)
	}
	if l := must(f.LeaseFor(f.ctx, sn, mac(2), id, ip(10), t0.Add(2*time.Minute)))(t); l.MAC != mac(2) {
		t.Errorf("LeaseFor(same client id) = %+v; want it under the new MAC", l)
	}
}

// A repeated REQUEST whose caller goes away takes nothing back of the first.
func TestLeaseGivenUp(t *testing.T) {
	f := open(t)
	sn := subnet(10, 10)
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.200/24", 100)))(t)
	busy, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		f.UpdateNode(f.ctx, "w1", func(*dsas.Node) error { close(busy); <-release; return nil })
	})
	<-busy
	first := make(chan error, 1)
	wg.Go(func() {
		_, err := f.LeaseFor(f.ctx, sn, mac(1), "", none, t0)
		first <- err
	})
	eventually(t, "the first LeaseFor", func() bool { _, err := f.Lease(f.ctx, ip(10), t0); return err == nil })
	gone, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := f.LeaseFor(gone, sn, mac(1), "", none, t0.Add(time.Second)); err == nil {
		t.Error("LeaseFor(cancelled) = nil; want an error")
	}
	close(release)
	noErr(t, <-first)
	wg.Wait()
	expect(t, "another", f.offer(sn, 2, none, t0.Add(2*time.Second)), 0)
}

// A lease time made shorter in the configuration ends no lease of before.
func TestLeaseTimeMadeShorter(t *testing.T) {
	dir := t.TempDir()
	open := func() *store.Store {
		return must(store.Open(t.Context(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), slog.New(slog.DiscardHandler)))(t)
	}
	s, now := open(), time.Now()
	sn := subnet(10, 10)
	sn.Lease = 24 * time.Hour
	must(s.LeaseFor(t.Context(), sn, mac(1), "", none, now))(t)
	short := subnet(20, 20)
	must(s.LeaseFor(t.Context(), short, mac(1), "", none, now))(t)
	noErr(t, s.Close())
	s = open()
	defer s.Close()
	sn.Lease = time.Minute
	s.Offer(t.Context(), sn, mac(2), "", none, now) // the first look at the pool
	if l, err := s.Offer(t.Context(), sn, mac(2), "", none, now.Add(20*time.Hour)); err == nil {
		t.Errorf("Offer after 20 h = %+v; want none: the address was leased for 24 h", l)
	}
}
