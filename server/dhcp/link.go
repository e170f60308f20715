package dhcp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dsas"
)

// link is one listener. What it listens with is replaced when its interface
// is made anew.
type link struct {
	name  string
	state atomic.Pointer[linkState]
}

type linkState struct {
	conn  net.PacketConn
	raw   *Conn         // nil: answers to boxes without an address are broadcast
	local []dsas.Subnet // that are on this segment
}

// subnets gives those on the link's own segment.
func (l *link) subnets() []dsas.Subnet { return l.state.Load().local }

// newLink finds the subnets that live on conn's interface.
func (s *Server) newLink(conn net.PacketConn) (*link, error) {
	l := &link{name: conn.LocalAddr().String()}
	c, ok := conn.(*Conn)
	if !ok {
		l.state.Store(&linkState{conn: conn, local: s.Subnets})
		return l, nil
	}
	l.name = c.Name()
	st, err := s.stateOf(c)
	if err != nil {
		return nil, err
	}
	l.state.Store(st)
	return l, nil
}

// stateOf finds what c's interface serves: subnets of which it has our
// address, or behind relays that reach us at one of its addresses.
func (s *Server) stateOf(c *Conn) (*linkState, error) {
	st := &linkState{conn: c, raw: c}
	relays := false
	for _, sub := range s.Subnets {
		if !slices.ContainsFunc(c.Addrs(), func(p netip.Prefix) bool { return p.Addr() == sub.Server }) {
			continue
		}
		if sub.Relayed {
			relays = true
		} else {
			st.local = append(st.local, sub)
		}
	}
	if len(st.local) == 0 && !relays {
		return nil, fmt.Errorf("DHCP: interface %s has no address that is a subnet's server address (%s); add it with: ip addr add %s/%d dev %s: %w",
			c.Name(), s.Subnets[0].Server, s.Subnets[0].Server, s.Subnets[0].Prefix.Bits(), c.Name(), dsas.ErrInvalid)
	}
	return st, nil
}

// watch follows the link's interface until ctx ends: one that goes down, is
// removed and made anew (a bond that is configured again, a card that is
// plugged again) or gets other addresses is served again as soon as it can be.
func (s *Server) watch(ctx context.Context, l *link) {
	t := time.NewTicker(s.watchEvery)
	defer t.Stop()
	told := "up"
	tell := func(state string, say func(string, ...any), msg string, args ...any) {
		if told != state {
			told = state
			say(msg, append([]any{"interface", l.name}, args...)...)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := l.state.Load()
		var ifi *net.Interface
		var addrs []netip.Prefix
		err := s.In(func() (err error) {
			ifi, addrs, err = lookInterface(l.name)
			return err
		})
		switch {
		case err != nil:
			tell("gone", s.Log.Warn, "DHCP: the interface is gone; it is served again once it is back", "err", err)
		case ifi.Flags&net.FlagUp == 0:
			tell("down", s.Log.Warn, "DHCP: the interface is down; set it up with: ip link set "+l.name+" up")
		case !outlived(now.raw.iface, now.raw.addrs, ifi, addrs):
			tell("up", s.Log.Info, "DHCP: the interface is up again")
		default:
			if err := s.relisten(l); err != nil {
				tell("back: "+err.Error(), s.Log.Warn, "DHCP: the interface is back and cannot be served yet", "err", err)
				continue
			}
			told = ""
			tell("up", s.Log.Info, "DHCP listens again", "addresses", strings.Trim(fmt.Sprint(addrs), "[]"))
		}
	}
}

// relisten opens l's interface anew.
func (s *Server) relisten(l *link) error {
	var c *Conn
	if err := s.In(func() (err error) {
		c, err = listen(l.name, l.state.Load().raw.port)
		return err
	}); err != nil {
		return err
	}
	st, err := s.stateOf(c)
	if err != nil {
		c.Close()
		return err
	}
	c.start()
	old := l.state.Swap(st)
	old.conn.Close() // its reader goes on with the new one
	return nil
}

// lookInterface gives an interface and its IPv4 addresses.
func lookInterface(name string) (*net.Interface, []netip.Prefix, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil, err
	}
	list, err := ifi.Addrs()
	if err != nil {
		return nil, nil, fmt.Errorf("addresses of %s: %w", name, err)
	}
	var addrs []netip.Prefix
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			addrs = append(addrs, p)
		}
	}
	return ifi, addrs, nil
}
