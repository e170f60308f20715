package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/api"
	"dsas/server/auth"
	"dsas/server/blobs"
	"dsas/server/store"
)

// fixture is the API over a real store.
type fixture struct {
	*testing.T
	store  *store.Store
	images *blobs.Store
	power  *bmcs
	deps   api.Deps
	srv    *httptest.Server
	done   chan struct{}

	unsigned map[string]bool // releases, by name
}

func subnet() dsas.Subnet {
	return dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"), Gateway: netip.MustParseAddr("10.77.0.254"),
		Pool:  dsas.Range{First: netip.MustParseAddr("10.77.0.200"), Last: netip.MustParseAddr("10.77.0.250")},
		Lease: time.Hour,
	}
}

func newFixture(t *testing.T, change ...func(*api.Deps)) *fixture {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := store.Open(t.Context(), filepath.Join(dir, "db"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	images, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, store: s, images: images, power: &bmcs{states: map[string]string{}}, unsigned: map[string]bool{}, done: make(chan struct{})}
	f.deps = api.Deps{
		Store: s, Power: f.power, Roles: roleNames{"db", "lb", "web"}, Releases: releases{images, s, f.unsigned}, Tokens: s,
		Subnets: []dsas.Subnet{subnet()}, Done: f.done, Log: log,
		Explain: func(_ context.Context, mac dsas.MAC, arch string) (any, error) {
			return map[string]string{"mac": mac.String(), "arch": arch}, nil
		},
		SSH: func(_ context.Context, n dsas.Node) (dsas.SSHInfo, error) {
			return dsas.SSHInfo{Address: n.Address.Addr(), HostKey: "ssh-ed25519 AAAA"}, nil
		},
		Status: func(context.Context) (dsas.ServerStatus, error) { return dsas.ServerStatus{Version: "test"}, nil },
	}
	for _, c := range change {
		c(&f.deps)
	}
	f.srv = httptest.NewServer(api.New(f.deps))
	t.Cleanup(f.srv.Close)
	return f
}

type roleNames []string

func (r roleNames) Roles(context.Context) ([]dsas.RoleView, error) {
	var views []dsas.RoleView
	for _, n := range r {
		role := dsas.Role{Name: n}
		if n == "db" { // as the shipped one
			role.Devices = []dsas.Device{{Key: "DBDEVICE", Format: true}}
		}
		views = append(views, dsas.RoleView{Role: role, Source: "shipped"})
	}
	return views, nil
}

// releases is the real image store; what is current is in the state.
type releases struct {
	*blobs.Store
	state    *store.Store
	unsigned map[string]bool // names of those that are not signed
}

func (r releases) Bootable(rel *dsas.Release) error {
	if r.unsigned[rel.Name()] {
		return fmt.Errorf("release %s is not signed; dsas image sign %s: %w", rel.Name(), rel.Name(), dsas.ErrConflict)
	}
	return nil
}

func (r releases) Assigned(node *dsas.Node, role string) (*dsas.Release, error) {
	id := r.state.Published(role).Assigned(node)
	if id == "" {
		return nil, nil
	}
	return r.Release(id)
}

func (r releases) Sync(context.Context) ([]dsas.Published, error) { return nil, nil }

// bmcs stands in for power adapters, which have tests of their own.
type bmcs struct {
	mu      sync.Mutex
	states  map[string]string
	calls   []string
	hang    map[string]bool // until the context ends
	atOnce  int
	maximum int
	gate    chan struct{} // when set, every call waits for a value
}

func (b *bmcs) Power(ctx context.Context, n dsas.Node, action string) (string, error) {
	b.mu.Lock()
	b.atOnce++
	b.maximum = max(b.maximum, b.atOnce)
	gate, hang := b.gate, b.hang[n.Name]
	b.mu.Unlock()
	defer func() { b.mu.Lock(); b.atOnce--; b.mu.Unlock() }()
	if gate != nil {
		<-gate
	}
	if hang {
		<-ctx.Done()
		return "", ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, n.Name+" "+action)
	switch action {
	case dsas.PowerOff:
		b.states[n.Name] = "off"
	case dsas.PowerOn, dsas.PowerCycle:
		b.states[n.Name] = "on"
	}
	return b.states[n.Name], nil
}

// do sends a request and gives status and body.
func (f *fixture) do(method, path, body string) (int, string) {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), method, f.srv.URL+api.Prefix+path, strings.NewReader(body))
	if err != nil {
		f.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// want sends a request that must give status, and decodes the answer into v.
func (f *fixture) want(status int, method, path, body string, v any) string {
	f.Helper()
	got, text := f.do(method, path, body)
	if got != status {
		f.Fatalf("%s %s %s = %d %s; want %d", method, path, body, got, text, status)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(text), v); err != nil {
			f.Fatalf("%s %s = %s: %v", method, path, text, err)
		}
	}
	return text
}

