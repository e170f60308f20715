package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/api"
	"dsas/server/blobs"
	"dsas/server/store"
)

// cliTest is the command line against the API over a real store on a unix
// socket.
type cliTest struct {
	*testing.T
	store    *store.Store
	releases *releases
	socket   string
	power    *fakePower
	ssh      func(dsas.Node) dsas.SSHInfo
}

// fakePower stands in for the BMCs.
type fakePower struct {
	mu     sync.Mutex
	states map[string]string
	broken map[string]bool
	done   []string
	after  func(node, action string) // called when an action is done
}

func (p *fakePower) Power(_ context.Context, n dsas.Node, action string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken[n.Name] {
		return "", fmt.Errorf("node %s: its BMC is \x1b[31mred", n.Name)
	}
	if action != dsas.PowerStatus {
		p.done = append(p.done, n.Name+" "+action)
		p.states[n.Name] = map[string]string{"off": "off"}[action]
		if action != dsas.PowerOff {
			p.states[n.Name] = "on"
		}
		if p.after != nil {
			go p.after(n.Name, action)
		}
	}
	return p.states[n.Name], nil
}

type testRoles struct{}

func (testRoles) Roles(context.Context) ([]dsas.RoleView, error) {
	var views []dsas.RoleView
	for _, n := range []string{"db", "lb", "web"} {
		views = append(views, dsas.RoleView{Role: dsas.Role{Name: n, Description: "is " + n}, Source: "shipped"})
	}
	return views, nil
}

func newCLI(t *testing.T) *cliTest {
	t.Helper()
	dir, err := os.MkdirTemp("", "dsas") // t.TempDir is too long for a socket (unix(7): 108 bytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := store.Open(t.Context(), filepath.Join(dir, "db"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c := &cliTest{T: t, store: s, socket: filepath.Join(dir, "sock"), power: &fakePower{states: map[string]string{}, broken: map[string]bool{}}}
	images, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	c.releases = &releases{Store: images, state: s, log: log, keys: testKeys(t)}
	done := make(chan struct{})
	handler := api.New(api.Deps{
		Store: s, Power: c.power, Roles: testRoles{}, Releases: c.releases, Tokens: s, Done: done, Log: log,
		Subnets: []dsas.Subnet{{
			Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"),
			Pool: dsas.Range{First: netip.MustParseAddr("10.77.0.200"), Last: netip.MustParseAddr("10.77.0.250")},
		}},
		Explain: func(_ context.Context, mac dsas.MAC, arch string) (any, error) {
			return []map[string]any{{"step": "firmware DHCP", "asks": arch, "gets": "nbp/x\x9b", "reason": "for " + mac.String()}}, nil
		},
		SSH: func(_ context.Context, n dsas.Node) (dsas.SSHInfo, error) {
			if c.ssh == nil {
				return dsas.SSHInfo{}, fmt.Errorf("host key of %s: %w", n.Name, dsas.ErrNotFound)
			}
			return c.ssh(n), nil
		},
		Status: func(context.Context) (dsas.ServerStatus, error) {
			return dsas.ServerStatus{Version: "test", Started: time.Now().Add(-time.Hour), Listeners: map[string]string{"dhcp": "eth1"}}, nil
		},
	})
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	go srv.Serve(l)
	t.Cleanup(func() { close(done); srv.Close() })
	return c
}

// result is what a run of the program left.
type result struct {
	code        int
	out, errors string
}

func (c *cliTest) runIn(stdin string, args ...string) result {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	err := run(ctx, append([]string{"--server", c.socket}, args...), strings.NewReader(stdin), &out, &errs)
	return result{report(err, &errs), out.String(), errs.String()}
}

// ok runs a command that must work, and gives what it printed.
func (c *cliTest) ok(args ...string) string {
	c.Helper()
	r := c.runIn("", args...)
	if r.code != 0 {
		c.Fatalf("dsas %s = %d\n%s%s; want 0", strings.Join(args, " "), r.code, r.out, r.errors)
	}
	return r.out
}

// fails runs a command that must end with code and say all of words.
func (c *cliTest) fails(code int, args []string, words ...string) {
	c.Helper()
	c.failed(c.runIn("", args...), code, args, words...)
}

func (c *cliTest) failed(r result, code int, args []string, words ...string) {
	c.Helper()
	if r.code != code {
		c.Errorf("dsas %s = %d\n%s%s; want %d", strings.Join(args, " "), r.code, r.out, r.errors, code)
	}
	for _, w := range words {
		if !strings.Contains(r.errors, w) {
			c.Errorf("dsas %s says %q; want %q in it", strings.Join(args, " "), r.errors, w)
		}
	}
}

