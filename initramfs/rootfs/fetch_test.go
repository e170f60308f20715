package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/initramfs/rootfs"
	"dsas/internal/zframes"
)

// ent is one entry of a test's tar; the zero type is a regular file.
type ent struct {
	name, body, link string
	typ              byte
	mode             int64
	uid, gid         int
	at               time.Time
	major, minor     int64
	pax              map[string]string
	size             int64 // a body of this many zero bytes
	cut              bool  // and the tar ends before it
}

func tarOf(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			ModTime: e.at, Devmajor: e.major, Devminor: e.minor, PAXRecords: e.pax}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			h.Size = int64(len(e.body)) + e.size
		}
		if h.Mode == 0 {
			if h.Mode = 0o644; h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if len(e.pax) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("tar header %q: %v", e.name, err)
		}
		if e.cut {
			return b.Bytes()
		}
		if _, err := io.CopyN(w, io.MultiReader(strings.NewReader(e.body), zeroReader{}), h.Size); err != nil {
			t.Fatalf("tar body %q: %v", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func digest(b []byte) dsas.Digest {
	sum := sha256.Sum256(b)
	return dsas.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// compress packs as image builds do.
func compress(t testing.TB, tarred []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zframes.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(tarred); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stream packs as the zstd program does: one frame that does not say its size.
func stream(t testing.TB, tarred []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(tarred); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// shop serves blobs by digest, the way the boot listener does.
type shop struct {
	*httptest.Server
	mu    sync.Mutex
	blobs map[string][]byte
	// around may answer a request in the shop's place.
	around func(w http.ResponseWriter, r *http.Request, blob []byte) (done bool)
	asked  []string // Range headers, in order
}

func newShop(t testing.TB) *shop {
	s := &shop{blobs: map[string][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/v2/dsas/web/blobs/")
	s.mu.Lock()
	blob, found := s.blobs[name]
	around := s.around
	s.asked = append(s.asked, r.Header.Get("Range"))
	s.mu.Unlock()
	if around != nil && around(w, r, blob) {
		return
	}
	if !ok || !found {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
}

// add makes a part of a tar.
func (s *shop) add(t testing.TB, tarred []byte) dsas.Part {
	return s.addPacked(compress(t, tarred), tarred)
}

// addPacked makes a part of a tar that is compressed already.
func (s *shop) addPacked(blob, tarred []byte) dsas.Part {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[string(digest(blob))] = blob
	return dsas.Part{Digest: digest(blob), DiffID: digest(tarred), Size: int64(len(blob)),
		Unpacked: int64(len(tarred)), MediaType: dsas.MediaTarZstd, Title: "test"}
}

// dest is an empty folder in memory, as on a node.
func dest(t testing.TB) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "dsas-rootfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *shop) options(dir string, parts ...dsas.Part) rootfs.Options {
	return rootfs.Options{BaseURL: s.URL, Dest: dir, Manifest: dsas.Manifest{Role: "web", Parts: parts},
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

func read(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func checkEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("after a failed Fetch %s holds %v, %v; want nothing", dir, left, err)
	}
}

func TestFetchUnpacksLayers(t *testing.T) {
	s, dir := newShop(t), dest(t)
	base := s.add(t, tarOf(t,
		ent{name: "./", typ: tar.TypeDir},
		ent{name: "usr/lib/", typ: tar.TypeDir},
		ent{name: "lib", typ: tar.TypeSymlink, link: "usr/lib"},
		ent{name: "etc/hostname", body: "base"},
		ent{name: "etc/motd", body: "gone"}))
	top := s.add(t, tarOf(t,
		ent{name: "etc/hostname", body: "top"},
		ent{name: "etc/.wh.motd"},
		ent{name: "lib/", typ: tar.TypeDir},
		ent{name: "lib/new", body: "x"}))
	var told []int64
	o := s.options(dir, base, top)
	o.Progress = func(part int, n int64) { told = append(told, int64(part), n) }
	stats, err := rootfs.Fetch(context.Background(), o)
	if err != nil {
		t.Fatalf("Fetch() = %v; want nil", err)
	}
	if got := read(t, dir, "etc/hostname"); got != "top" {
		t.Errorf("etc/hostname = %q; want %q", got, "top")
	}
	if _, err := os.Lstat(filepath.Join(dir, "etc/motd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("etc/motd after its whiteout: %v; want not there", err)
	}
	if got, err := os.Readlink(filepath.Join(dir, "lib")); err != nil || got != "usr/lib" {
		t.Errorf("lib = %q, %v; want the link to usr/lib", got, err)
	}
	if got := read(t, dir, "usr/lib/new"); got != "x" {
		t.Errorf("usr/lib/new = %q; want x", got)
	}
	if stats.Bytes != base.Size+top.Size || stats.KeptLinks != 1 || stats.Entries != 9 {
		t.Errorf("stats = %+v; want %d bytes, 1 kept link, 9 entries", stats, base.Size+top.Size)
	}
	if len(told) != 4 || told[1] != base.Size || told[2] != 1 || told[3] != top.Size {
		t.Errorf("progress = %v; want the end of both parts", told)
	}
}
