package main

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"dsas"
)

// neighbour asks the kernel of the boot network whose an address is, by its
// neighbour table (RFC 826's cache).
func (b *bootSockets) neighbour(a netip.Addr) (dsas.MAC, bool) {
	if b.netlink == nil {
		return dsas.MAC{}, false
	}
	list, err := b.netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return dsas.MAC{}, false
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			if mac, ok := dsas.MACFrom(n.HardwareAddr); ok && !mac.IsZero() {
				return mac, true
			}
		}
	}
	return dsas.MAC{}, false
}
