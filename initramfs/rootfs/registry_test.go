package rootfs_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dsas/initramfs/rootfs"
)

// A node asks a registry first, and whatever that does, its root is the image
// that the manifest names.
func TestFetchFromRegistry(t *testing.T) {
	first, second := tarOf(t, ent{name: "f", body: noise(1 << 20)}), tarOf(t, ent{name: "g", body: "second"})
	blobs := map[string][]byte{}
	for _, b := range [][]byte{compress(t, first), compress(t, second)} {
		blobs[string(digest(b))] = b
	}
	serve := func(w http.ResponseWriter, r *http.Request, digest string) {
		b, ok := blobs[digest]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
	big := int64(len(compress(t, first)))
	all := big + int64(len(compress(t, second)))
	for name, c := range map[string]struct {
		registry func(n int32, w http.ResponseWriter, r *http.Request, digest string)
		given    int64 // bytes that the registry gave; -1: any
		asked    int32 // times that it was; -1: any
		server   bool  // the server was asked too
	}{
		"has it all": {func(_ int32, w http.ResponseWriter, r *http.Request, d string) { serve(w, r, d) }, all, 2, false},
		"has the first part": {func(_ int32, w http.ResponseWriter, r *http.Request, d string) {
			if len(blobs[d]) < 1<<20 {
				d = ""
			}
			serve(w, r, d)
		}, big, 2, true},
		"has nothing":     {func(_ int32, w http.ResponseWriter, r *http.Request, _ string) { http.NotFound(w, r) }, 0, 2, true},
		"wants a log-in":  {func(_ int32, w http.ResponseWriter, r *http.Request, _ string) { w.WriteHeader(401) }, 0, 1, true},
		"is out of order": {func(_ int32, w http.ResponseWriter, r *http.Request, _ string) { w.WriteHeader(503) }, 0, 1, true},
		"breaks off": {func(_ int32, w http.ResponseWriter, r *http.Request, d string) {
			cut(w, blobs[d], rangeStart(r), 300_000)
		}, 600_000, 2, true}, // what it gave is kept
		"sends elsewhere": {func(_ int32, w http.ResponseWriter, r *http.Request, d string) {
			if r.URL.Query().Get("signed") == "" {
				http.Redirect(w, r, r.URL.Path+"?signed=1", http.StatusTemporaryRedirect)
				return
			}
			serve(w, r, d)
		}, all, 4, false},
		"lies": {func(_ int32, w http.ResponseWriter, r *http.Request, d string) {
			b := bytes.Clone(blobs[d])
			b[len(b)/2] ^= 1
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		}, 0, -1, true},
		"gives a page": {func(_ int32, w http.ResponseWriter, r *http.Request, _ string) { fmt.Fprint(w, "<html>log in</html>") }, 0, -1, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			o := s.options(dir, s.add(t, first), s.add(t, second))
			var asked atomic.Int32
			reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := asked.Add(1)
				d, ok := strings.CutPrefix(r.URL.Path, "/v2/team/dsas/web/blobs/")
				if !ok {
					t.Errorf("registry is asked for %s", r.URL.Path)
				}
				c.registry(n, w, r, d)
			}))
			defer reg.Close()
			o.Registry = reg.URL + "/team/"
			stats, err := rootfs.Fetch(ctxFor(t), o)
			if err != nil {
				t.Fatalf("Fetch() = %v; want nil", err)
			}
			if len(read(t, dir, "f")) != 1<<20 || read(t, dir, "g") != "second" {
				t.Error("the tree is not the image's")
			}
			// The second part is asked for while the first one comes: whether that is
			// before the registry is given up is a matter of luck.
			if c.given >= 0 && stats.FromRegistry != c.given && (name != "breaks off" || stats.FromRegistry != c.given+all-big) {
				t.Errorf("%d bytes came from the registry; want %d", stats.FromRegistry, c.given)
			}
			if n := asked.Load(); c.asked >= 0 && (n < c.asked || n > c.asked+1 || n != c.asked && !c.server) {
				t.Errorf("the registry was asked %d times; want %d", n, c.asked)
			}
			if got := len(s.asked) > 0; got != c.server {
				t.Errorf("the server was asked: %v; want %v", got, c.server)
			}
		})
	}
}

// A registry that nobody answers for, or that takes the connection and says
// nothing, delays a boot and no more.
func TestFetchWithoutRegistry(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() // connections wait in its queue
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for name, at := range map[string]string{"silent": silent.Addr().String(), "gone": gone.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			o := s.options(dir, s.add(t, tarOf(t, ent{name: "f", body: "here"})))
			o.Registry, o.Stall = "http://"+at, 100*time.Millisecond
			if _, err := rootfs.Fetch(ctxFor(t), o); err != nil || read(t, dir, "f") != "here" {
				t.Errorf("Fetch() = %v; want nil and the image", err)
			}
		})
	}
}
