package netcfg

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
)

// Change is one difference between a plan and what was there.
type Change struct {
	What string // "bond0: mode active-backup", "bond0: address 10.77.0.101/24"
	// Deferred: it was not made, since it cannot be while the network runs;
	// Why says so. It holds from the next boot on.
	Deferred bool
	Why      string
}

// String gives the change for people.
func (c Change) String() string {
	if c.Deferred {
		return c.What + ": not now: " + c.Why
	}
	return c.What
}

// Changes are in the order in which they were made.
type Changes []Change

// Deferred gives those that were not made.
func (cs Changes) Deferred() Changes {
	return slices.DeleteFunc(slices.Clone(cs), func(c Change) bool { return !c.Deferred })
}

// applier is one run of Apply.
type applier struct {
	h       *netlink.Handle
	plan    Plan
	device  string
	changes Changes
	errs    []error
}

// Apply makes the network as pl says. It is idempotent: where nothing differs,
// nothing is done and no Changes come back. What fails is in the error, joined,
// and the rest goes on. Bonding and 8021q must be loaded (bonding with
// max_bonds=0). What the plan does not name stays as it is.
func Apply(ctx context.Context, h *netlink.Handle, pl Plan) (Changes, error) {
	a := &applier{h: h, plan: pl}
	steps := []func() error{a.names, a.resolveDevice, a.bonds, a.devices, a.vlans, a.sysctls, a.addresses, a.routes, a.service}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return a.changes, errors.Join(append(a.errs, err)...)
		}
		if err := step(); err != nil {
			a.errs = append(a.errs, err)
		}
	}
	return a.changes, errors.Join(a.errs...)
}

func (a *applier) changed(format string, args ...any) {
	a.changes = append(a.changes, Change{What: fmt.Sprintf(format, args...)})
}

func (a *applier) deferred(why, format string, args ...any) {
	a.changes = append(a.changes, Change{What: fmt.Sprintf(format, args...), Deferred: true, Why: why})
}

func (a *applier) fail(format string, args ...any) {
	a.errs = append(a.errs, fmt.Errorf(format, args...))
}

// resolveDevice finds the device of the node's own address.
func (a *applier) resolveDevice() error {
	dev, err := DeviceOf(a.h, a.plan)
	a.device = dev
	return err
}

// DeviceOf gives the name of the device that carries the node's own address:
// the plan's Device, else the NIC that booted, else the first NIC.
func DeviceOf(h *netlink.Handle, pl Plan) (string, error) {
	if pl.Device != "" {
		return pl.Device, nil
	}
	nics, err := listNICs(h)
	if err != nil {
		return "", err
	}
	for _, n := range nics {
		if n.mac == pl.BootIF && !n.mac.IsZero() {
			return n.link.Attrs().Name, nil
		}
	}
	if len(nics) == 0 {
		return "", fmt.Errorf("find a NIC: there is none with a driver: %w", dsas.ErrNotFound)
	}
	return nics[0].link.Attrs().Name, nil
}

// devices sets the MTU of the plan's device and takes it up.
func (a *applier) devices() error {
	names := []string{a.device}
	for _, ad := range a.plan.Addresses {
		if ad.Device != "" && !strings.Contains(ad.Device, ".") && !slices.Contains(names, ad.Device) {
			names = append(names, ad.Device)
		}
	}
	for _, v := range a.plan.VLANs {
		if !slices.Contains(names, v.Parent) {
			names = append(names, v.Parent)
		}
	}
	for i, name := range names {
		if name == "" {
			continue
		}
		l, err := a.h.LinkByName(name)
		if err != nil {
			a.fail("find device %s: %w", name, err)
			continue
		}
		if i == 0 && a.plan.MTU > 0 && l.Attrs().MTU != a.plan.MTU {
			// A bond hands its MTU to its ports.
			if err := a.h.LinkSetMTU(l, a.plan.MTU); err != nil {
				a.fail("set %s MTU %d: %w", name, a.plan.MTU, err)
			} else {
				a.changed("%s: MTU %d", name, a.plan.MTU)
			}
		}
		a.up(l)
	}
	return nil
}

// up takes a link up.
func (a *applier) up(l netlink.Link) {
	if l.Attrs().RawFlags&unix.IFF_UP != 0 {
		return
	}
	if err := a.h.LinkSetUp(l); err != nil {
		a.fail("take %s up: %w", l.Attrs().Name, err)
		return
	}
	a.changed("%s: up", l.Attrs().Name)
}

