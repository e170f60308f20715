package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dsas"
)

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadConfig(t *testing.T) {
	got, err := loadConfig(writeFile(t, "dsas.yaml", `
# a comment
state: /srv/dsas
interfaces: [eth1, eth2]
httpPort: 8081
heartbeat: 5s
discovery: true
bond: {name: bond1, options: mode=active-backup miimon=50}
variables: {LVSADDRESS: 10.0.0.1}
subnets:
  - prefix: 10.0.0.0/22
    server: 10.0.0.5
    gateway: 10.0.0.1
    dns: [10.0.0.2, 10.0.0.3]
    domain: example
    pool: 10.0.3.200-10.0.3.250
    lease: 2h
`))
	want := config{
		State: "/srv/dsas", Interfaces: []string{"eth1", "eth2"}, HTTPPort: 8081, Heartbeat: 5 * time.Second, Discovery: true,
		Bond: bondConfig{"bond1", "mode=active-backup miimon=50"}, Variables: map[string]string{"LVSADDRESS": "10.0.0.1"},
		Subnets: []subnetConfig{{
			Prefix: netip.MustParsePrefix("10.0.0.0/22"), Server: netip.MustParseAddr("10.0.0.5"), Gateway: netip.MustParseAddr("10.0.0.1"),
			DNS: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}, Domain: "example", Pool: "10.0.3.200-10.0.3.250", Lease: 2 * time.Hour,
		}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("loadConfig = %+v, %v; want %+v", got, err, want)
	}
	if got.bondParameter() != "bond1:mode=active-backup:miimon=50" {
		t.Errorf("bondParameter = %s", got.bondParameter())
	}
	for name, text := range map[string]string{"empty": "", "blanks": " \n\n", "comments": "# nothing\n"} {
		if got, err := loadConfig(writeFile(t, "dsas.yaml", text)); err != nil || !reflect.DeepEqual(got, config{}) {
			t.Errorf("%s: loadConfig = %+v, %v; want the zero value", name, got, err)
		}
	}
	// What is wrong is told with its line.
	for _, c := range []struct{ name, text, line, words string }{
		{"unknown key", "state: /srv\nintrefaces: [eth1]\n", "2", "intrefaces"},
		{"unknown key in a subnet", "subnets:\n  - prefix: 10.0.0.0/24\n    gatway: 10.0.0.1\n", "3", "gatway"},
		{"wrong type", "state: /srv\nhttpPort: many\n", "2", "many"},
		{"not a prefix", "subnets:\n  - prefix: 10.0.0.0\n", "2", "10.0.0.0"},
		{"not an address", "subnets:\n  - prefix: 10.0.0.0/24\n    server: 10.0.0.300\n", "3", "10.0.0.300"},
		{"not a duration", "heartbeat: soon\n", "1", "soon"},
		{"twice", "state: /a\nstate: /b\n", "2", "state"},
		{"no YAML", "state: [\n", "1", ""},
		{"a tab", "bond:\n\tname: x\n", "2", ""},
		{"a bond's mode", "state: /srv\nbond:\n  options: mode=active-standby miimon=100\n", "3", "use one of balance-rr, active-backup,"},
		{"a bond's option", "bond:\n  name: bond0\n  options: mode=active-backup miimonn=100\n", "3", `did you mean "miimon"?`},
		{"a bond without a monitor", "bond: {options: mode=active-backup}\n", "1", "add miimon=100"},
		{"a bond's name", "bond:\n  name: eth0\n", "2", "use one as bond0"},
	} {
		path := writeFile(t, "dsas.yaml", c.text)
		_, err := loadConfig(path)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "["+c.line+":") || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: loadConfig = %v; want an error that names %s, line %s and %q", c.name, err, path, c.line, c.words)
		}
	}
	for text, want := range map[string]string{
		"intrefaces: [eth1]\n":                      `did you mean "interfaces"?`,
		"subnets:\n  - prefx: 10.0.0.0/24\n":        `did you mean "prefix"?`,
		"interfaces: eth1\n":                        "write a list: [a, b]",
		"bond:\n\tname: x\n":                        "not by tabs",
		"subnets:\n  - routes: [{too: 10.0.0.1}]\n": `did you mean "to"?`,
	} {
		_, err := loadConfig(writeFile(t, "dsas.yaml", text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.TrimSpace(err.Error()) != err.Error() {
			t.Errorf("%q: loadConfig = %q; want an error that says %q, and no line end", text, err, want)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := loadConfig(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("loadConfig(missing) = %v; want an error that names it", err)
	}
	if _, err := os.Stat(defaultConfigPath); errors.Is(err, os.ErrNotExist) {
		if _, err := loadConfig(defaultConfigPath); err != nil {
			t.Errorf("loadConfig(default, missing) = %v; want nil", err)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	plain, hash := writeFile(t, "plain", "secret\n"), writeFile(t, "hash", "$6$salt$hash\n")
	for _, c := range []struct {
		name   string
		change func(*config)
		want   string // "": nothing wrong
	}{
		{"defaults", func(*config) {}, ""},
		{"port", func(c *config) { c.HTTPPort = 70_000 }, "httpPort 70000"},
		{"negative port", func(c *config) { c.HTTPPort = -1 }, "httpPort -1"},
		{"heartbeat", func(c *config) { c.Heartbeat = time.Millisecond }, "heartbeat 1ms"},
		{"short lease", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Lease: time.Second}}
		}, "lease 1s"},
		{"console password", func(c *config) { c.ConsolePasswordFile = plain }, "holds no crypt(5) hash"},
		{"console password hash", func(c *config) { c.ConsolePasswordFile = hash }, ""},
		{"cmdline with quotes", func(c *config) { c.Cmdline = `dsas.shell init="a b"` }, "kernel argument"},
		{"bond with a command", func(c *config) { c.Bond.Options = "mode=1;reboot" }, "mode=1;reboot"},
		{"bond without its targets", func(c *config) { c.Bond.Options = "mode=1 arp_interval=500" }, "add arp_ip_target="},
		{"monitoring without a port", func(c *config) { c.MetricsListen = "10.9.0.5" }, `metricsListen "10.9.0.5": the port is missing; write 10.9.0.5:9644`},
		{"monitoring on IPv6 without a port", func(c *config) { c.MetricsListen = "fd00::5" }, "write [fd00::5]:9644"},
		{"monitoring on a port alone", func(c *config) { c.MetricsListen = "9644" }, "write an address and a port, as 10.9.0.5:9644"},
		{"monitoring on a named port", func(c *config) { c.MetricsListen = "10.9.0.5:metrics" }, `port "metrics": use a number`},
		{"monitoring on a name", func(c *config) { c.MetricsListen = "master:9644" }, `"master" is no address`},
		{"monitoring everywhere", func(c *config) { c.MetricsListen = ":9644" }, ""},
		{"pages without a port", func(c *config) { c.Listen = "127.0.0.1" }, "write 127.0.0.1:8443"},
		{"gateway elsewhere", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}}
		}, "gateway 10.1.0.1"},
		{"behind a relay", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Server: netip.MustParseAddr("10.0.0.1"), Gateway: netip.MustParseAddr("10.5.0.1")}}
		}, ""},
		{"a bond that asks for what no router passes on", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Server: netip.MustParseAddr("10.0.0.1"), Gateway: netip.MustParseAddr("10.5.0.1")}}
			c.Bond.Options = "mode=active-backup arp_interval=500 arp_ip_target=10.5.0.1,10.0.0.1"
		}, "arp_ip_target 10.0.0.1 is not in it"},
		{"the same on our own segment", func(c *config) { // where we answer for all our addresses
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.5.0.0/24")}}
			c.Bond.Options = "mode=active-backup arp_interval=500 arp_ip_target=10.0.0.1"
		}, ""},
		{"a relayed subnet's own bond", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Server: netip.MustParseAddr("10.0.0.1"), Gateway: netip.MustParseAddr("10.5.0.1"),
				BondOptions: "mode=active-backup arp_interval=500 arp_ip_target=10.5.0.1"}}
			c.Bond.Options = "mode=active-backup arp_interval=500 arp_ip_target=10.0.0.1"
		}, ""},
		{"a subnet's bond with a command", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), BondOptions: "mode=1;reboot"}}
		}, "bondOptions: kernel argument"},
		{"no pool's range", func(c *config) {
			c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.0.0.0/24")}}
			c.DefaultPool = "some"
		}, `pool "some"`},
		{"a subnet", func(c *config) { c.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.0.0.0/24")}} }, ""},
		{"no prefix", func(c *config) { c.Subnets = []subnetConfig{{}} }, "give its prefix"},
		{"variable with a blank", func(c *config) { c.Variables = map[string]string{"LVS ADDRESS": "10.0.0.1"} }, `"LVS ADDRESS"`},
		{"variable of our own", func(c *config) { c.Variables = map[string]string{"SYSTEMNAME": "w"} }, "SYSTEMNAME"},
		{"variables", func(c *config) { c.Variables = map[string]string{"LVSADDRESS": "10.0.0.1"} }, ""},
		{"registry", func(c *config) { c.Registry = "https://10.0.0.9:5000/team" }, ""},
		{"registry by name", func(c *config) { c.Registry = "http://registry.example" }, "name it by its address"},
		{"registry without a scheme", func(c *config) { c.Registry = "10.0.0.9:5000" }, "registry"},
		{"registry with a password", func(c *config) { c.Registry = "http://u:secret@10.0.0.9" }, "u:xxxxx@"},
		{"negative heartbeat", func(c *config) { c.Heartbeat = -time.Second }, "heartbeat -1s"},
	} {
		var cfg config
		cfg.setDefaults()
		c.change(&cfg)
		if err := cfg.check(); c.want == "" && err != nil || c.want != "" && (!errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: check = %v; want ErrInvalid that names %q", c.name, err, c.want)
		}
	}
}

