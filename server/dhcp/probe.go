package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"dsas"
)

// Figures of the conflict check. A box that is there answers within
// milliseconds; the second question is for one that is lost.
const (
	probeTimes = 2
	probeEvery = 120 * time.Millisecond
	maxProbes  = 512 // at once; beyond that a client has to ask again
)

// arp asks who has an address, on one segment, and hears the answers.
type arp struct {
	conn  *packet.Conn
	iface net.Interface
	asked askers[dsas.MAC]
}

// openARP opens a socket for ARP on ifi; it must be called in the interface's
// network namespace.
func openARP(ifi *net.Interface) (*arp, error) {
	c, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, err
	}
	return &arp{conn: c, iface: *ifi}, nil
}

// run hears answers until the socket is closed.
func (a *arp) run() {
	buf := make([]byte, 128)
	for {
		n, _, err := a.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // the interface is down, or gone: the watch closes us
			continue
		}
		if mac, addr, ok := arpSender(buf[:n]); ok {
			a.asked.tell(addr, mac)
		}
	}
}

// arpSender reads who an ARP frame is from (RFC 826); whatever it asks or says,
// its sender uses the address.
func arpSender(f []byte) (dsas.MAC, netip.Addr, bool) {
	if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_ARP || binary.BigEndian.Uint16(f[14:]) != 1 ||
		binary.BigEndian.Uint16(f[16:]) != unix.ETH_P_IP || f[18] != 6 || f[19] != 4 {
		return dsas.MAC{}, netip.Addr{}, false
	}
	return dsas.MAC(f[22:28]), netip.AddrFrom4([4]byte(f[28:32])), true
}

// arpProbe writes the question with an empty sender address, which changes
// nobody's ARP cache (RFC 5227 section 1.1).
func arpProbe(from net.HardwareAddr, addr netip.Addr) []byte {
	f := make([]byte, 42)
	copy(f, broadcastMAC)
	copy(f[6:12], from)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_ARP)
	copy(f[14:], []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(f[22:28], from)
	to := addr.As4()
	copy(f[38:], to[:])
	return f
}

// inUse asks whether a box other than mac has addr. It takes about a quarter
// of a second where nobody has.
func (a *arp) inUse(ctx context.Context, addr netip.Addr, mac dsas.MAC) (dsas.MAC, bool) {
	return a.asked.ask(ctx, addr, func() error {
		_, err := a.conn.WriteTo(arpProbe(a.iface.HardwareAddr, addr), &packet.Addr{HardwareAddr: broadcastMAC})
		return err
	}, func(who dsas.MAC) bool { return who != mac }) // the box itself may have the address already
}

// checks are the conflict checks that are under way.
type checks struct {
	mu   sync.Mutex
	busy map[dsas.MAC]struct{}
	wg   sync.WaitGroup
}

// begin tells whether a check for mac may begin; each that did needs its end.
func (p *checks) begin(mac dsas.MAC) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.busy[mac]; ok || len(p.busy) >= maxProbes {
		return false
	}
	p.busy[mac] = struct{}{}
	p.wg.Add(1)
	return true
}

func (p *checks) end(mac dsas.MAC) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, mac)
	p.wg.Done()
}

// probeAndSend sends r, an OFFER of a pool address that its client never had,
// once nobody is found to use the address; else it takes the address out of
// use and offers another.
func (s *Server) probeAndSend(ctx context.Context, l *link, r *reply) {
	defer s.checks.end(r.seen.mac)
	c := r.seen
	if r.back != nil {
		if r = s.takeBack(ctx, c, r.back); r == nil {
			return
		}
	}
	for range 4 {
		st := l.state.Load()
		if !r.probe.IsValid() {
			s.sendReply(ctx, l, r)
			return
		}
		who, used := s.usedBy(ctx, st, c, r.probe)
		if ctx.Err() != nil {
			return
		}
		if !used {
			s.sendReply(ctx, l, r)
			return
		}
		if !r.heldBy.IsZero() && (who == r.heldBy || who.IsZero()) {
			if s.news("same id "+c.id, time.Hour) {
				s.Log.Warn("two boxes have the same DHCP client id; each gets an address of its own (copies of one installation often have the same /etc/machine-id)", "id", c.id, "mac", c.mac, "other", r.heldBy)
			}
			c.id = "" // as if it had none
			if r = s.offerAnew(ctx, l, c); r == nil {
				return
			}
			continue
		}
		if !s.inUseByOther(ctx, c, r.probe, who) {
			return
		}
		if r = s.offerAnew(ctx, l, c); r == nil {
			return
		}
	}
	s.count.drop(DropNoAddress)
}

// inUseByOther takes addr out of use, which who has without a lease of ours.
func (s *Server) inUseByOther(ctx context.Context, c *client, addr netip.Addr, who dsas.MAC) bool {
	by := who.String()
	if who.IsZero() {
		by = "a box behind relay " + c.relay.agent.String() + " that answers ping"
	}
	s.Log.Warn("a pool address is in use by a box that did not get it from us; it is left alone for a while", "address", addr, "by", by, "subnet", c.subnet.Prefix)
	s.event(ctx, dsas.Event{MAC: who, Kind: dsas.KindRefused, Message: fmt.Sprintf("pool address %s is in use by %s, which did not get it from this server", addr, by)})
	work, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := s.Store.Decline(work, addr, s.Now().Add(declineTime)); err != nil {
		s.notAnswered(c.link, c.req, err)
		return false
	}
	return true
}

// offerAnew is discover once more, nil where nothing is to be offered.
func (s *Server) offerAnew(ctx context.Context, l *link, c *client) *reply {
	work, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := s.discover(work, c)
	if err != nil || r == nil {
		s.notAnswered(l, c.req, err)
		return nil
	}
	return r
}
