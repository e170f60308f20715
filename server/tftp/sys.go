package tftp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's calls without allocations: what the loop does for every packet.

// sockaddr is a socket address as the kernel has it.
type sockaddr struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32
}

// setAddr fills s in for a socket of the address's own family; scope is the
// interface of an IPv6 link-local address.
func (s *sockaddr) setAddr(a netip.Addr, port uint16, scope int) {
	*s = sockaddr{}
	a = a.Unmap()
	binary.BigEndian.PutUint16(s.b[2:], port)
	if a.Is4() {
		binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET)
		v := a.As4()
		copy(s.b[4:], v[:])
		s.n = unix.SizeofSockaddrInet4
		return
	}
	binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET6)
	v := a.As16()
	copy(s.b[8:], v[:])
	if a.IsLinkLocalUnicast() {
		binary.NativeEndian.PutUint32(s.b[24:], uint32(scope))
	}
	s.n = unix.SizeofSockaddrInet6
}

// addrPort gives the address without its zone, IPv4 as such.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.b[2:])
	if binary.NativeEndian.Uint16(s.b[:]) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.b[4:8])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.b[8:24])).Unmap(), port)
}

// recv is recvFrom for a socket that is connected: who sent it is known.
func recv(fd int, b []byte) (n int, err error) {
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// recvFrom reads one packet; a longer one than b is cut off, and n is then
// longer than b. It never waits, so the scheduler need not be told.
func recvFrom(fd int, b []byte, from *sockaddr) (n int, err error) {
	from.n = uint32(len(from.b))
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_TRUNC|unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&from.b)), uintptr(unsafe.Pointer(&from.n)))
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// recvMsg is recvFrom with the control messages, of which it gives those
// bytes that came.
func recvMsg(fd int, b, control []byte, from *sockaddr, flags int) (n int, oob []byte, err error) {
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Name: &from.b[0], Namelen: uint32(len(from.b)), Iov: &iov, Control: &control[0]}
	msg.SetIovlen(1)
	msg.SetControllen(len(control))
	r, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags|unix.MSG_TRUNC|unix.MSG_DONTWAIT))
	if e != 0 {
		return 0, nil, e
	}
	from.n = msg.Namelen
	return int(r), control[:msg.Controllen], nil
}

// localAddr finds in control messages to which address a packet was sent.
// direct is false when that was no address of this machine's own (broadcast,
// multicast); scope is the interface it came in by.
func localAddr(oob []byte) (a netip.Addr, scope int, direct bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(oob) {
			break
		}
		data := oob[unix.SizeofCmsghdr:n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			to := netip.AddrFrom4([4]byte(data[8:12]))
			// ipi_spec_dst is the machine's own address for it; unset in what
			// came before the socket was told to note it.
			own := netip.AddrFrom4([4]byte(data[4:8]))
			return to, int(binary.NativeEndian.Uint32(data)), to == own || own.IsUnspecified()
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a = netip.AddrFrom16([16]byte(data[:16])).Unmap()
			scope, direct = int(binary.NativeEndian.Uint32(data[16:])), !a.IsMulticast()
		}
		oob = oob[min(len(oob), unix.CmsgSpace(n-unix.SizeofCmsghdr)):]
	}
	return a, scope, direct
}

// out is a message to send: blocks with a head of four bytes each, without
// copying what is in them.
type out struct {
	msg     unix.Msghdr
	iov     [2 * maxSegments]unix.Iovec
	heads   [maxSegments][4]byte
	control [64]byte
	n       int // blocks
}

// maxSegments is how many packets one UDP_SEGMENT message may have
// (UDP_MAX_SEGMENTS of Linux before 6.9).
const maxSegments = 64

// add puts a block in.
func (o *out) add(number uint16, data []byte) {
	h := &o.heads[o.n]
	*h = [4]byte{0, opDATA, byte(number >> 8), byte(number)}
	v := o.iov[2*o.n:]
	v[0].Base = &h[0]
	v[0].SetLen(4)
	v[1].Base = nil
	if len(data) > 0 {
		v[1].Base = &data[0]
	}
	v[1].SetLen(len(data))
	o.n++
}

