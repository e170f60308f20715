package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dsas"
	"dsas/client"
)

func TestNew(t *testing.T) {
	for addr, want := range map[string]string{
		"/run/dsas/dsas.sock":     "",
		"unix:/run/dsas.sock":     "",
		"https://master:8443":     "",
		"https://[::1]:8443/":     "",
		"http://127.0.0.1:8443":   "",
		"http://localhost:8443":   "",
		"http://master:8443":      "use https",
		"http://10.0.0.1:8443":    "use https",
		"master:8443":             "socket's path",
		"ftp://master":            "use https",
		"https://u:p@master":      "socket's path",
		"https://master/api":      "socket's path",
		"":                        "socket's path",
		"https://master?token=ab": "socket's path",
	} {
		_, err := client.New(addr, "", client.Options{})
		if want == "" && err != nil || want != "" && (err == nil || !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("New(%q) = %v; want %q", addr, err, want)
		}
	}
	if _, err := client.New("https://master", "", client.Options{Fingerprint: "abc"}); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("New with a short fingerprint = %v; want ErrInvalid", err)
	}
	if _, err := client.New("https://master", "", client.Options{CAFile: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New with a missing authority = %v; want ErrNotExist", err)
	}
}

// A server is trusted for its authority or its fingerprint, and only then does
// it get the token.
func TestTLS(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer secret" || r.URL.Path != "/api/v1/nodes" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `[{"node":{"name":"w101"}}]`)
	}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	sum := sha256.Sum256(srv.Certificate().Raw)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	nodes := func(o client.Options) error {
		c, err := client.New(srv.URL, "secret", o)
		if err != nil {
			t.Fatal(err)
		}
		views, err := c.Nodes(t.Context())
		if err == nil && (len(views) != 1 || views[0].Node.Name != "w101") {
			t.Errorf("nodes = %+v", views)
		}
		return err
	}
	for what, o := range map[string]client.Options{
		"authority":             {CAFile: ca},
		"fingerprint":           {Fingerprint: hex.EncodeToString(sum[:])},
		"fingerprint, as shown": {Fingerprint: "SHA256:" + strings.ToUpper(hex.EncodeToString(sum[:1])) + ":" + hex.EncodeToString(sum[1:])},
	} {
		if err := nodes(o); err != nil {
			t.Errorf("with %s: %v", what, err)
		}
	}
	before := asked.Load()
	if err := nodes(client.Options{}); err == nil || !strings.Contains(err.Error(), "--fingerprint") {
		t.Errorf("with nothing: %v; want an error that says --fingerprint", err)
	}
	if err := nodes(client.Options{Fingerprint: strings.Repeat("00", 32)}); err == nil || !strings.Contains(err.Error(), hex.EncodeToString(sum[:])) {
		t.Errorf("with a wrong fingerprint: %v; want an error that tells the right one", err)
	}
	if asked.Load() != before {
		t.Error("a server that is not trusted was sent a request")
	}
}

func TestErrors(t *testing.T) {
	status, body := 0, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://elsewhere.invalid/")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	defer srv.Close()
	c, err := client.New(srv.URL, "", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		status int
		want   error
	}{
		{400, dsas.ErrInvalid}, {413, dsas.ErrInvalid}, {401, dsas.ErrDenied}, {403, dsas.ErrDenied}, {404, dsas.ErrNotFound}, {409, dsas.ErrConflict},
	} {
		status, body = s.status, `{"error":"role \"x\": no","items":[{"index":3,"error":"bad"}]}`
		_, err := c.Node(t.Context(), "w101")
		e, ok := errors.AsType[*client.Error](err)
		if !errors.Is(err, s.want) || !ok || e.Message != `role "x": no` || len(e.Items) != 1 || e.Items[0].Index != 3 {
			t.Errorf("status %d = %v; want %v", s.status, err, s.want)
		}
	}
	for _, s := range []int{500, 503, 302, 307} {
		status, body = s, "<html>"
		if _, err := c.Node(t.Context(), "w101"); err == nil || !strings.Contains(err.Error(), fmt.Sprint(s)) {
			t.Errorf("status %d = %v; want an error that tells it", s, err)
		}
	}
	status, body = 200, "<html>"
	if _, err := c.Node(t.Context(), "w101"); err == nil {
		t.Error("an answer that is not JSON is taken")
	}
	gone, err := client.New(filepath.Join(t.TempDir(), "none"), "", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Nodes(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "dsas serve") {
		t.Errorf("without a server: %v", err)
	}
}

// streamServer is an event stream whose connections break.
type streamServer struct {
	asked chan string // Last known ID of each connection, as asked for
	serve func(n int, w http.ResponseWriter)
	n     int
}

func (s *streamServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.n++
	s.asked <- r.URL.Query().Get("after")
	s.serve(s.n, w)
}

func startStream(t *testing.T, serve func(n int, w http.ResponseWriter)) (*client.Client, *streamServer, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dsas")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &streamServer{asked: make(chan string, 100), serve: serve}
	srv := &http.Server{Handler: s}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	c, err := client.New(path, "", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c, s, path
}

// A stream that breaks goes on after the last whole event, without a word.
func TestStreamReconnects(t *testing.T) {
	c, s, _ := startStream(t, func(n int, w http.ResponseWriter) {
		switch n {
		case 1:
			fmt.Fprint(w, "retry: 1000\nid: 5\n\n: keep-alive\n\nid: 6\ndata: {\"id\":6,\"kind\":\"server\"}\n\nid: 7\ndata: {\"id\":7,\"ki")
		case 2:
			w.WriteHeader(http.StatusInternalServerError)
		case 3:
			fmt.Fprint(w, "id: 6\n\nid: 7\ndata: {\"id\":7,\"kind\":\"server\"}\n\n")
		default:
			fmt.Fprint(w, "id: 7\n\nid: 8\ndata: {\"id\":8,\"kind\":\"server\"}\n\n")
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want := int64(6)
	for e, err := range c.Stream(ctx, -1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.ID != want {
			t.Fatalf("event %d; want %d", e.ID, want)
		}
		if want++; want == 9 {
			break
		}
	}
	for _, want := range []string{"", "6", "6", "7"} {
		if got := <-s.asked; got != want {
			t.Errorf("asked for events after %q; want %q", got, want)
		}
	}
}

func TestStreamEnds(t *testing.T) {
	last := func(c *client.Client, ctx context.Context) (err error) {
		for _, err = range c.Stream(ctx, 0) {
		}
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, _, _ := startStream(t, func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) })
	if err := last(c, ctx); err == nil || ctx.Err() != nil {
		t.Errorf("first connection fails: %v; want that failure", err)
	}
	c, _, _ = startStream(t, func(n int, w http.ResponseWriter) {
		if n > 1 {
			w.WriteHeader(http.StatusUnauthorized) // the token was removed meanwhile
		}
	})
	if err := last(c, ctx); !errors.Is(err, dsas.ErrDenied) {
		t.Errorf("refused later: %v; want ErrDenied", err)
	}
	c, s, _ := startStream(t, func(int, http.ResponseWriter) {})
	ctx, stop := context.WithCancel(ctx)
	go func() { <-s.asked; <-s.asked; stop() }()
	if err := last(c, ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v; want Canceled", err)
	}
}
