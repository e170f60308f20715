package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
)

// age makes all content look older than a GC leaves alone.
func age(t *testing.T, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.blobDir())
	if err != nil {
		t.Error(err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(s.blobDir(), e.Name()), old, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// all says that these releases are not needed.
func all(ids ...dsas.Digest) func(context.Context, []dsas.Release) ([]dsas.Digest, error) {
	return func(context.Context, []dsas.Release) ([]dsas.Digest, error) { return ids, nil }
}

// whole checks that each release's content is there, and gives the names.
func whole(t *testing.T, s *Store) string {
	t.Helper()
	s.forget()
	list, err := s.Releases()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range list {
		names = append(names, r.Name())
		content, err := s.Content(&r)
		if err != nil {
			t.Error(err)
		}
		for _, d := range content {
			f, _, err := s.Blob(d)
			if err != nil {
				t.Errorf("release %s: %v", r.Name(), err)
				continue
			}
			f.Close()
		}
	}
	return strings.Join(names, " ")
}

func TestGC(t *testing.T) {
	s := open(t)
	one, two, three := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two")), add(t, s, release(t, s, "web", "three"))
	orphan := put(t, s, "of no release", "")
	// What another tool has put there: an index with an image, by its own lines.
	foreign, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("foreign layer"), types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	ix := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: foreign})
	path, err := layout.FromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(ix, layout.WithAnnotations(map[string]string{noteRef: "foreign"})); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(s.blobDir())
	if err != nil {
		t.Fatal(err)
	}
	gc := GC{Unused: all(one.ID, two.ID), Settle: time.Millisecond}

	gc.DryRun = true
	age(t, s)
	done, err := s.GC(t.Context(), gc)
	if err != nil || !slices.Equal(done.Releases, []string{"web:1", "web:2"}) || done.Blobs != 7 {
		t.Errorf("dry run = %+v, %v; want web:1, web:2, and their layers, manifests, configs and the orphan: 7 blobs", done, err)
	}
	if after, _ := os.ReadDir(s.blobDir()); len(after) != len(before) || whole(t, s) != "web:1 web:2 web:3" {
		t.Errorf("a dry run left %d of %d blobs and %s", len(after), len(before), whole(t, s))
	}

	// A boot that runs reads on.
	reading, _, err := s.Blob(one.Manifest.Parts[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	gc.DryRun = false
	again, err := s.GC(t.Context(), gc)
	if err != nil || again.Blobs != done.Blobs || again.Bytes != done.Bytes || again.Bytes == 0 {
		t.Errorf("GC = %+v, %v; want what the dry run said, %+v", again, err, done)
	}
	if got := whole(t, s); got != "web:3" {
		t.Errorf("the releases are %s; want web:3", got)
	}
	if s.Has(orphan.Digest, orphan.Size) || s.Has(one.Manifest.Parts[0].Digest, one.Manifest.Parts[0].Size) {
		t.Error("content of no release is still there")
	}
	buf := make([]byte, 16)
	if n, err := reading.Read(buf); string(buf[:n]) != "one" {
		t.Errorf("the reader of a removed blob got %q, %v; want one", buf[:n], err)
	}
	layers, _ := foreign.Layers()
	for _, want := range []func() (v1.Hash, error){ix.Digest, foreign.Digest, foreign.ConfigName, layers[0].Digest} {
		h, err := want()
		if err != nil {
			t.Fatal(err)
		}
		if f, _, err := s.Blob(dsas.Digest(h.String())); err != nil {
			t.Errorf("another tool's content: %v", err)
		} else {
			f.Close()
		}
	}
	if r := add(t, s, release(t, s, "web", "four")); r.Number != 4 {
		t.Errorf("the next release is %s; want web:4", r.Name())
	}
	if r := add(t, s, release(t, s, "web", "one")); r.Number != 5 || r.ID != one.ID {
		t.Errorf("what was removed and is built again is %s; want web:5, with its old ID", r.Name())
	}
	if whole(t, s); three.Number != 3 {
		t.Errorf("%s; want web:3", three.Name())
	}
}

// TestGCYoung: what was written, or counted on, within the hour stays.
func TestGCYoung(t *testing.T) {
	s := open(t)
	old, young := put(t, s, "old", ""), put(t, s, "young", "")
	age(t, s)
	put(t, s, "young", "") // a build finds it there
	done, err := s.GC(t.Context(), GC{Unused: all(), Settle: time.Millisecond})
	if err != nil || done.Blobs != 1 || done.Young != 1 || s.Has(old.Digest, old.Size) || !s.Has(young.Digest, young.Size) {
		t.Errorf("GC = %+v, %v; want the old one removed alone", done, err)
	}
}

// TestGCPutsBack: what is needed after all is there again, with what it was
// proposed as; also where nobody says whether it is.
func TestGCPutsBack(t *testing.T) {
	for _, fails := range []bool{false, true} {
		s := open(t)
		one, two := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two"))
		if err := s.Propose(one.ID); err != nil {
			t.Fatal(err)
		}
		age(t, s)
		asked := 0
		done, err := s.GC(t.Context(), GC{Settle: time.Millisecond, Unused: func(context.Context, []dsas.Release) ([]dsas.Digest, error) {
			if asked++; asked == 1 {
				return []dsas.Digest{one.ID, two.ID}, nil
			}
			s.forget()
			if list, err := s.Releases(); err != nil || len(list) != 0 {
				t.Errorf("while it asks again there are %v, %v; want none", list, err)
			}
			if fails {
				return nil, errors.New("the server is gone")
			}
			return []dsas.Digest{two.ID}, nil
		}})
		want, left := []string{"web:2"}, "web:1"
		if fails {
			want, left = nil, "web:1 web:2"
		}
		if (err != nil) != fails || !slices.Equal(done.Releases, want) || whole(t, s) != left {
			t.Errorf("fails %t: GC = %+v, %v, left %s; want %s left", fails, done, err, whole(t, s), left)
		}
		if p, err := s.Proposals(); err != nil || p["web"] != one.ID {
			t.Errorf("Proposals() = %v, %v; want web:1", p, err)
		}
	}
}

// TestGCKilled: after the index was written and before the content was removed.
func TestGCKilled(t *testing.T) {
	s := open(t)
	one := add(t, s, release(t, s, "web", "one"))
	add(t, s, release(t, s, "web", "two"))
	age(t, s)
	if err := s.changeIndex(func(raw *v1.IndexManifest, _ *index) error {
		raw.Manifests, _ = split(raw.Manifests, []dsas.Digest{one.ID})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := whole(t, s); got != "web:2" {
		t.Errorf("left are %s; want web:2", got)
	}
	done, err := s.GC(t.Context(), GC{Unused: all(), Settle: time.Millisecond})
	if err != nil || done.Blobs != 3 || whole(t, s) != "web:2" {
		t.Errorf("the next GC = %+v, %v; want the 3 blobs of web:1 removed", done, err)
	}
}

// TestGCUnreadable: what cannot be followed is not guessed at.
func TestGCUnreadable(t *testing.T) {
	s := open(t)
	one := add(t, s, release(t, s, "web", "one"))
	bad, orphan := put(t, s, `{"config": 7}`, ""), put(t, s, "orphan", "")
	h, err := v1.NewHash(string(bad.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.changeIndex(func(raw *v1.IndexManifest, _ *index) error {
		raw.Manifests = append(raw.Manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: bad.Size})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	age(t, s)
	if done, err := s.GC(t.Context(), GC{Unused: all(), Settle: time.Millisecond}); err == nil || !strings.Contains(err.Error(), "nothing was removed") || !s.Has(orphan.Digest, orphan.Size) {
		t.Errorf("GC = %+v, %v; want nothing removed, and which line it is", done, err)
	}
	s.forget()
	if r, err := s.Release(one.ID); err != nil {
		t.Errorf("release that nobody uses, after a GC that removed nothing = %v, %v; want it there", r, err)
	}
}

// TestGCDamaged: a release that is in use and whose manifest is damaged, in whatever
// way, keeps all layers: they may be its own. Where nobody needs it, it goes.
func TestGCDamaged(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":   func(b []byte) []byte { return make([]byte, len(b)) },
		"changed": func(b []byte) []byte { return []byte(strings.Replace(string(b), "sha256:", "sha257:", 3)) },
	} {
		s := open(t)
		one, two := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two"))
		at := s.blobPath(one.Manifest.Digest)
		b, err := os.ReadFile(at)
		if err == nil {
			err = os.WriteFile(at, damage(b), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		age(t, s)
		gc := GC{Settle: time.Millisecond, Unused: func(context.Context, []dsas.Release) ([]dsas.Digest, error) { return []dsas.Digest{two.ID}, nil }}
		done, err := s.GC(t.Context(), gc)
		if err == nil || !strings.Contains(err.Error(), "release web:1 is damaged and in use: dsas image build web makes it anew") || !strings.Contains(err.Error(), "nothing was removed") {
			t.Errorf("%s: GC = %+v, %v; want that web:1 is damaged", name, done, err)
		}
		for _, p := range append(one.Manifest.Parts, two.Manifest.Parts...) {
			if !s.Has(p.Digest, p.Size) {
				t.Errorf("%s: a layer is gone", name)
			}
		}
		s.forget()
		if _, err := s.Release(two.ID); err != nil {
			t.Errorf("%s: web:2 after that: %v", name, err)
		}
		gc.Unused = func(context.Context, []dsas.Release) ([]dsas.Digest, error) { return []dsas.Digest{one.ID}, nil }
		if done, err := s.GC(t.Context(), gc); err != nil || len(done.Releases) != 1 {
			t.Errorf("%s: GC when nobody needs it = %+v, %v; want web:1 removed", name, done, err)
		}
	}
}

// TestGCAndBuilds: builds that rely on content of no release, builds that do
// not say so, and GCs at the same time: no release is ever without its content.
func TestGCAndBuilds(t *testing.T) {
	s := open(t)
	add(t, s, release(t, s, "web", "first"))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var wg sync.WaitGroup
	for i := range 2 {
		other, err := Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for n := range 6 {
				letGo, err := other.Hold(ctx, nil)
				if err != nil {
					t.Error(err)
					return
				}
				r := release(t, other, "web", fmt.Sprint(i, n))
				age(t, other) // a layer of the build cache, made long ago
				_, err = other.AddRelease(ctx, r)
				letGo()
				if err != nil {
					t.Errorf("a build that holds the store: %v", err)
				}
				r = release(t, other, "db", fmt.Sprint(i, n))
				if n%2 == 0 {
					age(t, other)
				}
				if _, err = other.AddRelease(ctx, r); err != nil && !errors.Is(err, dsas.ErrNotFound) {
					t.Errorf("a build that does not: %v; want success, or that something is not there", err)
				}
			}
		})
	}
	builds := make(chan struct{})
	go func() { wg.Wait(); close(builds) }()
	rounds := 0
	for running := true; running; rounds++ {
		select {
		case <-builds:
			running = false
		case <-time.After(30 * time.Millisecond): // the builds want the lock too
		}
		if _, err := s.GC(ctx, GC{Settle: time.Millisecond, Unused: func(_ context.Context, list []dsas.Release) (out []dsas.Digest, _ error) {
			for i, r := range list {
				if i+4 < len(list) {
					out = append(out, r.ID)
				}
			}
			return out, nil
		}}); err != nil {
			t.Error(err)
			break
		}
	}
	age(t, s)
	if names := whole(t, s); rounds < 2 || len(strings.Fields(names)) < 4 {
		t.Errorf("after %d rounds there are %s", rounds, names)
	}
}

// TestGCSignatures: a signature goes with its release, and comes back with it.
func TestGCSignatures(t *testing.T) {
	s := open(t)
	one, two := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two"))
	for _, r := range []dsas.Release{one, two} {
		if err := s.Sign(t.Context(), &r, "key", "signature of "+r.Name()); err != nil {
			t.Fatal(err)
		}
	}
	signed := func(r dsas.Release) int {
		t.Helper()
		s.forget()
		got, err := s.Release(r.ID)
		if err != nil {
			return -1
		}
		return len(got.Signed.Signatures)
	}
	asked := 0
	unused := func(context.Context, []dsas.Release) ([]dsas.Digest, error) {
		if asked++; asked == 2 {
			return nil, nil // published meanwhile
		}
		return []dsas.Digest{one.ID}, nil
	}
	gc := GC{Unused: unused, MinAge: time.Nanosecond, Settle: time.Millisecond}
	if _, err := s.GC(t.Context(), gc); err != nil || signed(one) != 1 || signed(two) != 1 {
		t.Fatalf("GC that was called off = %v, signatures %d and %d; want 1 and 1", err, signed(one), signed(two))
	}
	asked = 2
	if _, err := s.GC(t.Context(), gc); err != nil || signed(one) != -1 || signed(two) != 1 {
		t.Fatalf("GC = %v, signatures %d and %d; want web:1 gone, web:2 with its own", err, signed(one), signed(two))
	}
	b, err := os.ReadFile(s.indexName())
	if err != nil || strings.Contains(string(b), string(one.Manifest.Digest)) {
		t.Errorf("index still speaks of web:1's manifest, %v:\n%s", err, b)
	}
}

// TestGCKilledAsking: killed between its two questions, a GC has removed nothing.
// While another runs, what it is about to remove is out of sight, and a build
// that changes the index meanwhile leaves that to it.
func TestGCKilledAsking(t *testing.T) {
	s := open(t)
	one := add(t, s, release(t, s, "web", "one"))
	if err := s.Sign(t.Context(), &one, "key", "signature"); err != nil {
		t.Fatal(err)
	}
	mark := func() {
		t.Helper()
		if err := s.changeIndex(func(raw *v1.IndexManifest, _ *index) error {
			for _, l := range raw.Manifests {
				l.Annotations[noteGoing] = "gc"
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	mark()
	if got := whole(t, s); got != "web:1" {
		t.Errorf("after a kill there is %q; want web:1", got)
	}
	// The next change of the index takes the marks away.
	two := add(t, s, release(t, s, "web", "two"))
	if b, err := os.ReadFile(s.indexName()); err != nil || strings.Contains(string(b), noteGoing) || whole(t, s) != "web:1 web:2" {
		t.Errorf("after a build there is %q, %v; want web:1 web:2, and no mark in\n%s", whole(t, s), err, b)
	}
	mark()
	age(t, s)
	asked := 0
	done, err := s.GC(t.Context(), GC{Settle: time.Millisecond, Unused: func(_ context.Context, list []dsas.Release) ([]dsas.Digest, error) {
		if asked++; asked == 1 {
			if len(list) != 2 {
				t.Errorf("the next GC starts with %v; want both releases", list)
			}
			return []dsas.Digest{one.ID, two.ID}, nil
		}
		if got := whole(t, s); got != "" {
			t.Errorf("while a GC asks again there is %q; want nothing", got)
		}
		if err := s.Propose(two.ID); !errors.Is(err, dsas.ErrNotFound) {
			t.Errorf("Propose while it is about to be removed = %v; want ErrNotFound", err)
		}
		if r := add(t, s, release(t, s, "web", "three")); r.Number != 3 {
			t.Errorf("a build meanwhile made %s; want web:3", r.Name())
		}
		return []dsas.Digest{two.ID}, nil
	}})
	if got := whole(t, s); err != nil || !slices.Equal(done.Releases, []string{"web:2"}) || got != "web:1 web:3" {
		t.Errorf("GC = %+v, %v, left %s; want web:2 removed", done, err, got)
	}
	if r, err := s.Release(one.ID); err != nil || len(r.Signed.Signatures) != 1 {
		t.Errorf("Release(web:1) = %+v, %v; want it with its signature", r, err)
	}
}

// TestHold: who holds the store keeps GC waiting, and it says who that is; it asks
// for no right to write.
func TestHold(t *testing.T) {
	s := open(t)
	add(t, s, release(t, s, "web", "one"))
	for _, dir := range []string{s.dir, s.blobDir()} {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir, 0o755)
	}
	var holds []func()
	for range 2 {
		letGo, err := s.Hold(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		holds = append(holds, letGo)
	}
	for _, dir := range []string{s.dir, s.blobDir()} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, giveUp := context.WithCancel(t.Context())
	told := 0
	gc := GC{Unused: all(), Settle: time.Millisecond, Waiting: func(users []string) {
		if told++; !strings.Contains(strings.Join(users, "\n"), fmt.Sprintf("(process %d)", os.Getpid())) {
			t.Errorf("GC waits for %q; want this process, %d", users, os.Getpid())
		}
		giveUp()
	}}
	if _, err := s.GC(ctx, gc); !errors.Is(err, context.Canceled) || told != 1 {
		t.Errorf("GC = %v, told %d times; want it to wait until it is called off", err, told)
	}
	limited := gc
	limited.Wait, limited.Waiting = 300*time.Millisecond, nil
	if _, err := s.GC(t.Context(), limited); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), fmt.Sprintf("(process %d); nothing was removed", os.Getpid())) || !strings.Contains(err.Error(), "--wait") {
		t.Errorf("GC that waits for 0.3 s = %v; want ErrConflict, and who it waited for", err)
	}
	for i, letGo := range holds {
		letGo()
		letGo() // a second time is no harm
		if runs, err := s.gcRuns(); runs || err != nil {
			t.Errorf("after %d of 2 let go, gcRuns() = %t, %v; want false", i+1, runs, err)
		}
	}
	if _, err := s.GC(t.Context(), gc); err != nil {
		t.Errorf("GC when all let go = %v; want nil", err)
	}
	// The other way round.
	_, err := s.GC(t.Context(), GC{Settle: time.Millisecond, Unused: func(context.Context, []dsas.Release) ([]dsas.Digest, error) {
		ctx, giveUp := context.WithCancel(t.Context())
		if _, err := s.Hold(ctx, func([]string) { giveUp() }); !errors.Is(err, context.Canceled) {
			t.Errorf("Hold while a GC runs = %v; want it to wait", err)
		}
		return nil, nil
	}})
	if err != nil {
		t.Error(err)
	}
}
