package dhcp

import (
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// padBootFile puts a pad option (RFC 2132 section 3.1) behind option 67 of a
// packet as it goes out. Some old ROMs read the boot file's name up to a zero
// byte and not by its length, and would ask TFTP for a name that ends in 0xFF
// (docs/quirks.md, option-67-end). The name itself stays as RFC 2132 wants it.
// b is changed in place where it has room for one byte more.
func padBootFile(b []byte) []byte {
	for i := fixed; i+1 < len(b) && b[i] != dhcpv4.OptionEnd.Code(); {
		if b[i] == dhcpv4.OptionPad.Code() {
			i++
			continue
		}
		next := i + 2 + int(b[i+1])
		if next > len(b) {
			return b
		}
		if b[i] == dhcpv4.OptionBootfileName.Code() && next < len(b) && b[next] != b[i] { // not the first part of a long one
			if l := len(b); b[l-1] == 0 && l > bootpLen {
				b = b[:l-1] // padding at the end gives way
			}
			return slices.Insert(b, next, dhcpv4.OptionPad.Code())
		}
		i = next
	}
	return b
}
