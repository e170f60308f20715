package tftp

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is TFTP's (RFC 1350).
const Port = 69

// Conn is a UDP socket bound to one interface, for IPv4 and, where the machine
// has it, IPv6.
type Conn struct {
	*net.UDPConn
	device string
}

// Listen opens port 69 on the named interface and no other. It must be called
// in the interface's network namespace.
func Listen(name string) (*Conn, error) {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, fmt.Errorf("listen for TFTP on %s: %w", name, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if e := rc.Control(func(fd uintptr) {
			if err = unix.BindToDevice(int(fd), name); err == nil {
				err = noteDestination(int(fd))
			}
		}); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", fmt.Sprintf(":%d", Port))
	if err != nil {
		return nil, fmt.Errorf("listen for TFTP on %s (another TFTP server on this machine?): %w", name, err)
	}
	return &Conn{UDPConn: pc.(*net.UDPConn), device: name}, nil
}

// What is in a packet beside the block: IPv4 (20) or IPv6 (40), UDP (8), TFTP
// (4). A block is never larger than what fits the MTU with them, since boot
// ROMs do not put fragments together.
const (
	heads4 = 32
	heads6 = 52
)

// listener is where requests come in, as the loop has it.
type listener struct {
	fd      int
	device  string // "": any interface
	address string
	index   int // the interface's; 0: it is not there
	mtu     int
}

// newListener takes over c's socket.
func newListener(c net.PacketConn) (*listener, error) {
	defer c.Close()
	l := &listener{address: c.LocalAddr().String(), mtu: 1500}
	if b, ok := c.(*Conn); ok {
		l.device = b.device
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("TFTP on %s: %T is no socket", l.address, c)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("TFTP on %s: %w", l.address, err)
	}
	e := rc.Control(func(fd uintptr) {
		if l.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return
		}
		err = noteDestination(l.fd)
		// A rack that powers on asks within a millisecond or two; beyond the
		// default a process needs CAP_NET_ADMIN.
		if unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf) != nil {
			unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcvbuf) //nolint:errcheck // then it is smaller
		}
	})
	if err == nil {
		err = e
	}
	if err != nil {
		if l.fd > 0 {
			unix.Close(l.fd)
		}
		return nil, fmt.Errorf("TFTP on %s: %w", l.address, err)
	}
	if l.device != "" {
		l.index, l.mtu = linkOf(l.fd, l.device)
	}
	return l, nil
}

// noteDestination has the kernel say to which address a request went: its
// answer has to come from there.
func noteDestination(fd int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family == unix.AF_INET {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1) //nolint:errcheck // a socket for IPv6 alone has none
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
}

const rcvbuf = 4 << 20

// limit gives the largest block for a client of a's family.
func (l *listener) limit(is4 bool) int {
	if is4 {
		return l.mtu - heads4
	}
	return l.mtu - heads6
}

// links notices interfaces that went and came back: a socket stays bound to
// the one that is gone.
func (l *loop) links() {
	for i, li := range l.listeners {
		if li.device == "" {
			continue
		}
		index, mtu := linkOf(li.fd, li.device)
		if index == li.index {
			if mtu > 0 {
				li.mtu = mtu
			}
			continue
		}
		if index == 0 {
			l.s.Log.Warn("TFTP: the interface is gone; waiting until it comes back", "interface", li.device)
			li.index = 0
			continue
		}
		c, err := Listen(li.device)
		var again *listener
		if err == nil {
			again, err = newListener(c)
		}
		if err != nil {
			l.s.Log.Warn("TFTP: the interface is back, but cannot be listened on; trying again", "interface", li.device, "err", err)
			continue
		}
		if err := l.watch(again.fd, again); err != nil {
			unix.Close(again.fd)
			continue
		}
		l.forget(li.fd)
		l.listeners[i] = again
		l.s.Log.Info("TFTP: the interface is back", "interface", li.device)
	}
}
