package dsasconf

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// book is the sample of the book that DSAS was described in, with the site
// variables its MODULES line needs.
const book = `LVSADDRESS=192.168.0.1
LLSADDRESS=192.168.0.2
#---- BaseConfigration ----
SYSTEMNAME=w101
#---- NetworkSetting ----
IPADDRESS0=192.168.1.1/22
GATEWAY[0]=192.168.1.254
#---- HardWare Setting ----
HWTYPE=S6014HT
MODULES=("bond0 arp_ip_target=$LVSADDRESS,$LLSADDRESS")
BTDEVICE=/dev/sda1
SWDEVICE=/dev/sda2
DBDEVICE=
FSDEVICE=
`

func TestParseBook(t *testing.T) {
	c, errs := Parse(book)
	if len(errs) > 0 {
		t.Errorf("Parse(book): errors %v; want none", errs)
	}
	want := &Config{
		SystemName: "w101",
		HWType:     "S6014HT",
		Addresses:  []Address{{N: 0, Prefix: netip.MustParsePrefix("192.168.1.1/22")}},
		Gateways:   []Gateway{{N: 0, Addr: netip.MustParseAddr("192.168.1.254")}},
		Bonds:      []Bond{{Name: "bond0", Options: []Option{{"arp_ip_target", "192.168.0.1,192.168.0.2"}}}},
		Disks:      []Disk{{"BTDEVICE", "/dev/sda1"}, {"SWDEVICE", "/dev/sda2"}},
		Vars: map[string]string{
			"LVSADDRESS": "192.168.0.1", "LLSADDRESS": "192.168.0.2", "SYSTEMNAME": "w101",
			"IPADDRESS0": "192.168.1.1/22", "GATEWAY": "192.168.1.254", "HWTYPE": "S6014HT",
			"MODULES":  "bond0 arp_ip_target=192.168.0.1,192.168.0.2",
			"BTDEVICE": "/dev/sda1", "SWDEVICE": "/dev/sda2", "DBDEVICE": "", "FSDEVICE": "",
		},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Parse(book) = %+v; want %+v", c, want)
	}
}

func TestParseEverything(t *testing.T) {
	c, errs := Parse(`SYSTEMNAME=lb1; export HWTYPE="R1 rev 2"
NET=10.77
IPADDRESS0=$NET.0.103/24
IPADDRESS1="${NET}.9.3/24"   # outside
INTERFACE[1]=bond0.2
GATEWAY=($NET.0.254)
GATEWAY[3]=10.77.9.1
SERVICEADDRESS=("10.77.0.80" '10.77.0.81')
SERVICEADDRESS+=(10.77.0.82)
NAMESERVER="10.77.0.1 10.77.0.2"
SEARCH=(example.net
	lab.example.net)
MTU=9000
BONDING=("bond0 eth0 eth1")
MODULES=(
	"ip_vs conn_tab_bits=16"   # a comment
	"bond0 mode=1 miimon=100 primary=eth0"
	nf_conntrack
)
MODULES+=("bond0 miimon=200")
GREETING='$NET is '"\"$NET\""
LONG=a\
b
`)
	if len(errs) > 0 {
		t.Errorf("Parse: errors %v; want none", errs)
	}
	checks := []struct{ what, got, want string }{
		{"SystemName", c.SystemName, "lb1"},
		{"HWType", c.HWType, "R1 rev 2"},
		{"Addresses", fmt.Sprint(c.Addresses), "[{0 10.77.0.103/24 } {1 10.77.9.3/24 bond0.2}]"},
		{"Gateways", fmt.Sprint(c.Gateways), "[{0 10.77.0.254} {3 10.77.9.1}]"},
		{"ServiceAddresses", fmt.Sprint(c.ServiceAddresses), "[10.77.0.80 10.77.0.81 10.77.0.82]"},
		{"Nameservers", fmt.Sprint(c.Nameservers), "[10.77.0.1 10.77.0.2]"},
		{"Search", fmt.Sprint(c.Search), "[example.net lab.example.net]"},
		{"MTU", fmt.Sprint(c.MTU), "9000"},
		{"Modules", fmt.Sprint(c.Modules), "[{ip_vs conn_tab_bits=16} {nf_conntrack }]"},
		{"Bonds", fmt.Sprint(c.Bonds), "[{bond0 [eth0 eth1] [{mode 1} {miimon 200} {primary eth0}]}]"},
		{"GREETING", c.Vars["GREETING"], `$NET is "10.77"`},
		{"LONG", c.Vars["LONG"], "ab"},
	}
	for _, k := range checks {
		if k.got != k.want {
			t.Errorf("%s = %s; want %s", k.what, k.got, k.want)
		}
	}
}