// send sends the blocks as packets of their own; more than one with one call,
// which the kernel cuts into segments of that many bytes. The socket of a nil
// address is connected.
func (o *out) send(fd int, to *sockaddr, segment int) error {
	o.msg = unix.Msghdr{Iov: &o.iov[0]}
	if to != nil {
		o.msg.Name, o.msg.Namelen = &to.b[0], to.n
	}
	o.msg.SetIovlen(2 * o.n)
	if o.n > 1 {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&o.control[0]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(o.control[unix.SizeofCmsghdr:], uint16(segment))
		o.msg.Control = &o.control[0]
		o.msg.SetControllen(unix.CmsgSpace(2))
	}
	// It never waits, so the scheduler need not be told, which would hand our
	// processor to another thread for a few microseconds.
	_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.msg)), unix.MSG_DONTWAIT)
	if e != 0 {
		return e
	}
	return nil
}

// sendTo sends one packet.
func sendTo(fd int, b []byte, to *sockaddr) error {
	_, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&to.b[0])), uintptr(to.n))
	if e != 0 {
		return e
	}
	return nil
}

// newSocket opens a transfer's socket: a random port of the address that the
// request was sent to, on the listener's interface.
func newSocket(local netip.Addr, scope int, device string) (fd int, err error) {
	return boundSocket(local, 0, scope, device)
}

// connect opens a second socket on fd's port, for to alone: the kernel looks
// the way up once and not for each packet. What others send goes to fd still.
func connect(fd int, local netip.Addr, scope int, device string, to *sockaddr) (second int, err error) {
	// Only now: set before fd had its port, it would allow one that is taken.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, fmt.Errorf("share port: %w", err)
	}
	var at sockaddr
	at.n = uint32(len(at.b))
	if _, _, e := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&at.b)), uintptr(unsafe.Pointer(&at.n))); e != 0 {
		return -1, fmt.Errorf("own port: %w", e)
	}
	if second, err = boundSocket(local, at.addrPort().Port(), scope, device); err != nil {
		return -1, err
	}
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(second), uintptr(unsafe.Pointer(&to.b)), uintptr(to.n)); e != 0 {
		unix.Close(second)
		return -1, fmt.Errorf("connect: %w", e)
	}
	return second, nil
}

// boundSocket binds to a random port, or shares a given one.
func boundSocket(local netip.Addr, port uint16, scope int, device string) (fd int, err error) {
	family := unix.AF_INET6
	if local.Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	// TC_PRIO_INTERACTIVE (linux/pkt_sched.h): a lost block costs a box most of
	// a second, so that ours are not queued behind images on our own interface.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 6) //nolint:errcheck // it only helps
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return -1, fmt.Errorf("bind to interface %s: %w", device, err)
		}
	}
	if port != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, fmt.Errorf("share port: %w", err)
		}
	}
	// Errors that come back (the client's port has closed) are kept for us to
	// read. Should a link behind a router be narrower than the interface, IPv4
	// packets are cut there: a path's MTU is learnt too late for a blksize that
	// has been agreed on.
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	if err != nil {
		return -1, fmt.Errorf("set up socket: %w", err)
	}
	var sa sockaddr
	sa.setAddr(local, port, scope)
	if _, _, e := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.b)), uintptr(sa.n)); e != 0 {
		return -1, fmt.Errorf("bind to %s: %w", local, e)
	}
	return fd, nil
}

// zoned gives a link-local IPv6 address its zone, for people to read.
func zoned(a netip.Addr, scope int) netip.Addr {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return a.WithZone(strconv.Itoa(scope))
	}
	return a
}

// linkOf gives an interface's index and MTU; index 0: there is none.
func linkOf(fd int, name string) (index, mtu int) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, 0
	}
	if unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req) != nil {
		return 0, 0
	}
	index = int(req.Uint32())
	if unix.IoctlIfreq(fd, unix.SIOCGIFMTU, req) != nil {
		return 0, 0
	}
	return index, int(req.Uint32())
}
