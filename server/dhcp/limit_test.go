package dhcp

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

func madeUp(i uint32) (m dsas.MAC) {
	m[0] = 0x0a
	binary.BigEndian.PutUint32(m[2:], i)
	return m
}

// TestFlood: a hundred thousand made-up MACs by one port, and later by the whole
// interface; a reserved node and a pool client on another port are served.
func TestFlood(t *testing.T) {
	sub := near
	sub.Pool = dsas.Range{First: netip.MustParseAddr("10.77.0.192"), Last: netip.MustParseAddr("10.77.0.223")} // 32
	b := newBench(t)
	b.s.Subnets[0], b.s.poolSize[0] = sub, sub.PoolSize()
	b.l = testLink(sub)
	port := func(name string) dhcpv4.Modifier { return opt(82, append([]byte{1, byte(len(name))}, name...)...) }
	const flood = 100_000
	offered, acked := 0, 0
	for i := range uint32(flood) {
		req, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(madeUp(i).HardwareAddr()), port("evil"))
		if err != nil {
			t.Fatal(err)
		}
		req.OpCode = dhcpv4.OpcodeBootRequest
		r, err := b.s.answer(context.Background(), new(slate), b.l, req, false)
		if err != nil || r == nil {
			if err == nil || !strings.Contains(err.Error(), "port evil of interface eth1") {
				t.Fatalf("MAC %d: %v; want an error that names the port", i, err)
			}
			continue
		}
		offered++
		// Half of them take the offer.
		if i%2 == 0 {
			req.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
			req.UpdateOption(dhcpv4.OptRequestedIPAddress(r.msg.YourIPAddr))
			if r, err = b.s.answer(context.Background(), new(slate), b.l, req, false); err == nil && r.msg.MessageType() == dhcpv4.MessageTypeAck {
				acked++
			}
		}
	}
	if offered != 8 || acked != 4 {
		t.Errorf("the flood got %d offers, %d leases; want 8 (a quarter of the pool) and 4", offered, acked)
	}
	if n := len(b.store.Events(dsas.KindUnknown)); n > maxStrangers {
		t.Errorf("%d unknown.seen events in one second; want at most %d", n, maxStrangers)
	}
	if ev := b.store.Events(dsas.KindRefused); len(ev) != 1 || !strings.Contains(ev[0].Message, "port evil") {
		t.Errorf("refusals = %+v; want one that names the port", ev)
	}
	r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, port("evil"))
	b.check("a node on the same port", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	if r := b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, port("good")); r == nil {
		t.Error("a stranger on another port gets nothing")
	} else if r = b.ask(strangeMAC, dhcpv4.MessageTypeRequest, port("good"), optIP(50, r.msg.YourIPAddr.String())); r == nil || r.msg.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("a stranger on another port: %+v; want an ACK", r)
	}
	// Forged ports: each is another, and all are one interface.
	offered = 0
	for i := range uint32(1000) {
		if r := b.s.try(t, b.l, madeUp(1<<20+i), port(string(rune('a'+i%26))+string(rune('a'+i/26)))); r != nil {
			offered++
		}
	}
	if offered != 8 { // half of 32, the 9 that are leased and offered, and one: then the pool is scarce
		t.Errorf("forged ports got %d offers; want 8, and more than half of the pool in use by that", offered)
	}
	gi := dhcpv4.WithGatewayIP(net.ParseIP("10.77.0.250"))
	behind := dsas.MAC{0x52, 0x54, 0, 0, 9, 3}
	if r := b.ask(behind, dhcpv4.MessageTypeDiscover, gi); r != nil {
		t.Error("a stranger behind a relay is answered at once in a scarce pool; want it to ask twice")
	}
	b.now = b.now.Add(time.Second)
	if r := b.ask(behind, dhcpv4.MessageTypeDiscover, gi); r == nil {
		t.Error("a stranger behind a relay that asked twice gets nothing while the segment is flooded")
	}
	// The offers run out; the port's leases do later.
	b.now = b.now.Add(2 * time.Minute)
	if r := b.ask(dsas.MAC{0x52, 0x54, 0, 0, 9, 4}, dhcpv4.MessageTypeDiscover); r == nil {
		t.Error("two minutes later a stranger gets nothing")
	}
	b.now = b.now.Add(sub.Lease)
	if r := b.ask(madeUp(1<<30), dhcpv4.MessageTypeDiscover, port("evil")); r == nil {
		t.Error("after the leases ran out the port still gets nothing")
	}
}

// try asks without a test's failure where nothing comes.
func (s *Server) try(t *testing.T, l *link, mac dsas.MAC, mods ...dhcpv4.Modifier) *reply {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(mac.HardwareAddr())}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := s.answer(context.Background(), new(slate), l, m, false)
	return r
}

func TestARPSender(t *testing.T) {
	f := arpProbe(nodeMAC.HardwareAddr(), netip.MustParseAddr("10.77.0.200"))
	if mac, addr, ok := arpSender(f); !ok || mac != nodeMAC || addr != netip.IPv4Unspecified() {
		t.Errorf("arpSender(probe) = %s %s %t; want %s with no address (RFC 5227)", mac, addr, ok, nodeMAC)
	}
	for i := range f {
		arpSender(f[:i]) // must not panic
	}
}

// takes counts what is asked of the store that sets an address aside.
type takes struct {
	*dhcptest.Store
	n int
}

func (s *takes) Offer(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	s.n++
	return s.Store.Offer(ctx, sub, mac, id, want, now)
}

func (s *takes) Bind(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, func(context.Context) error, error) {
	s.n++
	return s.Store.Bind(ctx, sub, mac, id, want, now)
}

