package web_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
)

// All that follows is done by a browser without script: forms and redirects.

func TestAssignAndPower(t *testing.T) {
	f := start(t)
	f.logIn()
	a, b := f.node("w101", "web", 1), f.node("w102", "web", 2)
	f.boot(a, "web", time.Now().Add(-time.Hour), "")
	f.want("nothing chosen", f.post("/act", url.Values{"do": {"assign"}, "role": {"db"}}), "choose at least one node first", `class="said bad"`)
	f.want("nothing asked for", f.post("/act", url.Values{"node": {"w101"}}), "choose a role or what to do with the power")
	f.want("unknown role", f.post("/act", url.Values{"node": {"w101"}, "role": {"dbb"}}), "did you mean &#34;db&#34;?")
	f.want("unknown node", f.post("/act", url.Values{"node": {"w101", "w1"}, "role": {"db"}}), "node w1: not found")
	f.want("unknown action", f.post("/act", url.Values{"node": {"w102"}, "power": {"boil"}}), "use on, off or cycle")

	// One of them serves: first the question, and nothing is done.
	form := url.Values{"node": {"w101", "w102"}, "role": {"db"}, "power": {"cycle"}, "back": {"/nodes/w101"}}
	body := f.post("/act", form)
	f.want("the question", body, "w101 is ready and serving. Power-cycle it?", `name="sure" value="1"`, `name="node" value="w102"`, "Assign db, then power-cycle")
	if got := f.stored("w102").Role; got != "web" || len(f.power.did()) != 0 {
		t.Errorf("before the answer: role %s, power %v; want web and none", got, f.power.did())
	}
	form.Set("sure", "1")
	body = f.post("/act", form)
	f.want("after the answer", body, "w101 w102: role db; w101 w102: power-cycled", "<h1>w101</h1>")
	if got := f.stored("w102").Role; got != "db" {
		t.Errorf("role of w102 = %q; want db", got)
	}
	did := f.power.did()
	slices.Sort(did)
	if fmt.Sprint(did) != "[w101 cycle w102 cycle]" {
		t.Errorf("power = %v; want w101 cycle, w102 cycle", did)
	}
	// A word is said once, and nobody can make a link that says it.
	f.wantNot("the next page", f.get("/nodes/w101"), "power-cycled")
	f.wantNot("a made-up link", f.get("/?notice=call+555&said=call+555"), "call 555")

	// Booting nodes are not asked about; what fails is told by node.
	if _, err := f.store.UpdateNode(t.Context(), b.Name, func(n *dsas.Node) error { n.BMC = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	body = f.post("/act", url.Values{"node": {"w101", "w102"}, "power": {"off"}})
	f.want("one without BMC", body, "w101: switched off", "<li>w102: power off of node w102: it has no BMC", `class="said bad"`)
	f.post("/act", url.Values{"node": {"w101"}, "role": {"-"}})
	if got := f.stored("w101").Role; got != "" {
		t.Errorf("role taken away = %q; want none", got)
	}
}

func TestAddChangeRemove(t *testing.T) {
	f := start(t)
	f.logIn()
	f.want("no nodes", f.get("/"), "No nodes yet")
	f.want("bad MAC", f.post("/nodes", url.Values{"name": {"w1"}, "macs": {"52:54"}}), "not six pairs of hex digits")
	f.want("no MAC", f.post("/nodes", url.Values{"name": {"w1"}}), "has no MAC")
	f.want("bad name", f.post("/nodes", url.Values{"name": {"W 1"}, "macs": {"525400000001"}}), "use lower-case letters")
	f.want("pool address", f.post("/nodes", url.Values{"name": {"w1"}, "macs": {"525400000001"}, "address": {"10.77.200.7"}}), "lies in the pool")
	body := f.post("/nodes", url.Values{"name": {"w1"}, "macs": {"52-54-00-00-00-01, 525400000002"}, "new-role": {"web"}, "address": {"10.77.3.9"},
		"bmc": {"10.78.0.1"}, "bmc-user": {"ADMIN"}, "bmc-password": {"s3cret"}})
	f.want("added", body, "w1 is added, at 10.77.3.9", `id="row-w1"`, "52:54:00:00:00:01")
	n := f.stored("w1")
	if len(n.NICs) != 2 || n.Role != "web" || n.Address.String() != "10.77.3.9/16" || n.BMC == nil || n.BMC.User != "ADMIN" {
		t.Errorf("added = %+v", n)
	}
	if pw, err := f.store.BMCPassword(t.Context(), "w1"); err != nil || pw != "s3cret" {
		t.Errorf("BMC password = %q, %v; want s3cret", pw, err)
	}
	f.wantNot("its page", f.get("/nodes/w1"), "s3cret")
	f.want("twice", f.post("/nodes", url.Values{"name": {"w1"}, "macs": {"525400000009"}}), "exists already")

	// An empty password leaves the one there is.
	change := url.Values{"do": {"change"}, "macs": {"525400000002\r\n525400000001\r\n"}, "address": {"10.77.3.10"}, "bmc": {"10.78.0.2"}, "bmc-user": {"ADMIN"}, "loader": {"pxelinux"}, "back": {"/nodes/w1"}}
	f.want("changed", f.post("/nodes/w1", change), "w1 is changed")
	n = f.stored("w1")
	if n.NICs[0].MAC.String() != "52:54:00:00:00:02" || n.Address.String() != "10.77.3.10/16" || n.BMC.Address != "10.78.0.2" || n.Loader != dsas.LoaderPXELINUX || n.Role != "web" {
		t.Errorf("changed = %+v, BMC %+v", n, n.BMC)
	}
	if pw, err := f.store.BMCPassword(t.Context(), "w1"); err != nil || pw != "s3cret" {
		t.Errorf("BMC password after a change = %q, %v; want s3cret", pw, err)
	}
	change.Set("bmc", "")
	f.post("/nodes/w1", change)
	if n = f.stored("w1"); n.BMC != nil {
		t.Errorf("BMC = %+v; want none", n.BMC)
	}

	f.want("the question", f.post("/nodes/w1", url.Values{"do": {"remove"}}), "Remove w1?")
	f.want("removed", f.post("/nodes/w1", url.Values{"do": {"remove"}, "sure": {"1"}, "back": {"/nodes/w1"}}), "w1 is removed", "No nodes yet")
	if resp, body := f.do("GET", "/nodes/w1", nil); resp.StatusCode != 404 || !strings.Contains(body, "not found") {
		t.Errorf("GET of a removed node = %d %s; want a 404 that says so", resp.StatusCode, body)
	}
}

func TestTakeIn(t *testing.T) {
	f := start(t)
	f.logIn()
	const guid = "00-4c4c4544-0042-3510-8051-b7c04f4a4e31"
	for i, u := range []dsas.Unknown{
		{MAC: mac(1), GUID: guid, Arch: "bios"}, {MAC: mac(2), GUID: guid, Arch: "bios"}, {MAC: mac(3)}, {MAC: mac(4)},
		{MAC: mac(5), GUID: "00-00000000-0000-0000-0000-000000000000"}, {MAC: mac(6), GUID: "00-00000000-0000-0000-0000-000000000000"},
	} {
		u.Last = time.Now().Add(-time.Duration(i) * time.Second)
		if _, err := f.store.RecordUnknown(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	body := f.get("/")
	if n := strings.Count(body, `class="box"`); n != 5 {
		t.Errorf("%d boxes; want 5: two MACs with one GUID are one box, GUIDs of zeros say nothing\n%s", n, body)
	}
	f.want("no name", f.post("/unknown", url.Values{"do": {"add"}, "mac": {mac(1).String()}}), "give the box a name")
	f.want("no MAC", f.post("/unknown", url.Values{"do": {"add"}, "name": {"w1"}}), "choose at least one MAC")
	f.want("taken in", f.post("/unknown", url.Values{"do": {"add"}, "mac": {mac(1).String(), mac(2).String()}, "name": {"w1"}, "role": {"web"}}), "is node w1 at 10.77.0.2", `id="row-w1"`)
	if n := f.stored("w1"); len(n.NICs) != 2 || n.Role != "web" {
		t.Errorf("taken in = %+v; want two NICs and role web", n)
	}
	f.want("a name that exists", f.post("/unknown", url.Values{"do": {"add"}, "mac": {mac(3).String()}, "name": {"w1"}}), "exists already")
	f.want("no such node", f.post("/unknown", url.Values{"do": {"join"}, "mac": {mac(3).String()}, "name": {"w2"}}), "w2", "not found")
	f.want("joined", f.post("/unknown", url.Values{"do": {"join"}, "mac": {mac(3).String()}, "name": {"w1"}}), "added to w1")
	if n := f.stored("w1"); len(n.NICs) != 3 || n.NICs[2].MAC != mac(3) {
		t.Errorf("joined = %+v; want %s as its third NIC", n.NICs, mac(3))
	}
	f.want("forgotten", f.post("/unknown", url.Values{"do": {"forget"}, "mac": {mac(4).String()}}), "forgotten")
	if left, err := f.store.Unknowns(t.Context()); err != nil || len(left) != 2 {
		t.Errorf("Unknowns = %v, %v; want the two with a GUID of zeros", left, err)
	}
}

func TestFilter(t *testing.T) {
	f := start(t)
	f.logIn()
	for i, n := range []struct{ name, role string }{{"w9", "web"}, {"w10", "web"}, {"w101", "db"}, {"w102", "lb"}, {"ready1", ""}} {
		f.node(n.name, n.role, i+1)
	}
	f.boot(f.stored("w10"), "web", time.Now().Add(-time.Minute), "")
	hidden := regexp.MustCompile(`(?s)<tr id="row-([a-z0-9-]+)"[^>]*? hidden>`)
	all := []string{"ready1", "w9", "w10", "w101", "w102"}
	for _, c := range []struct {
		q     string
		shown string
	}{
		{"", "ready1 w9 w10 w101 w102"},
		{"w10", "w10 w101 w102"},
		{"W10 DB", "w101"},
		{"role:web", "w9 w10"},
		{"role:none", "ready1"},
		{"phase:ready", "w10"},
		{"ready", "ready1 w10"},
		{"!phase:ready", "ready1 w9 w101 w102"},
		{"w[9-10]", "w9 w10"},
		{"w[101-102,9]", "w9 w101 w102"},
		{"w[09-10]", "w10"},
		{"w[1", ""},
		{"10.77.0.19", "w101"},
		{mac(4).String(), "w10"},
		{"<script>", ""},
	} {
		body := f.get("/?q=" + url.QueryEscape(c.q))
		shown := slices.Clone(all)
		for _, m := range hidden.FindAllStringSubmatch(body, -1) {
			shown = slices.DeleteFunc(shown, func(n string) bool { return n == m[1] })
		}
		if got := strings.Join(shown, " "); got != c.shown {
			t.Errorf("filter %q shows %q; want %q", c.q, got, c.shown)
		}
	}
}

// TestHostile: what a box on the boot network says is text on every page.
func TestHostile(t *testing.T) {
	f := start(t)
	f.logIn()
	const evil = `<script>window.pwned=1</script><img src=x onerror="window.pwned=2">" onmouseover='window.pwned=3'` + "\x1b[31m\u202e\x00"
	n := f.node("w1", "web", 1)
	f.boot(n, "web", time.Now().Add(-time.Minute), "")
	for _, k := range []dsas.Kind{dsas.KindFailed, dsas.KindService, "node.<script>window.pwned=4</script>"} {
		f.event(dsas.Event{Node: "w1", Kind: k, Message: evil, Detail: evil})
	}
	f.event(dsas.Event{Node: `"><script>window.pwned=5</script>`, Kind: dsas.KindDHCP, Message: evil})
	if _, err := f.store.RecordUnknown(t.Context(), dsas.Unknown{MAC: mac(77), Arch: evil[:60], VendorClass: evil, GUID: evil[:60]}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/nodes/w1", "/events", "/events?bad=1", "/roles", "/?q=" + url.QueryEscape(evil), "/events?node=" + url.QueryEscape(evil)} {
		resp, body := f.do("GET", path, nil)
		f.wantNot(path, body, "<script>window", "<img src=x", `x onerror="`, "\x1b", "\u202e", "\x00", "onmouseover='window")
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'self'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: Content-Security-Policy = %q; want a strict one", path, csp)
		}
		if inline := regexp.MustCompile(`(?i)<script(?: [^>]*)?>[^<]|<style|\sstyle=|\son[a-z]+="`).FindString(body); inline != "" {
			t.Errorf("%s has inline script or style: %q", path, inline)
		}
	}
	f.want("the node's page", f.get("/nodes/w1"), "&lt;script&gt;window.pwned=1&lt;/script&gt;", "\ufffd[31m\ufffd")
}

// TestInPlace is what the script gets for a form.
func TestInPlace(t *testing.T) {
	f := start(t)
	f.logIn()
	f.boot(f.node("w1", "web", 1), "web", time.Now().Add(-time.Minute), "")
	type answer struct {
		Text  string
		Lines []string
		Bad   bool
		Go    string
		Sure  *struct{ Text, Nodes, Button string }
	}
	post := func(path string, form url.Values) (a answer) {
		t.Helper()
		resp, body := f.do("POST", path, form, "Dsas-Part", "act")
		if err := json.Unmarshal([]byte(body), &a); err != nil || resp.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("POST %s = %s %s; want JSON", path, resp.Header.Get("Content-Type"), body)
		}
		return a
	}
	if a := post("/act", url.Values{"node": {"w1"}}); !a.Bad || a.Text == "" {
		t.Errorf("nothing asked for = %+v; want an error", a)
	}
	if a := post("/act", url.Values{"node": {"w1"}, "power": {"off"}}); a.Sure == nil || a.Sure.Nodes != "w1" || a.Sure.Text != "w1 is ready and serving. Switch it off?" || a.Sure.Button != "Switch off" {
		t.Errorf("power off of a ready node = %+v; want a question", a.Sure)
	}
	if a := post("/act", url.Values{"node": {"w1"}, "power": {"off"}, "sure": {"1"}}); a.Bad || a.Text != "w1: switched off" {
		t.Errorf("power off = %+v", a)
	}
	if a := post("/nodes/w1", url.Values{"do": {"remove"}, "sure": {"1"}}); a.Go != "/" {
		t.Errorf("remove = %+v; want to go to /", a)
	}
	f.want("the page it goes to", f.get("/"), "w1 is removed")
}

// TestOtherSites: a page elsewhere changes nothing here.
func TestOtherSites(t *testing.T) {
	f := start(t)
	f.logIn()
	f.node("w1", "web", 1)
	for _, path := range []string{"/act", "/nodes", "/nodes/w1", "/unknown", "/logout"} {
		resp, _ := f.do("POST", path, url.Values{"node": {"w1"}, "role": {"db"}}, "Origin", "https://elsewhere.example")
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("POST %s from another site = %d; want 403", path, resp.StatusCode)
		}
	}
	if got := f.stored("w1").Role; got != "web" {
		t.Errorf("role = %s; want web", got)
	}
	for _, back := range []string{"https://elsewhere.example/", "//elsewhere.example/", `/\elsewhere.example`} {
		if body := f.post("/act", url.Values{"node": {"w1"}, "role": {"web"}, "back": {back}}); !strings.Contains(body, "as before") {
			t.Errorf("back to %q led to %s; want our page", back, body)
		}
	}
}

func TestNodePage(t *testing.T) {
	f := start(t)
	f.logIn()
	n := f.node("w1", "web", 1)
	f.boot(n, "web", time.Now().Add(-2*time.Hour), dsas.KindFetch) // and hangs
	f.boot(n, "web", time.Now().Add(-time.Hour), "")
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindLink, Message: "bond0: active port eth1 (was eth0)"})
	body := f.get("/nodes/w1")
	f.want("its page", body, "ready after", "26.6 s", "Since then", "active port eth1", "Earlier", `class="p-fetch"`, "43.0 MiB in 6.0 s", "init <span class=\"dim num\">4.1 s")
	story, _, _ := strings.Cut(body, "Since then")
	if n := strings.Count(story, `class="kind">boot.script`); n != 1 {
		t.Errorf("%d boot scripts in the latest boot; want 1", n)
	}
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindFailed, Message: "nginx: failed", Detail: "the end of its log"})
	f.want("failed", f.get("/nodes/w1"), `id="trouble"`, "the end of its log")
	// So many events that the boot is far back: it is looked for by its id.
	for i := range 420 {
		f.event(dsas.Event{Node: "w1", Kind: dsas.KindLink, Message: fmt.Sprintf("flap %d", i)})
	}
	f.want("after many events", f.get("/nodes/w1"), "ready after", "flap 419")
}