// TestParseRefusesOneLine checks that each wrong line is named with its number
// and reason, and that the lines around it apply.
func TestParseRefusesOneLine(t *testing.T) {
	cases := []struct {
		line   string
		key    string
		reason string // part of it
	}{
		{"IPADDRESS0=300.1.1.1/22", "IPADDRESS0", "not an address"},
		{"IPADDRESS0=10.0.0.1", "IPADDRESS0", "prefix length is missing"},
		{"IPADDRESS0=10.0.0.0/24", "IPADDRESS0", "network's own"},
		{"IPADDRESS0=10.0.0.255/24", "IPADDRESS0", "broadcast"},
		{"IPADDRESS0=127.0.0.1/8", "IPADDRESS0", "loopback"},
		{"IPADDRESS=10.0.0.1/8", "IPADDRESS", "did you mean IPADDRESS0"},
		{"SYSTEMNAME=W_101", "SYSTEMNAME", "not a host name"},
		{"SYSTEMNAME = w101", "", "no blanks around the ="},
		{"SEARCH=a.net b.net", "", "quotes around a value"},
		{"GATEWAY[0]=router", "GATEWAY[0]", "not an address"},
		{"GATEWAY[0]=192.0.2.1", "GATEWAY[0]", "cannot be reached"},
		{"GATEWAY[0]=10.1.2.3", "GATEWAY[0]", "own address"},
		{"GATEWAY[-1]=10.1.2.254", "GATEWAY", "index -1"},
		{"GATEWAY[999999999]=10.1.2.254", "GATEWAY", "index 999999999"},
		{"INTERFACE[7]=eth0", "INTERFACE[7]", "no IPADDRESS7"},
		{"INTERFACE[5]=bond0.4095", "INTERFACE[5]", "not a device name"},
		{"NAMESERVER=(10.0.0.1 ns1)", "NAMESERVER[1]", "not an address"},
		{`MODULES=("bond0 mode=fastest")`, "MODULES[0]", "active-backup"},
		{`MODULES=("bond0 speed=1")`, "MODULES[0]", "no option"},
		{`MODULES=("bond0 arp_ip_target=10.0.0.1,,10.0.0.2")`, "MODULES[0]", "no IPv4 address"},
		{`MODULES=("bond0 arp_ip_target=1.0.0.1,1.0.0.2,1.0.0.3,1.0.0.4,1.0.0.5,1.0.0.6,1.0.0.7,1.0.0.8,1.0.0.9,1.0.0.10,1.0.0.11,1.0.0.12,1.0.0.13,1.0.0.14,1.0.0.15,1.0.0.16,1.0.0.17")`, "MODULES[0]", "at most 16"},
		{`MODULES=("bond0 miimon=100 arp_interval=250")`, "MODULES[0]", "exclude each other"},
		{`MODULES=("bond0 arp_ip_target=$NOSUCH")`, "MODULES", "$NOSUCH is not set above"},
		{`BONDING=("team0 eth0")`, "BONDING[0]", "bond and a number"},
		{`BONDING=("bond0 eth0 eth0")`, "BONDING[0]", "twice"},
		{"DBDEVICE=vda", "DBDEVICE", "below /dev/"},
		{"DBDEVICE=/dev/../etc", "DBDEVICE", "below /dev/"},
		{"MTU=12", "MTU", "576"},
		{"X=$(reboot)", "X", "command substitution"},
		{"X=`reboot`", "X", "command substitution"},
		{"X=<(reboot)", "X", "process substitution"},
		{"X=(a $(reboot))", "X", "command substitution"},
		{"X=${Y:-$(reboot)}", "X", "command substitution"},
		{"modprobe bonding", "", "is a command"},
		{"A=1 reboot", "", "quotes around"},
		{"[ -n x ] && Y=2", "", "only assignments"},
		{"if true; then Y=2; fi", "", "only assignments"},
		{"f() { Y=2; }", "", "only assignments"},
		{"declare -A Y=2", "", "declare"},
		{">/etc/passwd", "", "redirections"},
		{"Y=1 &", "", "commands are not run"},
		{`X="no end`, "", "quote"},
		{`X="one`, "", "quote missing"}, // the next line holds a quote too, in a comment
		{`X="one two`, "X", "quote missing"},
		{"X=(a b", "", "parenthesis"},
		{"X=)", "", "not shell syntax"},
		{"cat <<EOF", "", ""},
		{"X={1..99999999}; X=({1..99999999})", "X", "more than"},
		{"X=$((1/0))", "X", "zero"},
	}
	for _, k := range cases {
		t.Run(k.line, func(t *testing.T) {
			after := "AFTER=yes"
			if k.line == `X="one` {
				after = "AFTER=yes # 19\" rack"
			}
			if k.line == `X="one two` {
				after = "AFTER=yes #\""
			}
			text := "BEFORE=yes\nIPADDRESS5=10.1.2.3/24\n" + k.line + "\n" + after + "\nIPADDRESS6=10.9.9.9/24\n"
			c, errs := Parse(text)
			if len(errs) != 1 {
				t.Fatalf("Parse: errors %q; want one", errs)
			}
			e := errs[0]
			if e.Line != 3 || e.Key != k.key || !strings.Contains(e.Reason, k.reason) {
				t.Errorf("Parse: error %+v; want line 3, key %q, reason with %q", e, k.key, k.reason)
			}
			if c.Vars["BEFORE"] != "yes" || c.Vars["AFTER"] != "yes" || len(c.Addresses) != 2 {
				t.Errorf("Parse: BEFORE=%q AFTER=%q addresses %v; want the lines around to apply", c.Vars["BEFORE"], c.Vars["AFTER"], c.Addresses)
			}
			if c.Vars["Y"] != "" || c.SystemName != "" {
				t.Errorf("Parse: Y=%q SYSTEMNAME=%q; want the refused line not to apply", c.Vars["Y"], c.SystemName)
			}
		})
	}
}

