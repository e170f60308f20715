package rootfs_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/initramfs/rootfs"
)

// counting counts the bytes of blobs that leave the shop.
type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// While the first part is held back, what is fetched of the others is counted
// where it leaves the server: it is as much as there is room for and not a byte
// more, whatever the sizes of parts; and no connection but the first stays open
// meanwhile.
func TestAheadIsBounded(t *testing.T) {
	for name, sizes := range map[string][]int{
		"large parts":       {6 << 20, 6 << 20, 6 << 20, 6 << 20, 6 << 20},
		"small, then large": {100, 70_000, 300_000, 6 << 20, 6 << 20, 6 << 20},
		"all small":         {10, 20, 30, 40, 50, 60},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			var parts []dsas.Part
			var bodies []string
			for i, n := range sizes {
				body := fmt.Sprint(i) + noise(n)
				bodies = append(bodies, body)
				parts = append(parts, s.add(t, tarOf(t, ent{name: fmt.Sprintf("f%d", i), body: body})))
			}
			// The room for parts 1 to 3: what each may have, in whole blocks.
			var want int64
			left := int64(rootfs.AheadBlocks)
			for _, p := range parts[1:min(len(parts), 1+rootfs.AheadParts)] {
				blocks := min((p.Size+rootfs.Block-1)/rootfs.Block, rootfs.AheadEach, left)
				left -= blocks
				want += min(p.Size, blocks*rootfs.Block)
			}
			var sent atomic.Int64
			var open atomic.Int32
			first := make(chan struct{})
			s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
				if strings.HasSuffix(r.URL.Path, string(parts[0].Digest)) {
					<-first
					return false
				}
				open.Add(1)
				defer open.Add(-1)
				http.ServeContent(counting{w, &sent}, r, "", time.Time{}, strings.NewReader(string(blob)))
				return true
			}
			done := make(chan error, 1)
			go func() {
				_, err := rootfs.Fetch(ctxFor(t), s.options(dir, parts...))
				done <- err
			}()
			for deadline := time.Now().Add(patience); sent.Load() < want || open.Load() > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("while the first part is held %d bytes of the others were sent, %d connections are open; want %d and none", sent.Load(), open.Load(), want)
				}
			}
			time.Sleep(50 * time.Millisecond) // for what must not happen
			if got := sent.Load(); got != want || got > rootfs.AheadBlocks*rootfs.Block {
				t.Errorf("while the first part is held %d bytes of the others were sent; want %d, of %d at most", got, want, rootfs.AheadBlocks*rootfs.Block)
			}
			close(first)
			if err := <-done; err != nil {
				t.Fatalf("Fetch() = %v; want nil", err)
			}
			for i, body := range bodies {
				if read(t, dir, fmt.Sprintf("f%d", i)) != body {
					t.Errorf("f%d differs", i)
				}
			}
		})
	}
}

// Parts are applied in their order, whichever arrives first.
func TestAheadKeepsTheOrder(t *testing.T) {
	s, dir := newShop(t), dest(t)
	var parts []dsas.Part
	for i := range 6 {
		layer := []ent{{name: "f", body: fmt.Sprint(i)}, {name: fmt.Sprintf("d/only%d", i), body: noise(i * 100_000)}}
		if i > 0 {
			layer = append(layer, ent{name: fmt.Sprintf("d/.wh.only%d", i-1)})
		}
		parts = append(parts, s.add(t, tarOf(t, layer...)))
	}
	var mu sync.Mutex
	ahead := map[string]bool{}
	all := make(chan struct{})
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		if strings.HasSuffix(r.URL.Path, string(parts[0].Digest)) {
			<-all // the three that may be ahead come first
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if ahead[r.URL.Path] = true; len(ahead) == rootfs.AheadParts {
			close(all)
		}
		return false
	}
	if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, parts...)); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "d", "*"))
	if got := read(t, dir, "f"); got != "5" || err != nil || len(left) != 1 || filepath.Base(left[0]) != "only5" {
		t.Errorf("f = %q, d holds %v (%v); want the last part's alone", got, left, err)
	}
}

