package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ServerPort and ClientPort are DHCP's ports (RFC 2131 section 4.1).
const (
	ServerPort = 67
	ClientPort = 68
)

// receiveBuffer is what the socket may hold in bytes: a burst of 400 DISCOVERs,
// a whole rack after a power cut, overflows the kernel's default.
const receiveBuffer = 4 << 20

// priority is TC_PRIO_INTERACTIVE (linux/pkt_sched.h): while images go out to a
// whole rack, an answer that a box waits for is not queued behind them by our
// own interface, nor dropped there. Linux's queues look at it unasked.
const priority = 6

// Conn is a socket for DHCP on one interface: a UDP socket bound to it, which
// receives nothing from elsewhere, and a packet socket for answers to a client
// that has no address yet and so cannot be reached through IP.
type Conn struct {
	*net.UDPConn
	raw   *os.File        // the packet socket
	in    syscall.RawConn // of the UDP socket
	out   syscall.RawConn // of raw
	arp   *arp            // nil on port 4011
	port  int             // 67 or 4011
	iface net.Interface
	addrs []netip.Prefix
	begun sync.Once
}

// Listen opens a Conn on the named interface, port 67. It must be called in the
// interface's network namespace (on a thread locked to it, where that is not the
// process's own); the Conn may then be used from anywhere.
func Listen(name string) (*Conn, error) { return listen(name, ServerPort) }

func listen(name string, port int) (*Conn, error) {
	ifi, addrs, err := lookInterface(name)
	if err != nil {
		return nil, fmt.Errorf("listen for DHCP on %s: %w", name, err)
	}
	c := &Conn{iface: *ifi, port: port, addrs: addrs}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error { return control(rc, name) }}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen for DHCP on %s, port %d (another DHCP server on this machine?): %w", name, port, err)
	}
	c.UDPConn = pc.(*net.UDPConn)
	if c.raw, err = openSender(ifi); err != nil {
		pc.Close()
		return nil, fmt.Errorf("open packet socket on %s (CAP_NET_RAW is needed): %w", name, err)
	}
	if c.in, err = c.UDPConn.SyscallConn(); err == nil {
		c.out, err = c.raw.SyscallConn()
	}
	if err != nil {
		pc.Close()
		c.raw.Close()
		return nil, fmt.Errorf("listen for DHCP on %s: %w", name, err)
	}
	if port != ServerPort {
		return c, nil // gives no addresses, checks none
	}
	if c.arp, err = openARP(ifi); err != nil {
		pc.Close()
		c.raw.Close()
		return nil, fmt.Errorf("open ARP socket on %s (CAP_NET_RAW is needed): %w", name, err)
	}
	return c, nil
}

// start begins to hear ARP; it ends with Close.
func (c *Conn) start() {
	if c.arp != nil {
		c.begun.Do(func() { go c.arp.run() })
	}
}

// outlived tells whether an interface is no longer the one that something was
// opened on: made anew (its index is another), with another MAC or other
// addresses.
func outlived(was net.Interface, had []netip.Prefix, ifi *net.Interface, addrs []netip.Prefix) bool {
	return ifi.Index != was.Index || !bytes.Equal(ifi.HardwareAddr, was.HardwareAddr) || !slices.Equal(addrs, had)
}

// has tells whether a is an address of ours.
func (c *Conn) has(a netip.Addr) bool {
	return slices.ContainsFunc(c.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// sendFrom sends b with src as its source address.
func (c *Conn) sendFrom(src netip.Addr, to netip.AddrPort, b []byte) error {
	if !c.has(src) {
		src = netip.IPv4Unspecified() // of another interface: let the kernel choose
	}
	oob := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: src.As4()})
	if _, _, err := c.WriteMsgUDPAddrPort(b, oob, to); err != nil {
		return fmt.Errorf("send on %s: %w", c.iface.Name, err)
	}
	return nil
}

func control(rc syscall.RawConn, name string) error {
	var err error
	if e := rc.Control(func(fd uintptr) {
		s := int(fd)
		for _, o := range []struct {
			what string
			do   func() error
		}{
			{"bind to device", func() error { return unix.BindToDevice(s, name) }},
			{"SO_PRIORITY", func() error { return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PRIORITY, priority) }},
			{"SO_BROADCAST", func() error { return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1) }},
			{"IP_PKTINFO", func() error { return unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }},
			// Several interfaces, several sockets on :67.
			{"SO_REUSEADDR", func() error { return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }},
		} {
			if err = o.do(); err != nil {
				err = fmt.Errorf("%s: %w", o.what, err)
				return
			}
		}
		// Forced beyond net.core.rmem_max where CAP_NET_ADMIN allows it.
		if unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			err = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	}); e != nil {
		return e
	}
	return err
}

// Name gives the interface's name.
func (c *Conn) Name() string { return c.iface.Name }

// Addrs gives the interface's IPv4 addresses when it was opened.
func (c *Conn) Addrs() []netip.Prefix { return c.addrs }

// Close closes the sockets.
func (c *Conn) Close() error {
	c.raw.Close()
	if c.arp != nil {
		c.arp.conn.Close()
	}
	return c.UDPConn.Close()
}
