package dhcp

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
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
		r, err := b.s.answer(context.Background(), b.l, req, false)
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
			if r, err = b.s.answer(context.Background(), b.l, req, false); err == nil && r.msg.MessageType() == dhcpv4.MessageTypeAck {
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
	if offered != 12 { // half of 32, less the 4 offers that are open from before
		t.Errorf("forged ports got %d offers; want 12, half of the pool with what was open", offered)
	}
	gi := dhcpv4.WithGatewayIP(net.ParseIP("10.77.0.250"))
	if r := b.ask(dsas.MAC{0x52, 0x54, 0, 0, 9, 3}, dhcpv4.MessageTypeDiscover, gi); r == nil {
		t.Error("a stranger behind a relay gets nothing while the segment is flooded")
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
	r, _ := s.answer(context.Background(), l, m, false)
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