func TestDefaultPool(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.0.0/24":   "10.0.0.223-10.0.0.254",
		"10.0.0.0/22":   "10.0.3.223-10.0.3.254",
		"10.0.0.0/8":    "10.255.255.223-10.255.255.254",
		"10.0.0.128/25": "10.0.0.223-10.0.0.254",
		"10.0.0.64/26":  "10.0.0.96-10.0.0.126",
		"10.0.0.0/27":   "10.0.0.16-10.0.0.30",
		"10.0.0.8/29":   "10.0.0.12-10.0.0.14",
		"10.0.0.0/30":   "none",
		"10.0.0.0/31":   "none",
		"10.0.0.1/32":   "none",
	} {
		p := netip.MustParsePrefix(prefix)
		got := defaultPool(p)
		if got.String() != want {
			t.Errorf("defaultPool(%s) = %s; want %s", prefix, got.String(), want)
		}
		if got.First.IsValid() {
			s := dsas.Subnet{Prefix: p, Server: p.Addr().Next(), Pool: got}
			if err := s.Check(); err != nil {
				t.Errorf("defaultPool(%s): %v", prefix, err)
			}
		}
	}
}

func TestSubnet(t *testing.T) {
	addrs := []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24"), netip.MustParsePrefix("10.1.0.5/24")}
	prefix := netip.MustParsePrefix("10.1.0.77/24") // with host bits, as people write it
	far := netip.MustParsePrefix("10.9.0.0/24")
	for _, c := range []struct {
		name       string
		in         subnetConfig
		pool, want string // want: in the error
	}{
		{"the default", subnetConfig{Prefix: prefix}, "10.1.0.223-10.1.0.254", ""},
		{"none", subnetConfig{Prefix: prefix, Pool: "none"}, "none", ""},
		{"given", subnetConfig{Prefix: prefix, Pool: "10.1.0.10-10.1.0.20"}, "10.1.0.10-10.1.0.20", ""},
		{"with blanks", subnetConfig{Prefix: prefix, Pool: "10.1.0.10 - 10.1.0.20"}, "10.1.0.10-10.1.0.20", ""},
		{"one address", subnetConfig{Prefix: prefix, Pool: "10.1.0.10"}, "", `pool "10.1.0.10": write it as`},
		{"words", subnetConfig{Prefix: prefix, Pool: "all"}, "", `pool "all": write it as`},
		{"last byte alone", subnetConfig{Prefix: prefix, Pool: "10.1.0.10-20"}, "", "write it as"},
		{"three", subnetConfig{Prefix: prefix, Pool: "10.1.0.10-10.1.0.20-10.1.0.30"}, "", "write it as"},
		{"backwards", subnetConfig{Prefix: prefix, Pool: "10.1.0.20-10.1.0.10"}, "", "ends before it begins"},
		{"elsewhere", subnetConfig{Prefix: prefix, Pool: "10.2.0.10-10.2.0.20"}, "", "does not lie in it"},
		{"IPv6", subnetConfig{Prefix: prefix, Pool: "2001:db8::1-2001:db8::2"}, "", "does not lie in it"},
		{"no prefix", subnetConfig{}, "", "give its prefix"},
		{"an IPv6 prefix", subnetConfig{Prefix: netip.MustParsePrefix("2001:db8::/64")}, "", "give its prefix"},
		{"nobody's", subnetConfig{Prefix: netip.MustParsePrefix("10.9.0.0/24")}, "", "no interface has an address in it"},
		{"our address to come", subnetConfig{Prefix: far, Server: netip.MustParseAddr("10.9.0.1")}, "10.9.0.223-10.9.0.254", ""},
		{"behind a relay", subnetConfig{Prefix: far, Server: netip.MustParseAddr("10.0.0.5"), Gateway: netip.MustParseAddr("10.9.0.1")}, "10.9.0.223-10.9.0.254", ""},
		{"behind a relay, no way out", subnetConfig{Prefix: far, Server: netip.MustParseAddr("10.0.0.5")}, "", "give gateway:"},
		{"behind a relay, not our address", subnetConfig{Prefix: far, Server: netip.MustParseAddr("10.0.0.6")}, "", "10.0.0.6 is no address of the interfaces served (10.0.0.5, 10.1.0.5)"},
		{"gateway elsewhere", subnetConfig{Prefix: prefix, Gateway: netip.MustParseAddr("10.9.0.1")}, "", "gateway 10.9.0.1 is not in it"},
		{"two ranges", subnetConfig{Prefix: prefix, Pool: "10.1.0.40-10.1.0.50, 10.1.0.10-10.1.0.20"}, "10.1.0.10-10.1.0.50", ""},
		{"two ranges that meet", subnetConfig{Prefix: prefix, Pool: "10.1.0.10-10.1.0.20, 10.1.0.21-10.1.0.30"}, "10.1.0.10-10.1.0.30", ""},
		{"two ranges that overlap", subnetConfig{Prefix: prefix, Pool: "10.1.0.10-10.1.0.20, 10.1.0.20-10.1.0.30"}, "", "overlap at 10.1.0.20"},
		{"excluded", subnetConfig{Prefix: prefix, Exclude: []string{"10.1.0.230", "10.1.0.240 - 10.1.0.250"}}, "10.1.0.223-10.1.0.254", ""},
		{"excluded words", subnetConfig{Prefix: prefix, Exclude: []string{"printer"}}, "", `exclude "printer": write it as`},
		{"excluded elsewhere", subnetConfig{Prefix: prefix, Exclude: []string{"10.2.0.1"}}, "", "exclude 10.2.0.1-10.2.0.1 does not lie in it"},
	} {
		s, err := c.in.subnet(addrs)
		if c.want != "" {
			if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: subnet = %v; want ErrInvalid that says %q", c.name, err, c.want)
			}
			continue
		}
		if err != nil || s.Pool.String() != c.pool || s.Lease != time.Hour {
			t.Errorf("%s: subnet = %+v, %v; want pool %s, lease 1h", c.name, s, err, c.pool)
		}
		if c.in.Prefix == prefix && (s.Prefix.String() != "10.1.0.0/24" || s.Server.String() != "10.1.0.5") {
			t.Errorf("%s: subnet = %s of %s; want 10.1.0.0/24 of 10.1.0.5", c.name, s.Prefix, s.Server)
		}
	}
}

