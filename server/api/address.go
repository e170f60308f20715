package api

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"dsas"
)

// checkAddress says what is wrong with n's address in its subnet. A node
// without one is right: it will be given one.
func (a *api) checkAddress(n *dsas.Node) error {
	for _, i := range n.Interfaces {
		for _, s := range a.Subnets {
			if !s.Prefix.Contains(i.Address.Addr()) {
				continue
			}
			if why := reserved(s, i.Address.Addr()); why != "" {
				return fmt.Errorf("node %s: interface %s: address %s: %s: %w", n.Name, i.Device, i.Address.Addr(), why, dsas.ErrInvalid)
			}
		}
	}
	if !n.Address.IsValid() || len(a.Subnets) == 0 {
		return nil
	}
	addr := n.Address.Addr()
	for _, s := range a.Subnets {
		if !s.Prefix.Contains(addr) {
			continue
		}
		if n.Address.Bits() != s.Prefix.Bits() {
			return fmt.Errorf("node %s: address %s: its subnet is %s; write %s/%d: %w", n.Name, n.Address, s.Prefix, addr, s.Prefix.Bits(), dsas.ErrInvalid)
		}
		if why := reserved(s, addr); why != "" {
			return fmt.Errorf("node %s: address %s: %s: %w", n.Name, addr, why, dsas.ErrInvalid)
		}
		return nil
	}
	var all []string
	for _, s := range a.Subnets {
		all = append(all, s.Prefix.String())
	}
	return fmt.Errorf("node %s: address %s: lies in no subnet of this server (%s): %w", n.Name, addr, strings.Join(all, ", "), dsas.ErrInvalid)
}

// reserved says why addr, which lies in s, cannot be a node's; "" when it can.
func reserved(s dsas.Subnet, addr netip.Addr) string {
	first, last := bounds(s.Prefix)
	switch n := number(addr); {
	case n < first:
		return fmt.Sprintf("is the network address of %s", s.Prefix)
	case n > last:
		return fmt.Sprintf("is the broadcast address of %s", s.Prefix)
	case addr == s.Server:
		return "is the server's own"
	case addr == s.Gateway:
		return "is the gateway's"
	case s.MayLease(addr):
		return fmt.Sprintf("lies in the pool %s-%s, which is for unknown boxes; take one outside", s.Pool.First, s.Pool.Last)
	}
	return ""
}

