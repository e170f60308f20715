package netcfg

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dsas"
	"dsas/initramfs/dsasconf"
)

const sample = `dsas.server=http://10.77.0.1:8080 dsas.node=w101 dsas.boot=b1 dsas.token=SECRET ` +
	`dsas.ip=10.77.0.101/24 dsas.gw=10.77.0.254 dsas.ports=52:54:00:00:01:01,52:54:00:00:01:02 ` +
	`dsas.bond=bond0:mode=active-backup:miimon=100 BOOTIF=01-52-54-00-00-01-01 panic=30 console=tty0 console=ttyS0,115200 quiet x="a b"` + "\n"

func mac(s string) dsas.MAC {
	m, err := dsas.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func TestParseCmdline(t *testing.T) {
	p, err := ParseCmdline(sample)
	if err != nil {
		t.Fatalf("ParseCmdline: %v", err)
	}
	all := p.All
	p.All = nil
	want := Params{
		Server: "http://10.77.0.1:8080", Node: "w101", Boot: "b1", Token: "SECRET",
		IP: netip.MustParsePrefix("10.77.0.101/24"), Gateway: netip.MustParseAddr("10.77.0.254"),
		Ports:  []dsas.MAC{mac("52:54:00:00:01:01"), mac("52:54:00:00:01:02")},
		Bond:   &BondSpec{Name: "bond0", Options: []dsasconf.Option{{Key: "mode", Value: "active-backup"}, {Key: "miimon", Value: "100"}}},
		BootIF: mac("52:54:00:00:01:01"),
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("ParseCmdline = %+v; want %+v", p, want)
	}
	if all["console"] != "ttyS0,115200" || all["x"] != "a b" || all["panic"] != "30" {
		t.Errorf("All = %q; want others' parameters too, the last of a name", all)
	}
	if _, ok := all["quiet"]; !ok {
		t.Errorf("All = %q; want quiet in it", all)
	}
}

func TestParseCmdlineWrong(t *testing.T) {
	cases := []struct{ from, to, want string }{
		{"dsas.server=http://10.77.0.1:8080", "dsas.server=10.77.0.1", "dsas.server"},
		{"dsas.server=http://10.77.0.1:8080", "", "dsas.server"},
		{"10.77.0.101/24", "10.77.0.101", "prefix length"},
		{"10.77.0.254", "router", "dsas.gw"},
		{"52:54:00:00:01:02", "52:54", "dsas.ports"},
		{"bond0:", "team0:", "dsas.bond"},
		{"mode=active-backup", "mode=best", "active-backup"},
		{"01-52-54-00-00-01-01", "zz", "BOOTIF"},
	}
	for _, c := range cases {
		_, err := ParseCmdline(strings.Replace(sample, c.from, c.to, 1))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseCmdline with %q for %q: error %v; want one with %q", c.to, c.from, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("ParseCmdline: the error holds the token: %v", err)
		}
	}
}

