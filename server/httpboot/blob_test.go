package httpboot_test

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestBlob(t *testing.T) {
	f := open(t, nil)
	p := f.put("0123456789")
	path := "/v2/dsas/web/blobs/" + string(p.Digest)
	stranger := addr("127.77.0.66") // parts are public by digest
	for _, c := range []struct {
		name, method, path string
		header             []string
		code               int
		body, length       string
	}{
		{"whole", "GET", path, nil, 200, "0123456789", "10"},
		{"as iPXE writes it", "GET", "/v2/dsas/boot/blobs/sha256%3A" + p.Digest.Hex(), nil, 200, "0123456789", "10"},
		{"head", "HEAD", path, nil, 200, "", "10"},
		{"range", "GET", path, []string{"Range", "bytes=3-5"}, 206, "345", "3"},
		{"resumed", "GET", path, []string{"Range", "bytes=7-"}, 206, "789", "3"},
		{"resumed if the same", "GET", path, []string{"Range", "bytes=7-", "If-Range", `"` + string(p.Digest) + `"`}, 206, "789", "3"},
		{"resumed if another", "GET", path, []string{"Range", "bytes=7-", "If-Range", `"sha256:other"`}, 200, "0123456789", "10"},
		{"range past the end", "GET", path, []string{"Range", "bytes=10-"}, 416, "", ""},
		{"known already", "GET", path, []string{"If-None-Match", `"` + string(p.Digest) + `"`}, 304, "", ""},
		{"another known", "GET", path, []string{"If-None-Match", `"x"`}, 200, "0123456789", "10"},
		{"not there", "GET", "/v2/dsas/web/blobs/sha256:" + strings.Repeat("0", 64), nil, 404, "", ""},
		{"upper case", "GET", "/v2/dsas/web/blobs/sha256:" + strings.ToUpper(p.Digest.Hex()), nil, 400, "", ""},
		{"short", "GET", path[:len(path)-1], nil, 400, "", ""},
		{"no digest", "GET", "/v2/dsas/web/blobs/dsas.db", nil, 400, "", ""},
		{"out of the folder", "GET", "/v2/dsas/web/blobs/sha256:..%2f..%2f..%2f..%2fkey", nil, 400, "", ""},
		{"out of the folder, dots escaped", "GET", "/v2/dsas/web/blobs/%2e%2e%2f%2e%2e%2fkey", nil, 400, "", ""},
		{"zero byte", "GET", path + "%00", nil, 400, "", ""},
		{"a folder", "GET", "/v2/dsas/web/blobs/", nil, 404, "", ""},
		{"below", "GET", path + "/x", nil, 404, "", ""},
		{"put", "PUT", path, nil, 405, "", ""},
		{"delete", "DELETE", path, nil, 405, "", ""},
		{"state", "GET", "/dsas.db", nil, 404, "", ""},
		{"operators' API", "GET", "/api/v1/nodes", nil, 404, "", ""},
	} {
		a := f.do(stranger, c.method, c.path, "", c.header...)
		if a.code != c.code || c.body != "" && a.body != c.body || c.length != "" && a.header.Get("Content-Length") != c.length {
			t.Errorf("%s: %s %s = %d %q, %s bytes; want %d %q, %s", c.name, c.method, c.path, a.code, a.body, a.header.Get("Content-Length"), c.code, c.body, c.length)
		}
		if strings.Contains(a.body, f.dir) {
			t.Errorf("%s: the answer tells where the state is: %q", c.name, a.body)
		}
	}
	a := f.get(stranger, path)
	if a.header.Get("Etag") != `"`+string(p.Digest)+`"` || a.header.Get("Docker-Content-Digest") != string(p.Digest) || !strings.Contains(a.header.Get("Cache-Control"), "immutable") {
		t.Errorf("headers = %v; want the digest as ETag and Docker-Content-Digest, and immutable", a.header)
	}
}

// TestBootFiles: who takes kernel and initramfs is known by the address of the
// boot that began there.
func TestBootFiles(t *testing.T) {
	f := open(t, nil)
	kernel, initramfs := "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest), "/v2/dsas/boot/blobs/"+string(f.boot.Initramfs.Digest)
	taken := func() (list []dsas.Event) { return f.events(dsas.KindKernel, dsas.KindInitramfs) }
	none := func(when string) {
		t.Helper()
		if e := taken(); len(e) != 0 {
			t.Fatalf("%s: events %+v; want none", when, e)
		}
	}
	f.get(w101, kernel)
	none("no boot has begun")
	id, _ := f.begin(w101, mac101)
	f.get(w102, kernel)
	none("another node took it")
	f.do(w101, "HEAD", kernel, "")
	f.get(w101, kernel, "Range", "bytes=1-")
	none("only a part was asked for")
	f.get(w101, "/v2/dsas/web/blobs/"+string(f.put("web first").Digest))
	none("an image part is none of them")
	f.get(w101, kernel)
	f.get(w101, initramfs)
	e := taken()
	if len(e) != 2 || e[0].Kind != dsas.KindKernel || e[1].Kind != dsas.KindInitramfs {
		t.Fatalf("events = %+v; want kernel and initramfs", e)
	}
	for i, size := range []int64{int64(len("kernel")), int64(len("initramfs"))} {
		if e[i].Node != "w101" || e[i].Boot != id || e[i].MAC != mac101 || e[i].Bytes != size {
			t.Errorf("event = %+v; want w101's, of boot %s, with %d bytes", e[i], id, size)
		}
	}
	if st := f.status("w101"); st.Phase != dsas.PhaseKernel {
		t.Errorf("phase = %s; want kernel", st.Phase)
	}
	// A restarted server knows the boot all the same.
	f.openStore()
	f.restart()
	f.get(w101, kernel)
	if n := len(taken()); n != 3 {
		t.Errorf("%d events after a restart and another kernel; want 3", n)
	}
	f.later(16 * time.Minute)
	f.get(w101, kernel)
	if n := len(taken()); n != 3 {
		t.Errorf("%d events, the last 16 minutes after the script; want 3: that boot is over", n)
	}
}

// TestBootFilesSlowly: iPXE closes when it has what it wants, and that must not
// lose the event.
func TestBootFilesSlowly(t *testing.T) {
	f := open(t, nil)
	f.begin(w101, mac101)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req := httptest.NewRequestWithContext(ctx, "GET", "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest), nil)
	req.RemoteAddr = netip.AddrPortFrom(w101, 1).String()
	f.srv.Handler().ServeHTTP(httptest.NewRecorder(), req)
	if e := f.events(dsas.KindKernel); len(e) != 1 {
		t.Errorf("events = %+v; want the kernel taken, though who took it has gone", e)
	}
}
