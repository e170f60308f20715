package roles

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"dsas"
)

var update = flag.Bool("update", false, "write the goldens in testdata anew")

// golden compares got with testdata/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	p := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s(run with -update if the change is meant)", p, got, want)
	}
}

func peer(name, addr, role string) Peer { return Peer{name, netip.MustParseAddr(addr), role} }

// fleet is an Input for node name of role, in a fleet of two balancers, two
// web nodes and two sites.
func fleet(t *testing.T, def Definition, name, addr string) Input {
	t.Helper()
	web := []Peer{peer("w102", "10.77.0.102", "web"), peer("w101", "10.77.0.101", "web")}
	site := func(name, addr string, port uint16, check dsas.SiteCheck, servers []Peer) Site {
		s := dsas.Site{Name: name, Address: netip.MustParseAddr(addr), Port: port, Check: check}
		return Site{s.WithDefaults(), servers}
	}
	return Input{
		Role: def.Role,
		Node: dsas.Node{
			Name: name, Role: def.Role.Name, Address: netip.MustParsePrefix(addr + "/24"),
			NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 1, 1}}, {MAC: dsas.MAC{0x52, 0x54, 0, 0, 1, 2}}},
			BMC:  &dsas.BMC{Kind: "ipmi", Address: "10.77.1.1", User: "u", Password: "sekrit"},
		},
		Subnet: dsas.Subnet{
			Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"),
			Gateway: netip.MustParseAddr("10.77.0.254"), DNS: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, Domain: "lab.example",
		},
		Nodes: append([]Peer{peer("w104", "10.77.0.104", "lb"), peer("w103", "10.77.0.103", "lb")}, web...),
		Sites: []Site{
			site("shop", "10.77.0.201", 8080, dsas.SiteCheck{Kind: "tcp"}, web[:1]),
			site("blog", "10.77.0.200", 80, dsas.SiteCheck{Path: "/healthz"}, web),
			site("empty", "10.77.0.200", 81, dsas.SiteCheck{}, nil),
		},
		Settings: Settings{Variables: map[string]string{"LVSADDRESS": "10.77.0.200", "LLSADDRESS": "10.77.0.210"}},
	}
}

func renderFile(t *testing.T, def Definition, in Input, path string) []byte {
	t.Helper()
	files, err := Render(def, in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Path == path {
			return f.Content
		}
	}
	t.Fatalf("Render: no %s", path)
	return nil
}

func TestRenderGoldens(t *testing.T) {
	set := shippedSet(t)
	lb, web, db := get(t, set, "lb"), get(t, set, "web"), get(t, set, "db")

	in := fleet(t, lb, "w103", "10.77.0.103")
	golden(t, "keepalived.conf", renderFile(t, lb, in, "/etc/keepalived/keepalived.conf"))
	golden(t, "hosts", renderFile(t, lb, in, "/etc/hosts"))
	golden(t, "resolv.conf", renderFile(t, lb, in, "/etc/resolv.conf"))
	golden(t, "keepalived-nosites.conf", func() []byte {
		in := in
		in.Sites = nil
		return renderFile(t, lb, in, "/etc/keepalived/keepalived.conf")
	}())
	golden(t, "keepalived-alone.conf", func() []byte {
		in := in
		in.Nodes, in.Sites = nil, in.Sites[1:2]
		return renderFile(t, lb, in, "/etc/keepalived/keepalived.conf")
	}())

	in = fleet(t, web, "w101", "10.77.0.101")
	golden(t, "index.html", renderFile(t, web, in, "/var/www/dsas/index.html"))

	for name, c := range map[string]struct {
		def    Definition
		change func(*Input)
	}{
		"dsas.conf-lb": {lb, func(in *Input) {
			in.Node.Interfaces = []dsas.Interface{{Device: "bond0.2", Address: netip.MustParsePrefix("198.51.100.3/24")}}
			in.Settings.Bond = "bond0:mode=active-backup:arp_interval=250:arp_ip_target=10.77.0.1"
		}},
		"dsas.conf-web": {web, func(in *Input) { in.Node.Conf = "HWTYPE=S6014HT\r\nGATEWAY[0]=$LVSADDRESS\n\n" }},
		"dsas.conf-db": {db, func(in *Input) {
			in.Node.NICs = in.Node.NICs[:1]
			in.Node.Disks = map[string]string{"SWDEVICE": "/dev/vda2", "DBDEVICE": "/dev/disk/by-path/pci-0000:00:05.0"}
		}},
	} {
		in := fleet(t, c.def, "w101", "10.77.0.101")
		c.change(&in)
		text, err := Conf(c.def, in)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, []byte(text))
	}
}