// refused sends a request that must fail with status and words.
func (f *fixture) refused(status int, method, path, body string, words ...string) {
	f.Helper()
	var e struct{ Error string }
	f.want(status, method, path, body, &e)
	for _, w := range words {
		if !strings.Contains(e.Error, w) {
			f.Errorf("%s %s %s = %q; want it to say %q", method, path, body, e.Error, w)
		}
	}
}

func (f *fixture) kinds(node string) []string {
	f.Helper()
	events, err := f.store.Events(f.Context(), dsas.EventFilter{Node: node})
	if err != nil {
		f.Fatal(err)
	}
	var out []string
	for _, e := range events {
		out = append(out, string(e.Kind)+": "+e.Message)
	}
	return out
}

func nodeJSON(name, mac, more string) string {
	return fmt.Sprintf(`{"name":%q,"nics":[{"mac":%q}]%s}`, name, mac, more)
}

func TestAddNode(t *testing.T) {
	f := newFixture(t)
	var n dsas.Node
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", `,"role":"web"`), &n)
	if got, want := n.Address.String(), "10.77.0.101/24"; got != want {
		t.Errorf("address = %s; want %s, after the number in its name", got, want)
	}
	// The number's address is taken, the pool's is not a node's, and a name
	// without a number takes the lowest.
	f.want(201, "POST", "/nodes", nodeJSON("x101", "52:54:00:00:01:02", ""), &n)
	if got, want := n.Address.String(), "10.77.0.2/24"; got != want {
		t.Errorf("address = %s; want %s", got, want)
	}
	f.want(201, "POST", "/nodes", nodeJSON("w210", "52:54:00:00:01:03", ""), &n)
	if got, want := n.Address.String(), "10.77.0.3/24"; got != want {
		t.Errorf("address = %s; want %s", got, want)
	}
	f.want(201, "POST", "/nodes", nodeJSON("w7", "52:54:00:00:01:04", `,"address":"10.77.0.9"`), &n)
	if got, want := n.Address.String(), "10.77.0.9/24"; got != want {
		t.Errorf("address = %s; want %s", got, want)
	}
	if got, want := f.kinds("w101"), []string{"node.changed: added with role web, by operator"}; !slices.Equal(got, want) {
		t.Errorf("events = %q; want %q", got, want)
	}
	var views []dsas.NodeView
	f.want(200, "GET", "/nodes", "", &views)
	if len(views) != 4 || views[0].Node.Name != "w7" || views[0].Status.Phase != dsas.PhaseNew {
		t.Errorf("nodes = %+v", views)
	}
}

