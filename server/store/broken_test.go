package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/store"
)

// smallDisk mounts a file system of size bytes for the test.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatalf("mount tmpfs (wants root): %v", err)
		}
		t.Skipf("mount tmpfs (wants root): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all the space there is, and gives it back when called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f := must(os.Create(name))(t)
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			noErr(t, err)
		}
	}
	return func() { noErr(t, os.Remove(name)) }
}

// log is a log that can be read while it is written.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range words {
		if !strings.Contains(l.b.String(), w) {
			return false
		}
	}
	return true
}

// eventually waits for ok as long as a slow machine may take.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// A full disk refuses what must be kept, in words that help, answers what is
// known, and mends itself.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, 2<<20)
	var said log
	s := must(store.Open(t.Context(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), slog.New(slog.NewTextHandler(&said, nil))))(t)
	t.Cleanup(func() { s.Close() })
	f := &fixture{Store: s, t: t, ctx: t.Context(), dir: dir, time: t0}
	s.SetClock(func() time.Time { return f.time })
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.201/24", 201)))(t)
	sn := subnet(10, 99)
	expect(t, "lease", f.get(sn, 1, none, t0), 10)

	free := fill(t, dir)
	var err error
	m := 2
	for ; err == nil && m < 80; m++ { // what the WAL has allocated already is used up first
		_, err = f.LeaseFor(f.ctx, sn, mac(m), "id", none, t0)
	}
	if err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("LeaseFor with a full disk = %v; want an error that says that the disk of %s is full", err, dir)
	}
	before := m
	if f.Writable() == nil {
		t.Error("Writable with a full disk = nil; want why not")
	}
	if !said.has("nothing can be saved") {
		t.Error("the log does not say that nothing can be saved")
	}
	if n, err := f.NodeByMAC(f.ctx, mac(201)); err != nil || n.Name != "w1" {
		t.Errorf("NodeByMAC with a full disk = %+v, %v; want w1", n, err)
	}
	// What is on disk for longer than promised can be renewed.
	expect(t, "renewal with a full disk", f.get(sn, 1, none, t0.Add(time.Minute)), 10)
	noErr(t, f.NoteEvent(dsas.Event{Node: "w1", Kind: dsas.KindDHCP, Message: "while it was full"}))

	free()
	eventually(t, "the noted event", func() bool {
		list := must(f.Events(f.ctx, store.EventFilter{}))(t)
		return len(list) == 1 && list[0].Message == "while it was full"
	})
	// The address that could not be promised to one is there for another.
	l := must(f.LeaseFor(f.ctx, sn, mac(before+1), "id", none, t0))(t)
	noErr(t, f.Writable())
	if !said.has("saved again") {
		t.Error("the log does not say that things are saved again")
	}
	noErr(t, s.Close())
	f.reopen()
	if got, err := f.Lease(f.ctx, l.Address, t0); err != nil || got.MAC != l.MAC {
		t.Errorf("Lease(%s) after a restart = %+v, %v; want that of %s", l.Address, got, err, l.MAC)
	}
	sound(t, f)
}

// sound closes the store and has every page of the database looked at.
func sound(t *testing.T, f *fixture) {
	t.Helper()
	noErr(t, f.Close())
	must(store.CheckSnapshot(f.ctx, filepath.Join(f.dir, "dsas.db"), filepath.Join(f.dir, "key")))(t)
}

// A read-only state folder is refused in words that help.
func TestReadOnly(t *testing.T) {
	dir := smallDisk(t, 2<<20)
	s := must(openDir(t.Context(), dir))(t)
	noErr(t, s.Close())
	noErr(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := openDir(t.Context(), dir)
	if err == nil || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), "remount,rw") {
		t.Fatalf("Open on a read-only file system = %v; want it to say so, and what to do", err)
	}
	noErr(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	s = must(openDir(t.Context(), dir))(t)
	noErr(t, s.Close())
}

// set gives t as it would read had the clock been set by d a moment before: the
// wall clock's time changes and the monotonic one's does not.
func set(t time.Time, d time.Duration) time.Time {
	if t == t.Round(0) {
		panic("no monotonic reading")
	}
	// package time: wall's top bit tells of a monotonic reading, the next 33
	// hold the seconds, the last 30 the nanoseconds.
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall += uint64(int64(d/time.Second)) << 30
	return t
}

// A clock that is set by a day, either way, ends no lease and keeps none for
// longer, in this run or the next.
func TestClockIsSet(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			dir := t.TempDir()
			var said log
			open := func() *store.Store {
				return must(store.Open(t.Context(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), slog.New(slog.NewTextHandler(&said, nil))))(t)
			}
			s := open()
			t.Cleanup(func() { s.Close() })
			now := time.Now()
			if got := set(now, jump); got.Sub(now) != 0 || got.Round(0).Sub(now.Round(0)) != jump {
				t.Fatalf("set(now, %s) is off by %s and %s; want 0 and %s", jump, got.Sub(now), got.Round(0).Sub(now.Round(0)), jump)
			}
			sn := subnet(10, 10) // one address
			l := must(s.LeaseFor(t.Context(), sn, mac(1), "", none, now))(t)

			later := set(now.Add(time.Minute), jump)
			if _, err := s.Offer(t.Context(), sn, mac(2), "", none, later); !errors.Is(err, store.ErrPoolExhausted) {
				t.Errorf("Offer a minute after the clock was set = %v; want %v: the address is leased", err, store.ErrPoolExhausted)
			}
			if !said.has("the clock was set") {
				t.Error("the log does not say that the clock was set")
			}
			renewed := must(s.LeaseFor(t.Context(), sn, mac(1), "", none, later))(t)
			if renewed.Address != l.Address {
				t.Errorf("renewal = %s; want %s", renewed.Address, l.Address)
			}
			end := set(now.Add(12*time.Minute), jump)
			if got, err := s.Offer(t.Context(), sn, mac(2), "", none, end); err != nil || got.Address != l.Address {
				t.Errorf("Offer after the lease's end = %+v, %v; want its address", got, err)
			}
			noErr(t, s.Close())

			// The next run's clock is right from the start.
			s = open()
			if _, err := s.Offer(t.Context(), sn, mac(2), "", none, time.Now()); !errors.Is(err, store.ErrPoolExhausted) {
				t.Errorf("Offer after a restart = %v; want %v: on disk the lease ends later", err, store.ErrPoolExhausted)
			}
			held := sn.Lease + 2*sn.Lease + time.Hour // what a store that knows nothing better may keep
			if got, err := s.Offer(t.Context(), sn, mac(2), "", none, time.Now().Add(held+time.Minute)); err != nil || got.Address != l.Address {
				t.Errorf("Offer %s after a restart = %+v, %v; want its address", held, got, err)
			}
		})
	}
}
