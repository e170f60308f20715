package dhcp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"dsas"
)

// pinger asks for addresses behind routers, where ARP does not get to, by ICMP
// echo (RFC 792; RFC 2131 section 2.2 suggests it). It tells that an address
// answers, and not who does.
type pinger struct {
	conn  *icmp.PacketConn
	id    int // of our echo requests
	nonce uint64
	seq   atomic.Uint32
	asked askers[struct{}]
}

// openPinger opens a socket for ICMP; it must be called in the interfaces'
// network namespace.
func openPinger() (*pinger, error) {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket (CAP_NET_RAW is needed): %w", err)
	}
	var only ipv4.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv4.ICMPTypeEchoReply)
	if err := conn.IPv4PacketConn().SetICMPFilter(&only); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	var b [10]byte
	rand.Read(b[:])
	return &pinger{conn: conn, id: int(binary.BigEndian.Uint16(b[8:])), nonce: binary.BigEndian.Uint64(b[:8])}, nil
}

// run hears answers until the socket is closed.
func (p *pinger) run() {
	buf := make([]byte, 512)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if addr, ok := from.(*net.IPAddr); ok && p.ours(buf[:n]) {
			if a, ok := addrOf(addr.IP); ok {
				p.asked.tell(a, struct{}{})
			}
		}
	}
}

// echo writes a question.
func (p *pinger) echo() ([]byte, error) {
	return (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: p.id, Seq: int(uint16(p.seq.Add(1))), Data: binary.BigEndian.AppendUint64(nil, p.nonce),
	}}).Marshal(nil)
}

// ours tells whether b answers a question of ours, and not of a ping that
// somebody runs on this machine. Who did not hear the question cannot tell.
func (p *pinger) ours(b []byte) bool {
	m, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.ID == p.id && len(e.Data) == 8 && binary.BigEndian.Uint64(e.Data) == p.nonce
}

// inUse asks whether addr answers, from our address from. It takes about a
// quarter of a second where it does not.
func (p *pinger) inUse(ctx context.Context, addr, from netip.Addr) bool {
	_, used := p.asked.ask(ctx, addr, func() error {
		b, err := p.echo()
		if err != nil {
			return err
		}
		src := &ipv4.ControlMessage{Src: from.AsSlice()}
		_, err = p.conn.IPv4PacketConn().WriteTo(b, src, &net.IPAddr{IP: addr.AsSlice()})
		return err
	}, func(struct{}) bool { return true })
	return used
}

// pings tells whether pool addresses of c's subnet are asked for by ICMP.
func (s *Server) pings(c *client) bool { return c.relay.agent.IsValid() && s.pinger != nil }

// openPings opens the socket for ICMP where a subnet has a pool behind a relay.
func (s *Server) openPings() error {
	if s.NoProbe || s.Proxy {
		return nil
	}
	for _, sub := range s.Subnets {
		if sub.Relayed && sub.Pool.First.IsValid() {
			return s.In(func() (err error) {
				s.pinger, err = openPinger()
				return err
			})
		}
	}
	return nil
}

// usedBy asks whether a box other than c has addr, on its segment or, behind a
// relay, over the routers; then who it is stays unknown (zero).
func (s *Server) usedBy(ctx context.Context, st *linkState, c *client, addr netip.Addr) (who dsas.MAC, used bool) {
	switch {
	case s.pings(c):
		return who, s.pinger.inUse(ctx, addr, c.subnet.Server)
	case st.raw != nil && st.raw.arp != nil && !c.relay.agent.IsValid():
		return st.raw.arp.inUse(ctx, addr, c.mac)
	}
	return who, false
}