func TestAddNodeRefused(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", ""), nil)
	f.want(201, "POST", "/sites", `{"name":"shop","address":"10.77.0.80"}`, nil)
	const mac = "52:54:00:00:02:02"
	for _, c := range []struct {
		status int
		body   string
		words  []string
	}{
		{400, ``, []string{"no body"}},
		{400, `{`, []string{"not JSON"}},
		{400, `{} {}`, []string{"follows"}},
		{400, nodeJSON("w102", mac, `,"rolle":"web"`), []string{`"rolle"`, `did you mean "role"`}},
		{400, nodeJSON("w102", mac, `,"Role":"web"`), []string{`"Role"`}},
		{400, nodeJSON("w102", mac, `,"bmc":{"kind":"ipmi","adress":"x"}`), []string{`"bmc.adress"`}},
		{400, nodeJSON("w102", mac, `,"role":7`), []string{"role"}},
		{400, nodeJSON("w102", mac, `,"role":"wbe"`), []string{`"wbe"`, `did you mean "web"`, "db, lb, web"}},
		{400, nodeJSON("W102", mac, ``), []string{`"W102"`}},
		{400, nodeJSON("w102", "zz", ``), []string{`"zz"`}},
		{400, `{"name":"w102"}`, []string{"no MAC"}},
		{409, nodeJSON("w101", mac, ``), []string{"w101", "exists already"}},
		{409, nodeJSON("w102", "52:54:00:00:01:01", ``), []string{"52:54:00:00:01:01", "w101"}},
		{409, nodeJSON("w102", mac, `,"address":"10.77.0.101/24"`), []string{"10.77.0.101", "w101"}},
		{409, nodeJSON("w102", mac, `,"address":"10.77.0.80/24"`), []string{"site shop"}},
		{400, nodeJSON("w102", mac, `,"address":"10.78.0.5/24"`), []string{"10.78.0.5", "10.77.0.0/24"}},
		{400, nodeJSON("w102", mac, `,"address":"10.78.0.5"`), []string{"10.78.0.5", "10.77.0.0/24"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.5/16"`), []string{"10.77.0.5/24"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.0/24"`), []string{"network address"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.255/24"`), []string{"broadcast"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.1/24"`), []string{"server's"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.254/24"`), []string{"gateway"}},
		{400, nodeJSON("w102", mac, `,"address":"10.77.0.210/24"`), []string{"pool"}},
		{400, nodeJSON("w102", mac, `,"interfaces":[{"device":"eth1","address":"10.77.0.1/24"}]`), []string{"eth1", "server's"}},
		{400, nodeJSON("w102", mac, `,"bmc":{"kind":"ipmi"}`), []string{"bmc"}},
	} {
		f.refused(c.status, "POST", "/nodes", c.body, c.words...)
	}
	if status, body := f.do("POST", "/nodes", nodeJSON("w102", mac, `,"conf":"`+strings.Repeat("x", 2<<20)+`"`)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("2 MiB request = %d %s; want 413", status, body)
	}
	if nodes, _ := f.store.Nodes(t.Context()); len(nodes) != 1 {
		t.Errorf("%d nodes after refusals; want 1", len(nodes))
	}
}

func TestAddManyNodes(t *testing.T) {
	f := newFixture(t)
	var e struct{ Items []dsas.ItemError }
	f.want(409, "POST", "/nodes", `[`+strings.Join([]string{
		nodeJSON("w101", "52:54:00:00:01:01", ""),
		nodeJSON("w102", "52:54:00:00:01:01", ""), // MAC of the first
		nodeJSON("w103", "52:54:00:00:01:03", `,"role":"x"`),
		nodeJSON("w101", "52:54:00:00:01:04", ""), // name of the first
	}, ",")+`]`, &e)
	var at []int
	for _, i := range e.Items {
		at = append(at, i.Index)
	}
	if want := []int{1, 2, 3}; !slices.Equal(at, want) {
		t.Errorf("bad items = %v (%+v); want %v", at, e.Items, want)
	}
	if nodes, _ := f.store.Nodes(t.Context()); len(nodes) != 0 {
		t.Fatalf("%d nodes after a list with bad ones; want none", len(nodes))
	}
	good := `[` + nodeJSON("a", "52:54:00:00:01:01", "") + `,` + nodeJSON("b", "52:54:00:00:01:02", `,"address":"10.77.0.2"`) + `]`
	var nodes []dsas.Node
	f.want(201, "POST", "/nodes?dryRun=1", good, &nodes)
	if stored, _ := f.store.Nodes(t.Context()); len(stored) != 0 {
		t.Fatalf("a dry run added %d nodes", len(stored))
	}
	f.want(201, "POST", "/nodes", good, &nodes)
	// b asked for .2, so a, which is first, does not get it.
	if got, want := nodes[0].Address.String(), "10.77.0.3/24"; got != want {
		t.Errorf("address of a = %s; want %s", got, want)
	}
}

// Two callers who add nodes at the same time never get the same address.
func TestAddNodesAtOnce(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := nodeJSON(fmt.Sprintf("n%c", 'a'+i), fmt.Sprintf("52:54:00:00:01:%02x", i), "")
			if status, text := f.do("POST", "/nodes", body); status != 201 {
				t.Errorf("POST %s = %d %s", body, status, text)
			}
		})
	}
	wg.Wait()
	nodes, err := f.store.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Prefix]bool{}
	for _, n := range nodes {
		seen[n.Address] = true
	}
	if len(nodes) != 20 || len(seen) != 20 {
		t.Errorf("%d nodes with %d addresses; want 20 of each", len(nodes), len(seen))
	}
}

