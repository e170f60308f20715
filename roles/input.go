package roles

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"dsas"
)

// Input is all that a node's files are made from; templates see it and its
// methods. The same Input gives the same files.
type Input struct {
	Node   dsas.Node
	Role   dsas.Role
	Subnet dsas.Subnet
	// Sites are all sites of the fleet, each with the nodes that serve it now.
	Sites []Site
	// Nodes are those this node shall know by name: at least the ones that
	// are assigned its own role (ready or not), which are its VRRP peers.
	Nodes    []Peer
	Settings Settings
}

// Site is a site with its real servers: the ready nodes of Site.Role.
type Site struct {
	dsas.Site
	Servers []Peer
}

// Peer is another node, as far as a template may know it.
type Peer struct {
	Name    string
	Address netip.Addr
	Role    string
}

// Settings is what an operator sets for all nodes.
type Settings struct {
	// Variables come first in every dsas.conf: LVSADDRESS, LLSADDRESS, ...
	Variables map[string]string
	// Bond is the value of dsas.bond on this node's kernel command line
	// ("bond0:mode=active-backup:miimon=100"); dsas.conf restates it. Empty:
	// DefaultBond for a node with two NICs or more, none for one NIC.
	Bond string
	// VirtualRouterIDs gives a balancer role's VRRP virtual router id, 1 to
	// 255; a role not named gets one made from its name. Two roles of one
	// segment must differ, and from any VRRP router that is there already.
	VirtualRouterIDs map[string]int
}

// NoBond as Settings.Bond: no bond, however many NICs there are.
const NoBond = "none"

// DefaultBond is the bond of a node with two NICs or more.
const DefaultBond = "bond0:mode=active-backup:miimon=100"

