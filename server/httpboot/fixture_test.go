package httpboot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/client"
	"dsas/client/sign"
	"dsas/roles"
	"dsas/server/blobs"
	"dsas/server/httpboot"
	"dsas/server/store"
)

// The tests' subnet lies on loopback, where every address of 127.0.0.0/8 is
// this machine's: so requests come by TCP from the addresses of nodes.
var (
	subnet = dsas.Subnet{
		Prefix: netip.MustParsePrefix("127.77.0.0/24"), Server: addr("127.77.0.1"), Gateway: addr("127.77.0.254"),
		Pool: dsas.Range{First: addr("127.77.0.200"), Last: addr("127.77.0.210")}, Lease: time.Hour,
	}
	w101   = addr("127.77.0.101")
	w102   = addr("127.77.0.102")
	mac101 = dsas.MAC{0x52, 0x54, 0, 0, 1, 1}
	mac102 = dsas.MAC{0x52, 0x54, 0, 0, 1, 2}
	macNew = dsas.MAC{0x52, 0x54, 0, 0xaa, 0xbb, 0xcc}
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

type fixture struct {
	*store.Store
	t     testing.TB
	dir   string
	cfg   httpboot.Config
	srv   *httpboot.Server
	blobs *releases
	rend  *renderer
	boot  dsas.BootSet
	base  string // URL

	mu     sync.Mutex
	offset time.Duration // of the server's clock
}

// now is the server's clock.
func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.offset)
}

func (f *fixture) later(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offset += d
}

// open makes a server over a real store with nodes w101 (web) and w102 (lb), a
// kernel and initramfs, and an image of every role.
func open(t testing.TB, change func(*httpboot.Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir()}
	f.openStore()
	b, err := blobs.Open(filepath.Join(f.dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	f.blobs = &releases{Store: b, current: map[string]*dsas.Release{}}
	f.boot = dsas.BootSet{Release: "6.1", Kernel: f.put("kernel"), Initramfs: f.put("initramfs")}
	f.boot.Kernel.Title, f.boot.Initramfs.Title = "kernel", "initramfs"
	for _, r := range []string{"web", "lb", "inventory"} {
		f.publish(r, "first")
	}
	for _, n := range []dsas.Node{
		{Name: "w101", NICs: []dsas.NIC{{MAC: mac101}}, Address: netip.PrefixFrom(w101, 24), Role: "web"},
		{Name: "w102", NICs: []dsas.NIC{{MAC: mac102}}, Address: netip.PrefixFrom(w102, 24), Role: "lb"},
	} {
		if _, err := f.CreateNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	set, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	f.rend = &renderer{set: set, store: f.Store, ch: make(chan struct{})}
	f.cfg = httpboot.Config{
		Blobs: f.blobs, Releases: f.blobs, Images: f.blobs, Renderer: f.rend, Log: slog.New(slog.DiscardHandler), Subnets: []dsas.Subnet{subnet},
		BondOptions: roles.DefaultBond, Heartbeat: time.Second, Now: f.now,
	}
	if change != nil {
		change(&f.cfg)
	}
	l, err := net.Listen("tcp4", "127.77.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.cfg.Port = l.Addr().(*net.TCPAddr).Port
	f.base = "http://" + l.Addr().String()
	f.restart()
	ts := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat)) // of the clock that the server goes by
		f.mu.Lock()
		h := f.srv.Handler()
		f.mu.Unlock()
		h.ServeHTTP(w, r)
	})}}
	ts.Start()
	t.Cleanup(ts.Close)
	return f
}

func (f *fixture) openStore() {
	f.t.Helper()
	s, err := store.Open(context.Background(), filepath.Join(f.dir, "dsas.db"), filepath.Join(f.dir, "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	s.SetClock(f.now)
	f.t.Cleanup(func() { s.Close() })
	f.Store = s
}

// restart puts a new Server over the same state.
func (f *fixture) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cfg.Store = f.Store
	f.srv = httpboot.New(f.cfg)
}

func (f *fixture) put(content string) dsas.Part {
	f.t.Helper()
	d, n, err := f.blobs.Put(context.Background(), strings.NewReader(content))
	if err != nil {
		f.t.Fatal(err)
	}
	return dsas.Part{Digest: d, DiffID: d, Size: n, MediaType: dsas.MediaTarZstd}
}

// publish makes a release of a role that its nodes boot from now on.
func (f *fixture) publish(role, content string) dsas.Release {
	f.t.Helper()
	r, err := f.blobs.AddRelease(context.Background(), dsas.Release{Role: role, Boot: f.boot,
		Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{f.put(role + " " + content)}}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.blobs.mu.Lock()
	defer f.blobs.mu.Unlock()
	f.blobs.current[role] = &r
	return r
}

// releases is the real store, and what of it is current.
type releases struct {
	*blobs.Store
	mu      sync.Mutex
	current map[string]*dsas.Release
}

func (r *releases) Assigned(_ *dsas.Node, role string) (*dsas.Release, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current[role], nil
}

// renderer renders real roles; sites are what changes.
type renderer struct {
	set   *roles.Set
	store *store.Store

	mu    sync.Mutex
	sites []roles.Site
	err   error
	ch    chan struct{}
}

func (r *renderer) Render(_ context.Context, node dsas.Node, role string, _ dsas.Digest) (httpboot.Rendered, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	def, err := r.set.Get(role)
	if err := errors.Join(err, r.err); err != nil {
		return httpboot.Rendered{}, err
	}
	in := roles.Input{Node: node, Role: def.Role, Subnet: subnet, Sites: r.sites}
	out := httpboot.Rendered{Role: def.Role}
	if out.Conf, err = roles.Conf(def, in); err != nil {
		return out, err
	}
	if out.Files, err = roles.Render(def, in); err != nil {
		return out, err
	}
	b, err := json.Marshal(out.Files)
	out.Tag = fmt.Sprintf("%x", sha256.Sum256(b))
	return out, err
}

func (r *renderer) Tag(ctx context.Context, node, role string, release dsas.Digest) (string, error) {
	n, err := r.store.Node(ctx, node)
	if err != nil {
		return "", err
	}
	out, err := r.Render(ctx, n, role, release)
	return out.Tag, err
}

func (r *renderer) Secrets(_ context.Context, node dsas.Node, _ bool) ([]dsas.File, error) {
	return []dsas.File{{Path: "/etc/ssh/ssh_host_ed25519_key", Mode: 0o600, Content: []byte("host key of " + node.Name)}}, nil
}

func (r *renderer) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ch
}

// change makes something happen; with a site it changes what a balancer has.
func (r *renderer) change(sites ...roles.Site) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sites = append(r.sites, sites...)
	close(r.ch)
	r.ch = make(chan struct{})
}