// The same fleet told in another order gives the same files: else every change
// anywhere would reload every balancer.
func TestRenderDoesNotDependOnOrder(t *testing.T) {
	lb := get(t, shippedSet(t), "lb")
	in := fleet(t, lb, "w103", "10.77.0.103")
	want := renderFile(t, lb, in, "/etc/keepalived/keepalived.conf")
	in.Sites[0], in.Sites[1] = in.Sites[1], in.Sites[0]
	in.Nodes[0], in.Nodes[1] = in.Nodes[1], in.Nodes[0]
	in.Nodes = append(in.Nodes, in.Nodes[0])
	if got := renderFile(t, lb, in, "/etc/keepalived/keepalived.conf"); !bytes.Equal(got, want) {
		t.Errorf("keepalived.conf after reordering:\n%s\nwant\n%s", got, want)
	}
}

func TestPriorityAndRouterID(t *testing.T) {
	lb := get(t, shippedSet(t), "lb")
	first, second := fleet(t, lb, "w103", "10.77.0.103"), fleet(t, lb, "w104", "10.77.0.104")
	if a, b := first.Priority(), second.Priority(); a != 200 || b != 199 {
		t.Errorf("Priority of w103, w104 = %d, %d; want 200, 199", a, b)
	}
	a, err1 := first.VirtualRouterID()
	b, err2 := second.VirtualRouterID()
	if a != b || a < 1 || a > 255 || err1 != nil || err2 != nil {
		t.Errorf("VirtualRouterID = %d, %d (%v, %v); want the same of 1 to 255", a, b, err1, err2)
	}
	first.Settings.VirtualRouterIDs = map[string]int{"lb": 7}
	if got, _ := first.VirtualRouterID(); got != 7 {
		t.Errorf("VirtualRouterID with a setting = %d; want 7", got)
	}
	first.Settings.VirtualRouterIDs["lb"] = 256
	if _, err := Render(lb, first); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Render with router id 256: %v; want ErrInvalid", err)
	}
	many := first
	many.Settings = Settings{}
	for i := range 300 {
		many.Nodes = append(many.Nodes, peer(fmt.Sprintf("a%03d", i), fmt.Sprintf("10.78.%d.%d", i/250, i%250+1), "lb"))
	}
	if got := many.Priority(); got != 1 {
		t.Errorf("Priority behind 300 others = %d; want 1", got)
	}
}

