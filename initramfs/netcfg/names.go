package netcfg

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
)

// nic is a link that stands for hardware, or in a test for what takes its place.
type nic struct {
	link netlink.Link
	mac  dsas.MAC // the permanent one: a bond's port has the bond's
	bus  string   // sysfs path of its device; "" for virtual ones
}

// listNICs gives the links that have hardware behind them, in the order of
// their bus addresses: the order in which drivers found them, and so their
// kernel names, differs from boot to boot.
func listNICs(h *netlink.Handle) ([]nic, error) {
	all, err := listLinks(h)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(n nic) bool { return n.link.Attrs().ParentDev == "" }), nil
}

// listLinks gives all links that can be ports, virtual ones included.
func listLinks(h *netlink.Handle) ([]nic, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []nic
	for _, l := range links {
		at := l.Attrs()
		switch l.Type() {
		case "bond", "vlan", "bridge", "macvlan", "macvtap", "ipvlan", "team", "vxlan":
			continue // they have the MAC of what is below them
		}
		if at.EncapType != "ether" {
			continue
		}
		hw := at.PermHWAddr
		if slave, ok := at.Slave.(*netlink.BondSlave); ok && len(hw) == 0 {
			hw = slave.PermHardwareAddr
		}
		if len(hw) == 0 {
			hw = at.HardwareAddr
		}
		mac, ok := dsas.MACFrom(hw)
		if !ok {
			continue
		}
		n := nic{link: l, mac: mac}
		if at.ParentDev != "" {
			n.bus = at.ParentDevBus + "/" + at.ParentDev
			if p, err := filepath.EvalSymlinks("/sys/class/net/" + at.Name + "/device"); err == nil {
				n.bus = p
			}
		}
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b nic) int {
		return cmp.Or(naturalCompare(a.bus, b.bus), cmp.Compare(a.link.Attrs().Index, b.link.Attrs().Index))
	})
	return out, nil
}

// naturalCompare orders digits by their number, so that virtio10 follows virtio9.
func naturalCompare(a, b string) int {
	digits := func(s string) int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	for a != "" && b != "" {
		if i, j := digits(a), digits(b); i > 0 && j > 0 {
			x, _ := strconv.ParseUint(a[:i], 10, 64)
			y, _ := strconv.ParseUint(b[:j], 10, 64)
			if c := cmp.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[i:], b[j:]
			continue
		}
		if c := cmp.Compare(a[0], b[0]); c != 0 {
			return c
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// names gives the NICs their names: those of the plan by MAC, then the others.
// A name that another NIC still has is freed by a temporary one, so that eth0
// and eth1 can change places.
func (a *applier) names() error {
	all, err := listLinks(a.h)
	if err != nil {
		return err
	}
	want := map[int]string{} // by link index
	next := 0
	for i, mac := range a.plan.Names {
		name := "eth" + strconv.Itoa(i)
		next = i + 1
		j := slices.IndexFunc(all, func(n nic) bool { return n.mac == mac })
		if j < 0 {
			a.deferred("there is no NIC with this MAC (is its driver loaded, is the card in?)", "%s: MAC %s", name, mac)
			continue
		}
		want[all[j].link.Attrs().Index] = name
	}
	if len(a.plan.Names) > 0 && len(want) == 0 {
		return fmt.Errorf("name the NICs: none of %v is here; is their driver in the initramfs?: %w", a.plan.Names, dsas.ErrNotFound)
	}
	for _, n := range all {
		at := n.link.Attrs()
		if at.ParentDev == "" {
			continue // not hardware: named only when it is asked for
		}
		if _, named := want[at.Index]; !named {
			want[at.Index] = "eth" + strconv.Itoa(next)
			next++
		}
	}
	var move []nic
	holder := map[string]nic{}
	for _, n := range all {
		at := n.link.Attrs()
		name, ok := want[at.Index]
		if !ok || name == at.Name {
			holder[at.Name] = n
			continue
		}
		if at.MasterIndex != 0 {
			a.deferred("it is a port of a bond that runs", "%s: name %s", at.Name, name)
			delete(want, at.Index)
			holder[at.Name] = n
			continue
		}
		move = append(move, n)
	}
	for _, n := range move { // out of each other's way first
		if err := a.rename(n.link, fmt.Sprintf("dsas%d", n.link.Attrs().Index)); err != nil {
			return err
		}
	}
	for _, n := range move {
		at := n.link.Attrs()
		old, name := at.Name, want[at.Index]
		if h, taken := holder[name]; taken {
			a.fail("name %s %s: %s has that name and cannot give it up: %w", n.mac, name, h.mac, dsas.ErrConflict)
			continue
		}
		l, err := a.h.LinkByIndex(at.Index)
		if err != nil {
			return fmt.Errorf("find %s again: %w", old, err)
		}
		if err := a.rename(l, name); err != nil {
			return err
		}
		a.changed("%s: was %s, MAC %s", name, old, n.mac)
	}
	return nil
}

// rename takes the link down first: the kernel renames no link that is up.
func (a *applier) rename(l netlink.Link, name string) error {
	if l.Attrs().RawFlags&unix.IFF_UP != 0 {
		if err := a.h.LinkSetDown(l); err != nil {
			return fmt.Errorf("take %s down: %w", l.Attrs().Name, err)
		}
	}
	if err := a.h.LinkSetName(l, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", l.Attrs().Name, name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
