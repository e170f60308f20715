package boot

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// iPXE's encapsulated options (DHCP option 175; iPXE's src/include/ipxe/dhcp.h
// and features.h).
const (
	ipxeFeatureHTTP    = 19
	ipxeFeatureBzImage = 24
	ipxeBusID          = 177
	ipxeVersion        = 235
)

// IPXE is what iPXE tells of itself in option 175.
type IPXE struct {
	Version  [3]byte // major, minor, patch; zero when not sent
	Features []byte  // codes of the features built in, ascending
	BusID    []byte  // type (1 PCI, 2 ISAPnP...), vendor, device
}

// ParseIPXE reads the body of option 175: sub-options of code, length, value,
// as in RFC 2132 section 8.4, with 0 as padding and 255 as the end.
func ParseIPXE(b []byte) (*IPXE, error) {
	var x IPXE
	for i := 0; i < len(b); {
		code := b[i]
		i++
		if code == 0 {
			continue
		}
		if code == 255 {
			break
		}
		if i >= len(b) || i+1+int(b[i]) > len(b) {
			return nil, fmt.Errorf("option 175: sub-option %d runs over the end", code)
		}
		val := b[i+1 : i+1+int(b[i])]
		i += 1 + len(val)
		switch {
		case code == ipxeVersion && len(val) == 3:
			copy(x.Version[:], val)
		case code == ipxeBusID:
			x.BusID = slices.Clone(val)
		case code >= 16 && code < 128 && len(val) == 1 && val[0] != 0:
			if !slices.Contains(x.Features, code) {
				x.Features = append(x.Features, code)
			}
		}
	}
	slices.Sort(x.Features)
	return &x, nil
}

// Has tells whether feature code is built in.
func (x *IPXE) Has(code byte) bool { return x != nil && slices.Contains(x.Features, code) }

// lacks names what an iPXE would need to run our scripts and does not have,
// "" when all is there. One that tells nothing is taken to be complete.
func (x *IPXE) lacks(bios bool) string {
	if x == nil || len(x.Features) == 0 {
		return ""
	}
	var l []string
	if !x.Has(ipxeFeatureHTTP) {
		l = append(l, "HTTP")
	}
	// On UEFI a kernel is an EFI program, and bzImage is not among the features.
	if bios && !x.Has(ipxeFeatureBzImage) {
		l = append(l, "bzImage")
	}
	return strings.Join(l, " and ")
}

// String says it in short for logs.
func (x *IPXE) String() string {
	if x == nil {
		return ""
	}
	return fmt.Sprintf("iPXE %d.%d.%d features %v bus %s", x.Version[0], x.Version[1], x.Version[2], x.Features, hex.EncodeToString(x.BusID))
}
