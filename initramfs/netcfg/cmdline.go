package netcfg

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"dsas"
	"dsas/initramfs/dsasconf"
)

// Params is what our kernel command line parameters say (docs/architecture.md,
// "Kernel command line"). It holds the boot token: do not log it whole.
type Params struct {
	Server string // dsas.server: base URL
	Node   string // dsas.node
	Boot   string // dsas.boot
	Token  string // dsas.token: secret

	IP      netip.Prefix // dsas.ip; invalid: ask DHCP
	Gateway netip.Addr   // dsas.gw
	Ports   []dsas.MAC   // dsas.ports: eth0, eth1, ...; none: all NICs
	Bond    *BondSpec    // dsas.bond; nil: no bond
	BootIF  dsas.MAC     // BOOTIF: the NIC that booted

	// All holds every parameter by name, others' too; the last of a name
	// wins. A parameter without "=" has the value "".
	All map[string]string
}

// BondSpec is the value of dsas.bond.
type BondSpec struct {
	Name    string
	Options []dsasconf.Option
}

// ParseCmdline reads the text of /proc/cmdline. Where a parameter of ours is
// wrong, the error names it and what would be right (but never the token), and
// Params holds the others.
func ParseCmdline(text string) (Params, error) {
	p := Params{All: map[string]string{}}
	for _, word := range splitCmdline(text) {
		k, v, _ := strings.Cut(word, "=")
		p.All[k] = v
	}
	var errs []error
	bad := func(key, want string) {
		errs = append(errs, fmt.Errorf("kernel parameter %s=%.80s: %s: %w", key, p.All[key], want, dsas.ErrInvalid))
	}
	p.Server = strings.TrimRight(p.All["dsas.server"], "/")
	if u, err := url.Parse(p.Server); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		bad("dsas.server", "want the server's URL, as http://10.77.0.1:8080")
	}
	p.Node, p.Boot, p.Token = p.All["dsas.node"], p.All["dsas.boot"], p.All["dsas.token"]
	if v := p.All["dsas.ip"]; v != "" {
		var err error
		if p.IP, err = netip.ParsePrefix(v); err != nil {
			p.IP = netip.Prefix{}
			bad("dsas.ip", "want an address with its prefix length, as 10.77.0.101/24")
		}
	}
	if v := p.All["dsas.gw"]; v != "" {
		var err error
		if p.Gateway, err = netip.ParseAddr(v); err != nil {
			bad("dsas.gw", "want an address, as 10.77.0.254")
		}
	}
	if v := p.All["dsas.ports"]; v != "" {
		seen := map[dsas.MAC]bool{}
		for s := range strings.SplitSeq(v, ",") {
			m, err := dsas.ParseMAC(s)
			if err != nil {
				errs = append(errs, fmt.Errorf("kernel parameter dsas.ports: %w", err))
				continue
			}
			if !seen[m] {
				seen[m] = true
				p.Ports = append(p.Ports, m)
			}
		}
	}
	if v := p.All["BOOTIF"]; v != "" {
		var err error
		if p.BootIF, err = dsas.ParseMAC(v); err != nil {
			errs = append(errs, fmt.Errorf("kernel parameter BOOTIF: %w", err))
		}
	}
	if v := p.All["dsas.bond"]; v != "" {
		var err error
		if p.Bond, err = parseBond(v); err != nil {
			errs = append(errs, err)
		}
	}
	return p, errors.Join(errs...)
}

// parseBond reads "bond0:mode=active-backup:miimon=100". Options that are
// wrong are left out and told.
func parseBond(v string) (*BondSpec, error) {
	parts := strings.Split(v, ":")
	b := dsasconf.Bond{Name: parts[0]}
	if !bondRE.MatchString(b.Name) {
		return nil, fmt.Errorf("kernel parameter dsas.bond=%.80s: want a name and options, as bond0:mode=active-backup:miimon=100: %w", v, dsas.ErrInvalid)
	}
	var errs []error
	for _, o := range parts[1:] {
		if o == "" {
			continue
		}
		k, val, _ := strings.Cut(o, "=")
		if err := dsasconf.CheckBondOption(k, val); err != nil {
			errs = append(errs, fmt.Errorf("kernel parameter dsas.bond: %w: %w", err, dsas.ErrInvalid))
			continue
		}
		b.Set(k, val)
	}
	return &BondSpec{Name: b.Name, Options: b.Options}, errors.Join(errs...)
}

// splitCmdline splits at white space outside double quotes and takes the
// quotes out, as the kernel's next_arg (lib/cmdline.c) does.
func splitCmdline(text string) []string {
	var out []string
	var b strings.Builder
	quoted, any := false, false
	flush := func() {
		if any {
			out = append(out, b.String())
		}
		b.Reset()
		any = false
	}
	for _, r := range text {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case !quoted && (r == ' ' || r == '\t' || r == '\n' || r == '\r'):
			flush()
		default:
			b.WriteRune(r)
			any = true
		}
	}
	flush()
	return out
}
