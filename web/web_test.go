package web_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/client"
	"dsas/server/api"
	"dsas/server/auth"
	"dsas/server/store"
	"dsas/web"
)

const password = "correct horse battery"

// fixture is the operators' listener as cmd/dsas wires it, over a real store.
type fixture struct {
	testing.TB
	store *store.Store
	auth  *auth.Auth
	power *fakePower
	srv   *httptest.Server
	http  *http.Client // a browser without script
	gets  *counter
}

// counter counts requests for live parts.
type counter struct {
	mu   sync.Mutex
	n    int
	now  int
	most int
}

func (c *counter) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Dsas-Part") == "live" {
			c.mu.Lock()
			c.n, c.now = c.n+1, c.now+1
			c.most = max(c.most, c.now)
			c.mu.Unlock()
			defer func() { c.mu.Lock(); c.now--; c.mu.Unlock() }()
		}
		next.ServeHTTP(w, r)
	})
}

func start(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := store.Open(t.Context(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	f := &fixture{TB: t, store: s, auth: auth.New(s, log), power: &fakePower{}, gets: &counter{}}
	stop := make(chan struct{})
	apiHandler := api.New(api.Deps{
		Store: s, Power: f.power, Roles: roles{}, Releases: releases{}, Tokens: s, Done: stop, Who: auth.Who, Log: log,
		Subnets: []dsas.Subnet{{
			Prefix: netip.MustParsePrefix("10.77.0.0/16"), Server: netip.MustParseAddr("10.77.0.1"), Lease: time.Hour,
			Pool: dsas.Range{First: netip.MustParseAddr("10.77.200.1"), Last: netip.MustParseAddr("10.77.200.250")},
		}},
	})
	pages, err := web.New(web.Deps{API: client.InProcess(apiHandler), Nodes: func(ctx context.Context) ([]dsas.NodeView, error) { return api.Views(ctx, s, releases{}) }, Subscribe: s.Subscribe, Done: stop, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	gate := web.Gate(f.auth, log)
	mux := http.NewServeMux()
	mux.Handle(api.Prefix+"/", f.auth.Require(apiHandler))
	mux.Handle("/static/", web.Static())
	mux.Handle("/login", gate)
	mux.Handle("/setup", gate)
	mux.Handle("/logout", f.auth.Require(gate))
	mux.Handle("/", f.auth.Require(f.gets.wrap(pages)))
	f.srv = httptest.NewServer(mux)
	t.Cleanup(f.srv.Close)
	t.Cleanup(func() { close(stop) })
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.http = &http.Client{Jar: jar}
	return f
}

// roles are as the shipped ones; what is not built is in images.
type roles struct{}

func (roles) Roles(context.Context) ([]dsas.RoleView, error) {
	var out []dsas.RoleView
	for _, r := range []dsas.Role{
		{Name: "db", Description: "MariaDB server; its data live on DBDEVICE, the image holds none", Memory: "768MiB"},
		{Name: "inventory", Description: "reports what a box is made of"},
		{Name: "lb", Description: "load balancer: keepalived and IPVS, direct routing, active/backup by VRRP", Memory: "384MiB"},
		{Name: "rescue", Description: "a shell on the console and over ssh, with the tools to look at disks and links"},
		{Name: "web", Description: "web server (nginx); carries its sites' service addresses on lo", Memory: "384MiB"},
	} {
		out = append(out, dsas.RoleView{Role: r, Source: "shipped"})
	}
	return out, nil
}

// releases has one for some roles.
type releases struct{}

func (releases) Assigned(_ *dsas.Node, role string) (*dsas.Release, error) {
	size := map[string]int64{"web": 43 << 20, "db": 171 << 20, "lb": 58 << 20, "inventory": 22 << 20}[role]
	if size == 0 {
		return nil, nil
	}
	return &dsas.Release{ID: digest(role), Role: role, Number: 7, Created: time.Now().Add(-3 * time.Hour), Manifest: dsas.Manifest{Role: role, Parts: []dsas.Part{{Size: size}}}}, nil
}

func (r releases) Release(id dsas.Digest) (*dsas.Release, error) {
	for _, role := range []string{"web", "db", "lb", "inventory"} {
		if digest(role) == id {
			return r.Assigned(nil, role)
		}
	}
	return nil, fmt.Errorf("release %s: %w", id, dsas.ErrNotFound)
}

func (releases) Releases() ([]dsas.Release, error) { return nil, nil }

func (releases) Find(ref dsas.ReleaseRef) (*dsas.Release, error) {
	return nil, fmt.Errorf("release %s: %w", ref, dsas.ErrNotFound)
}

func (releases) Bootable(*dsas.Release) error { return nil }

func (releases) Sync(context.Context) ([]dsas.Published, error) { return nil, nil }

func digest(of string) dsas.Digest {
	return dsas.Digest(fmt.Sprintf("sha256:%-64s", strings.Repeat(fmt.Sprintf("%x", of), 20))[:71])
}

// fakePower records what it is asked; boot, where set, goes on from there.
type fakePower struct {
	mu    sync.Mutex
	calls []string
	boot  func(node dsas.Node, action string)
}

func (p *fakePower) Power(_ context.Context, n dsas.Node, action string) (string, error) {
	if n.BMC == nil {
		return "", fmt.Errorf("power %s of node %s: it has no BMC; give it one with: dsas node set %s --bmc ipmi://USER@ADDR: %w", action, n.Name, n.Name, dsas.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, n.Name+" "+action)
	if p.boot != nil {
		go p.boot(n, action)
	}
	return map[string]string{"off": "off"}[action], nil
}

func (p *fakePower) did() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

func mac(n int) dsas.MAC { return dsas.MAC{0x52, 0x54, 0, byte(n >> 16), byte(n >> 8), byte(n)} }

// node adds a node with two NICs and a BMC.
func (f *fixture) node(name, role string, n int) dsas.Node {
	f.Helper()
	addr := n + 16 // the server has 10.77.0.1
	made, err := f.store.CreateNode(f.Context(), dsas.Node{
		Name: name, Role: role, NICs: []dsas.NIC{{MAC: mac(n * 2)}, {MAC: mac(n*2 + 1)}},
		Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(addr >> 8), byte(addr)}), 16),
		BMC:     &dsas.BMC{Kind: "ipmi", Address: fmt.Sprintf("10.78.%d.%d", addr>>8, addr&255), User: "dsas"},
	})
	if err != nil {
		f.Fatal(err)
	}
	return made
}

// event adds an event; what a node says is of its latest boot.
func (f *fixture) event(e dsas.Event) {
	f.Helper()
	if e.Boot == "" && strings.HasPrefix(string(e.Kind), "node.") && e.Kind != dsas.KindLost && e.Kind != dsas.KindBack && e.Kind != dsas.KindAssigned {
		if st, err := f.store.Status(context.WithoutCancel(f.Context()), e.Node); err == nil {
			e.Boot = st.Boot
		}
	}
	if _, err := f.store.AddEvent(context.WithoutCancel(f.Context()), e); err != nil {
		f.Error(err)
	}
}

// bootSteps is a boot as the rack's nodes have it.
func bootSteps(n dsas.Node, role string) []dsas.Event {
	addr := n.Address.Addr().String()
	dashed := n.NICs[0].MAC.Dashed()
	at := func(ms int) time.Time { return time.Time{}.Add(time.Duration(ms) * time.Millisecond) }
	return []dsas.Event{
		{Time: at(0), Kind: dsas.KindPower, Message: "cycle", Detail: "by operator"},
		{Time: at(3100), Kind: dsas.KindDHCP, Message: addr + ", boot file nbp/" + dashed + "/undionly.kpxe"},
		{Time: at(3420), Kind: dsas.KindNBP, Message: "undionly.kpxe", Bytes: 70_085, Duration: 190 * time.Millisecond},
		{Time: at(5650), Kind: dsas.KindDHCP, Message: addr + ", boot file http://10.77.0.1:8080/boot/" + dashed + "/script.ipxe"},
		{Time: at(5740), Kind: dsas.KindScript, Message: "iPXE, role " + role + ", image " + digest(role).Short()},
		{Time: at(6480), Kind: dsas.KindKernel, Bytes: 8_223_000, Duration: 720 * time.Millisecond},
		{Time: at(7910), Kind: dsas.KindInitramfs, Bytes: 12_904_000, Duration: 1400 * time.Millisecond},
		{Time: at(15_800), Kind: dsas.KindConfigTaken, Message: "to " + addr},
		{Time: at(15_900), Kind: dsas.KindInit, Message: "network up (kernel 3.9 s, modules 1.6 s)", Duration: 4 * time.Second},
		{Time: at(16_000), Kind: dsas.KindFetch, Message: "image " + digest(role).Short() + ": 3 parts, 43 MiB, 168 MiB unpacked", Bytes: 45_088_768},
		{Time: at(22_000), Kind: dsas.KindFetched, Message: "3 parts, 7.2 MiB/s", Bytes: 45_088_768, Duration: 6 * time.Second},
		{Time: at(22_900), Kind: dsas.KindConf, Message: "dsas.conf applied, 0 lines refused", Duration: 820 * time.Millisecond},
		{Time: at(23_300), Kind: dsas.KindSwitched, Message: "role " + role},
		{Time: at(23_900), Kind: dsas.KindService, Message: "sshd: healthy", Duration: 500 * time.Millisecond},
		{Time: at(26_500), Kind: dsas.KindService, Message: map[string]string{"db": "mariadb", "lb": "keepalived"}[role] + map[bool]string{true: "nginx"}[role == "web"] + ": healthy", Duration: 3 * time.Second},
		{Time: at(26_600), Kind: dsas.KindReady, Message: "role " + role + ": 2 services healthy, 18.7 s after the kernel's start", Duration: 18_700 * time.Millisecond},
	}
}

// boot lets a boot happen that began at t, until a kind of event, inclusive;
// "" for all of it.
func (f *fixture) boot(n dsas.Node, role string, t time.Time, until dsas.Kind) {
	f.Helper()
	f.bootFrom(n, role, t, "", until)
}

// bootFrom goes on after a kind of event.
func (f *fixture) bootFrom(n dsas.Node, role string, t time.Time, after, until dsas.Kind) {
	f.Helper()
	id := fmt.Sprintf("%s-%d", n.Name, t.UnixNano())
	for _, e := range bootSteps(n, role) {
		if after != "" {
			if e.Kind == after {
				after = ""
			}
			continue
		}
		e.Time, e.Node = t.Add(e.Time.Sub(time.Time{})), n.Name
		if e.Kind == dsas.KindScript {
			b := dsas.Boot{ID: id, Node: n.Name, MAC: n.NICs[0].MAC, Role: role, Image: digest(role), TokenHash: []byte(id), Session: []byte("s"), Created: e.Time}
			if err := f.store.CreateBoot(context.WithoutCancel(f.Context()), b); err != nil {
				f.Error(err)
			}
		}
		if e.Kind != dsas.KindPower && e.Kind != dsas.KindDHCP && e.Kind != dsas.KindNBP {
			e.Boot = id
		}
		f.event(e)
		if e.Kind == until {
			return
		}
	}
}

// logIn sets the password and has the session's cookie.
func (f *fixture) logIn() {
	f.Helper()
	link, err := f.auth.SetupLink(f.Context(), f.srv.URL)
	if err != nil {
		f.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		f.Fatal(err)
	}
	body := f.post("/setup", url.Values{"token": {u.Query().Get("token")}, "password": {password}, "again": {password}})
	if !strings.Contains(body, "Log out") {
		f.Fatalf("after the set-up = %s; want the nodes", body)
	}
}

func (f *fixture) do(method, path string, form url.Values, header ...string) (*http.Response, string) {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), method, f.srv.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		f.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", f.srv.URL)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := f.http.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.Fatal(err)
	}
	return resp, string(b)
}

