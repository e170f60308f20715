package dhcp

import (
	"encoding/binary"
	"net"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// magicCookie begins the options (RFC 2131 section 3).
	magicCookie = 0x63825363
	// bootpLen is BOOTP's smallest message, in bytes; some relays drop what is
	// shorter (RFC 1542 section 2.1).
	bootpLen = 300
	maxPart  = 255 // bytes of an option's value that one code and length can hold
)

// appendMessage appends m as it goes out. It writes what the library's ToBytes
// and then padBootFile do, into memory that is there already: an answer is not
// worth ten allocations.
func appendMessage(b []byte, m *dhcpv4.DHCPv4) []byte {
	at := len(b)
	b = slices.Grow(b, 2*bootpLen)[:at+fixed] // what most need
	h := b[at:]
	clear(h)
	h[0], h[1], h[2], h[3] = byte(m.OpCode), byte(m.HWType), byte(len(m.ClientHWAddr)), m.HopCount
	copy(h[4:], m.TransactionID[:])
	binary.BigEndian.PutUint16(h[8:], m.NumSeconds)
	binary.BigEndian.PutUint16(h[10:], m.Flags)
	for i, ip := range [...]net.IP{m.ClientIPAddr, m.YourIPAddr, m.ServerIPAddr, m.GatewayIPAddr} {
		copy(h[12+4*i:16+4*i], ip.To4())
	}
	copy(h[28:snameAt], m.ClientHWAddr)
	copy(h[snameAt:fileAt-1], m.ServerHostName)
	copy(h[fileAt:fileAt+127], m.BootFileName)
	binary.BigEndian.PutUint32(h[fixed-4:], magicCookie)

	// In the order of their codes, option 82 last (RFC 3046 section 2.1). The map
	// is gone through once: a key is a place in the order, and in values.
	const most = 48 // as many as there ever were
	keys, values := make([]uint32, 0, most), make([][]byte, 0, most)
	for code, v := range m.Options {
		place := uint32(code)
		switch code {
		case dhcpv4.OptionPad.Code(), dhcpv4.OptionEnd.Code():
			continue
		case dhcpv4.OptionRelayAgentInformation.Code():
			place = 255
		}
		keys = append(keys, place<<16|uint32(code)<<8|uint32(len(values)))
		values = append(values, v)
	}
	slices.Sort(keys)
	for _, k := range keys {
		code, v := byte(k>>8), values[byte(k)]
		for first := true; first || len(v) > 0; first = false { // in parts where it is long (RFC 3396)
			n := min(len(v), maxPart)
			b = append(append(b, code, byte(n)), v[:n]...)
			v = v[n:]
		}
	}
	b = append(b, dhcpv4.OptionEnd.Code())
	for len(b)-at < bootpLen {
		b = append(b, dhcpv4.OptionPad.Code())
	}
	return b[:at+len(padBootFile(b[at:]))]
}

// messageLen is how many bytes m has without padBootFile's.
func messageLen(m *dhcpv4.DHCPv4) int {
	n := fixed + 1 // and the end
	for code, v := range m.Options {
		if code != dhcpv4.OptionPad.Code() && code != dhcpv4.OptionEnd.Code() {
			n += len(v) + 2*max(1, (len(v)+maxPart-1)/maxPart)
		}
	}
	return max(n, bootpLen)
}