// TestPoolRanges: what may be given out, where the pool is in parts.
func TestPoolRanges(t *testing.T) {
	no := false
	s, err := subnetConfig{
		Prefix: netip.MustParsePrefix("10.1.0.0/24"), Server: netip.MustParseAddr("10.1.0.12"), Gateway: netip.MustParseAddr("10.1.0.13"),
		Pool: "10.1.0.10-10.1.0.20,10.1.0.40-10.1.0.41", Exclude: []string{"10.1.0.15-10.1.0.18"}, Authoritative: &no,
	}.subnet(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for a := s.Prefix.Addr(); s.Prefix.Contains(a); a = a.Next() {
		if s.MayLease(a) {
			got = append(got, strings.TrimPrefix(a.String(), "10.1.0."))
		}
	}
	if want := "10 11 14 19 20 40 41"; strings.Join(got, " ") != want || s.PoolSize() != 7 || !s.Silent {
		t.Errorf("addresses that may be leased = %s (%d, silent %t); want %s (7, silent)", got, s.PoolSize(), s.Silent, want)
	}
}

func TestSubnets(t *testing.T) {
	c := config{Interfaces: []string{"lo"}}
	list, err := c.subnets()
	if err != nil || len(list) == 0 || list[0].Prefix.String() != "127.0.0.0/8" || list[0].Server.String() != "127.0.0.1" {
		t.Errorf("subnets(lo) = %+v, %v; want 127.0.0.0/8", list, err)
	}
	sub := func(p, pool string) subnetConfig {
		return subnetConfig{Prefix: netip.MustParsePrefix(p), Server: netip.MustParsePrefix(p).Addr().Next(), Pool: pool}
	}
	c.Subnets = []subnetConfig{sub("10.0.0.0/24", ""), sub("10.0.1.0/24", "none")}
	c.DefaultPool = "none"
	if list, err = c.subnets(); err != nil || len(list) != 2 || list[0].Pool.First.IsValid() {
		t.Errorf("subnets with --pool none = %+v, %v; want two without a pool", list, err)
	}
	for _, c := range []struct {
		name string
		c    config
		want string
	}{
		{"no interface", config{}, "--interface"},
		{"no such interface", config{Interfaces: []string{"dsas-none"}}, `"dsas-none"`},
		{"overlap", config{Interfaces: []string{"lo"}, Subnets: []subnetConfig{sub("10.0.0.0/16", ""), sub("10.0.3.0/24", "")}}, "10.0.0.0/16 and 10.0.3.0/24 overlap"},
		{"discovery without a pool", config{Interfaces: []string{"lo"}, Subnets: []subnetConfig{sub("10.0.0.0/24", "none")}, Discovery: true}, "discovery: no subnet has a pool"},
	} {
		if list, err := c.c.subnets(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: subnets = %+v, %v; want an error that says %q", c.name, list, err, c.want)
		}
	}
	other := config{Interfaces: []string{"lo"}, Subnets: []subnetConfig{sub("10.0.0.0/24", "none")}, Discovery: true, NoDHCP: true}
	if _, err := other.subnets(); err != nil {
		t.Errorf("discovery beside another DHCP server: %v; want nil: it gives the addresses", err)
	}
}

const (
	goodKey  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIPVxLkX3S5SbGLsaVVdDl2Ms1wDQcyYsFrLaBvpDoF8 someone"
	otherKey = `from="10.0.0.0/8",no-pty ` + goodKey
)

func TestCheckKeys(t *testing.T) {
	for name, text := range map[string]string{"one": goodKey, "options, comments, blanks": "# who\n\n  " + otherKey + "\n" + goodKey + "\n", "empty": ""} {
		if err := checkKeys(writeFile(t, "keys", text)); err != nil {
			t.Errorf("%s: checkKeys = %v; want nil", name, err)
		}
	}
	for name, text := range map[string]string{
		"a word": goodKey + "\n\nnonsense\n", "half a key": "# c\n\n" + goodKey[:40], "a private key": "\n\n-----BEGIN OPENSSH PRIVATE KEY-----\n",
	} {
		path := writeFile(t, "keys", text)
		if err := checkKeys(path); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), path+" line 3") {
			t.Errorf("%s: checkKeys = %v; want ErrInvalid that names line 3", name, err)
		}
	}
	if err := checkKeys(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("checkKeys(missing) = %v; want it told", err)
	}
}

