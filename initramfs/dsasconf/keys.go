package dsasconf

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"dsas"
)

// Keys with a meaning. An address key holds one value; the arrays many.
var (
	addressRE = regexp.MustCompile(`^IPADDRESS([0-9]{1,3})$`)
	diskRE    = regexp.MustCompile(`^[A-Z][A-Z0-9_]*DEVICE$`)
	bondRE    = regexp.MustCompile(`^bond[0-9]{1,3}$`)
	deviceRE  = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}(\.[1-9][0-9]{0,3})?$`)
	moduleRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$`)
	domainRE  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?$`)
)

// check says what is wrong with the value of element i of a key ("" means
// nothing is), with what would be right. An empty value sets nothing and is
// always right.
func check(name string, i int, v string) string {
	if name == "IPADDRESS" || name == "SERVICEADDRESSES" || name == "SYSTEM_NAME" {
		return fmt.Sprintf("there is no such key; did you mean %s?", map[string]string{
			"IPADDRESS": "IPADDRESS0", "SERVICEADDRESSES": "SERVICEADDRESS", "SYSTEM_NAME": "SYSTEMNAME"}[name])
	}
	if v == "" {
		return ""
	}
	if scalarKey(name) && i > 0 {
		return name + " holds one value; write " + name + "=value"
	}
	switch {
	case name == "SYSTEMNAME":
		if dsas.CheckName("node", v) != nil {
			return "not a host name; use lower-case letters, digits and dashes, at most 63, as w101"
		}
	case addressRE.MatchString(name):
		return checkPrefix(v)
	case name == "GATEWAY":
		return checkAddr(v, "the address of a router, as 192.168.1.254")
	case name == "INTERFACE":
		if !isDevice(v) {
			return "not a device name; write it as bond0, eth1 or bond0.2 (VLAN 1 to 4094)"
		}
	case name == "SERVICEADDRESS":
		return checkAddr(v, "a service address without a prefix length, as 10.77.0.80")
	case name == "NAMESERVER":
		for f := range strings.FieldsSeq(v) {
			if why := checkAddr(f, "a name server's address, as 10.77.0.1"); why != "" {
				return why
			}
		}
	case name == "SEARCH":
		for f := range strings.FieldsSeq(v) {
			if len(f) > 253 || !domainRE.MatchString(f) {
				return "not a domain name; write it as example.net"
			}
		}
	case name == "MODULES":
		return checkModule(v)
	case name == "BONDING":
		return checkBonding(v)
	case name == "MTU":
		if n, err := strconv.Atoi(v); err != nil || n < 576 || n > 65535 {
			return "use a number of bytes from 576 to 65535, as 9000"
		}
	case diskRE.MatchString(name):
		if !strings.HasPrefix(v, "/dev/") || len(v) < 6 || strings.Contains(v, "..") || strings.ContainsAny(v, " \t'\"\\") {
			return "give the path of a block device below /dev/, as /dev/disk/by-path/pci-0000:00:05.0"
		}
	}
	return ""
}

func scalarKey(name string) bool {
	return name == "SYSTEMNAME" || name == "HWTYPE" || name == "MTU" || addressRE.MatchString(name) || diskRE.MatchString(name)
}

func isDevice(v string) bool {
	if len(v) > 15 || !deviceRE.MatchString(v) { // IFNAMSIZ less its NUL
		return false
	}
	if _, tag, ok := strings.Cut(v, "."); ok {
		n, err := strconv.Atoi(tag)
		return err == nil && n >= 1 && n <= 4094
	}
	return true
}

func checkPrefix(v string) string {
	const right = "write an address with its prefix length, as 192.168.1.1/22"
	p, err := netip.ParsePrefix(v)
	if err != nil {
		if _, aerr := netip.ParseAddr(v); aerr == nil {
			return "the prefix length is missing; " + right
		}
		return "not an address; each of the four numbers is 0 to 255; " + right
	}
	if why := usable(p.Addr()); why != "" {
		return why + "; " + right
	}
	if a := p.Addr(); a.Is4() && p.Bits() < 31 {
		if p.Masked().Addr() == a {
			return "this is the network's own address; " + right
		}
		if b := a.As4(); p.Bits() > 0 {
			host := uint32(1)<<(32-p.Bits()) - 1
			n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			if n&host == host {
				return "this is the network's broadcast address; " + right
			}
		}
	}
	return ""
}

func checkAddr(v, want string) string {
	a, err := netip.ParseAddr(v)
	if err != nil || a.Zone() != "" {
		return "not an address; write " + want
	}
	if why := usable(a); why != "" {
		return why + "; write " + want
	}
	return ""
}

func usable(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "an address of zeros is nobody's"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "a multicast or broadcast address is nobody's own"
	case a.IsLoopback():
		return "a loopback address reaches no other node"
	}
	return ""
}

// checkModule checks a MODULES entry: "ipmi_si trydefaults=1", or a bond's
// options "bond0 mode=active-backup miimon=100".
func checkModule(v string) string {
	name, opts, _ := strings.Cut(strings.TrimSpace(v), " ")
	if !moduleRE.MatchString(name) {
		return "not a module's name; write \"name option=value ...\""
	}
	if !bondRE.MatchString(name) {
		return ""
	}
	got := map[string]string{}
	for o := range strings.FieldsSeq(opts) {
		k, val, ok := strings.Cut(o, "=")
		if !ok {
			return fmt.Sprintf("bonding option %.40q has no value; write %s=value", o, k)
		}
		if err := CheckBondOption(k, val); err != nil {
			return err.Error()
		}
		got[k] = val
	}
	if on(got["miimon"]) && on(got["arp_interval"]) {
		return "miimon and arp_interval exclude each other: choose link (MII) or ARP monitoring"
	}
	return ""
}

func on(v string) bool { return v != "" && v != "0" }

// checkBonding checks a BONDING entry: "bond0 eth0 eth1".
func checkBonding(v string) string {
	f := strings.Fields(v)
	const right = "write \"bond0 eth0 eth1\", or \"bond0\" alone for all NICs"
	if len(f) == 0 || !bondRE.MatchString(f[0]) {
		return "a bond's name is bond and a number; " + right
	}
	seen := map[string]bool{}
	for _, port := range f[1:] {
		if !isDevice(port) || strings.Contains(port, ".") || bondRE.MatchString(port) {
			return fmt.Sprintf("%.40q cannot be a port; %s", port, right)
		}
		if seen[port] {
			return fmt.Sprintf("port %s is named twice; %s", port, right)
		}
		seen[port] = true
	}
	return ""
}