// shows tells whether some line of text has all words in this order.
func shows(text string, words ...string) bool {
	for line := range strings.Lines(text) {
		rest, all := line, true
		for _, w := range words {
			_, after, found := strings.Cut(rest, w)
			all = all && found
			rest = after
		}
		if all {
			return true
		}
	}
	return false
}

func (c *cliTest) wantLine(text string, words ...string) {
	c.Helper()
	if !shows(text, words...) {
		c.Errorf("no line with %q in\n%s", words, text)
	}
}

func (c *cliTest) event(e dsas.Event) dsas.Event {
	c.Helper()
	e, err := c.store.AddEvent(c.Context(), e)
	if err != nil {
		c.Fatal(err)
	}
	return e
}

func words(s string) []string { return strings.Fields(s) }

func TestNodeCommands(t *testing.T) {
	c := newCLI(t)
	c.wantLine(c.ok("node", "ls"), "No nodes", "dsas node add")
	c.wantLine(c.ok(words("node add w101 --mac 52:54:00:00:01:01 --mac 525400000102 --role web --disk DBDEVICE=/dev/vda --interface bond0.2=192.0.2.5/24 --loader nbp")...), "w101 added", "10.77.0.101/24", "web")
	c.wantLine(c.ok(words("node add w102 --mac 52-54-00-00-02-01 --address 10.77.0.9")...), "w102 added", "10.77.0.9/24")
	out := c.ok("node", "ls")
	c.wantLine(out, "NAME", "ROLE", "PHASE", "SINCE", "ADDRESS", "MAC", "LAST EVENT")
	c.wantLine(out, "w101", "web", "new", "10.77.0.101", "52:54:00:00:01:01", "added with role web")
	if strings.Contains(out, "\x1b") {
		t.Errorf("colours, and nobody sits there: %q", out)
	}
	show := c.ok("node", "show", "w101")
	for _, line := range [][]string{{"eth1", "52:54:00:00:01:02"}, {"bond0.2", "192.0.2.5/24"}, {"DBDEVICE", "/dev/vda"}, {"loader", "nbp"}} {
		c.wantLine(show, line...)
	}
	c.ok(words("node set w101 --menu lb,web")...)
	c.wantLine(c.ok("node", "show", "w101"), "menu", "lb, web")
	c.wantLine(c.ok(words("node set w101 --menu lb,web --interface bond0.3=192.0.2.6/24 --bmc ipmi://u@h --dry-run")...),
		"w101 would get bmc ipmi://u@h, interfaces bond0.3=192.0.2.6/24, menu lb, web")
	c.wantLine(c.ok(words("node set w101 --menu none")...), "w101 changed: no menu")
	if n, err := c.store.Node(t.Context(), "w101"); err != nil || len(n.Menu) != 0 {
		t.Errorf("menu after --menu none = %v, %v", n.Menu, err)
	}
	c.ok(words("node set w[101-102] --role db")...)
	if got, want := c.ok(words("node ls --role db --names")...), "w101\nw102\n"; got != want {
		t.Errorf("node ls --names = %q; want %q", got, want)
	}
	// Disks merge, a value that is empty goes.
	c.ok(words("node set w101 --disk FSDEVICE=/dev/vdb --disk DBDEVICE= --interface none --loader auto")...)
	n, err := c.store.Node(t.Context(), "w101")
	if err != nil || len(n.Disks) != 1 || n.Disks["FSDEVICE"] != "/dev/vdb" || len(n.Interfaces) != 0 || n.Loader != "" {
		t.Errorf("node after set = %+v, %v", n, err)
	}
	c.wantLine(c.ok(words("node set w101 --role none --dry-run")...), "w101 would get no role")
	if n, _ := c.store.Node(t.Context(), "w101"); n.Role != "db" {
		t.Errorf("a dry run made the role %q", n.Role)
	}
	var views []dsas.NodeView
	if err := json.Unmarshal([]byte(c.ok("--json", "node", "ls")), &views); err != nil || len(views) != 2 {
		t.Errorf("node ls --json: %v, %d nodes", err, len(views))
	}
	c.ok(words("node rm w101 --dry-run")...)
	c.fails(2, words("node rm w101"), "--yes")
	c.wantLine(c.ok(words("node rm w[101-102] --yes")...), "w102 removed")
	if nodes, _ := c.store.Nodes(t.Context()); len(nodes) != 0 {
		t.Errorf("%d nodes are left", len(nodes))
	}
}