func TestChangeNode(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01",
		`,"role":"web","disks":{"DBDEVICE":"/dev/vda","FSDEVICE":"/dev/vdb"},"bmc":{"kind":"ipmi","address":"10.0.9.1","user":"admin","password":"s3cret"}`), nil)
	var n dsas.Node
	text := f.want(200, "PATCH", "/nodes/w101", `{"role":"db","disks":{"FSDEVICE":null}}`, &n)
	if n.Role != "db" || len(n.Disks) != 1 || n.Disks["DBDEVICE"] != "/dev/vda" || n.Address.String() != "10.77.0.101/24" {
		t.Errorf("patched node = %s", text)
	}
	if strings.Contains(text, "s3cret") || strings.Contains(f.want(200, "GET", "/nodes", "", nil), "s3cret") {
		t.Error("an answer holds the BMC's password")
	}
	if p, err := f.store.BMCPassword(t.Context(), "w101"); p != "s3cret" || err != nil {
		t.Errorf("password after an unrelated patch = %q, %v", p, err)
	}
	f.want(200, "PATCH", "/nodes/w101", `{"bmc":{"address":"10.0.9.2"}}`, nil)
	if p, _ := f.store.BMCPassword(t.Context(), "w101"); p != "s3cret" {
		t.Errorf("password after a change of address = %q", p)
	}
	var none dsas.Node
	if f.want(200, "PATCH", "/nodes/w101", `{"role":null}`, &none); none.Role != "" {
		t.Errorf("role after null = %q; want none", none.Role)
	}
	want := []string{
		"node.changed: added with role web, by operator",
		"node.assigned: role db, was web, by operator",
		"node.changed: changed disks, by operator",
		"node.changed: changed bmc, by operator",
		"node.assigned: role none, was db, by operator",
	}
	if got := f.kinds("w101"); !slices.Equal(got, want) {
		t.Errorf("events = %q; want %q", got, want)
	}
	f.want(200, "PATCH", "/nodes/w101", `{}`, nil)
	f.want(200, "PATCH", "/nodes/w101?dryRun=1", `{"role":"web"}`, nil)
	if got := f.kinds("w101"); len(got) != len(want) {
		t.Errorf("an empty patch and a dry run made events: %q", got[len(want):])
	}
	// Taking the address away is asking for the next free one.
	f.want(200, "PATCH", "/nodes/w101", `{"address":"10.77.0.77"}`, nil)
	f.want(200, "PATCH", "/nodes/w101", `{"address":null}`, &n)
	if got, want := n.Address.String(), "10.77.0.101/24"; got != want {
		t.Errorf("address = %s; want %s", got, want)
	}
}