// Connections of several parts break at once, again and again; each is taken
// up where it broke, and what is asked for twice is told by the Ranges.
func TestFetchResumesSeveralParts(t *testing.T) {
	s, dir := newShop(t), dest(t)
	var parts []dsas.Part
	var bodies []string
	for i := range 4 {
		bodies = append(bodies, fmt.Sprint(i)+noise(5<<20)) // more than may be ahead of one part
		parts = append(parts, s.add(t, tarOf(t, ent{name: fmt.Sprintf("f%d", i), body: bodies[i]})))
	}
	var sent atomic.Int64
	s.around = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		from, to := 0, len(blob)-1
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(blob)))
		w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
		w.WriteHeader(http.StatusPartialContent)
		n := min(to+1-from, 700_000)
		counting{w, &sent}.Write(blob[from : from+n])
		w.(http.Flusher).Flush()
		if from+n <= to {
			panic(http.ErrAbortHandler)
		}
		return true
	}
	stats, err := rootfs.Fetch(ctxFor(t), s.options(dir, parts...))
	if err != nil {
		t.Fatalf("Fetch() = %v; want nil", err)
	}
	var total int64
	for i, body := range bodies {
		total += parts[i].Size
		if read(t, dir, fmt.Sprintf("f%d", i)) != body {
			t.Errorf("f%d differs", i)
		}
	}
	if stats.Bytes != total || stats.Resumes < 4*(5<<20)/700_000-4 {
		t.Errorf("stats = %+v; want %d bytes counted once, and a resume every 700 kB", stats, total)
	}
	if got := sent.Load(); got < total || got > total+total/2 {
		t.Errorf("the server sent %d bytes for %d; want little of it twice", got, total)
	}
}

// A part that is not there, or is damaged, is refused when its turn comes, with
// its own number, although it was fetched ahead.
func TestAheadRefuses(t *testing.T) {
	for name, harm := range map[string]func(blob []byte) []byte{
		"gone":      func([]byte) []byte { return nil },
		"damaged":   func(b []byte) []byte { b = append([]byte(nil), b...); b[len(b)/2] ^= 1; return b },
		"too short": func(b []byte) []byte { return b[:len(b)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			parts := []dsas.Part{
				s.add(t, tarOf(t, ent{name: "a", body: noise(100_000)})),
				s.add(t, tarOf(t, ent{name: "b", body: "b" + noise(100_000)})),
				s.add(t, tarOf(t, ent{name: "c", body: "c" + noise(100_000)})),
			}
			key := string(parts[2].Digest)
			if blob := harm(s.blobs[key]); blob != nil {
				s.blobs[key] = blob
			} else {
				delete(s.blobs, key)
			}
			_, err := rootfs.Fetch(ctxFor(t), s.options(dir, parts...))
			if err == nil || !strings.Contains(err.Error(), "part 3 (test") || rootfs.BadPart(err) != (name != "gone") {
				t.Errorf("Fetch() = %v; want part 3 refused, as a bad part unless it is gone", err)
			}
			checkEmpty(t, dir)
		})
	}
}

func TestFetchRefusesLargeWindow(t *testing.T) {
	s, dir := newShop(t), dest(t)
	tarred := tarOf(t, ent{name: "f", body: noise(1 << 20)})
	var packed bytes.Buffer
	enc, err := zstd.NewWriter(&packed, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enc.Write(tarred); err != nil {
		t.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	blob := packed.Bytes()
	part := dsas.Part{Digest: digest(blob), Size: int64(len(blob)), Unpacked: 1 << 20, MediaType: dsas.MediaTarZstd}
	s.blobs[string(part.Digest)] = blob
	if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, part)); err == nil || !strings.Contains(err.Error(), "more than 32 MiB") {
		t.Errorf("Fetch() of a part with a window of 64 MiB = %v; want it refused", err)
	}
}

// Files that were made with the right owner and mode are left as they are; the
// umask and a folder's group must not show in any.
func TestModesWithoutAsking(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners want root")
	}
	var ents []ent
	modes := []int64{0o644, 0o755, 0o600, 0o666, 0o777, 0o400, 0o002, 0o2755, 0o1644, 0o6711}
	for _, dir := range []ent{{name: "plain/"}, {name: "group/", mode: 0o2775, gid: 50}, {name: "again/", mode: 0o2775, gid: 0}} {
		dir.typ = '5'
		ents = append(ents, dir)
		for _, m := range modes {
			ents = append(ents, ent{name: fmt.Sprintf("%sroot-%o", dir.name, m), mode: m, body: "x"},
				ent{name: fmt.Sprintf("%suser-%o", dir.name, m), mode: m, body: "x", uid: 1, gid: 2})
		}
	}
	// Owners and modes hold for a folder that is entered by another name too.
	ents = append(ents, ent{name: "link", typ: '2', link: "group"}, ent{name: "link/root-644b", mode: 0o644, body: "x"})
	dir := mustUnpack(t, ents)
	for _, e := range ents {
		if e.typ != 0 {
			continue
		}
		if st := lstat(t, dir, e.name); int64(st.Mode&0o7777) != e.mode || int(st.Uid) != e.uid || int(st.Gid) != e.gid || st.Mtim.Sec != 1_700_000_000 {
			t.Errorf("%s: mode %o owner %d:%d time %d; want %o %d:%d 1700000000", e.name, st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, e.mode, e.uid, e.gid)
		}
	}
}