func TestNodeCommandsRefuse(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	c.ok(words("node add w102 --mac 52:54:00:00:02:01 --role web")...)
	for _, f := range []struct {
		code  int
		args  string
		words []string
	}{
		{1, "node show w110", []string{"w110", "not found", `did you mean "w101"`}},
		{1, "node set w101 --menu wipe", []string{"wipe erases disks", "assign it instead"}},
		{1, "node set w[101-104] --role db", []string{"w103, w104", "not found"}},
		{1, "node set w[101-102] --role wbe", []string{`"wbe"`, `did you mean "web"`, "db, lb, web"}},
		{2, "node set w101", []string{"nothing to change", "--role"}},
		{2, "node set w[101-102] --mac 52:54:00:00:03:01", []string{"same MAC"}},
		{2, "node set w[101 --role db", []string{"w[101"}},
		{2, "node add w103", []string{"MAC", "--csv"}},
		{2, "node add w103 --mac zz", []string{`"zz"`}},
		{1, "node add w103 --mac 52:54:00:00:01:01", []string{"belongs to node w101"}},
		{1, "node add w101 --mac 52:54:00:00:03:01", []string{"exists already", "node set"}},
		{1, "node add w103 --mac 52:54:00:00:03:01 --address 10.9.9.9", []string{"10.9.9.9", "10.77.0.0/24"}},
		{2, "node add w103 --mac 52:54:00:00:03:01 --interface bond0", []string{`"bond0"`, "bond0.2=192.0.2.5/24"}},
		{2, "node add w103 --mac 52:54:00:00:03:01 --disk /dev/vda", []string{"DBDEVICE=/dev/vda"}},
		{2, "node add w103 --mac 52:54:00:00:03:01 --bmc ipmi://u:geheim@h", []string{"--bmc-password-file"}},
		{2, "node add w103 --mac 52:54:00:00:03:01 --bmc 10.0.9.1", []string{"ipmi://user@address"}},
		{1, "node add w103 --mac 52:54:00:00:03:01 --bmc http://h", []string{`BMC kind "http"`, "ipmi://"}},
		{2, "node ls --phase raedy", []string{`"raedy"`, `did you mean "ready"`}},
		{2, "node add w103 --nope", []string{"--nope", "dsas node add --help"}},
		{2, "noed ls", []string{"noed", "node"}},
		{2, "events --limit 0", []string{"--limit"}},
		{2, "events --limit x", []string{`--limit: "x": want a whole number`}},
		{2, "node ls --role wbe", []string{`--role "wbe"`, `did you mean "web"?`, "db, lb, web"}},
		{2, "node ls --role", []string{"--role: its value is missing; write --role=ROLE", "dsas node ls --help"}},
		{2, "node ls --role --json", []string{"--role: its value is missing: --json is a flag"}},
		{2, "image publish web --canary -5%", []string{"--canary: its value is missing: -5% begins with a dash", "--canary=-5%"}},
		{2, "site add x --port 99999", []string{`--port: "99999": want a whole number from 0 to 65535`}},
		{2, "node set w101 --role db --timeout x", []string{`--timeout: "x" is no duration`, "15m"}},
		{2, "node set w101 --role db --cycle --timeout=-5s", []string{"--timeout -5s", "above 0"}},
		{2, "power cycle w101 --wait ready --timeout=0s", []string{"--timeout 0s", "above 0"}},
		{2, "node set w101 --wait soon", []string{`--wait: "soon": use ready`}},
		{2, "image export web x --format zip", []string{`--format: "zip": use oci or docker`}},
		{2, "image pin", []string{"missing: <release> <nodes> ..."}},
		{2, "image", []string{"missing: what to do; there are: build, ls, show, publish, rollback, pin, unpin, gc"}},
		{2, "lab link w101 -1 down", []string{"-1: it begins with a dash"}},
		{1, "power off w[101-103]", []string{"w103", "not found"}},
	} {
		c.fails(f.code, words(f.args), f.words...)
	}
	if r := c.runIn("", words("node add w103 --mac 52:54:00:00:03:01 --bmc ipmi://u:geheim@h")...); strings.Contains(r.errors, "geheim") {
		t.Error("a password is printed")
	}
	if len(c.power.done) != 0 {
		t.Errorf("power was used: %q", c.power.done)
	}
	for _, flag := range []string{"--role", "--address", "--loader", "--client-id"} {
		c.fails(2, []string{"node", "set", "w101", flag, ""}, flag+": its value is empty", "none")
	}
	for _, name := range []string{"w101", "w102"} {
		if n, _ := c.store.Node(t.Context(), name); n.Role != "web" {
			t.Errorf("role of %s = %q; want web still", name, n.Role)
		}
	}
	var errs bytes.Buffer
	err := run(t.Context(), []string{"--server", filepath.Join(t.TempDir(), "none"), "node", "ls"}, strings.NewReader(""), io.Discard, &errs)
	if code := report(err, &errs); code != 1 || !strings.Contains(errs.String(), "dsas serve") {
		t.Errorf("without a server: %d, %s", code, errs.String())
	}
}

