// Package netcfg brings a node's network up: a [Plan] is made, as pure data,
// of the kernel command line and later of dsas.conf, and [Apply] makes the
// kernel be so, through netlink, as often as wanted.
package netcfg

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"dsas"
	"dsas/initramfs/dsasconf"
)

var bondRE = regexp.MustCompile(`^bond[0-9]{1,3}$`)

// Plan is a network as it is to be.
type Plan struct {
	// Names gives NICs their names by MAC: the first is eth0. NICs that are
	// not named here get the numbers after these, in the order of their bus
	// addresses.
	Names []dsas.MAC
	// Device carries the node's own address: a bond, or a NIC. Empty: the
	// NIC with address BootIF, else eth0.
	Device string
	BootIF dsas.MAC
	Bonds  []Bond
	VLANs  []VLAN
	// MTU of Device and, where that is a bond, of its ports, in bytes; 0:
	// as it is.
	MTU       int
	Addresses []Address
	Gateways  []netip.Addr // default routes, the first preferred
	// Service addresses are held on lo (/32), with the ARP settings that
	// direct routing needs.
	Service []netip.Addr
}

// Bond is a bond device.
type Bond struct {
	Name    string
	Ports   []string // by name; none: all NICs with a driver
	Options []dsasconf.Option
}

// VLAN is an 802.1Q device; its name is its parent's and its number: bond0.2.
type VLAN struct {
	Name   string
	Parent string
	ID     int
}

// Address is an address on a device; an empty device is the Plan's Device.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// Sysctl is a kernel setting below /proc/sys.
type Sysctl struct {
	Path  string // "net/ipv4/conf/all/arp_ignore"
	Value string
}

// FromCmdline makes the plan of a boot's first network.
func FromCmdline(p Params) (Plan, error) {
	pl := Plan{Names: p.Ports, BootIF: p.BootIF}
	if p.Bond != nil {
		b := Bond{Name: p.Bond.Name, Options: withDefaults(p.Bond.Options)}
		for i := range p.Ports {
			b.Ports = append(b.Ports, "eth"+strconv.Itoa(i))
		}
		if err := checkBond(b); err != nil {
			return pl, fmt.Errorf("kernel parameter dsas.bond: %w", err)
		}
		pl.Bonds = []Bond{b}
		pl.Device = b.Name
	} else if i := slices.Index(p.Ports, p.BootIF); i >= 0 {
		pl.Device = "eth" + strconv.Itoa(i)
	} else if len(p.Ports) > 0 {
		pl.Device = "eth0"
	}
	if p.IP.IsValid() {
		pl.Addresses = []Address{{Prefix: p.IP}}
	}
	if p.Gateway.IsValid() {
		pl.Gateways = []netip.Addr{p.Gateway}
	}
	return pl, nil
}

// option gives the value of key among opts.
func option(opts []dsasconf.Option, key string) string {
	b := dsasconf.Bond{Options: opts}
	v, _ := b.Option(key)
	return v
}

func isOn(v string) bool { return v != "" && v != "0" }

// withDefaults chooses what the kernel would choose badly: its own defaults
// are round-robin, which needs a switch that knows, and no monitoring, which
// notices nothing.
func withDefaults(opts []dsasconf.Option) []dsasconf.Option {
	b := dsasconf.Bond{Options: slices.Clone(opts)}
	if _, ok := b.Option("mode"); !ok {
		b.Options = slices.Insert(b.Options, 0, dsasconf.Option{Key: "mode", Value: "active-backup"})
	}
	if !isOn(option(opts, "miimon")) && !isOn(option(opts, "arp_interval")) {
		b.Set("miimon", "100")
	}
	return b.Options
}

func checkBond(b Bond) error {
	arp, mii := isOn(option(b.Options, "arp_interval")), isOn(option(b.Options, "miimon"))
	switch {
	case arp && mii:
		return fmt.Errorf("%s: miimon and arp_interval exclude each other: choose link (MII) or ARP monitoring: %w", b.Name, dsas.ErrInvalid)
	case arp && option(b.Options, "arp_ip_target") == "":
		return fmt.Errorf("%s: arp_interval needs arp_ip_target, the addresses to ask: %w", b.Name, dsas.ErrInvalid)
	}
	return nil
}

