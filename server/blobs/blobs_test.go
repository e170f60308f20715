package blobs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dsas"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, content, title string) dsas.Part {
	t.Helper()
	d, n, err := s.Put(t.Context(), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title}
}

func TestPutAndBlob(t *testing.T) {
	s := open(t)
	p := put(t, s, "hello", "x")
	if want := dsas.Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"); p.Digest != want || p.Size != 5 {
		t.Errorf("Put(hello) = %s, %d; want %s, 5", p.Digest, p.Size, want)
	}
	put(t, s, "hello", "again")
	f, n, err := s.Blob(p.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, _ := io.ReadAll(f)
	if string(b) != "hello" || n != 5 {
		t.Errorf("Blob = %q, %d; want hello, 5", b, n)
	}
	if fi, _ := f.Stat(); fi.Mode().Perm() != 0o644 {
		t.Errorf("mode = %v; want 0644", fi.Mode())
	}
	if entries, _ := os.ReadDir(s.blobDir()); len(entries) != 1 {
		t.Errorf("blob folder has %d entries; want 1: %v", len(entries), entries)
	}
}

func TestBlobRefusesPaths(t *testing.T) {
	s := open(t)
	if err := os.WriteFile(filepath.Join(s.dir, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []dsas.Digest{"", "sha256:", "sha256:../../secret", "sha256:/etc/passwd", "md5:00", dsas.Digest("sha256:" + strings.Repeat("A", 64))} {
		if f, _, err := s.Blob(d); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Blob(%q) = %v, %v; want ErrInvalid", d, f, err)
		}
		if s.Has(d, 1) {
			t.Errorf("Has(%q) = true; want false", d)
		}
	}
	if _, _, err := s.Blob(dsas.Digest("sha256:" + strings.Repeat("a", 64))); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Blob(unknown) = %v; want ErrNotFound", err)
	}
}

type failing struct{ n int }

func (f *failing) Read(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errors.New("wire cut")
	}
	return len(p), nil
}

func TestPutFailureLeavesNothing(t *testing.T) {
	s := open(t)
	if _, _, err := s.Put(t.Context(), &failing{n: 3}); err == nil {
		t.Error("Put(failing reader) = nil; want an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Put(ctx, strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Put(cancelled) = %v; want context.Canceled", err)
	}
	if entries, _ := os.ReadDir(s.blobDir()); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestPublish(t *testing.T) {
	s := open(t)
	if _, err := s.Current("web"); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Current before Publish = %v; want ErrNotFound", err)
	}
	one, err := s.Publish(dsas.Manifest{Role: "web", Parts: []dsas.Part{put(t, s, "one", "base")}})
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := ManifestDigest(one); one.Digest != want || want == "" {
		t.Errorf("Digest = %s; want %s", one.Digest, want)
	}
	if got, err := s.Current("web"); err != nil || got.Digest != one.Digest {
		t.Errorf("Current = %+v, %v; want %s", got, err, one.Digest)
	}
	// Another process publishes: this store must see it.
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	two, err := other.Publish(dsas.Manifest{Role: "web", Parts: []dsas.Part{put(t, s, "two", "base")}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Current("web"); err != nil || got.Digest != two.Digest || got.Digest == one.Digest {
		t.Errorf("Current after the second Publish = %s, %v; want %s", got.Digest, err, two.Digest)
	}
	if _, err := s.Publish(dsas.Manifest{Role: "db", Parts: []dsas.Part{put(t, s, "db", "base")}}); err != nil {
		t.Fatal(err)
	}
	images, err := s.Images()
	if err != nil || len(images) != 2 || images[0].Role != "db" || images[1].Role != "web" {
		t.Errorf("Images() = %+v, %v; want db, web", images, err)
	}
}

func TestPublishRefuses(t *testing.T) {
	s := open(t)
	gone := dsas.Part{Digest: dsas.Digest("sha256:" + strings.Repeat("a", 64)), Size: 1}
	short := put(t, s, "short", "")
	short.Size++
	for _, m := range []dsas.Manifest{
		{Role: "../x", Parts: []dsas.Part{put(t, s, "x", "")}},
		{Role: "web"},
		{Role: "web", Parts: []dsas.Part{gone}},
		{Role: "web", Parts: []dsas.Part{short}},
	} {
		if _, err := s.Publish(m); err == nil {
			t.Errorf("Publish(%+v) = nil; want an error", m)
		}
	}
	if err := s.PublishBoot(dsas.BootSet{Kernel: gone}); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("PublishBoot(missing kernel) = %v; want ErrNotFound", err)
	}
	if _, err := s.Boot(); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Boot() = %v; want ErrNotFound", err)
	}
}

func TestBoot(t *testing.T) {
	s := open(t)
	fw := put(t, s, "fw", "firmware")
	want := dsas.BootSet{Release: "6.1", Kernel: put(t, s, "k", "kernel"), Initramfs: put(t, s, "i", "initramfs"), Firmware: &fw}
	if err := s.PublishBoot(want); err != nil {
		t.Fatal(err)
	}
	got, err := s.Boot()
	if err != nil || got.Release != "6.1" || got.Kernel != want.Kernel || got.Initramfs != want.Initramfs || *got.Firmware != fw {
		t.Errorf("Boot() = %+v, %v; want %+v", got, err, want)
	}
}

func TestDamagedManifest(t *testing.T) {
	s := open(t)
	for _, content := range []string{"{", strings.Repeat(" ", maxJSON+1)} {
		if err := os.WriteFile(filepath.Join(s.roleDir(), "web.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Current("web"); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Current(damaged) = %v; want ErrInvalid", err)
		}
	}
}

// Readers during publishing always see a whole manifest.
func TestConcurrent(t *testing.T) {
	s := open(t)
	p := put(t, s, "x", "base")
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				m, err := s.Current("web")
				if err != nil && !errors.Is(err, dsas.ErrNotFound) || err == nil && len(m.Parts) != 1 {
					t.Errorf("Current = %+v, %v", m, err)
					return
				}
			}
		})
	}
	for i := range 50 {
		if _, err := s.Publish(dsas.Manifest{Role: "web", Memory: int64(i), Parts: []dsas.Part{p}}); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}

func TestManifestByDigestOutlivesTheNextOne(t *testing.T) {
	s := open(t)
	publish := func(content string) dsas.Manifest {
		m, err := s.Publish(dsas.Manifest{Role: "web", Kernel: "6.1", Parts: []dsas.Part{put(t, s, content, "base")}})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first, second := publish("one"), publish("two")
	if first.Digest == second.Digest {
		t.Fatalf("two images have the same digest %s", first.Digest)
	}
	got, err := s.Manifest(first.Digest)
	if err != nil || got.Parts[0].Digest != first.Parts[0].Digest || got.Digest != first.Digest {
		t.Errorf("Manifest(first) = %+v, %v; want %+v", got, err, first)
	}
	if want, err := ManifestDigest(first); err != nil || want != first.Digest {
		t.Errorf("ManifestDigest = %s, %v; want %s", want, err, first.Digest)
	}
	if _, err := s.Manifest(first.Parts[0].Digest); err == nil {
		t.Error("Manifest(digest of a part) = nil error; want one")
	}
}