func (r *renderer) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

var site = roles.Site{Site: dsas.Site{Name: "www", Address: addr("127.77.0.80"), Role: "web"}.WithDefaults(),
	Servers: []roles.Peer{{Name: "w101", Address: w101, Role: "web"}}}

// from gives an HTTP client whose requests come from an address.
func from(a netip.Addr) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.AsSlice()}}
	return &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
}

type answer struct {
	code   int
	body   string
	header http.Header
}

// do sends a request as it is; header holds names and values in turn.
func (f *fixture) do(src netip.Addr, method, path, body string, header ...string) answer {
	f.t.Helper()
	req, err := http.NewRequest(method, f.base+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := from(src).Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(b), resp.Header}
}

func (f *fixture) get(src netip.Addr, path string, header ...string) answer {
	f.t.Helper()
	return f.do(src, "GET", path, "", header...)
}

func scriptPath(m dsas.MAC) string { return "/boot/" + m.Dashed() + "/script.ipxe" }

var cmdlineRE = regexp.MustCompile(`dsas\.boot=([0-9a-f]+) dsas\.token=([0-9a-f]+)`)

// begin asks for a script that boots, and gives the boot's id and token.
func (f *fixture) begin(src netip.Addr, m dsas.MAC) (id, token string) {
	f.t.Helper()
	a := f.get(src, scriptPath(m))
	id, token = tokenIn(a.body)
	if a.code != http.StatusOK || token == "" {
		f.t.Fatalf("script of %s for %s: %d, no token:\n%s", m, src, a.code, a.body)
	}
	return id, token
}

func tokenIn(text string) (id, token string) {
	if m := cmdlineRE.FindStringSubmatch(text); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

// node is a node's own client, at an address.
func (f *fixture) node(src netip.Addr, boot string) *client.Node {
	n := client.NewNode(f.base, boot)
	n.HTTP = from(src)
	return n
}

// run boots a node until it is ready.
func (f *fixture) run(src netip.Addr, m dsas.MAC) *client.Node {
	f.t.Helper()
	id, token := f.begin(src, m)
	n := f.node(src, id)
	if _, err := n.Config(f.t.Context(), token); err != nil {
		f.t.Fatal(err)
	}
	f.say(n, dsas.KindInit, dsas.KindFetch, dsas.KindSwitched, dsas.KindReady)
	return n
}

func (f *fixture) say(n *client.Node, kinds ...dsas.Kind) {
	f.t.Helper()
	for _, k := range kinds {
		if err := n.PostEvents(f.t.Context(), []dsas.Event{{Kind: k, Time: f.now()}}); err != nil {
			f.t.Fatal(err)
		}
	}
}

// signed is a request with a signature made by hand.
func (f *fixture) signed(src netip.Addr, boot string, key []byte, at time.Time, nonce, method, path, body string, change func(*http.Request)) int {
	f.t.Helper()
	req, err := http.NewRequest(method, f.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set(sign.HeaderBoot, boot)
	sign.Sign(req, key, []byte(body), at, nonce)
	if change != nil {
		change(req)
	}
	resp, err := from(src).Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// events gives what was recorded, of all nodes, of some kinds.
func (f *fixture) events(kinds ...dsas.Kind) []dsas.Event {
	f.t.Helper()
	all, err := f.Events(context.Background(), dsas.EventFilter{})
	if err != nil {
		f.t.Fatal(err)
	}
	var out []dsas.Event
	for _, e := range all {
		for _, k := range kinds {
			if e.Kind == k {
				out = append(out, e)
			}
		}
	}
	return out
}

func (f *fixture) status(node string) dsas.NodeStatus {
	f.t.Helper()
	st, err := f.Status(context.Background(), node)
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}
