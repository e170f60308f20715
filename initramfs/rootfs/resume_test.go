package rootfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dsas"
	"dsas/initramfs/rootfs"
)

const patience = 30 * time.Second

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// noise is data that does not compress, so that a part has a length to cut.
func noise(n int) string {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b)
	return string(b)
}

// cut serves from the range's start (or all, where a server ignores it) and
// breaks the connection after n bytes.
func cut(w http.ResponseWriter, blob []byte, from, n int) {
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(blob[from:min(from+n, len(blob))])
	w.(http.Flusher).Flush()
	if from+n < len(blob) {
		panic(http.ErrAbortHandler)
	}
}

func rangeStart(r *http.Request) (from int) {
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	return from
}

func TestFetchResumes(t *testing.T) {
	body := noise(1 << 20)
	for name, around := range map[string]func(*atomic.Int32) func(http.ResponseWriter, *http.Request, []byte) bool{
		"cut every 100 kB": func(*atomic.Int32) func(http.ResponseWriter, *http.Request, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
				cut(w, blob, rangeStart(r), 100_000)
				return true
			}
		},
		"range ignored": func(n *atomic.Int32) func(http.ResponseWriter, *http.Request, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
				cut(w, blob, 0, 300_000*int(n.Add(1)))
				return true
			}
		},
		"errors in between": func(n *atomic.Int32) func(http.ResponseWriter, *http.Request, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
				switch n.Add(1) % 4 {
				case 0:
					http.Error(w, "no", http.StatusServiceUnavailable)
				case 1:
					panic(http.ErrAbortHandler)
				case 2:
					http.NotFound(w, r)
				default:
					cut(w, blob, rangeStart(r), 200_000)
				}
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			part := s.add(t, tarOf(t, ent{name: "f", body: body}))
			s.around = around(new(atomic.Int32))
			stats, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
			if err != nil {
				t.Fatalf("Fetch() = %v; want nil", err)
			}
			if read(t, dir, "f") != body {
				t.Error("content differs after resuming")
			}
			if stats.Resumes == 0 || stats.Bytes != part.Size {
				t.Errorf("stats = %+v; want resumes, and %d bytes counted once", stats, part.Size)
			}
		})
	}
}

func TestFetchSurvivesServerRestart(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: noise(1 << 20)}))
	var n atomic.Int32
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		if n.Add(1) == 1 {
			cut(w, blob, 0, 500_000)
		}
		return false
	}
	addr := s.Listener.Addr().String()
	o := s.options(dir, part)
	down := make(chan struct{})
	var tries atomic.Int32
	o.Sleep = func(ctx context.Context, _ time.Duration) error {
		// The server dies at the first interruption, is away for some tries
		// (each refused), and comes back at the same address.
		switch tries.Add(1) {
		case 1:
			s.Listener.Close()
			close(down)
		case 5:
			again, err := listenAt(addr)
			if err != nil {
				return err
			}
			srv := &http.Server{Handler: s}
			t.Cleanup(func() { srv.Close() })
			go srv.Serve(again)
		}
		return ctx.Err()
	}
	if _, err := rootfs.Fetch(ctxFor(t), o); err != nil {
		t.Fatalf("Fetch() = %v; want nil", err)
	}
	<-down
	if len(read(t, dir, "f")) != 1<<20 {
		t.Error("content is not whole")
	}
}

func TestFetchLeavesStalledConnection(t *testing.T) {
	s, dir := newShop(t), dest(t)
	body := noise(1 << 20)
	part := s.add(t, tarOf(t, ent{name: "f", body: body}))
	var n atomic.Int32
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		switch n.Add(1) {
		case 1: // stalls in the body
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.Write(blob[:400_000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		case 2: // stalls before the header
			<-r.Context().Done()
			return true
		}
		return false
	}
	o := s.options(dir, part)
	o.Stall = 100 * time.Millisecond
	stats, err := rootfs.Fetch(ctxFor(t), o)
	if err != nil || stats.Resumes != 2 {
		t.Fatalf("Fetch() = %+v, %v; want it resumed twice", stats, err)
	}
	if read(t, dir, "f") != body {
		t.Error("content differs")
	}
}

func TestFetchRefusesDamage(t *testing.T) {
	good := tarOf(t, ent{name: "f", body: noise(300_000)}, ent{name: "g", body: strings.Repeat("g", 1000)})
	blob := compress(t, good)
	flip := func(at int) []byte {
		b := bytes.Clone(blob)
		b[at] ^= 1
		return b
	}
	other := compress(t, tarOf(t, ent{name: "f", body: "another"}))
	// The same length as the good one, valid, and not it.
	padded := append(bytes.Clone(other), skippable(len(blob)-len(other))...)
	var digestErr *rootfs.DigestError
	var sizeErr *rootfs.SizeError
	for name, c := range map[string]struct {
		served []byte
		want   any
	}{
		"bit at the start":  {flip(2), &digestErr},
		"bit in the middle": {flip(len(blob) / 2), &digestErr},
		"bit at the end":    {flip(len(blob) - 1), &digestErr},
		"another image":     {padded, &digestErr},
		"too short":         {blob[:len(blob)-1], &sizeErr},
		"too long":          {append(bytes.Clone(blob), 0), &sizeErr},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			first := s.add(t, tarOf(t, ent{name: "first", body: "layer"}))
			part := s.add(t, good)
			s.blobs[string(part.Digest)] = c.served
			_, err := rootfs.Fetch(ctxFor(t), s.options(dir, first, part))
			if err == nil || !errors.As(err, c.want) {
				t.Fatalf("Fetch() = %v; want a %T", err, c.want)
			}
			if !rootfs.BadPart(err) {
				t.Errorf("BadPart(%v) = false; want true", err)
			}
			if digestErr != nil && (digestErr.Part != 1 || digestErr.Want != part.Digest) {
				t.Errorf("error = %+v; want part 1 and its digest", digestErr)
			}
			digestErr = nil
			checkEmpty(t, dir)
		})
	}
}

