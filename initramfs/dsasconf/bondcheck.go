package dsasconf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"dsas"
)

// CheckBond says what is wrong with a bond's options taken together, each
// written key=value, or nil: which are none, which the bonding driver would
// refuse in this mode (bond_options.c, bond_main.c), and what it would take and
// leave a bond that does not notice a dead link. The error says what would do.
func CheckBond(options []string) error {
	set := map[string]string{}
	for _, o := range options {
		k, v, ok := strings.Cut(o, "=")
		if !ok || k == "" || v == "" {
			return fmt.Errorf("%q: write each option as key=value, as mode=active-backup", o)
		}
		all := bondOptions()
		if _, ok := all[k]; !ok {
			keys := make([]string, 0, len(all))
			for known := range all {
				keys = append(keys, known)
			}
			slices.Sort(keys)
			if hint := dsas.DidYouMean(k, keys); hint != "" {
				return fmt.Errorf("bonding has no option %.40q%s", k, hint)
			}
		}
		if err := CheckBondOption(k, v); err != nil {
			return err
		}
		if _, twice := set[k]; twice {
			return fmt.Errorf("%s is there twice; leave one out", k)
		}
		set[k] = BondOptionName(k, v)
	}
	on := func(key string) bool {
		v := set[key]
		n, err := strconv.Atoi(v)
		return v != "" && v != "none" && (err != nil || n != 0)
	}
	mode := set["mode"]
	if mode == "" {
		return fmt.Errorf("no mode: the driver's own default, balance-rr, needs switches that are set up for it; write mode=active-backup")
	}
	switch {
	case on("miimon") && on("arp_interval"):
		return fmt.Errorf("miimon and arp_interval exclude each other (the driver stops the one when it starts the other); keep arp_interval with arp_ip_target across cascaded switches, else miimon")
	case on("arp_interval") && set["arp_ip_target"] == "":
		return fmt.Errorf("arp_interval=%s asks nobody; add arp_ip_target=ADDRESS,... with up to %d addresses that always answer", set["arp_interval"], maxARPTargets)
	case set["arp_ip_target"] != "" && !on("arp_interval"):
		return fmt.Errorf("arp_ip_target is never asked without an interval; add arp_interval=500 (ms) and leave miimon out")
	case !on("miimon") && !on("arp_interval"):
		return fmt.Errorf("no link monitoring: a dead link would never be noticed; add miimon=100 (ms), or arp_interval=500 with arp_ip_target")
	}
	for _, r := range bondRules() {
		if on(r.key) && r.needs != "" && !on(r.needs) {
			return fmt.Errorf("%s has no effect without %s; add that, or leave it out", r.key, r.needs)
		}
		if on(r.key) && r.modes != nil && !slices.Contains(r.modes, mode) {
			return fmt.Errorf("%s=%s is not for mode=%s: only for %s; leave it out, or change the mode", r.key, set[r.key], mode, strings.Join(r.modes, ", "))
		}
	}
	return nil
}

// bondRule says with what an option goes.
type bondRule struct {
	key   string
	needs string   // another option that must be on; "" is none
	modes []string // nil: any
}

func bondRules() []bondRule {
	one := []string{"active-backup", "balance-tlb", "balance-alb"}             // one port is the active one
	arp := []string{"balance-rr", "active-backup", "balance-xor", "broadcast"} // ARP monitoring
	lacp := []string{"802.3ad"}
	return []bondRule{
		{"arp_interval", "", arp},
		{"arp_validate", "arp_interval", arp},
		{"arp_all_targets", "arp_interval", nil},
		{"updelay", "miimon", nil},
		{"downdelay", "miimon", nil},
		{"primary", "", one},
		{"primary_reselect", "primary", one},
		{"fail_over_mac", "", []string{"active-backup"}},
		{"lacp_rate", "", lacp},
		{"ad_select", "", lacp},
		{"packets_per_slave", "", []string{"balance-rr"}},
		{"xmit_hash_policy", "", []string{"balance-xor", "802.3ad", "balance-tlb"}},
		{"tlb_dynamic_lb", "", []string{"balance-tlb", "balance-alb"}},
	}
}