var (
	deviceRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}$`)
	// optionRE: a bonding option as the cmdline writes it; the kernel's
	// values are words, numbers, addresses and lists of them.
	optionRE = regexp.MustCompile(`^[a-z][a-z0-9_]*=[A-Za-z0-9_.,+/-]+$`)
	domainRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
)

// bond gives the bond's name and options; name is "" where there is none.
func (in Input) bond() (name string, options []string, err error) {
	b := in.Settings.Bond
	switch {
	case b == NoBond:
		return "", nil, nil
	case b == "" && len(in.Node.NICs) < 2:
		return "", nil, nil
	case b == "":
		b = DefaultBond
	}
	fields := strings.Split(b, ":")
	if !deviceRE.MatchString(fields[0]) {
		return "", nil, fmt.Errorf("bond %q: write it as %s: %w", b, DefaultBond, dsas.ErrInvalid)
	}
	for _, o := range fields[1:] {
		if !optionRE.MatchString(o) {
			return "", nil, fmt.Errorf("bond %q: option %q: write key=value, as miimon=100: %w", b, o, dsas.ErrInvalid)
		}
	}
	return fields[0], fields[1:], nil
}

// Device is the device that holds the node's own address: the bond, else eth0.
func (in Input) Device() (string, error) {
	name, _, err := in.bond()
	if name == "" {
		name = "eth0"
	}
	return name, err
}

// Balanced gives the sites this node's role balances, by name.
func (in Input) Balanced() []Site {
	return in.sites(func(s Site) bool { return s.Balancer == in.Role.Name })
}

// Served gives the sites this node's role serves, by name.
func (in Input) Served() []Site {
	return in.sites(func(s Site) bool { return s.Role == in.Role.Name })
}

func (in Input) sites(keep func(Site) bool) []Site {
	var out []Site
	for _, s := range in.Sites {
		s.Site = s.Site.WithDefaults()
		if !keep(s) {
			continue
		}
		s.Servers = slices.DeleteFunc(slices.Clone(s.Servers), func(p Peer) bool { return !p.Address.Is4() })
		slices.SortFunc(s.Servers, byName)
		s.Servers = slices.CompactFunc(s.Servers, func(a, b Peer) bool { return a.Name == b.Name })
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Site) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func byName(a, b Peer) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), a.Address.Compare(b.Address))
}

// ServiceAddresses gives the addresses of the balanced sites, each once,
// ascending: two sites may share an address on different ports.
func (in Input) ServiceAddresses() []netip.Addr { return addresses(in.Balanced()) }

// CarriedAddresses gives the service addresses the node holds on lo: those of
// the sites its role serves, where the role carries sites at all.
func (in Input) CarriedAddresses() []netip.Addr {
	if !in.Role.CarriesSites {
		return nil
	}
	return addresses(in.Served())
}

func addresses(sites []Site) []netip.Addr {
	var out []netip.Addr
	for _, s := range sites {
		out = append(out, s.Address)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// team gives the nodes of this node's role with itself among them, by name.
func (in Input) team() []Peer {
	out := []Peer{{in.Node.Name, in.Node.Address.Addr(), in.Role.Name}}
	for _, p := range in.Nodes {
		if p.Role == in.Role.Name && p.Name != in.Node.Name && p.Address.Is4() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, byName)
	return slices.CompactFunc(out, func(a, b Peer) bool { return a.Name == b.Name })
}

// Others gives the other nodes that are assigned this node's role, by name.
func (in Input) Others() []Peer {
	return slices.DeleteFunc(in.team(), func(p Peer) bool { return p.Name == in.Node.Name })
}

// Priority is the node's VRRP priority (RFC 5798 section 5.2.4: 1 to 254 for a
// router that does not own the address): 200 for the first node of the role by
// name, one less for each after it. All differ up to 200 nodes; beyond, VRRP
// decides between equals by address.
func (in Input) Priority() int {
	i := slices.IndexFunc(in.team(), func(p Peer) bool { return p.Name == in.Node.Name })
	return max(200-i, 1)
}

// VirtualRouterID is the VRID of the node's role, 1 to 255.
func (in Input) VirtualRouterID() (int, error) {
	if id, ok := in.Settings.VirtualRouterIDs[in.Role.Name]; ok {
		if id < 1 || id > 255 {
			return 0, fmt.Errorf("virtual router id %d of role %s: use 1 to 255: %w", id, in.Role.Name, dsas.ErrInvalid)
		}
		return id, nil
	}
	h := fnv.New32a()
	h.Write([]byte(in.Role.Name))
	return int(h.Sum32()%255) + 1, nil
}

// check refuses an Input that would give files that do not parse, or that
// would say more than its field is meant to.
func (in Input) check() error {
	if err := in.Node.Check(); err != nil {
		return err
	}
	if !in.Node.Address.IsValid() || !in.Node.Address.Addr().Is4() {
		return fmt.Errorf("node %s: has no IPv4 address; set one as 192.0.2.10/24: %w", in.Node.Name, dsas.ErrInvalid)
	}
	for _, p := range in.Nodes {
		if err := dsas.CheckName("node", p.Name); err != nil {
			return err
		}
	}
	if d := in.Subnet.Domain; d != "" && (len(d) > 253 || !domainRE.MatchString(d)) {
		return fmt.Errorf("subnet %s: domain %q: use letters, digits, dashes and dots: %w", in.Subnet.Prefix, d, dsas.ErrInvalid)
	}
	type vip struct {
		addr netip.Addr
		port uint16
	}
	taken := map[vip]string{}
	for _, s := range in.Balanced() {
		if err := s.CheckFields(); err != nil {
			return err
		}
		for _, p := range s.Servers {
			if err := dsas.CheckName("node", p.Name); err != nil {
				return fmt.Errorf("site %s: %w", s.Name, err)
			}
		}
		v := vip{s.Address, s.Port}
		if other, ok := taken[v]; ok {
			return fmt.Errorf("sites %s and %s: both on %s port %d of balancer %s; give one another address or port: %w", other, s.Name, s.Address, s.Port, s.Balancer, dsas.ErrConflict)
		}
		taken[v] = s.Name
	}
	if _, _, err := in.bond(); err != nil {
		return err
	}
	_, err := in.VirtualRouterID()
	return err
}