// post sends a form as a browser without script does, and follows to the page.
func (f *fixture) post(path string, form url.Values) string {
	f.Helper()
	_, body := f.do("POST", path, form)
	return body
}

func (f *fixture) get(path string) string {
	f.Helper()
	resp, body := f.do("GET", path, nil)
	if resp.StatusCode != 200 {
		f.Fatalf("GET %s = %d %s; want 200", path, resp.StatusCode, body)
	}
	return body
}

// brief leaves the head of a page out.
func brief(body string) string {
	if _, after, ok := strings.Cut(body, `id="said"`); ok {
		body = after
	}
	return body[:min(len(body), 1500)]
}

func (f *fixture) want(what, body string, words ...string) {
	f.Helper()
	for _, w := range words {
		if !strings.Contains(body, w) {
			f.Errorf("%s: want %q in\n%s", what, w, brief(body))
		}
	}
}

func (f *fixture) wantNot(what, body string, words ...string) {
	f.Helper()
	for _, w := range words {
		if strings.Contains(body, w) {
			f.Errorf("%s has %q; want it without\n%s", what, w, brief(body))
		}
	}
}

func (f *fixture) stored(name string) dsas.Node {
	f.Helper()
	n, err := f.store.Node(f.Context(), name)
	if err != nil && !errors.Is(err, dsas.ErrNotFound) {
		f.Fatal(err)
	}
	return n
}
