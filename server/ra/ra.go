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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

// Server answers on the interfaces that its Conns were opened on.
type Server struct {
	Log   *slog.Logger
	Conns []*Conn
	// In runs a function in the Conns' network namespace, where that is not the
	// process's; nil: it is. Interfaces that were made anew are found in it.
	In func(func() error) error
}

// Conn is an ICMPv6 socket that hears an interface's router solicitations.
type Conn struct {
	pc    *icmp.PacketConn
	name  string
	index atomic.Int64 // the interface's
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
	c := &Conn{pc: pc, name: name}
	c.index.Store(int64(ifi.Index))
	return c, nil
}

// follow looks whether the interface was made anew: the kernel then knows
// another under its name, which all routers' packets have to be asked for again.
// The socket itself is bound to none and stays.
func (c *Conn) follow() (again bool, err error) {
	ifi, err := net.InterfaceByName(c.name)
	if err != nil || int64(ifi.Index) == c.index.Load() {
		return false, nil // it is gone, or as it was
	}
	if err := c.pc.IPv6PacketConn().JoinGroup(ifi, allRouters); err != nil {
		return false, err
	}
	c.index.Store(int64(ifi.Index))
	return true, nil
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
	wg.Go(func() { s.follow(ctx) })
	for _, c := range s.Conns {
		wg.Go(func() {
			if err := c.answer(); err != nil && ctx.Err() == nil {
				s.Log.Error("router solicitations are no longer answered; iPXE will wait for an IPv6 router", "interface", c.name, "err", err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	return ctx.Err()
}

// follow keeps the Conns on their interfaces until ctx ends.
func (s *Server) follow(ctx context.Context) {
	in := s.In
	if in == nil {
		in = func(f func() error) error { return f() }
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	failed := map[*Conn]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, c := range s.Conns {
			var again bool
			err := in(func() (err error) {
				again, err = c.follow()
				return err
			})
			switch {
			case err != nil && !failed[c]:
				s.Log.Warn("the interface is back, and router solicitations are not answered there yet", "interface", c.name, "err", err)
			case again:
				s.Log.Info("the interface is back; router solicitations are answered again", "interface", c.name)
			}
			failed[c] = err != nil
		}
	}
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
		if cm == nil || int64(cm.IfIndex) != c.index.Load() || !solicitation(buf[:n], cm.HopLimit) {
			continue
		}
		to, ok := from.(*net.IPAddr)
		if !ok || to.IP.IsUnspecified() {
			to = &net.IPAddr{IP: net.ParseIP("ff02::1")} // has no address yet: to all nodes
		}
		out := &ipv6.ControlMessage{IfIndex: cm.IfIndex, HopLimit: 255}
		if _, err := p.WriteTo(advertisement, out, &net.IPAddr{IP: to.IP, Zone: strconv.Itoa(cm.IfIndex)}); err != nil && errors.Is(err, net.ErrClosed) {
			return nil
		}
	}
}
