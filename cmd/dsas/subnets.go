package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/server/boot"
)

// subnetConfig is one of dsas.yaml's subnets.
type subnetConfig struct {
	Prefix  netip.Prefix `yaml:"prefix"` // 10.0.0.0/22
	Server  netip.Addr   `yaml:"server"` // our address that its nodes reach; default: the interface's. Of a subnet behind relays: one of our own
	Gateway netip.Addr   `yaml:"gateway"`
	DNS     []netip.Addr `yaml:"dns"`
	Domain  string       `yaml:"domain"`
	// Pool: 10.0.3.200-10.0.3.250, several parted by commas; "none"; default:
	// the last 32.
	Pool          string        `yaml:"pool"`
	Exclude       []string      `yaml:"exclude"` // of the pool: 10.0.3.210, 10.0.3.220-10.0.3.229
	PortLimit     int           `yaml:"portLimit"`
	Lease         time.Duration `yaml:"lease"`         // 1h
	Authoritative *bool         `yaml:"authoritative"` // true
	NTP           []netip.Addr  `yaml:"ntp"`
	MTU           int           `yaml:"mtu"`
	Search        []string      `yaml:"search"`
	Routes        []routeConfig `yaml:"routes"`
	CaptivePortal string        `yaml:"captivePortal"`
	// BondOptions stand in the place of bond's options for its nodes: what ARP
	// monitoring asks for must be on their segment.
	BondOptions string `yaml:"bondOptions"`
}

type routeConfig struct {
	To  netip.Prefix `yaml:"to"`
	Via netip.Addr   `yaml:"via"`
}

// subnets turns the configuration into subnets, with the interfaces' own
// addresses where nothing was said. It runs inside the boot namespace.
func (c *config) subnets() ([]dsas.Subnet, error) {
	addrs, err := interfaceAddrs(c.Interfaces)
	if err != nil {
		return nil, err
	}
	configured := c.Subnets
	if len(configured) == 0 {
		for _, a := range addrs {
			// A second address of a subnet makes no second subnet.
			if !slices.ContainsFunc(configured, func(sc subnetConfig) bool { return sc.Prefix == a.Masked() }) {
				configured = append(configured, subnetConfig{Prefix: a.Masked(), Server: a.Addr()})
			}
		}
	}
	if len(configured) == 0 {
		return nil, fmt.Errorf("no subnet: interfaces %s have no IPv4 address; give them one, or name subnets in the configuration: %w",
			strings.Join(c.Interfaces, ", "), dsas.ErrInvalid)
	}
	var out []dsas.Subnet
	for _, sc := range configured {
		if sc.Pool == "" {
			sc.Pool = c.DefaultPool
		}
		if c.ProxyDHCP { // no address is ours to give
			sc.Pool, sc.Exclude = "none", nil
		}
		s, err := sc.subnet(addrs)
		if err != nil {
			return nil, err
		}
		if s.Bond, err = c.subnetBond(sc, s); err != nil {
			return nil, err
		}
		for _, other := range out {
			if other.Prefix.Overlaps(s.Prefix) {
				return nil, fmt.Errorf("subnets %s and %s overlap; name each address once: %w", other.Prefix, s.Prefix, dsas.ErrInvalid)
			}
		}
		out = append(out, s)
	}
	if c.Discovery && !c.otherDHCP() && !slices.ContainsFunc(out, func(s dsas.Subnet) bool { return s.Pool.First.IsValid() }) {
		return nil, fmt.Errorf("discovery: no subnet has a pool, so a box that is not known would get no address; give one with --pool: %w", dsas.ErrInvalid)
	}
	return out, nil
}

// subnetBond gives the bond of a subnet's own, "" where it is as for all. ARP
// does not pass a router: a port whose target never answers is down to the
// bonding driver, and a node with all its ports down boots nothing.
func (c *config) subnetBond(sc subnetConfig, s dsas.Subnet) (string, error) {
	options := cmp.Or(sc.BondOptions, c.Bond.Options)
	for _, o := range strings.Fields(options) {
		list, ok := strings.CutPrefix(o, "arp_ip_target=")
		if !ok || !s.Relayed {
			continue
		}
		for t := range strings.SplitSeq(list, ",") {
			if a, err := netip.ParseAddr(t); err == nil && !s.Prefix.Contains(a) {
				return "", fmt.Errorf("subnet %s: the bond's arp_ip_target %s is not in it, and no router passes ARP on: its nodes would take all their links for dead; give it its own, as bondOptions: mode=active-backup arp_interval=500 arp_ip_target=%s: %w",
					s.Prefix, a, s.Gateway, dsas.ErrInvalid)
			}
		}
	}
	if sc.BondOptions == "" {
		return "", nil
	}
	return bondParameter(c.Bond.Name, sc.BondOptions), nil
}

// checkSubnets refuses what is wrong whatever addresses the interfaces have.
func (c *config) checkSubnets() error {
	for _, sc := range c.Subnets {
		if sc.Pool == "" {
			sc.Pool = c.DefaultPool
		}
		if !sc.Server.IsValid() {
			sc.Server = sc.Prefix.Masked().Addr()
		}
		s, err := sc.subnet([]netip.Prefix{netip.PrefixFrom(sc.Server, sc.Server.BitLen())})
		if err == nil {
			s.Bond, err = c.subnetBond(sc, s)
		}
		if err != nil {
			return err
		}
		if err := boot.CheckArgs([]string{s.Bond}); err != nil {
			return fmt.Errorf("subnet %s: bondOptions: %w", s.Prefix, err)
		}
	}
	return nil
}

