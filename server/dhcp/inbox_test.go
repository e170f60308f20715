package dhcp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPktinfo: the destination is found among other control messages, and a
// damaged list is nobody's.
func TestPktinfo(t *testing.T) {
	want := netip.MustParseAddr("10.77.0.1")
	info := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 3, Spec_dst: [4]byte{10, 77, 0, 9}, Addr: want.As4()})
	other := unix.UnixRights(7)
	for name, oob := range map[string][]byte{"alone": info, "behind another": append(append([]byte(nil), other...), info...)} {
		if got, ok := pktinfo(oob); !ok || got != want {
			t.Errorf("pktinfo, %s = %s, %t; want %s", name, got, ok, want)
		}
		for n := range len(oob) - 4 { // without the padding at the end it is whole
			if got, ok := pktinfo(oob[:n]); ok {
				t.Errorf("pktinfo of the first %d bytes, %s = %s; want none", n, name, got)
			}
		}
	}
	if got, ok := pktinfo(other); ok {
		t.Errorf("pktinfo of another message = %s; want none", got)
	}
}
