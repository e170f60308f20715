package netcfg

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/dsasconf"
)

// The bonding driver takes its options through sysfs one at a time, by the
// names that dsas.conf has for them, and says which one it refuses; a netlink
// message with all of them fails as a whole.
const sysClassNet = "/sys/class/net"

// optionOrder is the order in which options are set: the mode decides which
// others exist, the monitor comes before what depends on it, and targets
// before the interval that begins to ask them.
var optionOrder = []string{"mode", "fail_over_mac", "lacp_rate", "ad_select", "arp_ip_target", "miimon", "arp_interval",
	"updelay", "downdelay", "use_carrier", "arp_all_targets", "arp_validate", "primary_reselect", "primary"}

// needsNoPorts are the options that the driver takes only before the first
// port, or while the bond is down (BOND_OPTFLAG_NOSLAVES and _IFDOWN in the
// kernel's bond_options.c).
var needsNoPorts = []string{"mode", "fail_over_mac", "lacp_rate", "ad_select", "tlb_dynamic_lb"}

func (a *applier) bonds() error {
	for _, b := range a.plan.Bonds {
		if err := a.bond(b); err != nil {
			a.errs = append(a.errs, err)
		}
	}
	return nil
}

func (a *applier) bond(b Bond) error {
	links, err := a.portLinks(b)
	if err != nil {
		return err
	}
	l, err := a.h.LinkByName(b.Name)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = b.Name
		if err := a.h.LinkAdd(netlink.NewLinkBond(attrs)); err != nil {
			return fmt.Errorf("make %s (is the module bonding loaded?): %w", b.Name, err)
		}
		a.changed("%s: made", b.Name)
		if l, err = a.h.LinkByName(b.Name); err != nil {
			return fmt.Errorf("find %s: %w", b.Name, err)
		}
	}
	if l.Type() != "bond" {
		return fmt.Errorf("make %s: a device of that name exists and is a %s: %w", b.Name, l.Type(), dsas.ErrConflict)
	}
	index := l.Attrs().Index
	all, err := a.h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	attached := map[int]string{}
	for _, p := range all {
		if p.Attrs().MasterIndex == index {
			attached[p.Attrs().Index] = p.Attrs().Name
		}
	}
	if len(attached) == 0 && l.Attrs().RawFlags&unix.IFF_UP != 0 {
		if err := a.h.LinkSetDown(l); err != nil {
			return fmt.Errorf("take %s down: %w", b.Name, err)
		}
	}
	a.bondOptions(b, len(attached) > 0)

	enslaved := len(attached)
	for _, p := range links {
		if _, yes := attached[p.Attrs().Index]; yes {
			delete(attached, p.Attrs().Index)
			continue
		}
		if err := a.enslave(l, p); err != nil {
			a.errs = append(a.errs, err)
			continue
		}
		enslaved++
	}
	for _, name := range attached {
		a.deferred("a port is not taken from a bond that runs", "%s: %s is a port and not in the plan", b.Name, name)
	}
	if enslaved == 0 {
		return fmt.Errorf("bring %s up: it has no port: %w", b.Name, dsas.ErrNotFound)
	}
	// Again, for the options that name a port (primary).
	a.primary(b)
	if l, err = a.h.LinkByIndex(index); err != nil {
		return fmt.Errorf("find %s: %w", b.Name, err)
	}
	a.up(l)
	return nil
}

