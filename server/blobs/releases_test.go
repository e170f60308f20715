package blobs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"dsas"
)

// release makes a release of role whose only layer is content.
func release(t *testing.T, s *Store, role, content string) dsas.Release {
	t.Helper()
	layer := put(t, s, content, "base")
	layer.MediaType, layer.Unpacked = dsas.MediaTarZstd, 4096
	kernel, initramfs := put(t, s, "k", "kernel"), put(t, s, "i", "initramfs")
	return dsas.Release{Role: role, Definition: []byte("defined\x00"), Boot: dsas.BootSet{Release: "6.1", Kernel: kernel, Initramfs: initramfs},
		Manifest: dsas.Manifest{Kernel: "6.1", Memory: 1 << 20, Parts: []dsas.Part{layer}}}
}

func add(t *testing.T, s *Store, r dsas.Release) dsas.Release {
	t.Helper()
	r, err := s.AddRelease(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReleases(t *testing.T) {
	s := open(t)
	if _, err := s.Find(dsas.ReleaseRef{Role: "web"}); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "dsas image build web") {
		t.Errorf("Find(web) in an empty store = %v; want ErrNotFound and how to build one", err)
	}
	one := add(t, s, release(t, s, "web", "one"))
	// Another process adds: this store must see it, if not at once.
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	two := add(t, other, release(t, other, "web", "two"))
	db := add(t, other, release(t, other, "db", "one"))
	if one.Name() != "web:1" || two.Name() != "web:2" || db.Name() != "db:1" || one.ID == two.ID || one.ID == db.ID {
		t.Errorf("releases %s %s, %s %s, %s %s; want web:1, web:2 and db:1, each with an ID of its own", one.Name(), one.ID, two.Name(), two.ID, db.Name(), db.ID)
	}
	if again := add(t, s, release(t, s, "web", "one")); again.ID != one.ID || again.Number != 1 {
		t.Errorf("the same once more = %s %s; want web:1 again", again.Name(), again.ID.Short())
	}
	s.forget()
	got, err := s.Find(dsas.ReleaseRef{Role: "web", Number: 2})
	if err != nil || got.ID != two.ID || got.Manifest.Digest != two.Manifest.Digest || got.Boot.Kernel != two.Boot.Kernel || got.Boot.Release != "6.1" {
		t.Errorf("Find(web:2) = %+v, %v; want %+v", got, err, two)
	}
	if string(got.Definition) != "defined\x00" {
		t.Errorf("its definition = %q; want what was given", got.Definition)
	}
	if p := got.Manifest.Parts[0]; p != two.Manifest.Parts[0] || got.Manifest.Memory != 1<<20 {
		t.Errorf("its part = %+v, memory %d; want %+v, 1 MiB", p, got.Manifest.Memory, two.Manifest.Parts[0])
	}
	list, err := s.Releases()
	if err != nil || len(list) != 3 || list[0].Name() != "db:1" || list[2].Name() != "web:2" {
		t.Errorf("Releases() = %v, %v; want db:1, web:1, web:2", list, err)
	}
	for d, want := range map[dsas.Digest]string{one.Boot.Kernel.Digest: "kernel", one.Boot.Initramfs.Digest: "initramfs", one.Manifest.Parts[0].Digest: "", one.ID: ""} {
		if got, err := s.BootFile(d); got != want || err != nil {
			t.Errorf("BootFile(%s) = %q, %v; want %q", d.Short(), got, err, want)
		}
	}
}

// TestFindNew: what another process has added just now is found, by whatever
// it is asked for, though the index was read a moment before.
func TestFindNew(t *testing.T) {
	s := open(t)
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, by := range []func(dsas.Release) dsas.ReleaseRef{
		func(r dsas.Release) dsas.ReleaseRef { return dsas.ReleaseRef{ID: r.ID} },
		func(r dsas.Release) dsas.ReleaseRef { return dsas.ReleaseRef{Role: r.Role, Number: r.Number} },
	} {
		r := release(t, other, "web", string(rune('a'+i)))
		// Only what was read later than lookEvery ago is trusted: it is read now.
		s.forget()
		if _, err := s.Releases(); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.looked = time.Now().Add(time.Hour)
		s.mu.Unlock()
		r = add(t, other, r)
		if got, err := s.Find(by(r)); err != nil || got.ID != r.ID {
			t.Errorf("Find(%s) = %v, %v; want %s", by(r), got, err, r.Name())
		}
	}
}

func TestPropose(t *testing.T) {
	s := open(t)
	one, two := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two"))
	if p, err := s.Proposals(); err != nil || len(p) != 0 {
		t.Errorf("Proposals() = %v, %v; want none", p, err)
	}
	for _, r := range []dsas.Release{two, one} {
		if err := s.Propose(r.ID); err != nil {
			t.Fatal(err)
		}
		if p, err := s.Proposals(); err != nil || len(p) != 1 || p["web"] != r.ID {
			t.Errorf("Proposals() = %v, %v; want %s", p, err, r.ID)
		}
		if got, err := s.Find(dsas.ReleaseRef{Role: "web"}); err != nil || got.ID != two.ID {
			t.Errorf("Find(web:latest) = %s, %v; want the newest, %s, whatever was proposed", got.Name(), err, two.Name())
		}
	}
	if err := s.Propose("sha256:" + dsas.Digest(strings.Repeat("a", 64))); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Propose(unknown) = %v; want ErrNotFound", err)
	}
}

