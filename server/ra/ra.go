// Package ra answers IPv6 router solicitations with a router advertisement of
// lifetime 0: "there is no router here" (RFC 4861 section 6.2.3). iPXE solicits
// routers on every interface it opens and waits some 15 s when nobody answers;
// a boot through an NBP has two such waits. A lifetime of 0 can never make
// anybody's default route, and no prefix is announced.
package ra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

// Server answers on the interfaces that its Conns were opened on.
type Server struct {
	Log   *slog.Logger
	Conns []*Conn
}

// Conn is an ICMPv6 socket that hears an interface's router solicitations.
type Conn struct {
	pc  *icmp.PacketConn
	ifi net.Interface
}

// allRouters is where solicitations go (RFC 4291 section 2.7.1).
var allRouters = &net.IPAddr{IP: net.ParseIP("ff02::2")}

// Listen opens an interface; it may be called inside a network namespace.
func Listen(name string) (*Conn, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("listen for router solicitations on %s: %w", name, err)
	}
	pc, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("listen for router solicitations on %s: %w", name, err)
	}
	p := pc.IPv6PacketConn()
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(p.SetICMPFilter(&only), p.JoinGroup(ifi, allRouters),
		p.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true),
		// RFC 4861 section 6.1.2: anything but 255 may have come from outside.
		p.SetHopLimit(255), p.SetMulticastHopLimit(255))
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("listen for router solicitations on %s: %w", name, err)
	}
	return &Conn{pc, *ifi}, nil
}

// advertisement is a router advertisement (RFC 4861 section 4.2): type 134,
// code 0, checksum (the kernel's to fill in), current hop limit 0
// (unspecified), no flags, router lifetime 0, reachable and retransmit 0.
var advertisement = []byte{134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// Run answers until ctx ends. It is a convenience of the boot, so a read error
// ends only the answering on its interface, and says so.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		for _, c := range s.Conns {
			c.pc.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	for _, c := range s.Conns {
		wg.Go(func() {
			if err := c.answer(); err != nil && ctx.Err() == nil {
				s.Log.Error("router solicitations are no longer answered; iPXE will wait for an IPv6 router", "interface", c.ifi.Name, "err", err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	return ctx.Err()
}

// solicitation tells whether b is a router solicitation that may be answered
// (RFC 4861 section 6.1.1): type 133, code 0, at least 8 bytes, from this link
// (nobody further away arrives with hop limit 255), and no option without a
// length. The kernel has checked the checksum.
func solicitation(b []byte, hopLimit int) bool {
	if len(b) < 8 || b[0] != 133 || b[1] != 0 || hopLimit != 255 {
		return false
	}
	for o := b[8:]; len(o) > 0; {
		if len(o) < 2 || o[1] == 0 || int(o[1])*8 > len(o) {
			return false
		}
		o = o[int(o[1])*8:]
	}
	return true
}

func (c *Conn) answer() error {
	p := c.pc.IPv6PacketConn()
	buf := make([]byte, 1500)
	failures := 0
	for {
		n, cm, from, err := p.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if failures++; failures > 10 {
				return err
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		failures = 0
		if cm == nil || cm.IfIndex != c.ifi.Index || !solicitation(buf[:n], cm.HopLimit) {
			continue
		}
		to, ok := from.(*net.IPAddr)
		if !ok || to.IP.IsUnspecified() {
			to = &net.IPAddr{IP: net.ParseIP("ff02::1")} // has no address yet: to all nodes
		}
		out := &ipv6.ControlMessage{IfIndex: c.ifi.Index, HopLimit: 255}
		if _, err := p.WriteTo(advertisement, out, &net.IPAddr{IP: to.IP, Zone: c.ifi.Name}); err != nil && errors.Is(err, net.ErrClosed) {
			return nil
		}
	}
}
