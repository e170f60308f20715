package dsasconf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

func sortErrors(errs []LineError) {
	slices.SortStableFunc(errs, func(a, b LineError) int { return a.Line - b.Line })
}

// interpret makes the Config of the variables that were set. Each value has
// passed check; what is found here is what does not fit together.
func interpret(s *shell) (*Config, []LineError) {
	c := &Config{Vars: map[string]string{}}
	in := &interpreter{shell: s, cfg: c}
	for name, v := range s.vars {
		var parts []string
		for _, i := range v.indexes() {
			parts = append(parts, v.elems[i])
		}
		c.Vars[name] = strings.Join(parts, " ")
	}
	c.SystemName = in.scalar("SYSTEMNAME")
	c.HWType = in.scalar("HWTYPE")
	c.MTU, _ = strconv.Atoi(in.scalar("MTU"))
	in.addresses()
	in.gateways()
	in.bonds()
	in.modules()
	in.resolver()
	in.disks()
	return c, in.errs
}

type interpreter struct {
	*shell
	cfg  *Config
	errs []LineError
}

func (in *interpreter) fail(e elem, key, format string, args ...any) {
	in.errs = append(in.errs, LineError{Line: e.line, Key: key, Value: e.value, Reason: fmt.Sprintf(format, args...)})
}

func (in *interpreter) scalar(name string) string {
	if v := in.vars[name]; v != nil {
		return v.elems[0]
	}
	return ""
}

// list gives the elements of name that are not empty, by index.
func (in *interpreter) list(name string) []elem {
	v := in.vars[name]
	if v == nil {
		return nil
	}
	var out []elem
	for _, i := range v.indexes() {
		if strings.TrimSpace(v.elems[i]) != "" {
			out = append(out, elem{i, v.lines[i], strings.TrimSpace(v.elems[i])})
		}
	}
	return out
}

func (in *interpreter) addresses() {
	devices := map[int]elem{}
	for _, e := range in.list("INTERFACE") {
		devices[e.index] = e
	}
	byN := map[int]elem{}
	for _, name := range slices.Sorted(maps.Keys(in.vars)) {
		if m := addressRE.FindStringSubmatch(name); m != nil {
			n, _ := strconv.Atoi(m[1])
			for _, e := range in.list(name) {
				if _, twice := byN[n]; twice { // IPADDRESS1 and IPADDRESS01
					in.fail(e, name, "number %d is used already; use another", n)
					continue
				}
				byN[n] = e
			}
		}
	}
	seen := map[netip.Addr]int{}
	for _, n := range slices.Sorted(maps.Keys(byN)) {
		e := byN[n]
		p, err := netip.ParsePrefix(e.value)
		if err != nil {
			continue // check has refused it
		}
		if first, twice := seen[p.Addr()]; twice {
			in.fail(e, fmt.Sprintf("IPADDRESS%d", n), "the same address as IPADDRESS%d; remove one", first)
			continue
		}
		seen[p.Addr()] = n
		in.cfg.Addresses = append(in.cfg.Addresses, Address{N: n, Prefix: p, Device: devices[n].value})
		delete(devices, n)
	}
	for _, n := range slices.Sorted(maps.Keys(devices)) {
		if _, has := byN[n]; !has {
			in.fail(devices[n], fmt.Sprintf("INTERFACE[%d]", n), "there is no IPADDRESS%d for it; give one, or remove it", n)
		}
	}
	for _, e := range in.list("SERVICEADDRESS") {
		a, err := netip.ParseAddr(e.value)
		if err != nil {
			continue
		}
		if n, own := seen[a]; own {
			in.fail(e, fmt.Sprintf("SERVICEADDRESS[%d]", e.index), "it is this node's own IPADDRESS%d; a service address is shared and stands on lo alone", n)
			continue
		}
		if !slices.Contains(in.cfg.ServiceAddresses, a) {
			in.cfg.ServiceAddresses = append(in.cfg.ServiceAddresses, a)
		}
	}
}

func (in *interpreter) gateways() {
	for _, e := range in.list("GATEWAY") {
		key := fmt.Sprintf("GATEWAY[%d]", e.index)
		a, err := netip.ParseAddr(e.value)
		if err != nil {
			continue
		}
		reach := len(in.cfg.Addresses) == 0 // then the boot's own address decides
		own := false
		var nets []string
		for _, ad := range in.cfg.Addresses {
			reach = reach || ad.Prefix.Masked().Contains(a)
			own = own || ad.Prefix.Addr() == a
			nets = append(nets, ad.Prefix.Masked().String())
		}
		switch {
		case own:
			in.fail(e, key, "it is this node's own address; give the router's")
		case !reach:
			in.fail(e, key, "it cannot be reached: it lies in none of this node's networks (%s)", strings.Join(nets, ", "))
		default:
			in.cfg.Gateways = append(in.cfg.Gateways, Gateway{N: e.index, Addr: a})
		}
	}
}

func (in *interpreter) bond(name string) *Bond {
	for i := range in.cfg.Bonds {
		if in.cfg.Bonds[i].Name == name {
			return &in.cfg.Bonds[i]
		}
	}
	in.cfg.Bonds = append(in.cfg.Bonds, Bond{Name: name})
	return &in.cfg.Bonds[len(in.cfg.Bonds)-1]
}

func (in *interpreter) bonds() {
	taken := map[string]string{}
	for _, e := range in.list("BONDING") {
		f := strings.Fields(e.value)
		b := in.bond(f[0])
		for _, port := range f[1:] {
			if other, yes := taken[port]; yes {
				in.fail(e, fmt.Sprintf("BONDING[%d]", e.index), "port %s belongs to %s already; a port has one bond", port, other)
				continue
			}
			taken[port] = f[0]
			b.Ports = append(b.Ports, port)
		}
	}
}

func (in *interpreter) modules() {
	for _, e := range in.list("MODULES") {
		name, opts, _ := strings.Cut(e.value, " ")
		if !bondRE.MatchString(name) {
			in.cfg.Modules = append(in.cfg.Modules, ModuleOption{Name: name, Options: strings.TrimSpace(opts)})
			continue
		}
		b := in.bond(name)
		key := fmt.Sprintf("MODULES[%d]", e.index)
		for o := range strings.FieldsSeq(opts) {
			k, v, _ := strings.Cut(o, "=")
			if k == "primary" && len(b.Ports) > 0 && !slices.Contains(b.Ports, v) {
				in.fail(e, key, "primary=%s is no port of %s; its ports are %s", v, name, strings.Join(b.Ports, ", "))
				continue
			}
			b.Set(k, v)
		}
	}
}

func (in *interpreter) resolver() {
	for _, e := range in.list("NAMESERVER") {
		for f := range strings.FieldsSeq(e.value) {
			if a, err := netip.ParseAddr(f); err == nil {
				in.cfg.Nameservers = append(in.cfg.Nameservers, a)
			}
		}
	}
	for _, e := range in.list("SEARCH") {
		in.cfg.Search = append(in.cfg.Search, strings.Fields(e.value)...)
	}
}

func (in *interpreter) disks() {
	for _, name := range slices.Sorted(maps.Keys(in.vars)) {
		if diskRE.MatchString(name) {
			for _, e := range in.list(name) {
				in.cfg.Disks = append(in.cfg.Disks, Disk{Key: name, Device: e.value})
			}
		}
	}
}