// TestRendition: another compression is the same release, and what is here stays;
// only where its content is lost the new one takes its place.
func TestRendition(t *testing.T) {
	s := open(t)
	r := release(t, s, "web", "one")
	first := add(t, s, r)
	if err := s.Sign(t.Context(), &first, "key", "a signature"); err != nil {
		t.Fatal(err)
	}
	other := put(t, s, "one, compressed otherwise", "base")
	other.DiffID, other.MediaType, other.Unpacked = r.Manifest.Parts[0].DiffID, dsas.MediaTarZstd, 4096
	lost := r.Manifest.Parts[0]
	r.Manifest.Parts = []dsas.Part{other}
	second := add(t, s, r)
	if second.ID != first.ID || second.Number != first.Number || second.Manifest.Digest != first.Manifest.Digest || len(second.Signed.Signatures) != 1 {
		t.Errorf("recompressed: %s %s %s, %d signatures; want %s as it was, signed", second.Name(), second.ID.Short(), second.Manifest.Digest.Short(), len(second.Signed.Signatures), first.Name())
	}
	if err := os.Remove(s.blobPath(lost.Digest)); err != nil {
		t.Fatal(err)
	}
	second = add(t, s, r)
	if second.ID != first.ID || second.Number != first.Number || second.Manifest.Digest == first.Manifest.Digest {
		t.Errorf("recompressed where content was lost: %s %s %s; want ID and number of %s %s and another manifest", second.Name(), second.ID.Short(), second.Manifest.Digest.Short(), first.Name(), first.ID.Short())
	}
	if got, err := s.Release(first.ID); err != nil || got.Manifest.Parts[0].Digest != other.Digest {
		t.Errorf("Release = %+v, %v; want the new rendition", got, err)
	}
	// So is what the role's nodes are configured by.
	r.Definition = []byte("defined otherwise")
	if third := add(t, s, r); third.ID == first.ID || third.Number != 2 {
		t.Errorf("with another definition: %s %s; want web:2, another ID", third.Name(), third.ID.Short())
	}
	// A kernel of its own is another release.
	r.Boot.Kernel = put(t, s, "another kernel", "kernel")
	if third := add(t, s, r); third.ID == first.ID || third.Number != 3 {
		t.Errorf("with another kernel: %s %s; want web:3, another ID", third.Name(), third.ID.Short())
	}
}

