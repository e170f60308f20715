package dsas

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// VendorOptions is what a role's nodes are told in DHCP option 43, if they say
// they are of that vendor class (option 60). What the sub-options mean is the
// vendor's to say (RFC 2132 section 8.4).
type VendorOptions struct {
	// Class is what option 60 begins with: "PXEClient", "udhcp", "anaconda".
	Class string `json:"class" yaml:"class"`
	// Options are sub-options by code, 1 to 254: an IPv4 address, hex with 0x
	// in front, else text.
	Options map[int]string `json:"options,omitempty" yaml:"options"`
	// Hex is the whole of option 43 instead.
	Hex string `json:"hex,omitempty" yaml:"hex"`
}

// Bytes gives option 43. Errors are ErrInvalid.
func (v VendorOptions) Bytes() ([]byte, error) {
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, fmt.Errorf("dhcp for vendor class %q: %s: %w", v.Class, fmt.Sprintf(format, args...), ErrInvalid)
	}
	if v.Class == "" {
		return bad("a class is needed, as option 60 of the boxes says it")
	}
	if v.Hex != "" {
		b, err := hex.DecodeString(strings.TrimPrefix(strings.ReplaceAll(v.Hex, ":", ""), "0x"))
		if err != nil || len(b) > 255 || len(v.Options) > 0 {
			return bad("hex %q: give up to 255 bytes as 010400aabbcc, and no options beside it", v.Hex)
		}
		return b, nil
	}
	var out []byte
	codes := make([]int, 0, len(v.Options))
	for code := range v.Options {
		codes = append(codes, code)
	}
	slices.Sort(codes)
	for _, code := range codes {
		text := v.Options[code]
		value := []byte(text)
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			value = a.AsSlice()
		} else if digits, ok := strings.CutPrefix(text, "0x"); ok {
			if value, err = hex.DecodeString(digits); err != nil {
				return bad("option %d: %q is not hexadecimal", code, text)
			}
		}
		if code < 1 || code > 254 || len(value) > 255 {
			return bad("option %d: use codes 1 to 254 and at most 255 bytes", code)
		}
		out = append(append(out, byte(code), byte(len(value))), value...)
	}
	if len(out) == 0 || len(out) > 1000 {
		return bad("%d bytes of options; give some, and at most 1000 bytes", len(out))
	}
	return append(out, 255), nil
}