func TestRenderRefuses(t *testing.T) {
	lb := get(t, shippedSet(t), "lb")
	for name, c := range map[string]struct {
		change func(*Input)
		want   error
		says   string
	}{
		"node name":   {func(in *Input) { in.Node.Name = "a b" }, dsas.ErrInvalid, "node name"},
		"no address":  {func(in *Input) { in.Node.Address = netip.Prefix{} }, dsas.ErrInvalid, "no IPv4 address"},
		"peer name":   {func(in *Input) { in.Nodes[0].Name = "x\n10.0.0.1 evil" }, dsas.ErrInvalid, "node name"},
		"server name": {func(in *Input) { in.Sites[0].Servers[0].Name = "x}" }, dsas.ErrInvalid, "node name"},
		"domain":      {func(in *Input) { in.Subnet.Domain = "a\nnameserver 192.0.2.66" }, dsas.ErrInvalid, "domain"},
		"check path":  {func(in *Input) { in.Sites[1].Check.Path = "/\n}\nnotify /bin/x" }, dsas.ErrInvalid, "check path"},
		"scheduler":   {func(in *Input) { in.Sites[1].Scheduler = "wlc\n" }, dsas.ErrInvalid, "scheduler"},
		"two on one":  {func(in *Input) { in.Sites[2].Port = 80 }, dsas.ErrConflict, "sites blog and empty"},
		"bond":        {func(in *Input) { in.Settings.Bond = "bond0:mode=x}\n" }, dsas.ErrInvalid, "bond"},
		"bond name":   {func(in *Input) { in.Settings.Bond = "b d:mode=active-backup" }, dsas.ErrInvalid, "bond"},
	} {
		in := fleet(t, lb, "w103", "10.77.0.103")
		c.change(&in)
		if _, err := Render(lb, in); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), in.Node.Name) {
			t.Errorf("%s: Render error = %v; want %v that says %q and names the node", name, err, c.want, c.says)
		}
	}
}

// What drives the node's power is no template's business.
func TestTemplatesDoNotSeeTheBMC(t *testing.T) {
	def := Definition{
		Role: dsas.Role{Name: "x", Templates: []dsas.Template{{Source: "t", Path: "/etc/t"}}},
		FS:   fstest.MapFS{"templates/t": {Data: []byte("{{with .Node.BMC}}{{.Password}}{{end}}{{printf \"%+v\" .}}")}},
	}
	in := fleet(t, def, "w101", "10.77.0.101")
	if got := renderFile(t, def, in, "/etc/t"); bytes.Contains(got, []byte("sekrit")) {
		t.Errorf("a template saw the power password: %s", got)
	}
	if in.Node.BMC == nil {
		t.Error("Render took the BMC out of the caller's node")
	}
}

func TestRenderedFileIsBounded(t *testing.T) {
	def := Definition{
		Role: dsas.Role{Name: "x", Templates: []dsas.Template{{Source: "t", Path: "/etc/t"}}},
		FS:   fstest.MapFS{"templates/t": {Data: []byte(`{{define "a"}}{{template "b"}}{{template "b"}}{{end}}{{define "b"}}{{printf "%3000000d" 1}}{{end}}{{template "a"}}`)}},
	}
	if _, err := Render(def, fleet(t, def, "w101", "10.77.0.101")); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("Render of 6 MB: %v; want an error about the length", err)
	}
}

func TestTemplateReplacesStandardFile(t *testing.T) {
	def := Definition{
		Role: dsas.Role{Name: "x", Templates: []dsas.Template{{Source: "t", Path: "/etc/hosts", Mode: "0600", Service: "s"}}},
		FS:   fstest.MapFS{"templates/t": {Data: []byte("mine")}},
	}
	files, err := Render(def, fleet(t, def, "w101", "10.77.0.101"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		if f.Path == "/etc/hosts" {
			seen++
			if string(f.Content) != "mine" || f.Mode != 0o600 || f.Service != "s" {
				t.Errorf("/etc/hosts = %q mode %o service %q; want the template's", f.Content, f.Mode, f.Service)
			}
		}
	}
	if seen != 1 {
		t.Errorf("/etc/hosts is there %d times; want once", seen)
	}
}

// bashVars sources text with bash and gives the named variables (an array's
// elements joined by "|"); it fails the test where bash complains.
func bashVars(t *testing.T, text string, names ...string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "dsas.conf")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `. "$1" || exit 9; shift; for n; do declare -n v=$n; IFS='|'; printf '%s=%s\0' "$n" "${v[*]}"; IFS=' '; done`
	cmd := exec.Command("bash", append([]string{"-eu", "-c", script, "bash", conf}, names...)...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("bash: %v: %s\n%s", err, stderr.String(), text)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("sourcing made files beside dsas.conf: %v", left)
	}
	got := map[string]string{}
	for _, kv := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		k, v, _ := strings.Cut(kv, "=")
		got[k] = v
	}
	return got
}