func TestAddReleaseRefuses(t *testing.T) {
	s := open(t)
	gone := dsas.Part{Digest: dsas.Digest("sha256:" + strings.Repeat("a", 64)), DiffID: dsas.Digest("sha256:" + strings.Repeat("a", 64)), Size: 1}
	for name, spoil := range map[string]func(*dsas.Release){
		"a role that is a path":  func(r *dsas.Release) { r.Role = "../x" },
		"no parts":               func(r *dsas.Release) { r.Manifest.Parts = nil },
		"a part that is missing": func(r *dsas.Release) { r.Manifest.Parts = []dsas.Part{gone} },
		"a part of another size": func(r *dsas.Release) { r.Manifest.Parts[0].Size++ },
		"a kernel missing":       func(r *dsas.Release) { r.Boot.Kernel = gone },
		"no diffID":              func(r *dsas.Release) { r.Manifest.Parts[0].DiffID = "" },
	} {
		r := release(t, s, "web", "one")
		spoil(&r)
		if _, err := s.AddRelease(t.Context(), r); !errors.Is(err, dsas.ErrInvalid) && !errors.Is(err, dsas.ErrNotFound) {
			t.Errorf("AddRelease of %s = %v; want ErrInvalid or ErrNotFound", name, err)
		}
	}
	if list, err := s.Releases(); err != nil || len(list) != 0 {
		t.Errorf("Releases() = %v, %v; want none", list, err)
	}
}

// TestLayout: another program reads what we write.
func TestLayout(t *testing.T) {
	s := open(t)
	r := add(t, s, release(t, s, "web", "one"))
	idx, err := layout.ImageIndexFromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 1 {
		t.Fatalf("index = %+v, %v; want one image", m, err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil || id.String() != string(r.ID) {
		t.Errorf("its config = %s, %v; want %s", id, err, r.ID)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers = %v, %v; want one", layers, err)
	}
	if d, err := layers[0].Digest(); err != nil || d.String() != string(r.Manifest.Parts[0].Digest) {
		t.Errorf("its layer = %s, %v; want %s", d, err, r.Manifest.Parts[0].Digest)
	}
}

func TestDamagedIndex(t *testing.T) {
	s := open(t)
	r := add(t, s, release(t, s, "web", "one"))
	for _, content := range []string{"{", strings.Repeat(" ", maxJSON+1)} {
		if err := os.WriteFile(s.indexName(), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		s.forget()
		if _, err := s.Release(r.ID); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Release with a damaged index = %v; want ErrInvalid", err)
		}
		if _, err := s.AddRelease(t.Context(), release(t, s, "web", "two")); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("AddRelease with a damaged index = %v; want ErrInvalid: what stood in it must not be lost", err)
		}
	}
}

// TestDamagedRelease: one whose description is lost or cut off is listed as
// damaged, beside the others; GC removes it, and building it anew mends it.
func TestDamagedRelease(t *testing.T) {
	remove := func(t *testing.T, name string) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(t *testing.T, name string) {
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		of   func(dsas.Release) dsas.Digest
		do   func(*testing.T, string)
	}{
		{"manifest cut", func(r dsas.Release) dsas.Digest { return r.Manifest.Digest }, cut},
		{"manifest removed", func(r dsas.Release) dsas.Digest { return r.Manifest.Digest }, remove},
		{"config cut", func(r dsas.Release) dsas.Digest { return r.ID }, cut},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			hurt, good := add(t, s, release(t, s, "web", "one")), add(t, s, release(t, s, "web", "two"))
			tt.do(t, s.blobPath(tt.of(hurt)))
			s, err := Open(s.dir) // it has read nothing yet
			if err != nil {
				t.Fatal(err)
			}
			list, err := s.Releases()
			if err != nil || len(list) != 2 || list[0].ID != hurt.ID || list[0].Name() != "web:1" || !strings.Contains(list[0].Damaged, "web:1") || list[1].ID != good.ID || list[1].Damaged != "" {
				t.Fatalf("Releases = %+v, %v; want web:1 as damaged, and web:2", list, err)
			}
			if _, err := s.Release(hurt.ID); err == nil || !strings.Contains(err.Error(), "dsas image build web") {
				t.Errorf("Release = %v; want that it is damaged, and the way out", err)
			}
			again := add(t, s, release(t, s, "web", "one"))
			if again.ID != hurt.ID || again.Number != 1 || whole(t, s) != "web:1 web:2" || mustRead(t, s, hurt.ID).Damaged != "" {
				t.Errorf("added anew = %s, %s; want web:1 as it was", again.Name(), again.ID)
			}

			tt.do(t, s.blobPath(tt.of(hurt)))
			if s, err = Open(s.dir); err != nil {
				t.Fatal(err)
			}
			age(t, s)
			done, err := s.GC(t.Context(), GC{Unused: all(hurt.ID), Settle: time.Millisecond})
			if err != nil || len(done.Releases) != 1 || done.Releases[0] != "web:1" || whole(t, s) != "web:2" {
				t.Errorf("GC = %+v, %v; want web:1 removed, and web:2 whole", done, err)
			}
		})
	}
}

