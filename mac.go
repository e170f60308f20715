package dsas

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// MAC is an EUI-48 hardware address. It is comparable, so it can be a map key,
// and is parsed once at each edge; its text form is lower case with colons.
type MAC [6]byte

// ParseMAC reads the forms that operators and firmware write: colons
// (52:54:00:aa:bb:cc), dashes (52-54-00-aa-bb-cc), dots (5254.00aa.bbcc), bare
// hex (525400aabbcc), and PXELINUX's BOOTIF, which puts the ARP hardware type
// in front (01-52-54-00-aa-bb-cc). Multicast and all-zero addresses are
// refused: no NIC has one.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	bad := func(why string) (MAC, error) {
		return MAC{}, fmt.Errorf("MAC %q: %s (write it as 52:54:00:aa:bb:cc): %w", s, why, ErrInvalid)
	}
	t := strings.ToLower(strings.TrimSpace(s))
	if len(t) == 20 && strings.HasPrefix(t, "01-") {
		t = t[3:]
	}
	switch {
	case len(t) == 17 && (strings.Count(t, ":") == 5 || strings.Count(t, "-") == 5):
		for i := 2; i < 17; i += 3 {
			if t[i] != ':' && t[i] != '-' {
				return bad("not six pairs of hex digits")
			}
		}
	case len(t) == 14 && t[4] == '.' && t[9] == '.':
	case len(t) == 12:
	default:
		return bad("not six pairs of hex digits")
	}
	digits := make([]byte, 0, 12)
	for i := range len(t) {
		switch t[i] {
		case ':', '-', '.':
		default:
			digits = append(digits, t[i])
		}
	}
	if len(digits) != 12 {
		return bad("not six pairs of hex digits")
	}
	if _, err := hex.Decode(m[:], digits); err != nil {
		return bad("not hexadecimal")
	}
	if m.IsZero() {
		return bad("all zero")
	}
	if m[0]&1 != 0 {
		return bad("a multicast address, which no NIC has")
	}
	return m, nil
}

// MACFrom converts a net.HardwareAddr; ok is false where it is not an EUI-48.
func MACFrom(hw net.HardwareAddr) (m MAC, ok bool) {
	if len(hw) != len(m) {
		return MAC{}, false
	}
	copy(m[:], hw)
	return m, !m.IsZero()
}

// String gives 52:54:00:aa:bb:cc.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Dashed gives 52-54-00-aa-bb-cc, the form used in paths, where a colon would
// need escaping in some loaders.
func (m MAC) Dashed() string {
	const digits = "0123456789abcdef"
	var b [17]byte
	for i, v := range m {
		if i > 0 {
			b[3*i-1] = '-'
		}
		b[3*i], b[3*i+1] = digits[v>>4], digits[v&15]
	}
	return string(b[:])
}

// HardwareAddr gives the net package's form.
func (m MAC) HardwareAddr() net.HardwareAddr { return net.HardwareAddr(m[:]) }

// IsZero tells whether no address was set.
func (m MAC) IsZero() bool { return m == MAC{} }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	p, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = p
	return nil
}