func TestConfInBash(t *testing.T) {
	lb := get(t, shippedSet(t), "lb")
	in := fleet(t, lb, "w103", "10.77.0.103")
	in.Node.Interfaces = []dsas.Interface{{Device: "bond0.2", Address: netip.MustParsePrefix("198.51.100.3/24")}}
	in.Node.Disks = map[string]string{"DBDEVICE": "/dev/disk/by-id/x"}
	in.Node.Conf = "TARGETS=$LVSADDRESS,$LLSADDRESS\nHWTYPE=S6014HT"
	text, err := Conf(lb, in)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"SYSTEMNAME": "w103", "IPADDRESS0": "10.77.0.103/24", "GATEWAY": "10.77.0.254",
		"INTERFACE": "bond0|bond0.2", "IPADDRESS1": "198.51.100.3/24",
		"BONDING": "bond0 eth0 eth1", "DBDEVICE": "/dev/disk/by-id/x",
		"MODULES":    "bond0 mode=active-backup miimon=100|" + strings.Join(lb.Role.Modules, "|"),
		"NAMESERVER": "10.77.0.1", "SEARCH": "lab.example",
		"LVSADDRESS": "10.77.0.200", "TARGETS": "10.77.0.200,10.77.0.210", "HWTYPE": "S6014HT",
	}
	var names []string
	for k := range want {
		names = append(names, k)
	}
	got := bashVars(t, text, names...)
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s = %q; want %q in\n%s", k, got[k], w, text)
		}
	}
}

