package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas/server/dhcp"
	"dsas/server/netns"
	"dsas/server/ra"
	"dsas/server/tftp"
)

// bootSockets are opened in the boot namespace before anything is dropped.
type bootSockets struct {
	dhcp, tftp []net.PacketConn
	ears       []*dhcp.Ear // for other DHCP servers
	ra         []*ra.Conn
	http       []net.Listener
	netlink    *netlink.Handle // of the boot network; nil where dsas gives the addresses
}

// inBootNetwork runs fn where the nodes are: in the configured namespace.
func (d *daemon) inBootNetwork(fn func() error) error {
	if d.cfg.Netns == "" {
		return fn()
	}
	return netns.Do(d.cfg.Netns, fn)
}

// listenBoot finds the subnets and opens DHCP, TFTP and HTTP on them alone.
func (d *daemon) listenBoot() (err error) {
	if d.subnets, err = d.cfg.subnets(); err != nil {
		return err
	}
	if d.cfg.otherDHCP() {
		if d.socks.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
	}
	for _, name := range d.cfg.Interfaces {
		if !d.cfg.NoDHCP {
			c, err := dhcp.Listen(name)
			if err != nil {
				return err
			}
			d.socks.dhcp = append(d.socks.dhcp, c)
		}
		if d.cfg.ProxyDHCP {
			c, err := dhcp.ListenBoot(name)
			if err != nil {
				return err
			}
			d.socks.dhcp = append(d.socks.dhcp, c)
		}
		if !d.cfg.otherDHCP() {
			e, err := dhcp.OpenEar(name)
			if err != nil {
				return err
			}
			d.socks.ears = append(d.socks.ears, e)
		}
		t, err := tftp.Listen(name)
		if err != nil {
			return err
		}
		d.socks.tftp = append(d.socks.tftp, t)
		if d.cfg.NoRouterAdvertisement {
			continue
		}
		if r, err := ra.Listen(name); err != nil {
			// No IPv6 on the interface: then nobody solicits there either.
			d.log.Warn("router solicitations are not answered", "err", err)
		} else {
			d.socks.ra = append(d.socks.ra, r)
		}
	}
	listening := map[netip.Addr]bool{} // subnets behind relays share an address of ours
	for _, s := range d.subnets {
		if listening[s.Server] {
			continue
		}
		listening[s.Server] = true
		l, err := listenBurst(netip.AddrPortFrom(s.Server, uint16(d.cfg.HTTPPort)).String())
		if err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				err = fmt.Errorf("%w; `ss -ltnp` says by whom; httpPort in the configuration names another port", err)
			}
			return fmt.Errorf("listen for boot HTTP: %w", err)
		}
		d.socks.http = append(d.socks.http, l)
	}
	return nil
}

// backlog is how many connections may wait to be accepted: a room's nodes ask
// at the same second. The kernel takes net.core.somaxconn where that is less.
const backlog = 4096

// listenBurst is net.Listen for tcp4 with room for backlog connections. Go reads
// the limit from /proc/sys, which the unit hides (ProcSubset=pid), and lets 128
// wait then: whoever comes when they do tries again after a second or more.
func listenBurst(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return nil, err
	}
	if err := deepen(l.(*net.TCPListener), backlog); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// deepen makes room for n waiting connections: listen(2) may be called again.
func deepen(l *net.TCPListener, n int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), n) })
	return errors.Join(err, listenErr)
}
