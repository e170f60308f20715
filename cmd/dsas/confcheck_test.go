package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"dsas"
)

// TestCheckConf: a node's own lines are read as its init will read them, and
// what is wrong has the number it has in what the operator wrote.
func TestCheckConf(t *testing.T) {
	r := newRenderer(t)
	for _, tt := range []struct {
		name, conf string
		want       []string // all in the error; nil: no error
	}{
		{"right", "# its own\nCACHEMB=1024\nMTU=9000\r\nDBDEVICE=/dev/disk/by-path/pci-0000:00:1f.2-ata-1\n", nil},
		{"a site variable", "MODULES+=(\"bond0 arp_interval=500 arp_ip_target=$LVSADDRESS miimon=0\")\n", nil},
		{"what the server writes above", "LABEL=$SYSTEMNAME-$IPADDRESS0\n", nil},
		{"an array over lines", "MODULES+=(\n  ipmi_si\n  ipmi_devintf\n)\nX=1\n", nil},
		{"no variable", "A=1\nLABEL=$LLSADDRESS\n", []string{"conf: line 2: ", "LLSADDRESS"}},
		{"a command", "\n# comment\nmodprobe ipmi_si\n", []string{"line 3: ", "commands are not run here"}},
		{"a substitution", "A=$(hostname)\n", []string{"line 1: "}},
		{"an address", "IPADDRESS3=10.0.0.300/24\n", []string{"line 1: IPADDRESS3", "10.0.0.300"}},
		{"a bonding option", "A=1\nB=2\nMODULES+=(\"bond0 mode=active-standby\")\n", []string{"line 3: ", "mode=active-standby"}},
		{"a quote", "A=\"x\nB=1\n", []string{"line 1: "}},
		{"two", "A=$NO1\nB=ok\nC=$NO2", []string{"line 1: ", "; line 3: "}},
		{"many", strings.Repeat("A=$NO\n", 50), []string{"line 5: ", "; and more"}},
	} {
		n := r.node("w101")
		n.Conf = tt.conf
		err := r.checkConf(n)
		if tt.want == nil {
			if err != nil {
				t.Errorf("%s: checkConf = %v; want nil", tt.name, err)
			}
			continue
		}
		for _, w := range tt.want {
			if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: checkConf = %v; want ErrInvalid with %q", tt.name, err, w)
			}
		}
	}
	// Neither a role nor an address is needed for it.
	n := dsas.Node{Name: "w200", NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 9, 9}}}, Conf: "A=1\nB=$LVSADDRESS$NO\n"}
	if err := r.checkConf(n); err == nil || !strings.Contains(err.Error(), "line 2: B") {
		t.Errorf("checkConf of a node without role = %v; want line 2", err)
	}
	n.Conf = "B=$LVSADDRESS\n"
	if err := r.checkConf(n); err != nil {
		t.Errorf("checkConf of a node without role = %v; want nil", err)
	}
	// What is wrong above is not the node's.
	r.cfg.Bond.Options = "mode=active-backup"
	r.subnets[0].DNS = []netip.Addr{netip.IPv4Unspecified()}
	n = r.node("w101")
	n.Conf = "CACHEMB=1024\n"
	if err := r.checkConf(n); err != nil {
		t.Errorf("checkConf beside wrong lines of others = %v; want nil", err)
	}
}
