package dsasconf

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckBond(t *testing.T) {
	targets := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("10.0.0.%d", i+1))
		}
		return strings.Join(list, ",")
	}
	for _, tt := range []struct{ options, want string }{
		{"mode=active-backup miimon=100", ""},
		{"mode=1 miimon=100", ""},
		{"mode=active-backup primary=eth0 miimon=100 updelay=200 downdelay=200 primary_reselect=failure", ""},
		{"mode=active-backup arp_interval=500 arp_ip_target=10.0.0.1,10.0.0.2 arp_validate=all arp_all_targets=any", ""},
		{"mode=active-backup arp_interval=500 arp_validate=none miimon=0 arp_ip_target=10.0.0.1", ""},
		{"mode=802.3ad miimon=100 lacp_rate=fast xmit_hash_policy=layer3+4 min_links=1", ""},
		{"mode=balance-alb miimon=100 primary=eth1", ""},

		{"mode=active-standby miimon=100", "use one of balance-rr, active-backup"},
		{"mode=9 miimon=100", "use one of balance-rr"},
		{"mode=active-backup miimom=100", `did you mean "miimon"?`},
		{"mode=active-backup colour=red miimon=100", "it has ad_select"},
		{"mode=active-backup miimon", "key=value"},
		{"mode=active-backup =100", "key=value"},
		{"mode=active-backup miimon=-1", "use a number from 0"},
		{"mode=active-backup miimon=often", "use a number from 0"},
		{"mode=active-backup miimon=100 miimon=200", "twice"},
		{"miimon=100", "write mode=active-backup"},
		{"mode=active-backup", "add miimon=100"},
		{"mode=active-backup miimon=0", "add miimon=100"},
		{"mode=active-backup miimon=100 arp_interval=500 arp_ip_target=10.0.0.1", "exclude each other"},
		{"mode=active-backup arp_interval=500", "add arp_ip_target="},
		{"mode=active-backup miimon=100 arp_ip_target=10.0.0.1", "add arp_interval=500"},
		{"mode=active-backup arp_interval=500 arp_ip_target=10.0.0.1,10.0.0.1", "listed twice"},
		{"mode=active-backup arp_interval=500 arp_ip_target=master", "no IPv4 address"},
		{"mode=active-backup arp_interval=500 arp_ip_target=$LVSADDRESS", "no IPv4 address"},
		{"mode=active-backup arp_interval=500 arp_ip_target=" + targets(16), ""},
		{"mode=active-backup arp_interval=500 arp_ip_target=" + targets(17), "at most 16"},
		{"mode=802.3ad arp_interval=500 arp_ip_target=10.0.0.1", "arp_interval=500 is not for mode=802.3ad"},
		{"mode=balance-rr miimon=100 primary=eth0", "primary=eth0 is not for mode=balance-rr"},
		{"mode=active-backup miimon=100 primary=bond0.2", "device name"},
		{"mode=active-backup miimon=100 primary_reselect=better", "no effect without primary"},
		{"mode=active-backup arp_interval=500 arp_ip_target=10.0.0.1 updelay=200", "no effect without miimon"},
		{"mode=active-backup miimon=100 arp_validate=all", "no effect without arp_interval"},
		{"mode=active-backup miimon=100 lacp_rate=fast", "only for 802.3ad"},
		{"mode=balance-alb miimon=100 fail_over_mac=active", "only for active-backup"},
	} {
		err := CheckBond(strings.Fields(tt.options))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("CheckBond(%s) = %v; want %q", tt.options, err, tt.want)
		}
	}
}
