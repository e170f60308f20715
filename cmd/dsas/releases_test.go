package main

import (
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
	"dsas/internal/signing"
	"dsas/server/blobs"
	"dsas/server/store"
)

// addRelease stores a release of role, of a layer with that content.
func addRelease(t *testing.T, s *blobs.Store, role, content string) dsas.Release {
	t.Helper()
	part := func(title, content string, unpacked int64) dsas.Part {
		d, n, err := s.Put(t.Context(), strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title, MediaType: dsas.MediaTarZstd, Unpacked: unpacked}
	}
	keys, signer := testKey(t)
	r, err := s.AddRelease(t.Context(), dsas.Release{Role: role, Boot: dsas.BootSet{Release: "6.1", Keys: []string{keys[0].String()}, Kernel: part("kernel", "k", 0), Initramfs: part("initramfs", "i", 0)},
		Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{part("base", content, 9<<20)}}})
	if err != nil {
		t.Fatal(err)
	}
	signed, _, err := signRelease(t.Context(), s, []signing.Signer{signer}, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	return *signed
}

func openReleases(t *testing.T) *releases {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), filepath.Join(dir, "db"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &releases{Store: b, state: s, log: log, keys: testKeys(t)}
}

// TestSync: what a build proposes is published once; a roll-back is not undone
// by the proposal that it went back from, nor by a restart.
func TestSync(t *testing.T) {
	r := openReleases(t)
	current := func() string {
		t.Helper()
		rel, err := r.Assigned(nil, "web")
		if err != nil {
			t.Fatal(err)
		}
		if rel == nil {
			return ""
		}
		return rel.Name()
	}
	sync := func(want int, then string) {
		t.Helper()
		changed, err := r.Sync(t.Context())
		if err != nil || len(changed) != want || current() != then {
			t.Errorf("Sync = %v, %v, and nodes boot %q; want %d changes and %q", changed, err, current(), want, then)
		}
	}
	sync(0, "")
	one, two := addRelease(t, r.Store, "web", "one"), addRelease(t, r.Store, "web", "two")
	sync(0, "")
	for _, rel := range []dsas.Release{one, two} {
		if err := r.Propose(rel.ID); err != nil {
			t.Fatal(err)
		}
		sync(1, rel.Name())
		sync(0, rel.Name())
	}
	if _, err := r.state.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		return nil, p.RollBack("ann", p.Since)
	}); err != nil {
		t.Fatal(err)
	}
	sync(0, "web:1")
	again := &releases{Store: r.Store, state: r.state, log: r.log, keys: r.keys}
	if changed, err := again.Sync(t.Context()); err != nil || len(changed) != 0 {
		t.Errorf("Sync after a restart = %v, %v; want nothing", changed, err)
	}
	three := addRelease(t, r.Store, "web", "three")
	if err := r.Propose(three.ID); err != nil {
		t.Fatal(err)
	}
	sync(1, "web:3")
	events, err := r.state.Events(t.Context(), dsas.EventFilter{})
	if err != nil || len(events) != 3 || events[2].Kind != dsas.KindPublished || !strings.Contains(events[2].Message, "role web: nodes boot release web:3, before web:1, by dsas image build") {
		t.Errorf("events = %+v, %v; want three, the last of web:3", events, err)
	}
	if rel, err := r.Assigned(&dsas.Node{Name: "w101", Role: "web", Release: two.ID}, "web"); err != nil || rel == nil || rel.ID != two.ID {
		t.Errorf("Assigned(pinned) = %v, %v; want web:2", rel, err)
	}
	gone := dsas.Digest("sha256:" + strings.Repeat("a", 64))
	if rel, err := r.Assigned(&dsas.Node{Name: "w101", Role: "web", Release: gone}, "web"); err != nil || rel != nil {
		t.Errorf("Assigned(pinned to what is gone) = %v, %v; want none", rel, err)
	}
}
