package dsasconf

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxARPTargets is BOND_MAX_ARP_TARGETS of the kernel's bonding driver.
const maxARPTargets = 16

// bondOption says what values an option takes: names (which may also be given
// by their number, their place in the list) or a range of numbers.
type bondOption struct {
	names    []string
	min, max int
	check    func(string) string // instead, reason or ""
}

// bondOptions are those of the kernel's Documentation/networking/bonding.rst
// that can be set on a bond (not max_bonds and the like, which are the
// driver's).
func bondOptions() map[string]bondOption {
	const ms = 3_600_000
	return map[string]bondOption{
		"mode":              {names: []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}},
		"miimon":            {max: ms},
		"updelay":           {max: ms},
		"downdelay":         {max: ms},
		"use_carrier":       {max: 1},
		"arp_interval":      {max: ms},
		"arp_ip_target":     {check: checkARPTargets},
		"arp_validate":      {names: []string{"none", "active", "backup", "all", "filter", "filter_active", "filter_backup"}},
		"arp_all_targets":   {names: []string{"any", "all"}},
		"primary":           {check: checkPort},
		"primary_reselect":  {names: []string{"always", "better", "failure"}},
		"fail_over_mac":     {names: []string{"none", "active", "follow"}},
		"xmit_hash_policy":  {names: []string{"layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"}},
		"resend_igmp":       {max: 255},
		"num_grat_arp":      {max: 255},
		"num_unsol_na":      {max: 255},
		"all_slaves_active": {max: 1},
		"min_links":         {max: 64},
		"lp_interval":       {min: 1, max: 0x7fffffff},
		"packets_per_slave": {max: 65535},
		"lacp_rate":         {names: []string{"slow", "fast"}},
		"ad_select":         {names: []string{"stable", "bandwidth", "count"}},
		"tlb_dynamic_lb":    {max: 1},
	}
}

// CheckBondOption says what is wrong with a bonding option, or nil. The error
// names the option, its value and what would be right.
func CheckBondOption(key, value string) error {
	all := bondOptions()
	o, ok := all[key]
	if !ok {
		keys := make([]string, 0, len(all))
		for k := range all {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		return fmt.Errorf("bonding has no option %.40q; it has %s", key, strings.Join(keys, " "))
	}
	if o.check != nil {
		if why := o.check(value); why != "" {
			return fmt.Errorf("bonding option %s=%.80s: %s", key, value, why)
		}
		return nil
	}
	n, err := strconv.Atoi(value)
	if o.names != nil {
		if slices.Contains(o.names, value) || err == nil && n >= 0 && n < len(o.names) {
			return nil
		}
		return fmt.Errorf("bonding option %s=%.40s: use one of %s", key, value, strings.Join(o.names, ", "))
	}
	if err != nil || n < o.min || n > o.max {
		return fmt.Errorf("bonding option %s=%.40s: use a number from %d to %d", key, value, o.min, o.max)
	}
	return nil
}

// BondOptionName gives the name of a named option's value where it was given
// by number (mode=1 is active-backup), else the value as it is.
func BondOptionName(key, value string) string {
	names := bondOptions()[key].names
	if n, err := strconv.Atoi(value); err == nil && n >= 0 && n < len(names) {
		return names[n]
	}
	return value
}

// ARPTargets reads the value of arp_ip_target.
func ARPTargets(value string) ([]netip.Addr, error) {
	var out []netip.Addr
	for t := range strings.SplitSeq(value, ",") {
		a, err := netip.ParseAddr(t)
		if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("%q is no IPv4 address; list up to %d, with commas and no blanks", t, maxARPTargets)
		}
		if slices.Contains(out, a) {
			return nil, fmt.Errorf("%s is listed twice", a)
		}
		out = append(out, a)
	}
	if len(out) > maxARPTargets {
		return nil, fmt.Errorf("%d targets; the kernel takes at most %d", len(out), maxARPTargets)
	}
	return out, nil
}

func checkARPTargets(v string) string {
	if _, err := ARPTargets(v); err != nil {
		return err.Error()
	}
	return ""
}

func checkPort(v string) string {
	if !isDevice(v) || strings.Contains(v, ".") {
		return "give a port's device name, as eth0"
	}
	return ""
}
