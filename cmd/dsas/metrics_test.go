package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"dsas"
	"dsas/server/blobs"
	"dsas/server/dhcp"
	"dsas/server/httpboot"
	"dsas/server/metrics"
	"dsas/server/tftp"
)

// opsDaemon is a server as far as monitors see it, on the loopback.
func opsDaemon(t *testing.T) *daemon {
	t.Helper()
	b := newOpsBox(t)
	d := &daemon{cfg: config{State: b.state, Interfaces: []string{"lo"}}, store: b.store(), log: slog.New(slog.DiscardHandler), started: time.Now()}
	var err error
	if d.blobs, err = blobs.Open(filepath.Join(b.state, "images")); err != nil {
		t.Fatal(err)
	}
	d.rel = &releases{Store: d.blobs, state: d.store, log: d.log, keys: testKeys(t)}
	return d
}

func get(h http.Handler, path, from string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = from
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestReady(t *testing.T) {
	d := opsDaemon(t)
	const here = "127.0.0.1:5000"
	ask := func() *httptest.ResponseRecorder { return get(d.monitoring(http.NotFoundHandler()), "/readyz", here) }
	if w := ask(); w.Code != 200 || w.Body.String() != "ok store\nok interfaces\nok images\n" {
		t.Errorf("GET /readyz without nodes = %d %q; want 200 and all ok", w.Code, w.Body)
	}
	if err := addNode(t, d.store, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.store.UpdateNode(t.Context(), "w001", func(n *dsas.Node) error { n.Role = "web"; return nil }); err != nil {
		t.Fatal(err)
	}
	w := ask()
	for _, want := range []string{"ok store\n", "failed images: ", "role web has no release", "dsas image build web"} {
		if w.Code != 503 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("GET /readyz without images = %d %q; want 503 with %q", w.Code, w.Body, want)
		}
	}
	if err := d.blobs.Propose(addRelease(t, d.blobs, "web", "x").ID); err != nil {
		t.Fatal(err)
	}
	if _, err := d.rel.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w := ask(); w.Code != 200 {
		t.Errorf("GET /readyz with images = %d %q; want 200", w.Code, w.Body)
	}
	d.cfg.Interfaces = append(d.cfg.Interfaces, "gone0")
	if w := ask(); w.Code != 503 || !strings.Contains(w.Body.String(), "gone0") {
		t.Errorf("GET /readyz without an interface = %d %q; want 503 that names it", w.Code, w.Body)
	}
	d.store.Close()
	if w := ask(); w.Code != 503 || !strings.Contains(w.Body.String(), "failed store: ") {
		t.Errorf("GET /readyz without a store = %d %q; want 503", w.Code, w.Body)
	}
	if w := get(d.monitoring(http.NotFoundHandler()), "/healthz", here); w.Code != 200 {
		t.Errorf("GET /healthz = %d; want 200: the process lives", w.Code)
	}
}

// TestReadyProbesSeldom: who asks without log-in does not wear out the disk.
func TestReadyProbesSeldom(t *testing.T) {
	d := opsDaemon(t)
	h := d.monitoring(http.NotFoundHandler())
	get(h, "/readyz", "127.0.0.1:1")
	if err := d.store.SetSetting(t.Context(), "store.probe", "marked"); err != nil {
		t.Fatal(err)
	}
	get(h, "/readyz", "127.0.0.1:1")
	if v, err := d.store.Setting(t.Context(), "store.probe"); err != nil || v != "marked" {
		t.Errorf("the second question in a row wrote %q, %v; want nothing written", v, err)
	}
}

func TestHereOr(t *testing.T) {
	say := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(text)) })
	}
	h := hereOr(say("here"), say("elsewhere"))
	for _, c := range []struct {
		from, want string
		header     []string
	}{
		{"127.0.0.1:1", "here", nil}, {"[::1]:1", "here", nil}, {"[::ffff:127.0.0.1]:1", "here", nil},
		{"192.0.2.1:1", "elsewhere", nil}, {"@", "elsewhere", nil}, {"", "elsewhere", nil},
		{"127.0.0.1:1", "elsewhere", []string{"X-Forwarded-For", "192.0.2.1"}}, {"127.0.0.1:1", "elsewhere", []string{"Forwarded", "for=192.0.2.1"}},
	} {
		if got := get(h, "/metrics", c.from, c.header...).Body.String(); got != c.want {
			t.Errorf("from %q %v: %s; want %s", c.from, c.header, got, c.want)
		}
	}
}

// TestMetricsNames holds all names and labels to Prometheus's conventions.
func TestMetricsNames(t *testing.T) {
	d := opsDaemon(t)
	if err := addNode(t, d.store, 1); err != nil {
		t.Fatal(err)
	}
	source := func(ctx context.Context) ([]metrics.Metric, error) {
		list, err := d.stateMetrics(ctx)
		list = append(list, dhcpMetrics(dhcp.Stats{
			Received: map[string]uint64{"discover": 2}, Answered: map[string]uint64{"offer": 1}, Dropped: map[string]uint64{dhcp.DropLimit: 1},
			Pools: []dhcp.PoolUse{{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Size: 32, Leased: 5}},
		})...)
		list = append(list, httpMetrics(httpboot.Stats{Requests: map[string]uint64{"script": 2}, Errors: map[string]uint64{"404": 1}, Boots: 4})...)
		return append(list, tftpMetrics(tftp.Stats{Transfers: map[tftp.FileOutcome]uint64{{File: "snponly.efi", Outcome: tftp.Sent}: 7}, Bytes: 9})...), err
	}
	figures := metrics.New("1", time.Now(), source, d.log)
	if _, err := figures.Follow(t.Context(), d.store); err != nil {
		t.Fatal(err)
	}
	w := get(figures.Handler(), "/metrics", "127.0.0.1:1")
	if w.Code != 200 {
		t.Fatalf("GET /metrics = %d %s", w.Code, w.Body)
	}
	for _, want := range []string{
		`dsas_nodes{phase="new"} 1`, `dsas_nodes{phase="ready"} 0`, `dsas_dhcp_received_total{type="discover"} 2`, `dsas_dhcp_dropped_total{reason="limit"} 1`,
		`dsas_dhcp_pool_leased{subnet="10.0.0.0/24"} 5`, `dsas_tftp_transfers_total{file="snponly.efi",outcome="sent"} 7`, `dsas_store_writable 1`,
		`dsas_http_requests_total{what="script"} 2`, `dsas_http_errors_total{code="404"} 1`, `dsas_boots_begun_total 4`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	doc, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(w.Body.String()) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "dsas_") && !strings.Contains(string(doc), "`"+f[2]) {
			t.Errorf("docs/monitoring.md lacks %s", f[2])
		}
	}
	problems, err := promlint.New(strings.NewReader(w.Body.String())).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint of the metrics = %v, %v; want none", problems, err)
	}
	if st, err := os.Stat(d.cfg.path("dsas.db")); err != nil || !strings.Contains(w.Body.String(), `dsas_database_bytes{file="database"}`) {
		t.Errorf("database of %v, %v is not in the metrics", st, err)
	}
}