func TestNodeAddCSV(t *testing.T) {
	c := newCLI(t)
	pw := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(pw, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.ok(words("node add w100 --mac 52:54:00:00:00:01")...)
	bad := `name,mac,mac2,role
w101,52:54:00:00:01:01,52:54:00:00:01:02,web
w102,zz,,web
# a remark
w103,52:54:00:00:03:01,,wbe
w104,52:54:00:00:00:01,,
w101,52:54:00:00:04:01,,
w105,52:54:00:00:05:01,,web,more
"w106
`
	r := c.runIn(bad, "node", "add", "--csv", "-")
	c.failed(r, 1, []string{"node add --csv"}, "line 3: MAC \"zz\"", "line 5: ", `did you mean "web"`, "line 6: ", "w100", "line 7: ", "exists", "line 8: has 5 fields", "line 9: ", "nothing was added")
	if strings.Contains(r.errors, "line 2") {
		t.Errorf("a good line is complained about:\n%s", r.errors)
	}
	if nodes, _ := c.store.Nodes(t.Context()); len(nodes) != 1 {
		t.Fatalf("%d nodes; want the one from before", len(nodes))
	}
	good := "\xef\xbb\xbfMAC, name, role, address, disk, bmc\r\n" +
		"52:54:00:00:01:01, w101, web,,,\r\n" +
		"52:54:00:00:02:01, w102, db, 10.77.0.50, DBDEVICE=/dev/vda FSDEVICE=/dev/vdb, ipmi://admin@10.0.9.2\r\n"
	c.wantLine(c.runIn(good, "node", "add", "--csv", "-", "--dry-run").out, "w101 would be added", "10.77.0.101")
	if r := c.runIn(good, "node", "add", "--csv", "-", "--bmc-password-file", pw); r.code != 0 {
		t.Fatalf("node add --csv = %d %s", r.code, r.errors)
	}
	n, err := c.store.Node(t.Context(), "w102")
	if err != nil || n.Address.String() != "10.77.0.50/24" || n.Disks["FSDEVICE"] != "/dev/vdb" || n.BMC == nil || n.BMC.User != "admin" {
		t.Errorf("node = %+v, %v", n, err)
	}
	if p, err := c.store.BMCPassword(t.Context(), "w102"); p != "s3cret" {
		t.Errorf("BMC password = %q, %v", p, err)
	}
	for text, want := range map[string]string{
		"":                      "empty",
		"nmae,mac\n":            `did you mean "name"`,
		"name,role\n":           "name and mac",
		"name,mac,mac\n":        "twice",
		"name,mac\n":            "no node",
		"name,mac\nw1\x1b,zz\n": "line 2",
	} {
		r := c.runIn(text, "node", "add", "--csv", "-")
		c.failed(r, 1, []string{"node add --csv", text}, want)
		if strings.Contains(r.errors, "\x1b") {
			t.Errorf("an escape reaches the terminal: %q", r.errors)
		}
	}
	c.fails(2, words("node add w1 --csv x"), "--csv")
	c.fails(2, words("node add --csv x --role web"), "--csv")
}

// A BMC's password is read from a file and never shown.
func TestBMCPasswordFile(t *testing.T) {
	c := newCLI(t)
	pw := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(pw, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	all.WriteString(c.ok("--json", "node", "add", "w101", "--mac", "525400000101", "--bmc", "ipmi://admin@10.0.9.1:624", "--bmc-password-file", pw))
	all.WriteString(c.ok("node", "set", "w101", "--bmc-password-file", pw, "--dry-run"))
	all.WriteString(c.ok("node", "set", "w101", "--bmc-password-file", pw))
	all.WriteString(c.ok("node", "show", "w101"))
	if strings.Contains(all.String(), "s3cret") {
		t.Errorf("the password is shown:\n%s", all.String())
	}
	c.wantLine(all.String(), "bmc", "ipmi://admin@10.0.9.1:624")
	if p, err := c.store.BMCPassword(t.Context(), "w101"); p != "s3cret" {
		t.Errorf("BMC password = %q, %v", p, err)
	}
	c.ok("node", "set", "w101", "--bmc", "none")
	if n, _ := c.store.Node(t.Context(), "w101"); n.BMC != nil {
		t.Errorf("bmc = %+v; want none", n.BMC)
	}
}

// What the boot network sends cannot drive the operator's terminal.
func TestHostileText(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	const hostile = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202egnp.exe\r\nw102  ready"
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindScript, Boot: "b1", Message: hostile})
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindFailed, Boot: "b1", Message: hostile, Detail: "one\n" + hostile})
	u := dsas.Unknown{MAC: dsas.MAC{0x52, 0x54, 0, 0, 9, 9}, VendorClass: hostile, Arch: hostile, GUID: hostile}
	if _, err := c.store.RecordUnknown(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"node ls", "node show w101", "events", "events --detail", "unknown ls", "node ls --json", "node show w101 --json", "events --json", "unknown ls --json", "explain w101", "explain w101 --json"} {
		out := c.ok(words(args)...)
		for _, r := range out {
			if r != '\n' && unsafeRune(r) {
				t.Errorf("dsas %s prints %q, %q in it", args, out, r)
				break
			}
		}
		if strings.Contains(out, "\nw102") {
			t.Errorf("dsas %s: a message made a line of its own:\n%s", args, out)
		}
	}
	var events []dsas.Event
	if err := json.Unmarshal([]byte(c.ok("events", "--json")), &events); err != nil || events[len(events)-1].Message != hostile {
		t.Errorf("events --json does not hold what was sent: %v", err)
	}
}