// TestForeignLines: what other tools add to the index stays as it is.
func TestForeignLines(t *testing.T) {
	s := open(t)
	add(t, s, release(t, s, "web", "one"))
	b, err := os.ReadFile(s.indexName())
	if err != nil {
		t.Fatal(err)
	}
	line := `{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, "digest": "sha256:` + strings.Repeat("b", 64) + `", "annotations": {"org.opencontainers.image.ref.name": "debian:12"}}`
	b = []byte(strings.Replace(string(b), `"manifests": [`, `"manifests": [`+line+",", 1))
	if err := os.WriteFile(s.indexName(), b, 0o644); err != nil {
		t.Fatal(err)
	}
	s.forget()
	add(t, s, release(t, s, "web", "two"))
	if b, _ = os.ReadFile(s.indexName()); !strings.Contains(string(b), "debian:12") {
		t.Errorf("a foreign line is gone:\n%s", b)
	}
	if list, err := s.Releases(); err != nil || len(list) != 2 {
		t.Errorf("Releases() = %v, %v; want web:1 and web:2", list, err)
	}
}

// TestConcurrent: who reads while several processes add sees whole indexes, and
// no release gets lost nor a number given twice.
func TestConcurrent(t *testing.T) {
	s := open(t)
	seed := release(t, s, "web", "seed")
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	readers.Go(func() {
		for n := 0; ; {
			select {
			case <-done:
				return
			default:
			}
			s.forget()
			list, err := s.Releases()
			if err != nil || len(list) < n {
				t.Errorf("Releases() = %d, %v; want at least the %d of before", len(list), err, n)
				return
			}
			n = len(list)
		}
	})
	for w := range 4 {
		mine, err := Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			for i := range 10 {
				r := seed
				r.Manifest.Memory = int64(1 + w*10 + i)
				if _, err := mine.AddRelease(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	s.forget()
	list, err := s.Releases()
	if err != nil || len(list) != 40 {
		t.Fatalf("Releases() = %d, %v; want 40", len(list), err)
	}
	for i, r := range list {
		if r.Number != i+1 {
			t.Errorf("number %d stands where %d should: %s", r.Number, i+1, r.Name())
		}
	}
}

// TestSweep: what a killed build left goes after a day, an index that is being
// written included.
func TestSweep(t *testing.T) {
	s := open(t)
	old := time.Now().Add(-2 * staleAfter)
	stale := filepath.Join(s.dir, tmpPrefix+"1")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	add(t, s, release(t, s, "web", "one"))
	if _, err := os.Stat(stale); err == nil {
		t.Errorf("%s is still there", stale)
	}
}
