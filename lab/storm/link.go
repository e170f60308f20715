package storm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
)

// holdAddresses puts the nodes' addresses on the interface, so that sockets can
// be bound to them and ARP is answered. drop takes those away that it put there.
func holdAddresses(ifi *net.Interface, nodes []dsas.Node) (drop func(), err error) {
	link, err := netlink.LinkByIndex(ifi.Index)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", ifi.Name, err)
	}
	var put []*netlink.Addr
	drop = func() {
		for _, a := range put {
			netlink.AddrDel(link, a) // the interface may be gone
		}
	}
	for _, n := range nodes {
		// A /32: the way to the server is the interface's own address's.
		a := &netlink.Addr{IPNet: &net.IPNet{IP: n.Address.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_UNIVERSE}
		if err := netlink.AddrAdd(link, a); err != nil {
			drop()
			if errors.Is(err, unix.EEXIST) {
				return nil, fmt.Errorf("address %s is on %s already: %w", n.Address.Addr(), ifi.Name, dsas.ErrConflict)
			}
			return nil, fmt.Errorf("put address %s on %s (it needs root, or CAP_NET_ADMIN): %w", n.Address.Addr(), ifi.Name, err)
		}
		put = append(put, a)
	}
	return drop, nil
}

// Segment is a link between two network namespaces that Connect makes.
type Segment struct {
	ServerNS, NodesNS     string // names of existing namespaces
	ServerName, NodesName string // of the two ends
	Server, Nodes         netip.Prefix
	// Rate shapes what leaves the server's end, in bits per second, by tbf with
	// 50 ms of buffer; 0: not at all.
	Rate uint64
}

// Connect makes the pair of interfaces of a segment. In runs a function in a
// namespace (netns.Do).
func (s Segment) Connect(in func(name string, fn func() error) error) error {
	err := in(s.ServerNS, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.TxQLen = s.ServerName, 1000
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: s.NodesName}); err != nil {
			return fmt.Errorf("add link %s: %w", s.ServerName, err)
		}
		peer, err := netlink.LinkByName(s.NodesName)
		if err != nil {
			return fmt.Errorf("link %s: %w", s.NodesName, err)
		}
		f, err := os.Open(filepath.Join("/run/netns", s.NodesNS))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := netlink.LinkSetNsFd(peer, int(f.Fd())); err != nil {
			return fmt.Errorf("move %s to network namespace %s: %w", s.NodesName, s.NodesNS, err)
		}
		link, err := up(s.ServerName, s.Server)
		if err != nil || s.Rate == 0 {
			return err
		}
		return shape(link, s.Rate)
	})
	if err != nil {
		return err
	}
	return in(s.NodesNS, func() error {
		_, err := up(s.NodesName, s.Nodes)
		return err
	})
}

func up(name string, addr netip.Prefix) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	a, err := netlink.ParseAddr(addr.String())
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", addr, err)
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return nil, fmt.Errorf("address %s on %s: %w", addr, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("link %s up: %w", name, err)
	}
	return link, nil
}

// shape makes the link as slow as bits per second, with what Debian's default
// queue (fq_codel) does on a real interface: packets of flows that have little
// to send go before those of downloads, here all UDP before TCP. Downloads
// queue 50 ms, as a switch port may have. Of burst there is 1 ms, or 128 KiB,
// since a segment that TCP hands down whole is up to 64 KiB.
func shape(link netlink.Link, bits uint64) error {
	bytes := bits / 8
	burst := uint32(max(bytes/1000, 128<<10))
	index := link.Attrs().Index
	class := func(parent, minor uint16, prio uint32) netlink.Class {
		return netlink.NewHtbClass(
			netlink.ClassAttrs{LinkIndex: index, Parent: netlink.MakeHandle(1, parent), Handle: netlink.MakeHandle(1, minor)},
			netlink.HtbClassAttrs{Rate: bits, Ceil: bits, Buffer: burst, Cbuffer: burst, Quantum: 64 << 10, Prio: prio})
	}
	const whole, small, bulk = 1, 0x10, 0x20
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
	root.Defcls = bulk
	udp := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.MakeHandle(1, 0), Priority: 1, Protocol: unix.ETH_P_IP},
		ClassId:     netlink.MakeHandle(1, small),
		// IPv4's protocol is the tenth byte.
		Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Nkeys: 1, Keys: []netlink.TcU32Key{{Mask: 0x00ff0000, Val: unix.IPPROTO_UDP << 16, Off: 8}}},
	}
	queue := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(2, 0), Parent: netlink.MakeHandle(1, bulk)},
		Rate:       bytes,
		Buffer:     uint32(float64(burst) / float64(bytes) * 1e6 * netlink.TickInUsec()),
		Limit:      uint32(bytes/20) + burst,
	}
	for _, add := range []func() error{
		func() error { return netlink.QdiscAdd(root) },
		func() error { return netlink.ClassAdd(class(0, whole, 0)) },
		func() error { return netlink.ClassAdd(class(whole, small, 0)) },
		func() error { return netlink.ClassAdd(class(whole, bulk, 1)) },
		func() error { return netlink.QdiscAdd(queue) },
		func() error { return netlink.FilterAdd(udp) },
	} {
		if err := add(); err != nil {
			return fmt.Errorf("shape %s (sch_htb, sch_tbf and cls_u32 are needed): %w", link.Attrs().Name, err)
		}
	}
	return nil
}