func TestSiteCommands(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindReady, Boot: "b1"})
	c.wantLine(c.ok(words("site add shop --address 10.77.0.80")...), "shop added", "10.77.0.80:80", "web", "lb")
	c.wantLine(c.ok(words("site ls")...), "shop", "10.77.0.80:80", "web", "1 of 1", "lb", "wlc", "http / = 200")
	c.ok(words("site set shop --scheduler rr --path /health --status 204")...)
	show := c.ok(words("site show shop")...)
	c.wantLine(show, "check", "http /health = 204")
	c.wantLine(show, "served by", "web", "w101 (ready)")
	c.wantLine(show, "balanced by", "lb", "no node")
	c.ok(words("site set shop --check tcp --dry-run")...)
	c.fails(2, words("site add x"), "--address")
	c.fails(2, words("site set shop"), "nothing")
	c.fails(1, words("site set shpo --port 81"), `did you mean "shop"`)
	c.fails(1, words("site set shop --scheduler best"), "rr, wrr")
	c.fails(1, words("site add b --address 10.77.0.101"), "w101")
	c.fails(2, words("site rm shop"), "--yes")
	c.ok(words("site rm shop -y")...)
	c.wantLine(c.ok("site", "ls"), "No sites")
}

func TestPowerCommands(t *testing.T) {
	c := newCLI(t)
	for _, n := range []string{"w101", "w102", "w103"} {
		c.ok("node", "add", n, "--mac", "5254000001"+n[2:]+"")
	}
	c.ok(words("power on w101 --dry-run")...)
	if len(c.power.done) != 0 {
		t.Errorf("a dry run did %q", c.power.done)
	}
	c.wantLine(c.ok(words("power on w[101-102]")...), "w102", "on")
	c.wantLine(c.ok(words("power off w101")...), "w101", "off")
	c.wantLine(c.ok(words("power status w[101-102]")...), "w101", "off")
	c.power.broken["w103"] = true
	r := c.runIn("", words("power off w[102-103]")...)
	c.failed(r, 3, []string{"power off"}, "1 of 2 nodes failed: w103")
	c.wantLine(r.out, "w103", "its BMC is")
	if strings.Contains(r.out, "\x1b") {
		t.Errorf("an escape reaches the terminal: %q", r.out)
	}
	var results []dsas.PowerResult
	r = c.runIn("", words("power off w[102-103] --json")...)
	if err := json.Unmarshal([]byte(r.out), &results); err != nil || r.code != 3 || results[0].State != "off" || results[1].Error == "" {
		t.Errorf("power off --json = %d %s (%v)", r.code, r.out, err)
	}
}

// boot writes the events of a boot.
func (c *cliTest) boot(node, id string, end dsas.Event) {
	for _, e := range []dsas.Event{
		{Kind: dsas.KindDHCP, Message: "10.77.0.101"}, {Kind: dsas.KindNBP, Message: "undionly.kpxe", Bytes: 70_000},
		{Kind: dsas.KindScript, Boot: id}, {Kind: dsas.KindInit, Boot: id, Duration: 3 * time.Second}, {Kind: dsas.KindFetch, Boot: id},
		{Kind: dsas.KindSwitched, Boot: id},
	} {
		e.Node = node
		c.event(e)
	}
	end.Node, end.Boot = node, id
	c.event(end)
}