// FromConf makes the plan of dsas.conf, which wins over base, the plan of the
// command line, where it says something. What dsas.conf asks for and cannot be
// had while the base plan's network runs is told in the errors; the plan is
// usable all the same.
func FromConf(base Plan, cfg *dsasconf.Config) (Plan, []error) {
	pl := base
	pl.Bonds, pl.VLANs, pl.Addresses = nil, nil, nil
	for _, b := range base.Bonds {
		b.Ports, b.Options = slices.Clone(b.Ports), slices.Clone(b.Options)
		pl.Bonds = append(pl.Bonds, b)
	}
	var errs []error
	refused := map[string]bool{}
	for _, cb := range cfg.Bonds {
		if err := mergeBond(&pl, cb); err != nil {
			errs = append(errs, err)
			refused[cb.Name] = true
		}
	}
	if cfg.MTU > 0 {
		pl.MTU = cfg.MTU
	}
	device := func(name string) (string, error) {
		name, tag, vlan := strings.Cut(name, ".")
		if refused[name] || name == "" {
			name = pl.Device
		}
		if name == "" && vlan {
			return "", fmt.Errorf("dsas.conf: INTERFACE names a VLAN on a bond, and there is none: %w", dsas.ErrInvalid)
		}
		if bondRE.MatchString(name) && !slices.ContainsFunc(pl.Bonds, func(b Bond) bool { return b.Name == name }) {
			return "", fmt.Errorf("dsas.conf: INTERFACE names %s, which no BONDING line makes: %w", name, dsas.ErrInvalid)
		}
		if !vlan {
			return name, nil
		}
		id, err := strconv.Atoi(tag)
		if err != nil {
			return "", fmt.Errorf("dsas.conf: INTERFACE %s.%s: the VLAN is no number: %w", name, tag, dsas.ErrInvalid)
		}
		v := VLAN{Name: name + "." + tag, Parent: name, ID: id}
		if !slices.Contains(pl.VLANs, v) {
			pl.VLANs = append(pl.VLANs, v)
		}
		return v.Name, nil
	}
	own := false
	for _, a := range cfg.Addresses {
		dev, err := device(a.Device)
		if err != nil {
			errs = append(errs, fmt.Errorf("IPADDRESS%d=%s: %w", a.N, a.Prefix, err))
			continue
		}
		own = own || dev == pl.Device
		pl.Addresses = append(pl.Addresses, Address{Device: dev, Prefix: a.Prefix})
	}
	if !own { // a file without an address, or with a wrong one, must not cut the node off
		pl.Addresses = append(slices.Clone(base.Addresses), pl.Addresses...)
	}
	if len(cfg.Gateways) > 0 {
		pl.Gateways = nil
		for _, g := range cfg.Gateways {
			pl.Gateways = append(pl.Gateways, g.Addr)
		}
	}
	pl.Service = cfg.ServiceAddresses
	return pl, errs
}

// mergeBond puts what dsas.conf says of a bond into pl.
func mergeBond(pl *Plan, cb dsasconf.Bond) error {
	i := slices.IndexFunc(pl.Bonds, func(b Bond) bool { return b.Name == cb.Name })
	if i < 0 {
		// The NIC that this boot runs on cannot become a port under it.
		if len(pl.Bonds) == 0 && (len(cb.Ports) == 0 || pl.Device == "" || slices.Contains(cb.Ports, pl.Device)) {
			return fmt.Errorf("dsas.conf: %s is not built: this boot runs on one of its ports alone; have the server name the bond (dsas.bond) and boot again: %w", cb.Name, dsas.ErrConflict)
		}
		if len(cb.Ports) == 0 {
			return fmt.Errorf("dsas.conf: %s has no ports and %s has all the NICs; name them in BONDING: %w", cb.Name, pl.Bonds[0].Name, dsas.ErrInvalid)
		}
		b := Bond{Name: cb.Name, Ports: cb.Ports, Options: withDefaults(cb.Options)}
		if err := checkBond(b); err != nil {
			return fmt.Errorf("dsas.conf: %w", err)
		}
		pl.Bonds = append(pl.Bonds, b)
		return nil
	}
	merged := dsasconf.Bond{Options: slices.Clone(pl.Bonds[i].Options)}
	drop := func(keys ...string) {
		merged.Options = slices.DeleteFunc(merged.Options, func(o dsasconf.Option) bool { return slices.Contains(keys, o.Key) })
	}
	// One kind of monitoring replaces the other.
	if isOn(option(cb.Options, "arp_interval")) {
		drop("miimon", "updelay", "downdelay")
	}
	if isOn(option(cb.Options, "miimon")) {
		drop("arp_interval", "arp_validate")
	}
	for _, o := range cb.Options {
		merged.Set(o.Key, o.Value)
	}
	b := Bond{Name: cb.Name, Ports: pl.Bonds[i].Ports, Options: withDefaults(merged.Options)}
	if len(cb.Ports) > 0 {
		b.Ports = cb.Ports
	}
	if err := checkBond(b); err != nil {
		// Not refused: the bond stands as the command line made it.
		return fmt.Errorf("dsas.conf: %w", err)
	}
	pl.Bonds[i] = b
	return nil
}

// Sysctls are the settings the plan needs. ARP must not answer for, nor speak
// with, service addresses: they are the balancer's on the wire (arp_ignore and
// arp_announce, the kernel's ip-sysctl.rst). Nor may a VLAN's address be had on
// the untagged side, as the kernel would have it by default.
func (pl Plan) Sysctls() []Sysctl {
	if len(pl.Service) == 0 && len(pl.VLANs) == 0 {
		return nil
	}
	var out []Sysctl
	add := func(dev string) {
		out = append(out,
			Sysctl{"net/ipv4/conf/" + dev + "/arp_ignore", "1"},
			Sysctl{"net/ipv4/conf/" + dev + "/arp_announce", "2"})
	}
	add("all")
	if pl.Device != "" {
		add(pl.Device)
	}
	for _, v := range pl.VLANs {
		add(v.Name)
	}
	return out
}