// TestRefusedTakesNothing: a REQUEST that is refused and a DECLINE of what one
// never had set nothing aside: no limit counts them.
func TestRefusedTakesNothing(t *testing.T) {
	b := newBench(t)
	b.ask(strangeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.200"))
	st := &takes{Store: b.store}
	b.s.Store = st
	for i := range uint32(20) {
		if r := b.ask(madeUp(i), dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.200")); r == nil || r.msg.MessageType() != dhcpv4.MessageTypeNak {
			t.Errorf("REQUEST of another's lease: %+v; want a NAK", r)
		}
		b.ask(madeUp(i), dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.9"))
		b.ask(madeUp(i), dhcpv4.MessageTypeDecline, optIP(50, "10.77.0.201"), optIP(54, "10.77.0.1"))
	}
	if st.n != 0 {
		t.Errorf("%d addresses were set aside; want none", st.n)
	}
	if l, ok := b.store.Lease(netip.MustParseAddr("10.77.0.201")); ok {
		t.Errorf("10.77.0.201 = %+v; want it free", l)
	}
}

// TestPortLimitHolds: a port gets no more of a pool with tricks than without.
func TestPortLimitHolds(t *testing.T) {
	port := opt(82, 1, 4, 'e', 'v', 'i', 'l')
	offered := func(r *reply) string {
		if r == nil {
			return ""
		}
		return r.msg.YourIPAddr.String()
	}
	for name, trick := range map[string]func(b *bench, mac dsas.MAC, addr string){
		"asking again": func(b *bench, mac dsas.MAC, addr string) {
			b.ask(mac, dhcpv4.MessageTypeRequest, optIP(50, addr), port)
			b.ask(mac, dhcpv4.MessageTypeDiscover, port)
			b.now = b.now.Add(61 * time.Second)
		},
		"releasing what is another's": func(b *bench, mac dsas.MAC, addr string) {
			b.ask(mac, dhcpv4.MessageTypeRequest, optIP(50, addr), port)
			b.ask(mac, dhcpv4.MessageTypeRelease, ip("10.77.0.230"), port)
		},
		"declining": func(b *bench, mac dsas.MAC, addr string) {
			b.ask(mac, dhcpv4.MessageTypeRequest, optIP(50, addr), port)
			b.ask(mac, dhcpv4.MessageTypeDecline, optIP(50, addr), optIP(54, "10.77.0.1"), port)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			sub := near
			sub.Pool, sub.PortLimit = dsas.Range{First: netip.MustParseAddr("10.77.0.192"), Last: netip.MustParseAddr("10.77.0.239")}, 4
			b.s.Subnets[0], b.s.poolSize[0], b.l = sub, sub.PoolSize(), testLink(sub)
			got := map[string]bool{}
			for i := range uint32(12) {
				mac := madeUp(i)
				if a := offered(b.ask(mac, dhcpv4.MessageTypeDiscover, port)); a != "" {
					got[a] = true
					trick(b, mac, a)
				}
			}
			if len(got) != 4 {
				t.Errorf("the port got %d addresses; want 4, its limit", len(got))
			}
		})
	}
}

// TestLogFlood: made-up relays fill no log.
func TestLogFlood(t *testing.T) {
	b := newBench(t)
	var said logBuffer
	b.s.Log = slog.New(slog.NewTextHandler(&said, nil))
	for i := range 1000 {
		m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(madeUp(uint32(i)).HardwareAddr()), dhcpv4.WithGatewayIP(net.IPv4(172, 16, byte(i>>8), byte(i))))
		if err != nil {
			t.Fatal(err)
		}
		m.OpCode = dhcpv4.OpcodeBootRequest
		b.s.packet(t.Context(), b.l, received{data: m.ToBytes()})
	}
	if n := strings.Count(said.String(), "\n"); n == 0 || n > maxLines {
		t.Errorf("%d lines in the log; want some, at most %d", n, maxLines)
	}
}

// TestWorkerOf: a rack whose MACs are numbered in steps fills no worker's queue.
func TestWorkerOf(t *testing.T) {
	for _, step := range []uint32{1, 2, 4, 8, 16, 64, 256} {
		var per [workers]int
		for i := range uint32(400) {
			per[workerOf(madeUp(i*step))]++
		}
		if most := slices.Max(per[:]); most > queue {
			t.Errorf("MACs in steps of %d: one worker has %d of 400; want at most %d, its queue", step, most, queue)
		}
	}
}

// TestPortsAreFew: neither two relays that both bring a box's packets nor made-up
// MACs write the disk full of ports.
func TestPortsAreFew(t *testing.T) {
	b := newBench(t)
	for i := range 20 {
		b.record(&client{mac: nodeMAC, node: &dsas.Node{}, link: b.l, relay: relayed{agent: netip.AddrFrom4([4]byte{10, 77, 0, byte(2 + i%2)})}})
	}
	if n := len(b.store.Ports()); n != 1 {
		t.Errorf("%d records of one box; want 1", n)
	}
	b.now = b.now.Add(recordChange)
	b.record(&client{mac: nodeMAC, node: &dsas.Node{}, link: b.l, relay: relayed{agent: netip.AddrFrom4([4]byte{10, 77, 0, 9})}})
	if n := len(b.store.Ports()); n != 2 {
		t.Errorf("%d records after a box moved; want 2", n)
	}
	for i := range uint32(1000) {
		b.record(&client{mac: madeUp(i), link: b.l, relay: relayed{circuit: []byte("evil")}})
	}
	if n := len(b.store.Ports()); n != 2+maxStrangers {
		t.Errorf("%d records after a flood; want %d more", n, maxStrangers)
	}
}