func TestWait(t *testing.T) {
	c := newCLI(t)
	for _, n := range []string{"w101", "w102"} {
		c.ok("node", "add", n, "--mac", "5254000001"+n[2:], "--role", "web")
		c.boot(n, "old-"+n, dsas.Event{Kind: dsas.KindReady})
	}
	c.power.after = func(node, _ string) {
		// The old boot still says something, which must not be taken for the new one's.
		c.event(dsas.Event{Node: node, Boot: "old-" + node, Kind: dsas.KindReady})
		c.boot(node, "new-"+node, dsas.Event{Kind: dsas.KindReady})
	}
	out := c.ok(words("power cycle w[101-102] --wait ready")...)
	c.wantLine(out, "w101: ready")
	c.wantLine(out, "w102: ready")
	c.wantLine(out, "w102: fetch")

	c.power.after = func(node, _ string) {
		if node == "w101" {
			c.boot(node, "newer-"+node, dsas.Event{Kind: dsas.KindFailed, Message: "mariadb: no disk", Detail: "log"})
		} else {
			c.boot(node, "newer-"+node, dsas.Event{Kind: dsas.KindReady})
		}
	}
	r := c.runIn("", words("node set w[101-102] --role db --cycle --wait ready")...)
	c.failed(r, 3, []string{"node set --cycle"}, "1 of 2 nodes failed: w101")
	c.wantLine(r.out, "w101: failed: mariadb: no disk")
	c.wantLine(r.out, "w101 changed", "role db")

	c.power.after = nil
	r = c.runIn("", words("node set w101 --role db --wait ready --timeout 300ms")...)
	c.failed(r, 3, []string{"node set --wait"}, "1 of 1 node failed: w101")
	c.wantLine(r.out, "w101: not ready within 300ms")
	r = c.runIn("", words("power cycle w101 --wait ready --timeout 300ms --json")...)
	var outcomes []powerOutcome
	if err := json.Unmarshal([]byte(r.out), &outcomes); err != nil || r.code != 3 || len(outcomes) != 1 || !strings.Contains(outcomes[0].Error, "not ready within") {
		t.Errorf("power cycle --json = %d %s (%v)", r.code, r.out, err)
	}
}

func TestNodeShowTimeline(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	c.wantLine(c.ok("node", "show", "w101"), "Nothing has been heard")
	c.boot("w101", "b1", dsas.Event{Kind: dsas.KindReady})
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindPower, Message: "cycle", Detail: "by root"})
	c.boot("w101", "b2", dsas.Event{Kind: dsas.KindFailed, Message: "nginx: no port", Detail: "log line 1\nlog line 2\n"})
	out := c.ok("node", "show", "w101")
	c.wantLine(out, "phase", "failed")
	c.wantLine(out, "+0ms", "power", "cycle, by root")
	c.wantLine(out, "tftp.nbp", "68.4 KiB", "undionly.kpxe")
	c.wantLine(out, "node.init", "3.0s")
	c.wantLine(out, "node.failed", "nginx: no port")
	c.wantLine(out, "log line 2")
	if n := strings.Count(out, "boot.script"); n != 1 {
		t.Errorf("%d boots are shown; want the latest alone:\n%s", n, out)
	}
	var shown nodeShow
	if err := json.Unmarshal([]byte(c.ok("node", "show", "w101", "--json")), &shown); err != nil || shown.Node.Name != "w101" || len(shown.Events) != 8 {
		t.Errorf("node show --json: %v, %d events; want 8", err, len(shown.Events))
	}
}

func TestEventsFollow(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01")...)
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindInit, Boot: "b1", Message: "first"})
	c.event(dsas.Event{Node: "w102", Kind: dsas.KindInit, Boot: "b2", Message: "another"})
	c.wantLine(c.ok("events", "w101"), "w101", "node.init", "first")
	if out := c.ok("events", "w101"); strings.Contains(out, "another") {
		t.Errorf("events w101 shows others:\n%s", out)
	}
	c.fails(1, words("events w103"), "w103", "not found")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--server", c.socket, "events", "w101", "--follow", "--json"}, strings.NewReader(""), w, io.Discard)
		w.Close()
	}()
	dec := json.NewDecoder(r)
	var got []string
	for i := 0; i < 3; i++ {
		var e dsas.Event
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message)
		if i == 1 { // the look back is over
			c.event(dsas.Event{Node: "w102", Kind: dsas.KindInit, Message: "not this"})
			c.event(dsas.Event{Node: "w101", Kind: dsas.KindReady, Boot: "b1", Message: "live"})
		}
	}
	if got[1] != "first" || got[2] != "live" {
		t.Errorf("followed events = %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("follow ended with %v; want nothing when interrupted", err)
	}
}

