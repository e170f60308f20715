package blobs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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
