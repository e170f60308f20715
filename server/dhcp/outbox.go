package dhcp

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"dsas"
)

// openSender opens a packet socket that frames are sent on to ifi; nothing is
// received. It blocks, and so is not in the runtime's poller, whose thread would
// be woken by every frame that has left (EPOLLOUT). While the interface takes
// nothing it blocks for sendPatience; a close would not end that.
func openSender(ifi *net.Interface) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	patience := unix.NsecToTimeval(int64(sendPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("SO_SNDTIMEO", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, priority) //nolint:errcheck // it only helps
	return os.NewFile(uintptr(fd), "packet socket "+ifi.Name), nil
}

// SendFrame sends a UDP datagram in an Ethernet frame made by hand, to a box
// that cannot answer ARP yet. src is our address, which the kernel would
// otherwise choose.
func (c *Conn) SendFrame(to net.HardwareAddr, src, dst netip.AddrPort, payload []byte) error {
	f, ll := frame(c.iface.HardwareAddr, to, src, dst, payload), &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: c.iface.Index}
	var sent error
	err := c.out.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), f, 0, ll)
		return true
	})
	if err = cmp.Or(err, sent); err != nil {
		return fmt.Errorf("send frame on %s: %w", c.iface.Name, err)
	}
	return nil
}

const (
	// frameRoom is more than an Ethernet frame without jumbo sizes, in bytes.
	frameRoom = 1536
	// sendPatience is how long an interface may take nothing.
	sendPatience = time.Second
)

// outbox sends frames, as many as there are with one system call (sendmmsg(2)).
type outbox struct {
	conn *Conn
	n    int
	buf  [batch][frameRoom]byte
	kept [batch][]byte // frames that needed more
	iov  [batch]unix.Iovec
	msgs [batch]mmsghdr
	to   unix.RawSockaddrLinklayer // the interface; where to is in the frame
	note [batch]note

	// Of the sending that is under way, as in the inbox.
	done  int
	errno syscall.Errno
	give  func(fd uintptr) bool
}

// note says whose answer a frame is.
type note struct {
	mac dsas.MAC
	typ dhcpv4.MessageType
}

func newOutbox() *outbox {
	o := &outbox{}
	for i := range o.msgs {
		h := &o.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&o.to))
		h.Namelen = unix.SizeofSockaddrLinklayer
		h.Iov = &o.iov[i]
		h.SetIovlen(1)
	}
	o.give = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&o.msgs[o.done])), uintptr(o.n-o.done), 0, 0, 0)
		o.errno = errno
		if errno == 0 {
			o.done += int(n)
		}
		return true
	}
	return o
}

// through says which interface the next frames go out on; none may be waiting.
func (o *outbox) through(c *Conn) {
	if o.conn == c {
		return
	}
	o.conn = c
	o.to = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Protocol: htons(unix.ETH_P_IP), Ifindex: int32(c.iface.Index), Halen: 6}
}

// put adds m in a frame to a MAC; there is room for batch of them.
func (o *outbox) put(m *dhcpv4.DHCPv4, hw net.HardwareAddr, src, dst netip.AddrPort, who note) {
	f := appendMessage(o.buf[o.n][:headLen], m)
	address(f, o.conn.iface.HardwareAddr, hw, src, dst)
	o.kept[o.n] = f // it is not of buf where it was too long for that
	o.iov[o.n].Base = &f[0]
	o.iov[o.n].SetLen(len(f))
	o.note[o.n] = who
	o.n++
}

// flush sends all; sent is told what became of each frame.
func (o *outbox) flush(sent func(note, error)) {
	for o.done = 0; o.done < o.n; {
		from := o.done
		err := o.conn.out.Write(o.give)
		for _, who := range o.note[from:o.done] {
			sent(who, nil)
		}
		switch {
		case err != nil || o.errno == unix.EAGAIN: // closed, or it takes nothing
			err = cmp.Or(err, error(o.errno))
			for _, who := range o.note[o.done:o.n] {
				sent(who, err)
			}
			o.done = o.n
		case o.errno == unix.EINTR:
		case o.errno != 0: // of the first that did not go
			sent(o.note[o.done], o.errno)
			o.done++
		}
	}
	o.n, o.done = 0, 0
}

// htons puts a number into the network's order (byteorder(3)).
func htons(v uint16) uint16 {
	b := [2]byte{byte(v >> 8), byte(v)}
	return *(*uint16)(unsafe.Pointer(&b))
}