func TestChangeNodeRefused(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", ""), nil)
	f.want(201, "POST", "/nodes", nodeJSON("w102", "52:54:00:00:01:02", ""), nil)
	f.refused(404, "PATCH", "/nodes/w103", `{}`, "w103")
	f.refused(400, "PATCH", "/nodes/w101", `[]`, "object")
	f.refused(400, "PATCH", "/nodes/w101", `{"rolle":null}`, `"rolle"`, `"role"`)
	f.refused(400, "PATCH", "/nodes/w101", `{"nics":[{"mac":"52:54:00:00:01:01","mtu":1}]}`, `nics[0].mtu`)
	f.refused(400, "PATCH", "/nodes/w101", `{"nics":null}`, "no MAC")
	f.refused(400, "PATCH", "/nodes/w101", `{"created":"2001-01-01T00:00:00Z"}`, "created")
	f.refused(400, "PATCH", "/nodes/w101", `{"role":"nope"}`, "db, lb, web")
	f.refused(409, "PATCH", "/nodes/w101", `{"address":"10.77.0.102"}`, "w102")
	f.refused(409, "PATCH", "/nodes/w101", `{"name":"w102"}`, "w102")
}

func TestRemoveNode(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", ""), nil)
	f.want(204, "DELETE", "/nodes/w101", "", nil)
	f.refused(404, "DELETE", "/nodes/w101", "", "w101")
	f.refused(404, "GET", "/nodes/w101", "", "w101")
	f.refused(404, "GET", "/nodez", "", "no such path")
	f.want(405, "PUT", "/nodes", "{}", nil)
}

func TestSites(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", ""), nil)
	var s dsas.Site
	f.want(201, "POST", "/sites", `{"name":"shop","address":"10.77.0.80"}`, &s)
	if s.Port != 80 || s.Role != "web" || s.Balancer != "lb" || s.Scheduler != "wlc" || s.Check.Kind != "http" {
		t.Errorf("site = %+v; want the defaults", s)
	}
	f.refused(409, "POST", "/sites", `{"name":"shop","address":"10.77.0.81"}`, "exists")
	f.refused(409, "POST", "/sites", `{"name":"shop2","address":"10.77.0.80"}`, "shop")
	f.refused(409, "POST", "/sites", `{"name":"shop2","address":"10.77.0.101"}`, "w101")
	f.refused(400, "POST", "/sites", `{"name":"shop2","address":"10.77.0.205"}`, "pool")
	f.refused(400, "POST", "/sites", `{"name":"shop2","address":"10.77.0.82","role":"wb"}`, "did you mean")
	f.refused(400, "POST", "/sites", `{"name":"shop2","address":"10.77.0.82","check":{"kind":"icmp"}}`, "icmp")
	s = dsas.Site{}
	f.want(200, "PATCH", "/sites/shop", `{"check":{"kind":"tcp"},"scheduler":"rr"}`, &s)
	if s.Check != (dsas.SiteCheck{Kind: "tcp"}) || s.Scheduler != "rr" || s.Address.String() != "10.77.0.80" {
		t.Errorf("patched site = %+v", s)
	}
	f.refused(400, "PATCH", "/sites/shop", `{"sheduler":"rr"}`, `"sheduler"`)
	f.want(204, "DELETE", "/sites/shop", "", nil)
	f.refused(404, "GET", "/sites/shop", "", "shop")
	want := []string{"site.changed: site shop added, by operator", "site.changed: site shop changed, by operator", "site.changed: site shop removed, by operator"}
	got := slices.DeleteFunc(f.kinds(""), func(s string) bool { return !strings.HasPrefix(s, "site.") })
	if !slices.Equal(got, want) {
		t.Errorf("events = %q; want %q", got, want)
	}
}

