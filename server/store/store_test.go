package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/store"
)

// t0 is what the stores' clocks show unless a test moves them.
var t0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

type fixture struct {
	*store.Store
	t    *testing.T
	ctx  context.Context
	dir  string
	time time.Time
}

func open(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, ctx: t.Context(), dir: t.TempDir(), time: t0}
	f.reopen()
	return f
}

func (f *fixture) reopen() {
	f.t.Helper()
	s, err := openDir(f.ctx, f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	s.SetClock(func() time.Time { return f.time })
	f.t.Cleanup(func() { s.Close() })
	f.Store = s
}

func openDir(ctx context.Context, dir string) (*store.Store, error) {
	return store.Open(ctx, filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), slog.New(slog.DiscardHandler))
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr wants err to be of kind, and to name all of words.
func wantErr(t *testing.T, what string, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s = error %v; want %v", what, err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s = error %q; want it to name %q", what, err, w)
		}
	}
}

// mac gives the n-th test MAC.
func mac(n int) dsas.MAC {
	return dsas.MAC{0x52, 0x54, 0, byte(n >> 16), byte(n >> 8), byte(n)}
}

func node(name string, addr string, macs ...int) dsas.Node {
	n := dsas.Node{Name: name}
	if addr != "" {
		n.Address = netip.MustParsePrefix(addr)
	}
	for _, m := range macs {
		n.NICs = append(n.NICs, dsas.NIC{MAC: mac(m)})
	}
	return n
}

func TestOpenMakesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state with ?odd#100% name")
	s := must(openDir(t.Context(), dir))(t)
	defer s.Close()
	noErr(t, s.SetSetting(t.Context(), "k", "v"))
	for name, want := range map[string]os.FileMode{"": 0o700, "key": 0o600, "dsas.db": 0o600, "dsas.db-wal": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %q = %04o; want %04o", name, got, want)
		}
	}
	entries := must(os.ReadDir(dir))(t)
	if len(entries) != 4 { // key, db, wal, shm
		t.Errorf("folder holds %v; want 4 files", entries)
	}
	key := must(os.ReadFile(filepath.Join(dir, "key")))(t)
	if len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
		t.Errorf("key = %d bytes, all zero %v; want 32 random ones", len(key), bytes.Equal(key, make([]byte, 32)))
	}
}

func TestOpenKey(t *testing.T) {
	f := open(t)
	noErr(t, f.SetSecretSetting(f.ctx, "s", "secret"))
	noErr(t, f.Close())
	path := filepath.Join(f.dir, "key")
	key := must(os.ReadFile(path))(t)

	noErr(t, os.Remove(path))
	_, err := openDir(f.ctx, f.dir)
	wantErr(t, "Open(key missing)", err, dsas.ErrNotFound, path, "backup")
	if _, err := os.Stat(path); err == nil {
		t.Error("Open(key missing) made a new key; want none")
	}

	noErr(t, os.WriteFile(path, bytes.Repeat([]byte{7}, 32), 0o600))
	_, err = openDir(f.ctx, f.dir)
	wantErr(t, "Open(other key)", err, dsas.ErrInvalid, path)

	noErr(t, os.WriteFile(path, key[:31], 0o600))
	_, err = openDir(f.ctx, f.dir)
	wantErr(t, "Open(short key)", err, dsas.ErrInvalid, "31")

	noErr(t, os.WriteFile(path, key, 0o600))
	noErr(t, os.Chmod(path, 0o644))
	_, err = openDir(f.ctx, f.dir)
	wantErr(t, "Open(readable key)", err, dsas.ErrInvalid, "0644", "chmod")

	noErr(t, os.Chmod(path, 0o600))
	f.reopen()
	if got := must(f.SecretSetting(f.ctx, "s"))(t); got != "secret" {
		t.Errorf("SecretSetting after reopen = %q; want %q", got, "secret")
	}
}

func TestOpenRefusesWhatIsNoDatabase(t *testing.T) {
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "dsas.db"), bytes.Repeat([]byte("no database "), 1000), 0o600))
	if s, err := openDir(t.Context(), dir); err == nil {
		s.Close()
		t.Error("Open(garbage) = nil error; want one")
	}
}

func TestCancelledContext(t *testing.T) {
	f := open(t)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.SetSetting(ctx, "k", "v"); err == nil {
		// Both ways of the select may be ready; then it was written.
		if got := must(f.Setting(f.ctx, "k"))(t); got != "v" {
			t.Errorf("Setting = %q; want %q", got, "v")
		}
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("SetSetting(cancelled) = %v; want %v", err, context.Canceled)
	}
}

// A writer that is waited for does not hold up who gave up waiting, and a panic
// in a callback leaves the store usable.
func TestWriterIsReleased(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("UpdateNode(panic) did not panic")
			}
		}()
		f.UpdateNode(f.ctx, "w1", func(n *dsas.Node) error { n.Role = "db"; panic("test") })
	}()
	if got := must(f.Node(f.ctx, "w1"))(t); got.Role != "" {
		t.Errorf("role after a panic = %q; want none", got.Role)
	}
	inside, leave, done := make(chan bool), make(chan bool), make(chan error)
	go func() {
		_, err := f.UpdateNode(f.ctx, "w1", func(*dsas.Node) error { inside <- true; <-leave; return nil })
		done <- err
	}()
	<-inside
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.SetSetting(ctx, "k", "v"); !errors.Is(err, context.Canceled) {
		t.Errorf("SetSetting(cancelled, writer busy) = %v; want %v", err, context.Canceled)
	}
	// Readers do not wait for it either.
	must(f.Nodes(f.ctx))(t)
	leave <- true
	noErr(t, <-done)
	noErr(t, f.SetSetting(f.ctx, "k", "v"))
}