// portLinks gives the links of a bond's ports in order. Those that are
// missing are told; a bond works with one.
func (a *applier) portLinks(b Bond) ([]netlink.Link, error) {
	if len(b.Ports) == 0 {
		nics, err := listNICs(a.h)
		if err != nil {
			return nil, err
		}
		// By name, which is the order names gave them.
		slices.SortStableFunc(nics, func(x, y nic) int { return naturalCompare(x.link.Attrs().Name, y.link.Attrs().Name) })
		var out []netlink.Link
		for _, n := range nics {
			out = append(out, n.link)
		}
		return out, nil
	}
	var out []netlink.Link
	for _, name := range b.Ports {
		l, err := a.h.LinkByName(name)
		if err != nil {
			a.deferred("there is no such device", "%s: port %s", b.Name, name)
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

// enslave makes p a port: the driver takes only ports that are down. The
// first one gives the bond its MAC.
func (a *applier) enslave(bond, p netlink.Link) error {
	name := p.Attrs().Name
	if p.Attrs().MasterIndex != 0 {
		a.deferred("it is a port of another device", "%s: port %s", bond.Attrs().Name, name)
		return nil
	}
	if p.Attrs().RawFlags&unix.IFF_UP != 0 {
		if err := a.h.LinkSetDown(p); err != nil {
			return fmt.Errorf("take %s down: %w", name, err)
		}
	}
	if err := a.h.LinkSetMaster(p, bond); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", name, bond.Attrs().Name, err)
	}
	a.changed("%s: port %s", bond.Attrs().Name, name)
	if err := a.h.LinkSetUp(p); err != nil {
		return fmt.Errorf("take port %s up: %w", name, err)
	}
	return nil
}

func (a *applier) bondOptions(b Bond, running bool) {
	opts := slices.Clone(b.Options)
	rank := func(o dsasconf.Option) int {
		if i := slices.Index(optionOrder, o.Key); i >= 0 {
			return i
		}
		return len(optionOrder)
	}
	slices.SortStableFunc(opts, func(x, y dsasconf.Option) int { return rank(x) - rank(y) })
	for _, o := range opts {
		if o.Key == "primary" {
			continue // see primary
		}
		a.bondOption(b.Name, o, running)
	}
}

// primary is set when the ports are there.
func (a *applier) primary(b Bond) {
	if v := option(b.Options, "primary"); v != "" {
		a.bondOption(b.Name, dsasconf.Option{Key: "primary", Value: v}, true)
	}
}

func (a *applier) bondOption(bond string, o dsasconf.Option, running bool) {
	path := filepath.Join(sysClassNet, bond, "bonding", o.Key)
	raw, err := os.ReadFile(path)
	if err != nil {
		a.fail("read %s option %s: %w", bond, o.Key, err)
		return
	}
	have := strings.Fields(string(raw))
	if o.Key == "arp_ip_target" {
		a.arpTargets(bond, path, have, o.Value)
		return
	}
	// A named option reads as "active-backup 1".
	value := dsasconf.BondOptionName(o.Key, o.Value)
	if slices.Contains(have, value) || o.Key == "updelay" || o.Key == "downdelay" {
		if len(have) > 0 && (slices.Contains(have, value) || a.roundedDelay(bond, have[0], value)) {
			return
		}
	}
	if running && slices.Contains(needsNoPorts, o.Key) {
		a.deferred("the driver changes it only while the bond has no ports", "%s: %s %s (is %s)", bond, o.Key, value, strings.Join(have, " "))
		return
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		a.fail("set %s option %s=%s: %w", bond, o.Key, value, bare(err))
		return
	}
	a.changed("%s: %s %s", bond, o.Key, value)
}

// roundedDelay tells whether have is what the driver made of the delay value:
// it rounds down to a multiple of miimon.
func (a *applier) roundedDelay(bond, have, value string) bool {
	raw, err := os.ReadFile(filepath.Join(sysClassNet, bond, "bonding", "miimon"))
	if err != nil {
		return false
	}
	mii, err1 := strconv.Atoi(strings.TrimSpace(string(raw)))
	h, err2 := strconv.Atoi(have)
	v, err3 := strconv.Atoi(value)
	return errors.Join(err1, err2, err3) == nil && mii > 0 && h == v/mii*mii
}

// arpTargets adds the targets that are missing, then removes those that are
// too many: monitoring is never without one. Sixteen are the limit, so where
// there is no room for all, old ones go first.
func (a *applier) arpTargets(bond, path string, have []string, value string) {
	want, err := dsasconf.ARPTargets(value)
	if err != nil {
		a.fail("set %s option arp_ip_target: %w", bond, err)
		return
	}
	write := func(op, target string) bool {
		if err := os.WriteFile(path, []byte(op+target), 0); err != nil {
			a.fail("set %s option arp_ip_target %s%s: %w", bond, op, target, bare(err))
			return false
		}
		a.changed("%s: arp_ip_target %s%s", bond, op, target)
		return true
	}
	var old []string
	for _, h := range have {
		if ip, err := netip.ParseAddr(h); err == nil && !slices.Contains(want, ip) {
			old = append(old, h)
		}
	}
	count := len(have)
	for _, w := range want {
		if slices.Contains(have, w.String()) {
			continue
		}
		if count >= 16 && len(old) > 0 && write("-", old[0]) {
			old = old[1:]
			count--
		}
		if write("+", w.String()) {
			count++
		}
	}
	for _, o := range old {
		write("-", o)
	}
}

// bare takes the path off an error: the text names the option already.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
