package store_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"dsas"
)

// TestUnproven: what is known of who has an address, and in which order
// addresses are taken back from those of whom nothing is.
func TestUnproven(t *testing.T) {
	f := open(t)
	sn := subnet(10, 13)
	standing := func(m int, at time.Time) dsas.Standing {
		t.Helper()
		return must(f.Standing(f.ctx, sn, mac(m), at))(t)
	}
	inUse := func(at time.Time, want int) {
		t.Helper()
		if got := must(f.InUse(f.ctx, sn, at))(t); got != want {
			t.Errorf("InUse = %d; want %d", got, want)
		}
	}
	if got := standing(1, t0); got != (dsas.Standing{}) {
		t.Errorf("Standing of a stranger = %+v; want nothing", got)
	}
	inUse(t0, 0)
	expect(t, "offer", f.offer(sn, 1, none, t0), 10)
	if got := standing(1, t0); got != (dsas.Standing{Offered: true}) {
		t.Errorf("Standing with an offer = %+v", got)
	}
	inUse(t0, 1)
	inUse(t0.Add(2*time.Minute), 0)
	if got := standing(1, t0.Add(2*time.Minute)); got != (dsas.Standing{}) {
		t.Errorf("Standing after the offer ran out = %+v; want nothing", got)
	}
	for m := 1; m <= 4; m++ {
		expect(t, fmt.Sprintf("MAC %d", m), f.get(sn, m, none, t0.Add(time.Duration(m)*time.Second)), byte(9+m))
	}
	inUse(t0.Add(time.Minute), 4)
	until := t0.Add(time.Second + sn.Lease)
	if got := standing(1, t0); got != (dsas.Standing{Leased: true, Until: until}) {
		t.Errorf("Standing with a lease = %+v; want one until %s, not proven", got, until)
	}
	f.Prove(f.ctx, mac(2), ip(10)) // not its own
	f.Prove(f.ctx, mac(2), ip(11))
	if got := standing(2, t0); !got.Proven {
		t.Errorf("Standing of one that was proven = %+v", got)
	}
	if l := must(f.LeaseFor(f.ctx, sn, mac(2), "id", none, t0.Add(3*time.Second)))(t); !l.Proven {
		t.Errorf("LeaseFor = %+v; want it proven", l)
	}

	at := t0.Add(time.Minute)
	for _, want := range []byte{10, 12, 13} { // .11 is proven; each is named once in a while
		l := must(f.Unproven(f.ctx, sn, at, at))(t)
		expect(t, "unproven", l.Address.As4()[3], want)
	}
	_, err := f.Unproven(f.ctx, sn, at, at)
	wantErr(t, "Unproven", err, dsas.ErrNotFound)
	at = at.Add(time.Minute)
	_, err = f.Unproven(f.ctx, sn, t0, at) // none has had it since then
	wantErr(t, "Unproven(too young)", err, dsas.ErrNotFound)
	l := must(f.Unproven(f.ctx, sn, at, at))(t)
	noErr(t, f.TakeBack(f.ctx, l, mac(5), "id", at))
	expect(t, "the offer of what was taken back", f.offer(sn, 5, none, at), 10)
	expect(t, "taken up", f.get(sn, 5, ip(10), at), 10)
	wantErr(t, "TakeBack again", f.TakeBack(f.ctx, l, mac(6), "id", at), dsas.ErrNotFound)
	l = must(f.Unproven(f.ctx, sn, at, at))(t)
	f.Prove(f.ctx, l.MAC, l.Address) // in the meantime
	wantErr(t, "TakeBack of a proven one", f.TakeBack(f.ctx, l, mac(6), "id", at), dsas.ErrNotFound)

	// All ran out: .11, which somebody used, goes after those that nobody did,
	// though it ended first.
	late := t0.Add(time.Hour)
	if got := standing(3, late); !got.Leased || !got.Proven {
		t.Errorf("Standing after the end = %+v; want a lease, and proven", got)
	}
	expect(t, "first", f.get(sn, 20, none, late), 13)
	expect(t, "second", f.get(sn, 21, none, late), 10)
	expect(t, "third", f.get(sn, 22, none, late), 11)

	// Who it was is not asked after a restart: it is believed.
	f.reopen()
	if got := standing(20, late); !got.Proven {
		t.Errorf("Standing after a restart = %+v; want it proven", got)
	}
	_, err = f.Unproven(f.ctx, sn, late.Add(time.Hour), late)
	wantErr(t, "Unproven after a restart", err, dsas.ErrNotFound)
}

// A server that ends after it took a lease back, and before somebody else had
// it, has kept it.
func TestTakenBackIsKept(t *testing.T) {
	f := open(t)
	sn := subnet(10, 10)
	expect(t, "lease", f.get(sn, 1, none, t0), 10)
	at := t0.Add(time.Minute)
	noErr(t, f.TakeBack(f.ctx, must(f.Unproven(f.ctx, sn, at, at))(t), mac(2), "", at))
	f.reopen()
	expect(t, "who had it", f.get(sn, 1, none, at), 10)
	expect(t, "who was to have it", f.get(sn, 2, none, at), 0)
}

// TestSameClient: a box that changes its NIC keeps its lease by an identifier
// that holds no MAC, whatever became of the leases with it before.
func TestSameClient(t *testing.T) {
	f := open(t)
	sn := subnet(10, 20)
	get := func(m int, id string, at time.Time) byte {
		t.Helper()
		return must(f.LeaseFor(f.ctx, sn, mac(m), id, none, at))(t).Address.As4()[3]
	}
	expect(t, "first", get(1, "ff0001", t0), 10)
	expect(t, "its other NIC", get(2, "ff0001", t0), 10)
	expect(t, "its first NIC", get(1, "ff0001", t0), 10)
	expect(t, "another box", get(3, "ff0002", t0), 11)
	expect(t, "an id with a MAC in it", get(4, "01525400000001", t0), 12)
	expect(t, "the same of another MAC", get(5, "01525400000001", t0), 13)
	expect(t, "no id", get(6, "", t0), 14)
	expect(t, "no id either", get(7, "", t0), 15)
	// It has another id now: the old one is nobody's.
	expect(t, "a new id", get(3, "ff0003", t0), 11)
	expect(t, "the new id's other NIC", get(8, "ff0003", t0), 11)
	expect(t, "the old id", get(9, "ff0002", t0), 16)
	noErr(t, f.Release(f.ctx, mac(9), ip(16)))
	expect(t, "an id that gave its lease back", get(10, "ff0002", t0), 17)
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.18/24", 101)))(t)
	f.reopen()
	expect(t, "after a restart", get(11, "ff0003", t0), 11)
}

// BenchmarkNewLease is an offer to a stranger with an identifier of RFC 4361
// among many leases.
func BenchmarkNewLease(b *testing.B) {
	f, err := openDir(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	sn := subnet(0, 0)
	sn.Prefix = netip.MustParsePrefix("10.77.0.0/16")
	sn.Pool = dsas.Range{First: netip.MustParseAddr("10.77.1.0"), Last: netip.MustParseAddr("10.77.250.0")}
	for m := range 2000 {
		if _, err := f.LeaseFor(b.Context(), sn, mac(m), fmt.Sprintf("ff%06x", m), none, t0); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for i := range b.N {
		if _, err := f.Offer(b.Context(), sn, mac(10_000+i%4000), fmt.Sprintf("ff%06x", 10_000+i%4000), none, t0); err != nil {
			b.Fatal(err)
		}
	}
}