func TestParseKeepsEarlierValue(t *testing.T) {
	c, errs := Parse("IPADDRESS0=10.0.0.1/24\nMODULES=(ip_vs)\nIPADDRESS0=10.0.0.300/24\nMODULES=(\"bond0 mode=x\")\nDBDEVICE=/dev/vda\nDBDEVICE=\n")
	if len(errs) != 2 {
		t.Errorf("Parse: errors %v; want two", errs)
	}
	if len(c.Addresses) != 1 || c.Addresses[0].Prefix.String() != "10.0.0.1/24" {
		t.Errorf("Addresses = %v; want the earlier, right one", c.Addresses)
	}
	if len(c.Modules) != 1 {
		t.Errorf("Modules = %v; want the earlier, right one", c.Modules)
	}
	if d, ok := c.Disk("DBDEVICE"); ok {
		t.Errorf("Disk(DBDEVICE) = %s; want none: the empty value is the later one", d)
	}
}

func TestLineErrorNamesAll(t *testing.T) {
	_, errs := Parse("\n\nIPADDRESS0=300.1.1.1/22\n")
	if len(errs) != 1 {
		t.Fatalf("Parse: %v; want one error", errs)
	}
	got := errs[0].Error()
	want := `dsas.conf line 3: IPADDRESS0="300.1.1.1/22": not an address; each of the four numbers is 0 to 255; write an address with its prefix length, as 192.168.1.1/22`
	if got != want {
		t.Errorf("Error() = %s; want %s", got, want)
	}
}

func TestParseLimits(t *testing.T) {
	grow := "A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("A=$A$A$A$A$A$A$A$A\n", 12)
	if _, errs := Parse(grow); len(errs) == 0 || !strings.Contains(errs[0].Reason, "bytes") {
		t.Errorf("Parse(growing value): errors %v; want a limit in bytes", errs)
	}
	if _, errs := Parse(strings.Repeat("X=\"\n\"\n(\n", 5000)); len(errs) > maxErrors+1 {
		t.Errorf("Parse(all wrong): %d errors; want at most %d", len(errs), maxErrors+1)
	}
	if _, errs := Parse(strings.Repeat("A=1\n", 100000)); len(errs) == 0 {
		t.Errorf("Parse(400 kB): no error; want one about the size")
	}
}