func (a *applier) vlans() error {
	for _, v := range a.plan.VLANs {
		parent, err := a.h.LinkByName(v.Parent)
		if err != nil {
			a.fail("make %s: find %s: %w", v.Name, v.Parent, err)
			continue
		}
		l, err := a.h.LinkByName(v.Name)
		if err == nil {
			if have, ok := l.(*netlink.Vlan); !ok || have.VlanId != v.ID || have.ParentIndex != parent.Attrs().Index {
				a.fail("make %s: a device of that name exists and is not VLAN %d on %s: %w", v.Name, v.ID, v.Parent, dsas.ErrConflict)
				continue
			}
			a.up(l)
			continue
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = v.Name, parent.Attrs().Index
		vl := &netlink.Vlan{LinkAttrs: attrs, VlanId: v.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		if err := a.h.LinkAdd(vl); err != nil {
			a.fail("make %s (VLAN %d on %s; is the module 8021q loaded?): %w", v.Name, v.ID, v.Parent, err)
			continue
		}
		a.changed("%s: made, VLAN %d on %s", v.Name, v.ID, v.Parent)
		if l, err = a.h.LinkByName(v.Name); err != nil {
			a.fail("find %s: %w", v.Name, err)
			continue
		}
		a.up(l)
	}
	return nil
}

// sysctls come before the service addresses: an address on lo must never be
// answered for, not even for a moment.
func (a *applier) sysctls() error {
	for _, s := range a.plan.Sysctls() {
		path := filepath.Join("/proc/sys", s.Path)
		have, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(have)) == s.Value {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(s.Value), 0)
		}
		if err != nil {
			a.fail("set %s to %s: %w", s.Path, s.Value, err)
			continue
		}
		a.changed("%s = %s", s.Path, s.Value)
	}
	return nil
}

func (a *applier) addresses() error {
	byDevice := map[string][]netip.Prefix{}
	var order []string
	for _, ad := range a.plan.Addresses {
		dev := ad.Device
		if dev == "" {
			dev = a.device
		}
		if !slices.Contains(order, dev) {
			order = append(order, dev)
		}
		byDevice[dev] = append(byDevice[dev], ad.Prefix)
	}
	for _, dev := range order {
		if l, err := a.h.LinkByName(dev); err != nil {
			a.fail("find %s for address %s: %w", dev, byDevice[dev][0], err)
		} else {
			a.hold(l, byDevice[dev])
		}
	}
	return nil
}

// hold makes want the addresses of l. The same address with another prefix
// length is replaced; others that were there stay, since a connection may run
// over them, and are told.
func (a *applier) hold(l netlink.Link, want []netip.Prefix) {
	name := l.Attrs().Name
	have, err := a.h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		a.fail("list addresses of %s: %w", name, err)
		return
	}
	var present []netip.Prefix
	for _, h := range have {
		present = append(present, prefixOf(h))
	}
	for _, p := range want {
		if slices.Contains(present, p) {
			continue
		}
		if err := a.h.AddrReplace(l, addrOf(p)); err != nil {
			a.fail("give %s to %s: %w", p, name, err)
			continue
		}
		a.changed("%s: address %s", name, p)
	}
	for i, p := range present {
		if slices.Contains(want, p) || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if !slices.ContainsFunc(want, func(w netip.Prefix) bool { return w.Addr() == p.Addr() }) {
			a.deferred("it may be in use; it goes with the next boot", "%s: address %s is not in the plan", name, p)
			continue
		}
		if err := a.h.AddrDel(l, &have[i]); err != nil {
			a.fail("take %s from %s: %w", p, name, err)
			continue
		}
		a.changed("%s: address %s removed", name, p)
	}
}

func prefixOf(a netlink.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

func addrOf(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(p)}
}

// routes sets the default routes, the first with metric 0 and so preferred.
func (a *applier) routes() error {
	for i, gw := range a.plan.Gateways {
		family, dst := netlink.FAMILY_V4, netip.MustParsePrefix("0.0.0.0/0")
		if gw.Is6() {
			family, dst = netlink.FAMILY_V6, netip.MustParsePrefix("::/0")
		}
		have, err := a.h.RouteListFiltered(family, &netlink.Route{Dst: ipNet(dst), Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list default routes: %w", err)
		}
		if slices.ContainsFunc(have, func(r netlink.Route) bool {
			ip, _ := netip.AddrFromSlice(r.Gw)
			return ip.Unmap() == gw && r.Priority == i
		}) {
			continue
		}
		if err := a.h.RouteReplace(&netlink.Route{Dst: ipNet(dst), Gw: gw.AsSlice(), Priority: i, Family: family}); err != nil {
			a.fail("set default route by %s (does it lie in a network of this node?): %w", gw, err)
			continue
		}
		a.changed("default route by %s", gw)
	}
	return nil
}

// serviceLabel marks the addresses on lo that are ours to take away again.
const serviceLabel = "lo:dsas"

// service holds the service addresses on lo. One that the plan does not name
// any more is taken away: a stray one keeps this node from the real service.
func (a *applier) service() error {
	lo, err := a.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	a.up(lo)
	have, err := a.h.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of lo: %w", err)
	}
	var present []netip.Addr
	for i, h := range have {
		p := prefixOf(h)
		if p.Addr().IsLoopback() {
			continue
		}
		if !slices.Contains(a.plan.Service, p.Addr()) && h.Label == serviceLabel {
			if err := a.h.AddrDel(lo, &have[i]); err != nil {
				a.fail("take %s from lo: %w", p, err)
				continue
			}
			a.changed("lo: service address %s removed", p.Addr())
			continue
		}
		present = append(present, p.Addr())
	}
	for _, s := range a.plan.Service {
		if slices.Contains(present, s) {
			continue
		}
		addr := addrOf(netip.PrefixFrom(s, s.BitLen()))
		if s.Is4() {
			addr.Label = serviceLabel
		}
		if err := a.h.AddrReplace(lo, addr); err != nil {
			a.fail("give %s to lo: %w", s, err)
			continue
		}
		a.changed("lo: service address %s", s)
	}
	return nil
}