func TestSitesAndRoles(t *testing.T) {
	f := start(t)
	f.logIn()
	f.boot(f.node("w1", "web", 1), "web", time.Now().Add(-time.Minute), "")
	f.node("w2", "web", 2)
	if _, err := f.store.CreateSite(t.Context(), dsas.Site{Name: "shop", Address: netip.MustParseAddr("10.77.250.1")}.WithDefaults()); err != nil {
		t.Fatal(err)
	}
	f.want("sites", f.get("/"), "10.77.250.1:80", "1 of 2 ready", "0 of 0 ready")
	f.want("roles", f.get("/roles"), "not built", "dsas image build rescue", digest("web").Short(), "43.0 MiB", "1 ready")
	f.want("a role without image", f.get("/"), `<option value="rescue" disabled>`, `<option value="web">`)
}

// TestCanary: role and node rows say that a release is tried.
func TestCanary(t *testing.T) {
	f := start(t)
	f.logIn()
	f.boot(f.node("w1", "web", 1), "web", time.Now().Add(-time.Minute), "")
	f.node("w2", "web", 2)
	f.node("w3", "web", 3)
	f.wantNot("no canary", f.get("/roles")+f.get("/")+f.get("/nodes/w1"), "canary")
	if _, err := f.store.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		p.StartCanary(dsas.Canary{Release: digest("web"), Nodes: []string{"w1", "w2"}, Ready: []string{"w1"}})
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	f.want("roles", f.get("/roles"), "canary web:7: 1 of 2 ready", `title="w1 w2 "`)
	if rows := f.get("/"); strings.Count(rows, ">canary</span>") != 2 {
		t.Errorf("%d nodes are shown as canaries; want 2\n%s", strings.Count(rows, ">canary</span>"), rows)
	}
	f.want("the node that runs it", f.get("/nodes/w1"), ">canary</span>")
	f.want("the node that will", f.get("/nodes/w2"), "its next boot gives it web:7, as a canary")
	f.wantNot("another", f.get("/nodes/w3"), "canary")
}