// subnet checks sc beside addrs, the addresses of our interfaces.
func (sc subnetConfig) subnet(addrs []netip.Prefix) (dsas.Subnet, error) {
	if !sc.Prefix.IsValid() || !sc.Prefix.Addr().Is4() {
		return dsas.Subnet{}, fmt.Errorf("subnet %q: give its prefix, as 10.0.0.0/24: %w", sc.Prefix, dsas.ErrInvalid)
	}
	s := dsas.Subnet{
		Prefix: sc.Prefix.Masked(), Server: sc.Server, Gateway: sc.Gateway, DNS: sc.DNS, Domain: sc.Domain,
		Lease: cmp.Or(sc.Lease, time.Hour), Silent: sc.Authoritative != nil && !*sc.Authoritative, PortLimit: sc.PortLimit,
		NTP: sc.NTP, MTU: sc.MTU, Search: sc.Search, CaptivePortal: sc.CaptivePortal,
	}
	for _, r := range sc.Routes {
		s.Routes = append(s.Routes, dsas.Route{To: r.To.Masked(), Via: r.Via})
	}
	bad := func(format string, args ...any) (dsas.Subnet, error) {
		return s, fmt.Errorf("subnet %s: %s: %w", s.Prefix, fmt.Sprintf(format, args...), dsas.ErrInvalid)
	}
	var ours []string
	for _, a := range addrs {
		if !s.Server.IsValid() && s.Prefix.Contains(a.Addr()) {
			s.Server = a.Addr()
		}
		ours = append(ours, a.Addr().String())
	}
	switch {
	case !s.Server.IsValid():
		return bad("no interface has an address in it; if it is reached through a relay, say which of ours its nodes are to use (server: %s)", strings.Join(ours, " or "))
	case s.Prefix.Contains(s.Server):
		// Whether the interface has it the sockets say, with the way out.
	case !slices.Contains(ours, s.Server.String()):
		return bad("server %s is no address of the interfaces served (%s)", s.Server, strings.Join(ours, ", "))
	case !s.Gateway.IsValid():
		return bad("it is reached through a relay, and without a gateway its nodes would not find their way to %s; give gateway: (the router's address there)", s.Server)
	default:
		s.Relayed = true
	}
	if s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway) {
		return bad("gateway %s is not in it", s.Gateway)
	}
	if err := sc.pool(&s); err != nil {
		return s, err
	}
	return s, s.Check()
}

// pool reads the pool's ranges. One range from the lowest address to the
// highest holds them all, and what lies between them is excluded.
func (sc subnetConfig) pool(s *dsas.Subnet) error {
	for _, text := range sc.Exclude {
		r, err := parseRange(text)
		if err != nil {
			return fmt.Errorf("subnet %s: exclude %q: write it as 10.0.3.210 or 10.0.3.220-10.0.3.229: %w", s.Prefix, text, dsas.ErrInvalid)
		}
		s.Exclude = append(s.Exclude, r)
	}
	switch sc.Pool {
	case "none":
		return nil
	case "":
		s.Pool = defaultPool(s.Prefix)
		return nil
	}
	var ranges []dsas.Range
	for _, text := range strings.Split(sc.Pool, ",") {
		r, err := parseRange(text)
		if err != nil || !strings.Contains(text, "-") {
			return fmt.Errorf("subnet %s: pool %q: write it as 10.0.3.200-10.0.3.250: %w", s.Prefix, sc.Pool, dsas.ErrInvalid)
		}
		if r.Last.Less(r.First) {
			return fmt.Errorf("subnet %s: pool %s ends before it begins: %w", s.Prefix, strings.TrimSpace(text), dsas.ErrInvalid)
		}
		ranges = append(ranges, r)
	}
	slices.SortFunc(ranges, func(a, b dsas.Range) int { return a.First.Compare(b.First) })
	s.Pool = ranges[0]
	for _, r := range ranges[1:] {
		switch gap := (dsas.Range{First: s.Pool.Last.Next(), Last: r.First.Prev()}); {
		case !s.Pool.Last.Less(r.First):
			return fmt.Errorf("subnet %s: pool %q: the ranges overlap at %s: %w", s.Prefix, sc.Pool, r.First, dsas.ErrInvalid)
		case gap.First.Compare(gap.Last) <= 0:
			s.Exclude = append(s.Exclude, gap)
		}
		s.Pool.Last = r.Last
	}
	return nil
}

// parseRange reads an IPv4 address or two with a dash between them.
func parseRange(text string) (r dsas.Range, err error) {
	first, last, two := strings.Cut(text, "-")
	if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err != nil {
		return r, err
	}
	if r.Last = r.First; two {
		r.Last, err = netip.ParseAddr(strings.TrimSpace(last))
	}
	return r, err
}

// defaultPool is the last 32 addresses before the broadcast address, or the
// upper half of a subnet smaller than /26; none in one smaller than /29.
func defaultPool(p netip.Prefix) dsas.Range {
	size := 1 << (32 - p.Bits())
	if size < 8 {
		return dsas.Range{}
	}
	n := min(32, size/2-1)
	base := p.Addr().As4()
	at := func(off int) netip.Addr {
		v := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
		v += uint32(off)
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	return dsas.Range{First: at(size - 1 - n), Last: at(size - 2)}
}

// interfaceAddrs gives the IPv4 addresses of the named interfaces.
func interfaceAddrs(names []string) ([]netip.Prefix, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("no interface to serve: name the one on the nodes' network, with --interface eth1, or as interfaces: [eth1] in %s: %w", defaultConfigPath, dsas.ErrInvalid)
	}
	var out []netip.Prefix
	for _, name := range names {
		ifi, err := net.InterfaceByName(name)
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // without "route ip+net", which is how it was asked for
		}
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w; `ip -br link` lists what there is", name, err)
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				out = append(out, p)
			}
		}
	}
	return out, nil
}
