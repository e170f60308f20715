package load

import (
	"encoding/binary"
	"net/netip"
	"time"

	"dsas"
)

// DHCP message types (RFC 2132 section 9.6).
const (
	Discover = 1
	Offer    = 2
	Request  = 3
	Decline  = 4
	Ack      = 5
	Nak      = 6
	Release  = 7
)

// Program is what asks: each fills in other options.
type Program int

// The programs of a boot, in their order.
const (
	PXE  Program = iota // a BIOS's or UEFI's own: options 60, 93, 94, 97
	IPXE                // the loader: user class iPXE, and option 175 beside these
	OS                  // an operating system: none of them
)

// Ask is a DHCP request. Zero fields are left out or zero.
type Ask struct {
	Type      byte
	MAC       dsas.MAC
	XID       uint32
	Wanted    netip.Addr // option 50
	Server    netip.Addr // option 54
	Have      netip.Addr // ciaddr
	ClientID  []byte     // option 61
	Broadcast bool
	Program   Program
	Arch      dsas.Arch // option 93
}

// cookie begins the options (RFC 2131 section 3).
const cookie = 0x63825363

// fixedLen is the length of a message before its options.
const fixedLen = 236

// Append appends the request as it goes into a UDP datagram.
func (a *Ask) Append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, fixedLen)...)
	m := b[at:]
	m[0], m[1], m[2] = 1, 1, 6 // BOOTREQUEST, Ethernet
	binary.BigEndian.PutUint32(m[4:], a.XID)
	m[9] = 4 // secs: it has asked for a moment already, as firmware has
	if a.Broadcast {
		m[10] = 0x80
	}
	if a.Have.Is4() {
		ip := a.Have.As4()
		copy(m[12:], ip[:])
	}
	copy(m[28:], a.MAC[:])
	b = binary.BigEndian.AppendUint32(b, cookie)
	option := func(code byte, v ...byte) { b = append(append(b, code, byte(len(v))), v...) }
	option(53, a.Type)
	if a.Wanted.Is4() {
		option(50, a.Wanted.AsSlice()...)
	}
	if a.Server.Is4() {
		option(54, a.Server.AsSlice()...)
	}
	if a.ClientID != nil {
		option(61, a.ClientID...)
	}
	option(57, 0x05, 0xc0)                                                               // 1472 bytes at most
	option(55, 1, 3, 6, 12, 13, 15, 17, 18, 43, 54, 60, 66, 67, 128, 129, 130, 175, 203) // as firmware asks
	if a.Program != OS {
		option(93, byte(a.Arch>>8), byte(a.Arch))
		option(94, 1, 2, 1)
		guid := append([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, a.MAC[:]...)
		option(97, guid...)
		const digits = "0123456789"
		n := int(a.Arch) % 100_000
		class := []byte("PXEClient:Arch:00000:UNDI:002001")
		for i := 19; i > 14; i, n = i-1, n/10 {
			class[i] = digits[n%10]
		}
		option(60, class...)
	}
	if a.Program == IPXE {
		option(77, []byte("iPXE")...)
		// What Debian's iPXE says: HTTP, bzImage and menus among it.
		option(175, 0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0x00, 0x19, 1, 1, 0x22, 1, 1, 0x13, 1, 1, 0x14, 1, 1, 0x11, 1, 1, 0x27, 1, 1, 0x18, 1, 1, 0x23, 1, 1)
	}
	b = append(b, 255)
	// BOOTP's smallest message, which some servers insist on (RFC 1542 section 2.1).
	for len(b)-at < 300 {
		b = append(b, 0)
	}
	return b
}

// frame writes the request as it goes onto the wire into b, which it may use
// again. to is the server's MAC for a unicast from a.Have, or everybody's.
func (a *Ask) frame(b []byte, to dsas.MAC) []byte {
	out, src, dst := *a, anyIP, broadcastIP
	if to != broadcastMAC {
		// RENEWING: the server is addressed, and not named (RFC 2131 table 5).
		dst, out.Server = a.Server, netip.Addr{}
	}
	if a.Have.Is4() {
		src = a.Have
	}
	b = append(b[:0], make([]byte, ethLen+ipLen+udpLen)...)
	b = out.Append(b)
	frameTo(b, to, a.MAC, src, dst)
	return b
}

// Answer is what a server said.
type Answer struct {
	Type       byte
	XID        uint32
	MAC        dsas.MAC
	Address    netip.Addr // yiaddr
	Server     netip.Addr // option 54
	NextServer netip.Addr // siaddr
	File       string     // option 67, else the field
	Lease      time.Duration
	Message    string   // option 56
	From       dsas.MAC // of the frame
}

// ParseAnswer reads a BOOTREPLY; ok is false for what is none.
func ParseAnswer(m []byte) (a Answer, ok bool) {
	if len(m) < fixedLen+4 || m[0] != 2 || binary.BigEndian.Uint32(m[fixedLen:]) != cookie {
		return a, false
	}
	a.XID = binary.BigEndian.Uint32(m[4:])
	a.MAC = dsas.MAC(m[28:34])
	a.Address = addr4(m[16:20])
	a.NextServer = addr4(m[20:24])
	a.File = untilNUL(m[108:236])
	for o := m[fixedLen+4:]; len(o) > 0; {
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		if o[0] == 255 {
			break
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return a, false
		}
		v := o[2 : 2+int(o[1])]
		switch {
		case o[0] == 53 && len(v) == 1:
			a.Type = v[0]
		case o[0] == 54 && len(v) == 4:
			a.Server = addr4(v)
		case o[0] == 51 && len(v) == 4:
			a.Lease = time.Duration(binary.BigEndian.Uint32(v)) * time.Second
		case o[0] == 67:
			a.File = untilNUL(v)
		case o[0] == 56:
			a.Message = untilNUL(v)
		}
		o = o[2+int(o[1]):]
	}
	return a, a.Type != 0
}

// addr4 gives the zero address for 0.0.0.0.
func addr4(b []byte) netip.Addr {
	a := netip.AddrFrom4([4]byte(b))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func untilNUL(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