func TestPower(t *testing.T) {
	f := newFixture(t, func(d *api.Deps) { d.PowerTime = 200 * time.Millisecond })
	var nodes, names []string
	for i := range 20 {
		name := fmt.Sprintf("w%d", 101+i)
		nodes = append(nodes, nodeJSON(name, fmt.Sprintf("52:54:00:00:01:%02x", i), ""))
		names = append(names, name)
	}
	f.want(201, "POST", "/nodes", "["+strings.Join(nodes, ",")+"]", nil)
	power := func(action string, names ...string) []dsas.PowerResult {
		t.Helper()
		b, _ := json.Marshal(dsas.PowerRequest{Nodes: names, Action: action})
		var results []dsas.PowerResult
		f.want(200, "POST", "/power", string(b), &results)
		return results
	}
	results := power("cycle", names...)
	if len(results) != 20 || results[3] != (dsas.PowerResult{Node: "w104", State: "on"}) {
		t.Errorf("results = %+v", results)
	}
	if got, _ := f.store.Status(t.Context(), "w104"); got.Phase != dsas.PhasePower {
		t.Errorf("phase after cycle = %s; want power", got.Phase)
	}
	power("off", "w101", "w101")
	if got, _ := f.store.Status(t.Context(), "w101"); got.Phase != dsas.PhaseOff {
		t.Errorf("phase after off = %s; want off", got.Phase)
	}
	if got := f.kinds("w101"); !slices.Equal(got[1:], []string{"power: cycle", "power: off"}) {
		t.Errorf("events = %q; want one cycle and one off", got)
	}
	// What is on stays as it is: neither a command nor an event.
	before := len(f.kinds("w102"))
	if r := power("on", "w102"); r[0].State != "on" {
		t.Errorf("power on = %+v", r)
	}
	power("status", "w102")
	if got := f.kinds("w102"); len(got) != before {
		t.Errorf("events = %q; want none for on (it was) and status", got[before:])
	}
	// A BMC that does not answer fails alone, and the phase stays.
	f.power.hang = map[string]bool{"w103": true}
	results = power("cycle", "w103", "w104")
	if !strings.Contains(results[0].Error, "no answer") || results[1].Error != "" {
		t.Errorf("results = %+v; want w103 alone to fail", results)
	}
	if got := f.kinds("w103"); !strings.HasPrefix(got[len(got)-1], "node.warning: power cycle failed") {
		t.Errorf("last event = %q; want the failure", got[len(got)-1])
	}

	f.power.calls = nil
	f.refused(404, "POST", "/power", `{"nodes":["w101","w999"],"action":"off"}`, "w999")
	f.refused(400, "POST", "/power", `{"nodes":["w101"],"action":"explode"}`, "explode")
	f.refused(400, "POST", "/power", `{"nodes":[],"action":"off"}`, "0 nodes")
	if len(f.power.calls) != 0 {
		t.Errorf("refused requests did %q", f.power.calls)
	}
}

// At most eight BMCs are spoken to at once, and eight are.
func TestPowerInParallel(t *testing.T) {
	f := newFixture(t)
	var nodes, names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("w%d", 101+i))
		nodes = append(nodes, nodeJSON(names[i], fmt.Sprintf("52:54:00:00:01:%02x", i), ""))
	}
	f.want(201, "POST", "/nodes", "["+strings.Join(nodes, ",")+"]", nil)
	f.power.gate = make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		b, _ := json.Marshal(dsas.PowerRequest{Nodes: names, Action: "status"})
		f.do("POST", "/power", string(b))
	}()
	busy := func() int { f.power.mu.Lock(); defer f.power.mu.Unlock(); return f.power.atOnce }
	waitFor(t, "eight calls at once", func() bool { return busy() == 8 })
	for range names {
		f.power.gate <- struct{}{}
	}
	<-finished
	if f.power.maximum != 8 {
		t.Errorf("at most %d calls at once; want 8", f.power.maximum)
	}
}