func TestDefaultKeys(t *testing.T) {
	if _, err := os.Stat("/etc/dsas/authorized_keys"); err == nil {
		t.Skip("this machine has /etc/dsas/authorized_keys")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	if got := defaultKeys(); got != "" {
		t.Errorf("defaultKeys without any = %q; want none", got)
	}
	path := filepath.Join(home, ".ssh", "authorized_keys")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"": "", goodKey: path} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := defaultKeys(); got != want {
			t.Errorf("defaultKeys with %d bytes in %s = %q; want %q", len(text), path, got, want)
		}
	}
}

func TestNodeProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DSAS_LIB", dir)
	for name, mode := range map[string]os.FileMode{"dsas-init": 0o755, "bb": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := nodeProgram("dsas-init"); err != nil || got != filepath.Join(dir, "dsas-init") {
		t.Errorf("nodeProgram(dsas-init) = %s, %v; want it in %s", got, err, dir)
	}
	for _, name := range []string{"bb", "none"} { // not executable; not there
		if got, err := nodeProgram(name); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "make build") {
			t.Errorf("nodeProgram(%s) = %q, %v; want ErrNotFound that says where it looked and the way out", name, got, err)
		}
	}
}

// TestBuildImagesRefuses: a wrong name is told before anything is built.
func TestBuildImagesRefuses(t *testing.T) {
	state := t.TempDir()
	cfg := config{State: state, Roles: filepath.Join(state, "roles")}
	_, err := buildImages(t.Context(), cfg, buildRequest{Roles: []string{"web", "wbe"}})
	if !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "wbe") {
		t.Errorf("buildImages(wbe) = %v; want ErrNotFound that names it", err)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) != 0 {
		t.Errorf("state folder holds %v, %v; want nothing", entries, err)
	}
}

func TestProxyDHCPConfig(t *testing.T) {
	c := config{ProxyDHCP: true, NoDHCP: true}
	c.setDefaults()
	if err := c.check(); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Errorf("check of noDHCP with proxyDHCP = %v; want a refusal", err)
	}
	c = config{Interfaces: []string{"lo"}, ProxyDHCP: true, Discovery: true, Subnets: []subnetConfig{{Prefix: netip.MustParsePrefix("127.0.0.0/24"), Pool: "127.0.0.9-127.0.0.10"}}}
	subnets, err := c.subnets()
	if err != nil || len(subnets) != 1 || subnets[0].Pool.First.IsValid() {
		t.Errorf("subnets with proxyDHCP = %+v, %v; want no pool, and discovery without one", subnets, err)
	}
}