// TestAgreesWithBash sources files with bash itself and compares every
// variable: what we read must be what a service's script reads.
func TestAgreesWithBash(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	texts := []string{
		book,
		"A=1\nB=$A$A\nC=\"$A b\"\nD='$A b'\nE=$'t\\tab'\nF=a\\ b\nG=\\$A\\\"\nH=a\\\\\nI=\\~x\n",
		"A=(a b \"c d\")\nA+=(e)\nA[7]=x\nA[7]+=y\nB=${A[1]}\nC=${A[@]}\nD=${#A[@]}\n",
		"A=(a [5]=b c)\nA=${A[6]}\n",
		"N=3\nA=$((N*2+1))\nGATEWAY[N-3]=10.0.0.1\nGATEWAY[1]=10.0.0.2\n",
		"A=x; B=y C=z\nexport D=w E\nA+=more\n",
		"P=/dev/sda\nDBDEVICE=${P}1\nQ=${P##*/}\nR=${P/sda/vda}\nS=${T:-none}\nU=${P:5:2}\n",
		"L=\"a b c\"\nA=($L)\nB=(\"$L\")\nC=({1..3})\nD={1..3}\n",
		"A=one\\\ntwo\nB=(x # comment\n y\n)\n",
		"A=~root\nB=\"~root\"\n"[len("A=~root\n"):],
		"A=*\nB=(\"*\" '?')\n",
	}
	for _, text := range texts {
		c, errs := Parse(text)
		if len(errs) > 0 {
			t.Errorf("Parse(%q): errors %v; want none", text, errs)
		}
		for _, name := range slices.Sorted(keys(c.Vars)) {
			cmd := exec.Command("bash", "--norc", "--noprofile", "-c", "source /dev/stdin; IFS=' '; printf %s \"${"+name+"[*]}\"")
			cmd.Stdin = strings.NewReader(text)
			cmd.Env = []string{"PATH=/nonexistent", "HOME=~"}
			cmd.Dir = t.TempDir()
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("bash: %v: %s", err, stderr.String())
			}
			if c.Vars[name] != string(out) {
				t.Errorf("Parse(%q): %s=%q; bash says %q", text, name, c.Vars[name], out)
			}
		}
	}
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(book)
	for _, s := range []string{
		"A=$((A", "A[$((1+1))]=x", "A=(\"", "A=${A[@]/x/y}", "A=~x\nB=$HOME", "export -n A", "A=$'\\x00'",
		"A=1 <<E\nE\n", "if", "A=${!B}\nB=A", "a[a[a[0]]]=1", "A=\\\n", "\\", "A=`", "IPADDRESS0=::/0",
		"BONDING=(\"bond0 eth0\" \"bond1 eth0\")\nMODULES=(\"bond0 primary=eth9\")", "A=${A:=b}", "A=$((A++))", "A=${A@Q}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, errs := Parse(text)
		n := strings.Count(text, "\n") + 1
		for _, e := range errs {
			if e.Line < 1 || e.Line > n || e.Reason == "" {
				t.Errorf("Parse(%q): error %+v; want a line from 1 to %d and a reason", text, e, n)
			}
		}
		for k, v := range c.Vars {
			if len(v) > (maxValue+1)*(maxElems+1)*2 || strings.ContainsAny(v, "\n\x00") {
				t.Errorf("Parse(%q): %s has %d bytes or a newline", text, k, len(v))
			}
		}
		for _, a := range c.Addresses {
			if why := checkPrefix(a.Prefix.String()); why != "" {
				t.Errorf("Parse(%q): address %s: %s", text, a.Prefix, why)
			}
		}
		// Whatever is accepted can be written again and read the same.
		var b strings.Builder
		for _, a := range c.Addresses {
			fmt.Fprintf(&b, "IPADDRESS%d=%s\n", a.N, a.Prefix)
			if a.Device != "" {
				fmt.Fprintf(&b, "INTERFACE[%d]=%s\n", a.N, a.Device)
			}
		}
		if again, errs := Parse(b.String()); len(errs) > 0 || !reflect.DeepEqual(again.Addresses, c.Addresses) {
			t.Errorf("Parse(%q) = %v, %v; want %v", b.String(), again.Addresses, errs, c.Addresses)
		}
	})
}

// TestParseRendered reads what the server renders: the two must agree.
func TestParseRendered(t *testing.T) {
	files, err := filepath.Glob("../../roles/testdata/dsas.conf-*")
	if err != nil || len(files) == 0 {
		t.Fatalf("goldens of roles: %v, %v; want some", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c, errs := Parse(string(text))
		if len(errs) > 0 {
			t.Errorf("Parse(%s): errors %v; want none", f, errs)
		}
		if c.SystemName == "" || len(c.Addresses) == 0 {
			t.Errorf("Parse(%s) = %+v; want a name and an address", f, c)
		}
		if bond := strings.Contains(string(text), "BONDING="); bond && (len(c.Bonds) != 1 || len(c.Bonds[0].Ports) == 0) {
			t.Errorf("Parse(%s): bonds %v; want one with ports", f, c.Bonds)
		}
	}
}