func TestFromCmdline(t *testing.T) {
	cases := []struct {
		name, cmdline string
		device        string
		bond          string
	}{
		{"bond", sample, "bond0", "bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]"},
		{"bond of all NICs", strings.Replace(sample, "dsas.ports=52:54:00:00:01:01,52:54:00:00:01:02", "", 1), "bond0", "bond0 [] [{mode active-backup} {miimon 100}]"},
		{"defaults", strings.Replace(sample, "bond0:mode=active-backup:miimon=100", "bond0", 1), "bond0", "bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]"},
		{"ARP", strings.Replace(sample, "miimon=100", "arp_interval=250:arp_ip_target=10.77.0.1,10.77.0.2", 1), "bond0",
			"bond0 [eth0 eth1] [{mode active-backup} {arp_interval 250} {arp_ip_target 10.77.0.1,10.77.0.2}]"},
		{"no bond, booted by the second", strings.NewReplacer("dsas.bond=bond0:mode=active-backup:miimon=100", "", "01-52-54-00-00-01-01", "01-52-54-00-00-01-02").Replace(sample), "eth1", ""},
		{"nothing named", "dsas.server=http://a BOOTIF=01-52-54-00-00-01-02", "", ""},
	}
	for _, c := range cases {
		p, err := ParseCmdline(c.cmdline)
		if err != nil {
			t.Fatalf("%s: ParseCmdline: %v", c.name, err)
		}
		pl, err := FromCmdline(p)
		if err != nil {
			t.Errorf("%s: FromCmdline: %v", c.name, err)
		}
		bond := ""
		for _, b := range pl.Bonds {
			bond += fmt.Sprint(b.Name, " ", b.Ports, " ", b.Options)
		}
		if pl.Device != c.device || bond != c.bond {
			t.Errorf("%s: FromCmdline = device %q, bond %q; want %q, %q", c.name, pl.Device, bond, c.device, c.bond)
		}
	}
	for _, wrong := range []string{"bond0:miimon=100:arp_interval=250:arp_ip_target=10.0.0.1", "bond0:arp_interval=250"} {
		p, err := ParseCmdline(strings.Replace(sample, "bond0:mode=active-backup:miimon=100", wrong, 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := FromCmdline(p); err == nil {
			t.Errorf("FromCmdline(%s): no error; want one", wrong)
		}
	}
}

func base(t *testing.T, cmdline string) Plan {
	t.Helper()
	p, err := ParseCmdline(cmdline)
	if err != nil {
		t.Fatal(err)
	}
	pl, err := FromCmdline(p)
	if err != nil {
		t.Fatal(err)
	}
	return pl
}

func TestFromConf(t *testing.T) {
	noBond := strings.Replace(sample, "dsas.bond=bond0:mode=active-backup:miimon=100", "", 1)
	cases := []struct {
		name, cmdline, conf string
		addresses, vlans    string
		gateways, bonds     string
		errs                int
	}{
		{"restated", sample, "IPADDRESS0=10.77.0.101/24\nGATEWAY[0]=10.77.0.254\nBONDING=(\"bond0 eth0 eth1\")\nMODULES=(\"bond0 mode=active-backup miimon=100\")",
			"[{bond0 10.77.0.101/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 0},
		{"VLAN", sample, "IPADDRESS0=10.77.0.101/24\nIPADDRESS1=203.0.113.3/24\nINTERFACE[1]=bond0.2\nGATEWAY[0]=203.0.113.254\nGATEWAY[1]=10.77.0.254",
			"[{bond0 10.77.0.101/24} {bond0.2 203.0.113.3/24}]", "[{bond0.2 bond0 2}]", "[203.0.113.254 10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 0},
		{"empty file", sample, "", "[{ 10.77.0.101/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 0},
		{"wrong address", sample, "IPADDRESS0=300.1.1.1/24\nIPADDRESS1=10.9.0.1/24\nINTERFACE[1]=bond0.2",
			"[{ 10.77.0.101/24} {bond0.2 10.9.0.1/24}]", "[{bond0.2 bond0 2}]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 0},
		{"ARP for MII", sample, "MODULES=(\"bond0 arp_interval=250 arp_ip_target=10.77.0.1\")",
			"[{ 10.77.0.101/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {arp_interval 250} {arp_ip_target 10.77.0.1}]}]", 0},
		{"ARP without targets", sample, "MODULES=(\"bond0 arp_interval=250\")",
			"[{ 10.77.0.101/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 1},
		{"no bond booted, one wanted", noBond, "BONDING=(\"bond0 eth0 eth1\")\nIPADDRESS0=10.77.0.101/24\nINTERFACE[0]=bond0\nIPADDRESS1=10.9.0.1/24\nINTERFACE[1]=bond0.2",
			"[{eth0 10.77.0.101/24} {eth0.2 10.9.0.1/24}]", "[{eth0.2 eth0 2}]", "[10.77.0.254]", "[]", 1},
		{"second bond", sample, "BONDING=(\"bond1 eth2 eth3\")\nIPADDRESS1=10.9.0.1/24\nINTERFACE[1]=bond1",
			"[{ 10.77.0.101/24} {bond1 10.9.0.1/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]} {bond1 [eth2 eth3] [{mode active-backup} {miimon 100}]}]", 0},
		{"unknown bond", sample, "IPADDRESS1=10.9.0.1/24\nINTERFACE[1]=bond7.2",
			"[{ 10.77.0.101/24}]", "[]", "[10.77.0.254]", "[{bond0 [eth0 eth1] [{mode active-backup} {miimon 100}]}]", 1},
	}
	for _, c := range cases {
		cfg, _ := dsasconf.Parse(c.conf)
		from := base(t, c.cmdline)
		before := fmt.Sprintf("%+v", from)
		pl, errs := FromConf(from, cfg)
		got := []string{fmt.Sprint(pl.Addresses), fmt.Sprint(pl.VLANs), fmt.Sprint(pl.Gateways), fmt.Sprint(pl.Bonds)}
		want := []string{c.addresses, c.vlans, c.gateways, c.bonds}
		if !slices.Equal(got, want) {
			t.Errorf("%s: FromConf = %q; want %q", c.name, got, want)
		}
		if len(errs) != c.errs {
			t.Errorf("%s: FromConf: errors %v; want %d", c.name, errs, c.errs)
		}
		if after := fmt.Sprintf("%+v", from); after != before {
			t.Errorf("%s: FromConf changed its base from %s to %s", c.name, before, after)
		}
	}
}

func TestSysctls(t *testing.T) {
	pl := Plan{Device: "bond0", VLANs: []VLAN{{"bond0.2", "bond0", 2}}}
	if got := (Plan{Device: "bond0"}).Sysctls(); got != nil {
		t.Errorf("Sysctls() without service addresses and VLANs = %v; want none", got)
	}
	pl.Service = []netip.Addr{netip.MustParseAddr("10.77.0.80")}
	want := "[{net/ipv4/conf/all/arp_ignore 1} {net/ipv4/conf/all/arp_announce 2} {net/ipv4/conf/bond0/arp_ignore 1} {net/ipv4/conf/bond0/arp_announce 2} " +
		"{net/ipv4/conf/bond0.2/arp_ignore 1} {net/ipv4/conf/bond0.2/arp_announce 2}]"
	if got := fmt.Sprint(pl.Sysctls()); got != want {
		t.Errorf("Sysctls() = %s; want %s", got, want)
	}
}

func TestNaturalCompare(t *testing.T) {
	in := []string{"virtio10", "virtio9", "0000:00:03.0", "0000:00:03.1/x", "", "0000:00:10.0"}
	slices.SortFunc(in, naturalCompare)
	want := []string{"", "0000:00:03.0", "0000:00:03.1/x", "0000:00:10.0", "virtio9", "virtio10"}
	if !slices.Equal(in, want) {
		t.Errorf("sorted = %q; want %q", in, want)
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(sample)
	f.Add(`dsas.bond=bond0:::mode="active-backup"`)
	f.Add("\"\" = == BOOTIF=")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseCmdline(text)
		if err == nil && p.Server == "" {
			t.Errorf("ParseCmdline(%q): no server and no error", text)
		}
		pl, err := FromCmdline(p)
		if err != nil {
			return
		}
		if p.IP.IsValid() && (len(pl.Addresses) != 1 || pl.Addresses[0].Prefix != p.IP) {
			t.Errorf("FromCmdline(%q): addresses %v; want %v", text, pl.Addresses, p.IP)
		}
		for _, b := range pl.Bonds {
			for _, o := range b.Options {
				if err := dsasconf.CheckBondOption(o.Key, o.Value); err != nil {
					t.Errorf("FromCmdline(%q): option %v: %v", text, o, err)
				}
			}
		}
	})
}