func TestLookCommands(t *testing.T) {
	c := newCLI(t)
	for args, want := range map[string]string{"--version": "dsas " + version, "help node add": "Usage: dsas node add", "help": "Usage: dsas <command>"} {
		var out bytes.Buffer
		if err := run(t.Context(), words(args), strings.NewReader(""), &out, io.Discard); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("dsas %s = %.40q, %v; want %q first", args, out.String(), err, want)
		}
	}
	c.ok(words("node add w101 --mac 52:54:00:00:01:01")...)
	c.wantLine(c.ok("role", "ls"), "db", "none")
	c.wantLine(c.ok("status"), "version", "test")
	c.wantLine(c.ok("status"), "nodes", "1: 1 new")
	c.wantLine(c.ok("status"), "subnet", "10.77.0.0/24", "pool 10.77.0.200-10.77.0.250")
	c.wantLine(c.ok("version"), "dsas "+version)
	c.wantLine(c.ok(words("explain w101 --arch bios")...), "1. firmware DHCP")
	c.wantLine(c.ok(words("explain 525400000101 --arch bios")...), "why", "52:54:00:00:01:01")
	c.fails(2, words("explain zz:zz"), "52:54:00:aa:bb:cc")
	c.wantLine(c.ok("lease", "ls"), "No leases")
	c.wantLine(c.ok("unknown", "ls"), "No unknown")
	if _, err := c.store.RecordUnknown(t.Context(), dsas.Unknown{MAC: dsas.MAC{0x52, 0x54, 0, 0, 9, 9}, Arch: "bios"}); err != nil {
		t.Fatal(err)
	}
	c.wantLine(c.ok("unknown", "ls"), "52:54:00:00:09:09", "bios")
	c.wantLine(c.ok(words("unknown rm 52-54-00-00-09-09")...), "52:54:00:00:09:09 forgotten")
	c.fails(1, words("unknown rm 52-54-00-00-09-09"), "no unknown MAC")
	if out := c.ok("completion"); !strings.Contains(out, `"node set") words=`) || !strings.Contains(out, "dsas node ls --names") {
		t.Errorf("completion = %s", out)
	}
	for _, args := range []string{"--help", "node --help", "node add --help", "power cycle --help"} {
		if out := c.ok(words(args)...); !strings.Contains(out, "Usage: dsas") {
			t.Errorf("dsas %s = %s", args, out)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), nil, strings.NewReader(""), &out, io.Discard); err != nil || !strings.Contains(out.String(), "Usage: dsas") {
		t.Errorf("dsas without words = %v, %s", err, out.String())
	}
	for _, args := range []string{"role ls", "image ls", "status", "version", "lease ls", "unknown ls", "site ls", "token ls", "events", "node ls", "explain w101"} {
		var v any
		if out := c.ok(append(words(args), "--json")...); json.Unmarshal([]byte(out), &v) != nil || v == nil {
			t.Errorf("dsas %s --json = %s", args, out)
		}
	}
}

func TestImageCommands(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	c.wantLine(c.ok("image", "ls"), "No releases", "dsas image build")
	c.wantLine(c.ok("node", "ls"), "w101", "web", "-")
	addRelease(t, c.releases.Store, "web", "one")
	addRelease(t, c.releases.Store, "web", "two")
	c.fails(1, words("image publish web:9"), "web:9")
	c.fails(1, words("image publish db"), "db", "dsas image build db")
	c.wantLine(c.ok(words("image publish web --dry-run")...), "would boot", "web:2") // the newest, proposed or not
	c.wantLine(c.ok(words("image publish web:1 --dry-run")...), "would boot", "web:1")
	c.wantLine(c.ok("image", "ls"), "web:1", "-")
	c.ok(words("image publish web:1")...)
	c.wantLine(c.ok(words("image publish web:2")...), "role web: nodes boot release web:2")
	c.wantLine(c.ok("image", "ls", "web"), "web:1", "before", "9.0 MiB", "6.1")
	c.wantLine(c.ok("image", "ls", "web"), "web:2", "current")
	c.wantLine(c.ok("role", "ls"), "web", "web:2", "shipped", "is web")
	c.wantLine(c.ok("node", "ls"), "w101", "next web:2")
	c.wantLine(c.ok(words("image pin web:1 w101")...), "w101 boots release web:1 from its next boot on")
	c.wantLine(c.ok("node", "ls"), "w101", "next web:1")
	c.wantLine(c.ok("image", "show", "web:1"), "pinned", "w101")
	c.wantLine(c.ok("image", "unpin", "w101", "--dry-run"), "w101 would follow its role again")
	c.wantLine(c.ok("image", "unpin", "w101"), "w101 follows its role again")
	c.wantLine(c.ok("image", "unpin", "w101"), "w101 is not pinned")
	c.wantLine(c.ok("image", "rollback", "web"), "web:1")
	c.fails(1, words("image rollback web"), "role web: no release was published before", "dsas image publish")
	c.imageRefuses()
	for _, args := range []string{"image ls", "image show web:1", "image publish web:2", "image rollback web", "image pin web:1 w101", "image unpin w101"} {
		var v any
		if out := c.ok(append(words(args), "--json")...); json.Unmarshal([]byte(out), &v) != nil || v == nil {
			t.Errorf("dsas %s --json = %s", args, out)
		}
	}
}