// waitFor polls until ok, with a generous end.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func TestViews(t *testing.T) {
	f := newFixture(t)
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:01:01", ""), nil)
	f.publish(f.release("web", "one"))
	var roles []dsas.RoleView
	f.want(200, "GET", "/roles", "", &roles)
	if len(roles) != 3 || roles[0].Release != nil || roles[2].Release == nil || roles[2].Release.Name() != "web:1" {
		t.Errorf("roles = %+v; want a release for web alone", roles)
	}
	if got := f.want(200, "GET", "/explain?mac=52-54-00-00-01-01&arch=bios", "", nil); !strings.Contains(got, `"52:54:00:00:01:01"`) {
		t.Errorf("explain = %s", got)
	}
	f.refused(400, "GET", "/explain?mac=zz", "", "zz")
	var info dsas.SSHInfo
	f.want(200, "GET", "/nodes/w101/ssh", "", &info)
	if info.Address.String() != "10.77.0.101" {
		t.Errorf("ssh = %+v", info)
	}
	var status dsas.ServerStatus
	f.want(200, "GET", "/status", "", &status)
	if status.Version != "test" || status.Nodes[dsas.PhaseNew] != 1 || len(status.Subnets) != 1 {
		t.Errorf("status = %+v", status)
	}
	for _, path := range []string{"/unknown", "/leases", "/sites", "/tokens"} {
		if got := strings.TrimSpace(f.want(200, "GET", path, "", nil)); got != "[]" {
			t.Errorf("GET %s = %s; want []", path, got)
		}
	}
	mac := dsas.MAC{0x52, 0x54, 0, 0, 9, 9}
	if _, err := f.store.RecordUnknown(t.Context(), dsas.Unknown{MAC: mac, VendorClass: "PXEClient\x1b[2J"}); err != nil {
		t.Fatal(err)
	}
	f.want(204, "DELETE", "/unknown/"+mac.String(), "", nil)
	f.refused(404, "DELETE", "/unknown/"+mac.String(), "", mac.String())
}

func TestTokens(t *testing.T) {
	f := newFixture(t)
	var made dsas.NewToken
	f.want(201, "POST", "/tokens", `{"name":"laptop"}`, &made)
	f.refused(409, "POST", "/tokens", `{"name":"laptop"}`, "laptop")
	f.refused(400, "POST", "/tokens", `{"name":"Lap top"}`, "Lap top")
	if got := f.want(200, "GET", "/tokens", "", nil); strings.Contains(got, made.Secret) || !strings.Contains(got, "laptop") {
		t.Errorf("tokens = %s", got)
	}
	f.deps.Who = auth.Who
	guarded := httptest.NewServer(auth.New(f.store, f.deps.Log).Require(api.New(f.deps)))
	defer guarded.Close()
	status := func(secret string) int {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", guarded.URL+api.Prefix+"/sites", bytes.NewBufferString(`{"name":"a","address":"10.77.0.80"}`))
		if secret != "" {
			req.Header.Set("Authorization", "Bearer "+secret)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for secret, want := range map[string]int{"": 401, made.Secret + "x": 401, strings.ToUpper(made.Secret): 401} {
		if got := status(secret); got != want {
			t.Errorf("status with token %.8q = %d; want %d", secret, got, want)
		}
	}
	if got := status(made.Secret); got != 201 {
		t.Errorf("status with the token = %d; want 201", got)
	}
	if got := f.kinds(""); !slices.Contains(got, "site.changed: site a added, by token laptop") {
		t.Errorf("events = %q; want who it was", got)
	}
	f.want(204, "DELETE", "/tokens/laptop", "", nil)
	if got := status(made.Secret); got != 401 {
		t.Errorf("status with a removed token = %d; want 401", got)
	}
}

// A page of another site cannot make a logged-in browser change things.
func TestCrossOrigin(t *testing.T) {
	f := newFixture(t)
	req, _ := http.NewRequestWithContext(t.Context(), "POST", f.srv.URL+api.Prefix+"/sites", strings.NewReader(`{"name":"a","address":"10.77.0.80"}`))
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status = %d; want 403", resp.StatusCode)
	}
}
