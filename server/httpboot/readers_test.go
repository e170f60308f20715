package httpboot_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"dsas/server/httpboot"
)

// listen runs the real server, with its limits, and gives its address and a
// blob of so many bytes in it.
func (f *fixture) listen(size int) (addr, path string, content []byte) {
	f.t.Helper()
	content = make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	d, _, err := f.blobs.Put(f.t.Context(), bytes.NewReader(content))
	if err != nil {
		f.t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.77.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.srv.Run(ctx, l) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run = %v; want nil", err)
		}
	})
	return l.Addr().String(), "/v2/dsas/boot/blobs/" + string(d), content
}

// stall asks for path and never reads.
func stall(t *testing.T, from netip.Addr, addr, path string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	c, err := d.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	return c
}

// TestReaders: 400 readers get their content whole, beside a hundred that take
// nothing.
func TestReaders(t *testing.T) {
	f := open(t, nil)
	addr, path, content := f.listen(8 << 20)
	for range 100 {
		stall(t, w102, addr, path)
	}
	errs := make(chan error)
	h := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 400}}
	defer h.CloseIdleConnections()
	for range 400 {
		go func() {
			resp, err := h.Get("http://" + addr + path)
			if err != nil {
				errs <- err
				return
			}
			defer resp.Body.Close()
			// Compared as it comes: all of it 400 times over would be gigabytes.
			same := &comparing{rest: content}
			if _, err = io.Copy(same, resp.Body); err == nil && len(same.rest) > 0 {
				err = fmt.Errorf("%d bytes are missing at the end", len(same.rest))
			}
			errs <- err
		}()
	}
	for range 400 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if st := f.srv.Stats(); st.ConnsRefused != 0 || st.BlobBytes < 400*uint64(len(content)) || st.Requests["blob"] != 500 {
		t.Errorf("Stats() = %+v; want 500 requests for blobs, none refused", st)
	}
}

// comparing takes only what rest begins with.
type comparing struct{ rest []byte }

func (c *comparing) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(c.rest, b) {
		return 0, fmt.Errorf("other content, %d bytes before the end", len(c.rest))
	}
	c.rest = c.rest[len(b):]
	return len(b), nil
}

// TestSlowReader: who takes nothing is cut off, who is merely slow is not.
func TestSlowReader(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.PieceTime = 2 * time.Second })
	addr, path, content := f.listen(32 << 20) // more than the socket buffers hold
	stall(t, w102, addr, path)
	slow, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprintf(slow, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	got := make(chan int64)
	go func() {
		// 12 MB/s at most, in small pieces: longer in all than one piece may take.
		var n int64
		buf := make([]byte, 64<<10)
		for {
			k, err := slow.Read(buf)
			n += int64(k)
			if err != nil || n >= int64(len(content)) {
				got <- n
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if n := <-got; n < int64(len(content)) {
		t.Errorf("a reader of 12 MB/s got %d bytes; want %d", n, len(content))
	}
	for deadline := time.Now().Add(time.Minute); f.srv.Stats().SlowReaders == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a reader that takes nothing is not cut off")
		}
	}
	if st := f.srv.Stats(); st.SlowReaders != 1 {
		t.Errorf("SlowReaders = %d; want 1", st.SlowReaders)
	}
}

// TestConnectionLimits: connections beyond the limits are closed at once, and
// nobody else's.
func TestConnectionLimits(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.MaxConns, c.MaxConnsPerAddress = 5, 3 })
	addr, path, _ := f.listen(1 << 10)
	dial := func(src netip.Addr) (net.Conn, bool) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: src.AsSlice()}}
		c, err := d.Dial("tcp4", addr)
		if err != nil {
			return nil, false // reset before we knew that it was there
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		_, err = c.Read(make([]byte, 1))
		return c, err == nil
	}
	var open []net.Conn
	for i, c := range []struct {
		src  netip.Addr
		want bool
	}{{w101, true}, {w101, true}, {w101, true}, {w101, false}, {w102, true}, {w102, true}, {w102, false}} {
		conn, ok := dial(c.src)
		if ok != c.want {
			t.Errorf("connection %d, from %s: served %v; want %v", i, c.src, ok, c.want)
		}
		if ok {
			open = append(open, conn)
		}
	}
	if st := f.srv.Stats(); st.Conns != 5 || st.ConnsRefused != 2 {
		t.Errorf("Stats() = %d open, %d refused; want 5, 2", st.Conns, st.ConnsRefused)
	}
	open[0].Close()
	for deadline := time.Now().Add(time.Minute); f.srv.Stats().Conns > 4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a closed connection still counts")
		}
	}
	if _, ok := dial(w101); !ok {
		t.Error("no connection after one was closed; want one")
	}
}

// TestRanges: one range is answered, several are not taken apart.
func TestRanges(t *testing.T) {
	f := open(t, nil)
	path := "/v2/dsas/boot/blobs/" + string(f.boot.Kernel.Digest)
	for _, c := range []struct {
		name, header, value string
		code                int
		body                string
	}{
		{"whole", "Range", "", 200, "kernel"},
		{"from 2", "Range", "bytes=2-", 206, "rnel"},
		{"the last 2", "Range", "bytes=-2", 206, "el"},
		{"beyond the end", "Range", "bytes=6-", 416, ""},
		{"several", "Range", "bytes=0-0,2-3", 200, "kernel"},
		{"a thousand", "Range", "bytes=0-0" + string(bytes.Repeat([]byte(",1-1"), 1000)), 200, "kernel"},
		{"known", "If-None-Match", `"` + string(f.boot.Kernel.Digest) + `"`, 304, ""},
		{"another known", "If-None-Match", `"sha256:x"`, 200, "kernel"},
	} {
		a := f.get(w101, path, c.header, c.value)
		if a.code != c.code || c.body != "" && a.body != c.body {
			t.Errorf("%s: GET = %d %q; want %d %q", c.name, a.code, a.body, c.code, c.body)
		}
	}
	if a := f.do(w101, "HEAD", path, ""); a.code != 200 || a.body != "" || a.header.Get("Content-Length") != "6" {
		t.Errorf("HEAD = %d %q, length %s; want 200, no body, 6", a.code, a.body, a.header.Get("Content-Length"))
	}
}