func TestGate(t *testing.T) {
	f := start(t)
	f.want("not logged in", f.get("/"), `action="/login"`)
	f.want("bad link", func() string { _, b := f.do("GET", "/setup?token=x", nil); return b }(), `role="alert"`)
	f.logIn()
	resp, body := f.do("POST", "/login", url.Values{"password": {"not this one"}, "next": {"//elsewhere.example"}})
	if resp.StatusCode != 403 || !strings.Contains(body, "Wrong password") || strings.Contains(body, ": denied") || strings.Contains(body, "elsewhere") {
		t.Errorf("wrong password = %d %s; want 403 and the form again", resp.StatusCode, body)
	}
	f.want("logged out", f.post("/logout", nil), `action="/login"`)
	f.want("no session", f.get("/nodes/w1"), `action="/login"`, `value="/nodes/w1"`)
	f.want("logged in", f.post("/login", url.Values{"password": {password}, "next": {"/events"}}), "<h1>Events</h1>")
	resp, err := f.http.Get(f.srv.URL + "/static/dsas.js")
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("GET /static/dsas.js = %v, %v", resp, err)
	}
	resp.Body.Close()
}

// TestPorts: the page says where a box hangs, as text and only where that is known.
func TestPorts(t *testing.T) {
	f := start(t)
	f.logIn()
	n := f.node("w1", "web", 1)
	f.node("w2", "web", 2)
	if _, err := f.store.RecordUnknown(t.Context(), dsas.Unknown{MAC: mac(0x7710), Arch: "bios"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.RecordUnknown(t.Context(), dsas.Unknown{MAC: mac(0x7711), Arch: "bios"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []dsas.Port{
		{MAC: n.NICs[1].MAC, CircuitID: "ge-0/0/12", RemoteID: "sw<b>1\u202e", Relay: netip.MustParseAddr("10.77.0.254")},
		{MAC: mac(0x7710), CircuitID: "0x00640103"},
	} {
		if err := f.store.RecordPort(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	body := f.get("/nodes/w1")
	f.want("node's page", body, "port ge-0/0/12 of sw&lt;b&gt;1\uFFFD, relay 10.77.0.254")
	if got := strings.Count(body, `class="dim port"`); got != 1 {
		t.Errorf("%d ports on the node's page; want 1, its second NIC's", got)
	}
	f.wantNot("the page of a node of which no port is known", f.get("/nodes/w2"), `class="dim port"`)
	body = f.get("/")
	f.want("unknown machines", body, "port 0x00640103")
	if got := strings.Count(body, `class="dim port"`); got != 1 {
		t.Errorf("%d ports on the nodes' page; want 1, of one unknown machine", got)
	}
}

// TestLivePart: the live part is sent when something on it changed, and at no
// other time; what it shows of a node is never what it was.
func TestLivePart(t *testing.T) {
	f := start(t)
	f.logIn()
	w1, w2 := f.node("w1", "web", 1), f.node("w2", "db", 2)
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindDHCP})
	tag := ""
	ask := func(path string, changed bool) string {
		t.Helper()
		resp, body := f.do("GET", path, nil, "Dsas-Part", "live", "If-None-Match", tag)
		if want := map[bool]int{true: 200, false: 304}[changed]; resp.StatusCode != want || (body == "") == changed {
			t.Errorf("GET %s = %d with %d bytes; want %d", path, resp.StatusCode, len(body), want)
		}
		tag = resp.Header.Get("Etag")
		return body
	}
	body := ask("/", true)
	f.want("live part", body, `id="row-w1"`, `id="row-w2"`, `<time data-at="`)
	now := regexp.MustCompile(`data-now="\d{13}"`)
	if !now.MatchString(body) || regexp.MustCompile(`mark[A-Z2-7]{20}`).MatchString(body) {
		t.Errorf("the live part has no clock, or a mark is left in it:\n%s", body)
	}
	for range 3 {
		ask("/", false)
	}
	time.Sleep(1100 * time.Millisecond) // ages go on by themselves
	ask("/", false)
	for _, path := range []string{"/nodes/w1", "/events"} {
		tag = ""
		ask(path, true)
		ask(path, false)
	}

	tag = ""
	ask("/", true)
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindScript, Message: "script of boot one"})
	body = ask("/", true)
	f.want("after an event", body, "script of boot one", `data-name="w1" data-role="web" data-phase="loader"`, `data-name="w2" data-role="db" data-phase="new"`)
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindScript, Message: "script of boot two"})
	body = ask("/", true)
	f.want("after another of that kind", body, "script of boot two")
	f.wantNot("after another of that kind", body, "script of boot one")
	change := func(name string, fn func(*dsas.Node)) {
		t.Helper()
		if _, err := f.store.UpdateNode(t.Context(), name, func(n *dsas.Node) error { fn(n); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	change("w2", func(n *dsas.Node) { n.Role = "lb" })
	f.want("after another role", ask("/", true), `data-name="w2" data-role="lb"`)
	change("w2", func(n *dsas.Node) { n.NICs = n.NICs[:1] })
	body = ask("/", true)
	f.wantNot("after a NIC was taken out", body, w2.NICs[1].MAC.String())
	f.want("after a NIC was taken out", body, w1.NICs[1].MAC.String())
	body = ask("/?q=w2", true) // the same rows by another filter
	f.want("filtered", body, `data-phase="loader" data-find="w1 `, "1 of 2")
	if n := strings.Count(body, " hidden>\n      <td class=\"tick\">"); n != 1 {
		t.Errorf("%d rows are hidden; want 1\n%s", n, body)
	}
	if err := f.store.DeleteNode(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	f.wantNot("after it was removed", ask("/", true), `id="row-w1"`)
	f.node("w1", "rescue", 3)
	f.want("after another got its name", ask("/", true), `data-name="w1" data-role="rescue" data-phase="new"`)
	// A page that is no live part is always sent.
	if resp, body := f.do("GET", "/", nil, "If-None-Match", tag); resp.StatusCode != 200 || !strings.Contains(body, "<!doctype html>") {
		t.Errorf("GET / = %d; want the page", resp.StatusCode)
	}
}
