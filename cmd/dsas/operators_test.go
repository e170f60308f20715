package main

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestCheckConsolePassword(t *testing.T) {
	for name, c := range map[string]struct{ path, want string }{
		"none":     {"", ""},
		"a hash":   {writeTemp(t, "$6$salt$hash\n"), ""},
		"in clear": {writeTemp(t, "secret-words\n"), "begins with $"},
		"empty":    {writeTemp(t, ""), "begins with $"},
		"missing":  {filepath.Join(t.TempDir(), "gone"), "gone"},
	} {
		cfg := config{ConsolePasswordFile: c.path}
		cfg.setDefaults()
		err := cfg.check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "consolePasswordFile")) {
			t.Errorf("%s: check() = %v; want an error with consolePasswordFile and %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret-words") {
			t.Errorf("%s: check() tells the file's content: %v", name, err)
		}
	}
}

func writeTemp(t *testing.T, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hash")
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheckLease(t *testing.T) {
	for lease, ok := range map[time.Duration]bool{
		0: true, time.Minute: true, 30 * 24 * time.Hour: true, time.Second: false, -time.Hour: false, 31 * 24 * time.Hour: false,
	} {
		cfg := config{Subnets: []subnetConfig{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Lease: lease}}}
		cfg.setDefaults()
		if err := cfg.check(); ok && err != nil || !ok && (!errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "lease "+lease.String())) {
			t.Errorf("check() with lease %s = %v; want good: %t", lease, err, ok)
		}
	}
}

func TestCertificate(t *testing.T) {
	d := &daemon{cfg: config{State: t.TempDir()}}
	addr := netip.MustParseAddr("192.0.2.7")
	made, err := d.certificate("boot1", addr)
	if err != nil {
		t.Fatal(err)
	}
	crt, err := x509.ParseCertificate(made.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"boot1", "192.0.2.7"} {
		if err := crt.VerifyHostname(name); err != nil {
			t.Errorf("VerifyHostname(%s) = %v; want nil", name, err)
		}
	}
	again, err := d.certificate("boot1", addr)
	if err != nil || !slices.Equal(again.Certificate[0], made.Certificate[0]) {
		t.Errorf("certificate() a second time: another one, or %v; want the same", err)
	}
	// Half a pair is the operator's, and is not overwritten.
	for _, missing := range []string{"tls.key", "tls.crt"} {
		path := d.cfg.path(missing)
		kept, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := d.certificate("boot1", addr); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), path+" is missing") {
			t.Errorf("certificate() without %s = %v; want it named", missing, err)
		}
		if err := os.WriteFile(path, kept, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSocketFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := socketFree(path); err != nil {
		t.Errorf("socketFree(nothing there) = %v; want nil", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = runLab(t.Context(), labRequest{State: t.TempDir(), Socket: path, Out: io.Discard})
	if !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("runLab beside a server = %v; want ErrConflict with the socket and --socket", err)
	}
}

// TestListenSocket: a socket that nobody listens on any more is replaced, and
// nothing else.
func TestListenSocket(t *testing.T) {
	file := writeFile(t, "notes", "keep me")
	for _, path := range []string{file, t.TempDir()} {
		if _, err := listenSocket(path, ""); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "--socket") {
			t.Errorf("listenSocket(%s) = %v; want ErrConflict with --socket", path, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
	path := filepath.Join(t.TempDir(), "s")
	for range 2 {
		l, err := listenSocket(path, "")
		if err != nil {
			t.Fatalf("listenSocket(%s) = %v; want nil", path, err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
		l.Close()
	}
}

// TestServeHTTPWaits: what a handler uses is closed after serveHTTP, so it
// must not return before the handler has.
func TestServeHTTPWaits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	serving := make(chan struct{})
	srv := &http.Server{}
	inside, finished := make(chan struct{}), make(chan struct{})
	srv.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-serving // Serve has been told to end
		close(finished)
	})
	srv.RegisterOnShutdown(func() { close(serving) })
	go http.Get("http://" + l.Addr().String())
	go func() { <-inside; cancel() }()
	if err := serveHTTP(ctx, srv, l); err != nil {
		t.Errorf("serveHTTP = %v; want nil", err)
	}
	select {
	case <-finished:
	default:
		t.Error("serveHTTP returned before its handler")
	}
}
