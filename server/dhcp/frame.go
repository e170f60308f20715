package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// broadcastMAC reaches every box on the segment.
var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Lengths of what stands before a message in a frame, in bytes.
const (
	ethLen, ipLen, udpLen = 14, 20, 8
	headLen               = ethLen + ipLen + udpLen
)

// frame writes Ethernet II, IPv4 (RFC 791) and UDP (RFC 768) around payload.
func frame(from, to net.HardwareAddr, src, dst netip.AddrPort, payload []byte) []byte {
	f := append(make([]byte, headLen, headLen+len(payload)), payload...)
	address(f, from, to, src, dst)
	return f
}

// address fills in the first headLen bytes of f, whose payload is there.
func address(f []byte, from, to net.HardwareAddr, src, dst netip.AddrPort) {
	payload := f[headLen:]
	clear(f[:headLen])
	copy(f, to)
	if len(from) == 6 { // the loopback has none
		copy(f[6:], from)
	}
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)

	h := f[ethLen : ethLen+ipLen]
	h[0] = 0x45          // version 4, five words
	h[1] = 0x10          // low delay
	h[8] = 64            // TTL
	h[9] = 17            // UDP
	h[6], h[7] = 0x40, 0 // don't fragment: boot ROMs do not reassemble
	binary.BigEndian.PutUint16(h[2:], uint16(ipLen+udpLen+len(payload)))
	s4, d4 := src.Addr().As4(), dst.Addr().As4()
	copy(h[12:], s4[:])
	copy(h[16:], d4[:])
	binary.BigEndian.PutUint16(h[10:], fold(sum(0, h)))

	u := f[ethLen+ipLen : headLen]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(udpLen+len(payload)))
	// The checksum covers a pseudo header: addresses, protocol and length.
	t := sum(sum(0, h[12:20]), u) + 17 + uint64(udpLen+len(payload))
	c := fold(sum(t, payload))
	if c == 0 {
		c = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(u[6:], c)
}

// sum adds b's 16-bit words to t (RFC 1071). Two words at a time give the same
// once they are folded.
func sum(t uint64, b []byte) uint64 {
	for ; len(b) > 3; b = b[4:] {
		t += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) > 1 {
		t += uint64(b[0])<<8 | uint64(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		t += uint64(b[0]) << 8
	}
	return t
}

func fold(t uint64) uint16 {
	for t > 0xffff {
		t = t>>16 + t&0xffff
	}
	return ^uint16(t)
}
