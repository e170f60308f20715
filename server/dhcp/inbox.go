package dhcp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"dsas"
)

const (
	// batch is how many packets are read, and answers sent, with one system call.
	batch = 64
	// packetRoom is more than any Ethernet frame that gets here, in bytes.
	packetRoom = 4096
	// pktinfoRoom is room for the one control message that is asked for, in bytes.
	pktinfoRoom = 64
)

// received is a packet. Its data is the inbox's until the next read.
type received struct {
	data    []byte
	from    netip.AddrPort
	unicast bool // it was sent to an address of ours, and not to everyone
	slot    int  // of the inbox
}

// mac is chaddr; data has at least the fixed part of a message.
func (p *received) mac() dsas.MAC { return dsas.MAC(p.data[28:34]) }

// clone is p in memory of its own.
func (p *received) clone() received {
	c := *p
	c.data = slices.Clone(p.data)
	return c
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes that came or went
	_   [4]byte
}

// inbox takes in what has come on a socket, up to batch packets at a time
// (recvmmsg(2)).
type inbox struct {
	list []received
	buf  [batch]*[packetRoom]byte
	oob  [batch][pktinfoRoom]byte
	from [batch]unix.RawSockaddrInet4
	iov  [batch]unix.Iovec
	msgs [batch]mmsghdr

	// Of the read that is under way; take is made once, for it would be made
	// anew with each.
	wait  bool
	n     int
	errno syscall.Errno
	take  func(fd uintptr) bool
}

func newInbox() *inbox {
	b := &inbox{list: make([]received, 0, batch)}
	for i := range b.msgs {
		b.renew(i)
		h := &b.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		h.Iov = &b.iov[i]
		h.SetIovlen(1)
		h.Control = &b.oob[i][0]
	}
	b.take = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.msgs[0])), batch, unix.MSG_DONTWAIT, 0, 0)
		b.n, b.errno = int(n), errno
		return errno != unix.EAGAIN || !b.wait
	}
	return b
}

// renew gives up a packet's memory to whoever has it, and takes other.
func (b *inbox) renew(slot int) {
	b.buf[slot] = new([packetRoom]byte)
	b.iov[slot].Base = &b.buf[slot][0]
	b.iov[slot].SetLen(packetRoom)
}

// read gives the packets that have come; wait: it waits for one.
func (b *inbox) read(st *linkState, wait bool) ([]received, error) {
	if st.raw == nil {
		n, from, err := st.conn.ReadFrom(b.buf[0][:])
		if err != nil {
			return nil, err
		}
		return append(b.list[:0], received{data: b.buf[0][:n], from: addrPort(from)}), nil
	}
	for i := range b.msgs {
		b.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
		b.msgs[i].hdr.SetControllen(pktinfoRoom)
	}
	b.wait = wait
	if err := st.raw.in.Read(b.take); err != nil {
		return nil, err
	}
	list := b.list[:0]
	switch b.errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return list, nil
	default:
		return nil, b.errno
	}
	for i := range b.n {
		m := &b.msgs[i]
		p := received{data: b.buf[i][:m.n], slot: i}
		sa := &b.from[i]
		port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // network order
		p.from = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), binary.BigEndian.Uint16(port[:]))
		if dst, ok := pktinfo(b.oob[i][:min(int(m.hdr.Controllen), pktinfoRoom)]); ok {
			p.unicast = dst.IsGlobalUnicast() && st.raw.has(dst)
		}
		list = append(list, p)
	}
	return list, nil
}

// pktinfo reads where a packet was sent to (ip(7), IP_PKTINFO: a struct
// in_pktinfo of the interface's index, our address, the packet's destination).
func pktinfo(oob []byte) (netip.Addr, bool) {
	const head = unix.SizeofCmsghdr
	for len(oob) >= head {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		n := int(h.Len)
		if n < head || n > len(oob) {
			break
		}
		if data := oob[head:n]; h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12 {
			return netip.AddrFrom4([4]byte(data[8:12])), true
		}
		oob = oob[min((n+7)&^7, len(oob)):] // CMSG_ALIGN
	}
	return netip.Addr{}, false
}