func TestSettings(t *testing.T) {
	f := open(t)
	_, err := f.Setting(f.ctx, "a")
	wantErr(t, "Setting(unset)", err, dsas.ErrNotFound, "a")
	_, err = f.SecretSetting(f.ctx, "a")
	wantErr(t, "SecretSetting(unset)", err, dsas.ErrNotFound, "a")
	for _, v := range []string{"one", "", "two"} {
		noErr(t, f.SetSetting(f.ctx, "a", v))
		if got := must(f.Setting(f.ctx, "a"))(t); got != v {
			t.Errorf("Setting = %q; want %q", got, v)
		}
		noErr(t, f.SetSecretSetting(f.ctx, "a", "secret"+v))
		if got := must(f.SecretSetting(f.ctx, "a"))(t); got != "secret"+v {
			t.Errorf("SecretSetting = %q; want %q", got, "secret"+v)
		}
	}
}

func TestTokens(t *testing.T) {
	f := open(t)
	h1, h2 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	noErr(t, f.AddToken(f.ctx, "ci", h1))
	wantErr(t, "AddToken(name again)", f.AddToken(f.ctx, "ci", h2), dsas.ErrConflict, "ci")
	wantErr(t, "AddToken(hash again)", f.AddToken(f.ctx, "cd", h1), dsas.ErrConflict, "ci")
	wantErr(t, "AddToken(short)", f.AddToken(f.ctx, "cd", h1[:8]), dsas.ErrInvalid)
	wantErr(t, "AddToken(bad name)", f.AddToken(f.ctx, "C D", h2), dsas.ErrInvalid, "C D")
	f.time = t0.Add(time.Hour)
	if got := must(f.TokenByHash(f.ctx, h1))(t); got != "ci" {
		t.Errorf("TokenByHash = %q; want ci", got)
	}
	_, err := f.TokenByHash(f.ctx, h2)
	wantErr(t, "TokenByHash(unknown)", err, dsas.ErrNotFound)
	tokens := must(f.Tokens(f.ctx))(t)
	if want := (dsas.Token{Name: "ci", Created: t0, LastUsed: f.time}); len(tokens) != 1 || tokens[0] != want {
		t.Errorf("Tokens = %v; want [%v]", tokens, want)
	}
	noErr(t, f.DeleteToken(f.ctx, "ci"))
	wantErr(t, "DeleteToken(gone)", f.DeleteToken(f.ctx, "ci"), dsas.ErrNotFound, "ci")
	_, err = f.TokenByHash(f.ctx, h1)
	wantErr(t, "TokenByHash(deleted)", err, dsas.ErrNotFound)
}

// Nothing that is secret, nor its base64 or hex, stands in any file.
func TestSecretsAreNotInTheFiles(t *testing.T) {
	f := open(t)
	const secret = "Tr0ub4dor-and-3-horses"
	n := node("w1", "", 1)
	n.BMC = &dsas.BMC{Kind: "ipmi", Address: "192.0.2.1", User: "ADMIN", Password: secret}
	got := must(f.CreateNode(f.ctx, n))(t)
	if got.BMC.Password != "" || n.BMC.Password != secret {
		t.Errorf("CreateNode gives password %q, leaves %q with the caller; want none, %q", got.BMC.Password, n.BMC.Password, secret)
	}
	noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: "b1", Node: "w1", MAC: mac(1), TokenHash: []byte("hash"), Session: []byte(secret)}))
	must(f.HostKey(f.ctx, "w1", func() ([]byte, error) { return []byte(secret), nil }))(t)
	noErr(t, f.SetSecretSetting(f.ctx, "x", secret))
	noErr(t, f.SetSetting(f.ctx, "y", "plain-to-see"))
	check := func(when string) {
		found := false
		for _, e := range must(os.ReadDir(f.dir))(t) {
			data := must(os.ReadFile(filepath.Join(f.dir, e.Name())))(t)
			for _, s := range []string{secret, fmt.Sprintf("%x", secret), secret[4:]} {
				if bytes.Contains(data, []byte(s)) {
					t.Errorf("%s: %s holds %q", when, e.Name(), s)
				}
			}
			found = found || bytes.Contains(data, []byte("plain-to-see"))
		}
		if !found {
			t.Errorf("%s: what is no secret is not found either: this test sees nothing", when)
		}
	}
	check("open")
	noErr(t, f.Close())
	check("closed")
	f.reopen()
	if got := must(f.BMCPassword(f.ctx, "w1"))(t); got != secret {
		t.Errorf("BMCPassword = %q; want %q", got, secret)
	}
	if got := must(f.Boot(f.ctx, "b1"))(t); string(got.Session) != secret {
		t.Errorf("Boot.Session = %q; want %q", got.Session, secret)
	}
}

// BenchmarkOpen is a restart with 1,000 nodes and 100,000 events.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := openDir(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	nodes := make([]dsas.Node, 1000)
	for i := range nodes {
		nodes[i] = node(fmt.Sprintf("w%d", i), fmt.Sprintf("10.77.%d.%d/16", 1+i/250, 1+i%250), i+1)
	}
	events := make([]dsas.Event, 100_000)
	for i := range events {
		events[i] = dsas.Event{Node: nodes[i%len(nodes)].Name, Kind: dsas.KindService, Message: "nginx: healthy"}
	}
	if _, _, err := s.CreateNodes(b.Context(), nodes, events); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		if s, err = openDir(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
}