// imageRefuses gives image commands names that are none, in a server with two
// releases of web and the node w101.
func (c *cliTest) imageRefuses() {
	c.Helper()
	c.ok(words("image publish web:2")...)
	for _, f := range []struct {
		code  int
		args  []string
		words []string
	}{
		{1, words("image ls wbe"), []string{`role "wbe"`, `did you mean "web"?`, "db, lb, web"}},
		{1, words("image show wbe:1"), []string{`did you mean "web"?`}},
		{1, words("image publish wbe"), []string{`did you mean "web"?`}},
		{1, words("image pin wbe:1 w101"), []string{`did you mean "web"?`}},
		{1, words("image rollback wbe"), []string{`role "wbe": does not exist`, `did you mean "web"?`}},
		{1, words("image rollback web nope"), []string{`role "nope": does not exist`}},
		{1, words("image rollback lb"), []string{"role lb: nothing is published"}},
		{2, words("image rollback web lb web"), []string{"role web is named twice"}},
		{2, words("image rollback web:1"), []string{"name the role alone"}},
		{2, []string{"image", "rollback", ""}, []string{`"" is no role's name`}},
		{2, []string{"image", "show", ""}, []string{`release ""`, "web:7"}},
		{2, []string{"image", "publish", ""}, []string{`release ""`, "web:7"}},
		{2, []string{"image", "pin", "", "w101"}, []string{`release ""`, "web:7"}},
		{2, words("image pin w101 web:1"), []string{"the release comes first", "dsas image pin web:1 w101"}},
		{2, words("image pin w101 w[102-103] web:1"), []string{"dsas image pin web:1 w101 w[102-103]"}},
		{2, words("image pin w101 web"), []string{"dsas image pin web w101"}},
		{2, words("image pin web:1 web:2"), []string{"web:2 is no node"}},
		{1, words("image pin web:1 w110"), []string{"node w110", `did you mean "w101"?`}},
		{1, words("image pin web:9 w101"), []string{"no release web:9", "dsas image ls web"}},
	} {
		c.fails(f.code, f.args, f.words...)
	}
	if p := c.store.Published("web"); len(p.Before) != 1 {
		c.Errorf("web after a roll-back of it and of what does not exist: %+v; want it as it was", p)
	}
	local := []string{"--state", filepath.Dir(c.socket), "--config", os.DevNull}
	for _, args := range []string{"image diff wbe:1 web:1", "image diff wbe", "image export wbe x", "image sign wbe"} {
		c.fails(1, append(words(args), local...), `did you mean "web"?`)
	}
	for _, args := range []string{"image build wbe", "image import wbe x"} {
		c.fails(1, append(words(args), local...), `role "wbe": does not exist`, `did you mean "web"?`)
	}
}

func TestTokenCommands(t *testing.T) {
	c := newCLI(t)
	r := c.runIn("", "token", "add", "laptop")
	if !strings.HasPrefix(r.out, "dsas_") || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.errors, "only time") {
		t.Errorf("token add = %q, %q", r.out, r.errors)
	}
	c.wantLine(c.ok("token", "ls"), "laptop", "never")
	c.fails(1, words("token add laptop"), "exists")
	c.fails(2, words("token rm laptop"), "--yes")
	c.fails(1, words("token rm laptop lapto --yes"), `token "lapto"`, `did you mean "laptop"?`)
	c.fails(1, []string{"token", "rm", "", "--dry-run"}, `token "": not found`)
	c.wantLine(c.ok("token", "ls"), "laptop")
	c.ok(words("token rm laptop --yes")...)
	c.wantLine(c.ok("token", "ls"), "No tokens")
}

// The completion script is given to a real bash.
func TestCompletion(t *testing.T) {
	c := newCLI(t)
	script := c.ok("completion") + "\ndsas() { echo w101; echo w102; }\n" // instead of asking a server
	for line, want := range map[string]string{
		"dsas node s":                   "set show",
		"dsas power cycle --wa":         "--wait",
		"dsas --json power cycle w":     "w101 w102",
		"dsas node set w101 --role web": "",
		"dsas ev":                       "events",
	} {
		words := strings.Fields(line)
		test := fmt.Sprintf("%sCOMP_WORDS=(%s); COMP_CWORD=%d; _dsas; echo \"${COMPREPLY[*]}\"", script, line, len(words)-1)
		out, err := exec.CommandContext(t.Context(), "bash", "-c", test).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("completion of %q = %q, %v; want %q", line, got, err, want)
		}
	}
}