// Only a role that carries sites holds their addresses, and each once.
func TestConfServiceAddresses(t *testing.T) {
	set := shippedSet(t)
	for role, want := range map[string]string{"web": `SERVICEADDRESS=("10.77.0.200" "10.77.0.201")`, "lb": ""} {
		def := get(t, set, role)
		text, err := Conf(def, fleet(t, def, "w101", "10.77.0.101"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(text, "SERVICEADDRESS"); got != (want != "") || !strings.Contains(text, want) {
			t.Errorf("dsas.conf of %s: want %q in\n%s", role, want, text)
		}
	}
}

// hostile are values that would do something if any quoting were missing.
var hostile = []string{
	"$(touch pwned)", "`touch pwned`", "'; touch pwned; '", `"; touch pwned; "`, "a\\", "a b", "a;b", "a&b", "a|b", "a>pwned",
	"~", "*", "?", "[0]=x", "(a b)", "#x", "a #x", "!x", "$LVSADDRESS", "${LVSADDRESS}", "=x", "a='b'", "''", "'", `\'`, "-n", "é", " ", "",
}

func TestConfQuotesValues(t *testing.T) {
	web := get(t, shippedSet(t), "web")
	for _, h := range hostile {
		in := fleet(t, web, "w101", "10.77.0.101")
		in.Settings.Variables = map[string]string{"XVALUE": h, "LVSADDRESS": "10.77.0.200"}
		text, err := Conf(web, in)
		if err != nil {
			t.Errorf("Conf with variable %q: %v", h, err)
			continue
		}
		if got := bashVars(t, text, "XVALUE", "SYSTEMNAME")["XVALUE"]; got != h {
			t.Errorf("XVALUE = %q; want %q", got, h)
		}
	}
	// The list form, with elements from outside.
	for _, h := range hostile {
		w := &confWriter{}
		w.list("XLIST", h, "last")
		if got := bashVars(t, w.b.String(), "XLIST")["XLIST"]; got != h+"|last" {
			t.Errorf("XLIST = %q; want %q", got, h+"|last")
		}
	}
}

func TestConfRefuses(t *testing.T) {
	web := get(t, shippedSet(t), "web")
	for name, c := range map[string]struct {
		change func(*Input)
		says   string
	}{
		"line break":    {func(in *Input) { in.Settings.Variables["X"] = "a\nb" }, "control character"},
		"key":           {func(in *Input) { in.Settings.Variables["X;reboot"] = "a" }, "capitals"},
		"our key":       {func(in *Input) { in.Settings.Variables["IPADDRESS0"] = "a" }, "dsas writes this key itself"},
		"shell's key":   {func(in *Input) { in.Settings.Variables["PATH"] = "/tmp" }, "shells"},
		"linker's key":  {func(in *Input) { in.Settings.Variables["LD_PRELOAD"] = "/tmp/x" }, "shells"},
		"disk key":      {func(in *Input) { in.Node.Disks = map[string]string{"MODULES": "/dev/vda"} }, "dsas writes this key itself"},
		"disk injects":  {func(in *Input) { in.Node.Disks = map[string]string{"DBDEVICE": "/dev/$(reboot)"} }, "DBDEVICE"},
		"device":        {func(in *Input) { in.Node.Interfaces = []dsas.Interface{{Device: "x;y"}} }, "device"},
		"NUL in conf":   {func(in *Input) { in.Node.Conf = "A=\x00" }, "NUL"},
		"hostile name":  {func(in *Input) { in.Node.Name = "$(reboot)" }, "node name"},
		"hostile bond":  {func(in *Input) { in.Settings.Bond = "bond0:mode=$(reboot)" }, "bond"},
		"hostile role?": {func(in *Input) { in.Subnet.Domain = "$(reboot)" }, "domain"},
	} {
		in := fleet(t, web, "w101", "10.77.0.101")
		c.change(&in)
		if text, err := Conf(web, in); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: Conf = %q, %v; want ErrInvalid that says %q", name, text, err, c.says)
		}
	}
}

// A role's own lines come after ours and before the node's.
func TestConfRoleLines(t *testing.T) {
	def := Definition{
		Role: dsas.Role{Name: "x"},
		FS:   fstest.MapFS{"dsas.conf": {Data: []byte("XADDR={{quote .Node.Address.Addr.String}}\nXNAME=$SYSTEMNAME\nXLAST=role\n")}},
	}
	in := fleet(t, def, "w101", "10.77.0.101")
	in.Node.Conf = "XLAST=node"
	text, err := Conf(def, in)
	if err != nil {
		t.Fatal(err)
	}
	got := bashVars(t, text, "XADDR", "XNAME", "XLAST")
	if got["XADDR"] != "10.77.0.101" || got["XNAME"] != "w101" || got["XLAST"] != "node" {
		t.Errorf("variables = %v in\n%s", got, text)
	}
}

func TestBondOnlyWhereItIs(t *testing.T) {
	rescue := get(t, shippedSet(t), "rescue")
	for name, c := range map[string]struct {
		nics int
		bond string
		want string // device
	}{
		"two NICs":           {2, "", "bond0"},
		"one NIC":            {1, "", "eth0"},
		"one NIC, told":      {1, "bond1:mode=active-backup", "bond1"},
		"two NICs, told not": {2, NoBond, "eth0"},
	} {
		in := fleet(t, rescue, "w101", "10.77.0.101")
		in.Node.NICs, in.Settings.Bond = in.Node.NICs[:c.nics], c.bond
		if got, err := in.Device(); got != c.want || err != nil {
			t.Errorf("%s: Device() = %q, %v; want %q", name, got, err, c.want)
		}
		text, err := Conf(rescue, in)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Contains(text, "BONDING="), c.want != "eth0"; got != want {
			t.Errorf("%s: BONDING in dsas.conf: %v; want %v", name, got, want)
		}
	}
}