// bounds gives the first and last address a host may have in p (IPv4).
func bounds(p netip.Prefix) (first, last uint32) {
	base := number(p.Masked().Addr())
	span := uint32(1)<<(32-p.Bits()) - 1 // 0 shifts out for /0, and the span is all
	if p.Bits() >= 31 {
		return base, base + span // RFC 3021: no network and broadcast address there
	}
	return base + 1, base + span - 1
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// addresses knows who holds which name, MAC and address.
type addresses struct {
	names  map[string]bool
	macs   map[dsas.MAC]string
	addrs  map[netip.Addr]string // who, in words
	leases map[netip.Addr]dsas.Lease
}

func newAddresses(nodes []dsas.Node, sites []dsas.Site, leases []dsas.Lease) *addresses {
	t := &addresses{names: map[string]bool{}, macs: map[dsas.MAC]string{}, addrs: map[netip.Addr]string{}, leases: map[netip.Addr]dsas.Lease{}}
	for _, s := range sites {
		t.addrs[s.Address] = "site " + s.Name
	}
	for i := range nodes {
		t.take(&nodes[i])
	}
	for _, l := range leases {
		if l.Declined || l.Expires.After(time.Now()) {
			t.leases[l.Address] = l
		}
	}
	return t
}

// all gives every address n has or wants.
func all(n *dsas.Node) []netip.Addr {
	var out []netip.Addr
	if n.Address.IsValid() {
		out = append(out, n.Address.Addr())
	}
	for _, i := range n.Interfaces {
		out = append(out, i.Address.Addr())
	}
	return out
}

func (t *addresses) take(n *dsas.Node) {
	t.names[n.Name] = true
	for _, nic := range n.NICs {
		t.macs[nic.MAC] = n.Name
	}
	for _, addr := range all(n) {
		t.addrs[addr] = "node " + n.Name
	}
}

// release forgets what node name holds.
func (t *addresses) release(name string) {
	delete(t.names, name)
	for m, holder := range t.macs {
		if holder == name {
			delete(t.macs, m)
		}
	}
	for addr, holder := range t.addrs {
		if holder == "node "+name {
			delete(t.addrs, addr)
		}
	}
}

// conflict says what of n another one holds.
func (t *addresses) conflict(n *dsas.Node) error {
	if t.names[n.Name] {
		return fmt.Errorf("node %s: exists already; change it with `dsas node set %s`: %w", n.Name, n.Name, dsas.ErrConflict)
	}
	for _, nic := range n.NICs {
		if holder, ok := t.macs[nic.MAC]; ok {
			return fmt.Errorf("node %s: MAC %s belongs to node %s: %w", n.Name, nic.MAC, holder, dsas.ErrConflict)
		}
	}
	for _, addr := range all(n) {
		if holder, ok := t.addrs[addr]; ok {
			return fmt.Errorf("node %s: address %s belongs to %s: %w", n.Name, addr, holder, dsas.ErrConflict)
		}
		if l, ok := t.leases[addr]; ok && (l.Declined || !n.HasMAC(l.MAC)) {
			return fmt.Errorf("node %s: address %s is leased to %s until %s; take another, or wait: %w",
				n.Name, addr, l.MAC, l.Expires.Format("15:04:05 MST"), dsas.ErrConflict)
		}
	}
	return nil
}

// free finds an address for a new node: the one that its name's number points
// at (w101: .101), else the lowest that is free.
func (t *addresses) free(subnets []dsas.Subnet, name string) (netip.Prefix, error) {
	usable := func(s dsas.Subnet, addr netip.Addr) bool {
		_, held := t.addrs[addr]
		_, leased := t.leases[addr]
		return !held && !leased && reserved(s, addr) == ""
	}
	want, numbered := trailingNumber(name)
	for _, s := range subnets {
		first, last := bounds(s.Prefix)
		if numbered {
			if addr, ok := numberIn(s.Prefix, want); ok && usable(s, addr) {
				return netip.PrefixFrom(addr, s.Prefix.Bits()), nil
			}
		}
		for n := first; ; n++ {
			// The pool may be most of a large subnet: step over it at once.
			if s.Pool.Contains(address(n)) && len(s.Exclude) == 0 {
				n = number(s.Pool.Last)
			} else if usable(s, address(n)) {
				return netip.PrefixFrom(address(n), s.Prefix.Bits()), nil
			}
			if n >= last {
				break
			}
		}
	}
	if len(subnets) == 0 {
		return netip.Prefix{}, fmt.Errorf("no address given, and this server has no subnet to take one from: %w", dsas.ErrInvalid)
	}
	return netip.Prefix{}, fmt.Errorf("no free address is left outside the pool; make the pool smaller or give an address: %w", dsas.ErrConflict)
}

// trailingNumber reads the 101 of w101.
func trailingNumber(name string) (uint32, bool) {
	digits := name[len(strings.TrimRight(name, "0123456789")):]
	n, err := strconv.ParseUint(digits, 10, 24)
	return uint32(n), err == nil
}

// numberIn gives the address of p whose last byte is n, or the n-th one where
// a byte cannot hold n.
func numberIn(p netip.Prefix, n uint32) (netip.Addr, bool) {
	base := number(p.Masked().Addr())
	if n <= 255 {
		addr := address(base&^0xff | n)
		return addr, p.Contains(addr)
	}
	addr := address(base + n)
	return addr, p.Contains(addr)
}