// skippable is a zstd skippable frame of n bytes (RFC 8878 section 3.1.2).
func skippable(n int) []byte {
	b := make([]byte, n)
	copy(b, []byte{0x50, 0x2a, 0x4d, 0x18, byte(n - 8), byte((n - 8) >> 8), byte((n - 8) >> 16), byte((n - 8) >> 24)})
	return b
}

func TestFetchShortAnswerWithoutLength(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: noise(300_000)}))
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		w.(http.Flusher).Flush() // chunked: no length
		w.Write(blob[:1000])
		return true
	}
	_, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
	var size *rootfs.SizeError
	if !errors.As(err, &size) || size.Got != 1000 {
		t.Fatalf("Fetch() = %v; want a SizeError at 1000 bytes", err)
	}
	checkEmpty(t, dir)
}

func TestFetchWrongDiffID(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: "x"}))
	part.DiffID = digest([]byte("another tar"))
	_, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
	var d *rootfs.DigestError
	if !errors.As(err, &d) || !d.Tar {
		t.Fatalf("Fetch() = %v; want a DigestError of the tar", err)
	}
	checkEmpty(t, dir)
}

func TestFetchGone(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: "x"}))
	delete(s.blobs, string(part.Digest))
	_, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
	var st *rootfs.StatusError
	if !errors.As(err, &st) || rootfs.BadPart(err) {
		t.Fatalf("Fetch() = %v; want a StatusError, which is no bad part", err)
	}
	if len(s.asked) < 5 {
		t.Errorf("asked %d times; want a few before it is believed", len(s.asked))
	}
}

func TestFetchEndsWithContext(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "a/f", body: noise(1 << 20)}))
	ctx, cancel := context.WithCancel(context.Background())
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		w.Write(blob[:600_000])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	}
	if _, err := rootfs.Fetch(ctx, s.options(dir, part)); !errors.Is(err, context.Canceled) {
		t.Fatalf("Fetch() = %v; want context.Canceled", err)
	}
	checkEmpty(t, dir)
}

func TestFetchRefusesFullFolder(t *testing.T) {
	s, dir := newShop(t), dest(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: "x"}))
	os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644)
	if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, part)); !errors.Is(err, dsas.ErrConflict) {
		t.Fatalf("Fetch() into a full folder = %v; want ErrConflict", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error("Fetch removed what was there")
	}
}

func TestFetchBombs(t *testing.T) {
	// 200 MB in a part that says it takes 1 MB: refused at its header.
	large := tarOf(t, ent{name: "zero", size: 200 << 20, cut: true})
	// A short tar, then zeroes to 512 MB in frames of 16.
	tail := compress(t, tarOf(t, ent{name: "f", body: "x"}))
	tail = append(tail, bytes.Repeat(compress(t, make([]byte, 16<<20)), 32)...)
	for name, blob := range map[string][]byte{"large file": compress(t, large), "long tail": tail} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			part := dsas.Part{Digest: digest(blob), Size: int64(len(blob)), Unpacked: 1 << 20, MediaType: dsas.MediaTarZstd}
			s.blobs[string(part.Digest)] = blob
			_, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
			var content *rootfs.ContentError
			if !errors.As(err, &content) || !strings.Contains(err.Error(), "more than") {
				t.Fatalf("Fetch() = %v; want a ContentError that it holds too much", err)
			}
			checkEmpty(t, dir)
		})
	}
}

func TestFetchBadManifest(t *testing.T) {
	s, dir := newShop(t), dest(t)
	good := s.add(t, tarOf(t, ent{name: "f", body: "x"}))
	for name, change := range map[string]func(*dsas.Part){
		"digest":     func(p *dsas.Part) { p.Digest = "sha256:../../etc/passwd" },
		"size":       func(p *dsas.Part) { p.Size = 0 },
		"media type": func(p *dsas.Part) { p.MediaType = "text/plain" },
	} {
		p := good
		change(&p)
		if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, p)); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Fetch() with bad %s = %v; want ErrInvalid", name, err)
		}
	}
	if _, err := rootfs.Fetch(ctxFor(t), s.options(dir)); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Fetch() without parts = %v; want ErrInvalid", err)
	}
}

// listenAt takes an address that was given up a moment ago.
func listenAt(addr string) (net.Listener, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		ln, err := net.Listen("tcp", addr)
		if err == nil || time.Now().After(deadline) {
			return ln, err
		}
	}
}
