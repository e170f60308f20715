package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/blobs"
)

// gcStore is a server's image store in which nodes use some releases, and
// nobody the others.
type gcStore struct {
	*cliTest
	state, images string
	held          []string // names of what is in use
	last          int      // number of the last release
}

func newGCStore(t *testing.T) *gcStore {
	t.Helper()
	c := newCLI(t)
	g := &gcStore{cliTest: c, state: filepath.Dir(c.socket), images: filepath.Join(filepath.Dir(c.socket), "images")}
	for range 6 {
		g.add()
	}
	addRelease(t, c.releases.Store, "db", "1")
	for i, mac := range []string{"52:54:00:00:01:01", "52:54:00:00:01:02"} {
		c.ok("node", "add", fmt.Sprintf("w%d", 101+i), "--role", "web", "--mac", mac)
	}
	c.ok(words("image pin web:2 w102")...)
	for _, r := range []string{"4", "5"} {
		c.ok(words("image publish web:" + r)...)
	}
	three, err := c.releases.Find(dsas.ReleaseRef{Role: "web", Number: 3})
	if err != nil {
		t.Fatal(err)
	}
	mac, _ := dsas.ParseMAC("52:54:00:00:01:01")
	if err := c.store.CreateBoot(t.Context(), dsas.Boot{ID: "b1", Node: "w101", MAC: mac, Role: "web", Image: three.ID, TokenHash: []byte("b1"), Session: []byte("s")}); err != nil {
		t.Fatal(err)
	}
	g.held = []string{"db:1", "web:2", "web:3", "web:4", "web:5"} // alone, pinned, booted, before, current
	return g
}

// add makes another release of web, which nobody uses but for being the newest.
func (g *gcStore) add() {
	g.Helper()
	g.last++
	if r := addRelease(g.T, g.releases.Store, "web", fmt.Sprintf("content %d", g.last)); r.Number != g.last {
		g.Fatalf("added release %s; want web:%d", r.Name(), g.last)
	}
}

// rubbish stores n blobs of no release.
func (g *gcStore) rubbish(n int) {
	g.Helper()
	for i := range n {
		text := fmt.Sprintf("of no release %d of %d", i, g.last)
		sum := sha256.Sum256([]byte(text))
		if err := os.WriteFile(filepath.Join(g.images, "blobs", "sha256", hex.EncodeToString(sum[:])), []byte(text), 0o644); err != nil {
			g.Fatal(err)
		}
	}
}

// age makes all files of the store older than a gc, and a sweep of what is half
// written, leave alone.
func (g *gcStore) age() {
	g.Helper()
	old := time.Now().Add(-25 * time.Hour)
	for _, dir := range []string{g.images, filepath.Join(g.images, "blobs", "sha256")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			g.Fatal(err)
		}
		for _, e := range entries {
			if err := os.Chtimes(filepath.Join(dir, e.Name()), old, old); err != nil {
				g.Fatal(err)
			}
		}
	}
}

// whole checks that all listed releases have all their content, as it was, and
// gives them, by role and number, and the names of these blobs.
func (g *gcStore) whole() (list []dsas.Release, content map[string]bool) {
	g.Helper()
	s, err := blobs.Open(g.images)
	if err != nil {
		g.Fatal(err)
	}
	if list, err = s.Releases(); err != nil {
		g.Fatal(err)
	}
	content = map[string]bool{}
	for _, r := range list {
		if r.Damaged != "" {
			g.Errorf("release %s is listed and damaged: %s", r.Name(), r.Damaged)
			continue
		}
		if len(r.Signed.Signatures) != 1 {
			g.Errorf("release %s has %d signatures; want its one", r.Name(), len(r.Signed.Signatures))
		}
		all, err := s.Content(&r)
		if err != nil {
			g.Errorf("release %s is listed and not whole: %v", r.Name(), err)
		}
		for _, d := range all {
			content[d.Hex()] = true
			f, _, err := s.Blob(d)
			if err != nil {
				g.Errorf("release %s is listed and not whole: %v", r.Name(), err)
				continue
			}
			h := sha256.New()
			_, err = io.Copy(h, f)
			f.Close()
			if got := hex.EncodeToString(h.Sum(nil)); err != nil || got != d.Hex() {
				g.Errorf("release %s: blob %s reads as %s, %v", r.Name(), d.Hex(), got, err)
			}
		}
	}
	return list, content
}

func releaseNames(list []dsas.Release) (names []string) {
	for _, r := range list {
		names = append(names, r.Name())
	}
	return names
}

// watchFolders tells of every file that comes into, or goes from, the folders: the
// names, with a minus before those that go. It ends when stop is called.
func watchFolders(t *testing.T, dirs ...string) (events chan string, stop func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE); err != nil {
			t.Fatal(err)
		}
	}
	f := os.NewFile(uintptr(fd), "inotify")
	events = make(chan string, 10000)
	go func() {
		defer close(events)
		b := make([]byte, 64<<10)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			for rest := b[:n]; len(rest) >= unix.SizeofInotifyEvent; { // inotify(7)
				mask, size := binary.NativeEndian.Uint32(rest[4:]), int(binary.NativeEndian.Uint32(rest[12:]))
				name := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
				if mask&unix.IN_DELETE != 0 {
					name = "-" + name
				}
				events <- name
				rest = rest[unix.SizeofInotifyEvent+size:]
			}
		}
	}()
	return events, func() { f.Close() }
}

// program prepares this program as a process of its own.
func (g *gcStore) program(args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(os.Args[0], append([]string{"--server", g.socket}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	return cmd, &said
}

func (g *gcStore) gc(args ...string) []string {
	return append([]string{"image", "gc", "--state", g.state, "--config", os.DevNull, "--keep", "1"}, args...)
}

// TestGCKilled ends dsas image gc with SIGKILL after a random number of changes
// to the store. Whatever is listed then is whole, what is in use is listed, also
// what came into use when gc had already asked; the last gc removes all the rest.
func TestGCKilled(t *testing.T) {
	rounds := 20
	if os.Getenv("DSAS_LONG") != "" {
		rounds = 200
	}
	g := newGCStore(t)
	killed, pinned := map[string]int{}, 0
	for round := range rounds {
		g.add()
		g.add()
		g.rubbish(40)
		g.age()
		before, used := g.whole()
		entries, err := os.ReadDir(filepath.Join(g.images, "blobs", "sha256"))
		if err != nil {
			t.Fatal(err)
		}
		// Each kind of moment comes up: while it starts, in its steps on the index
		// (the second is a second after the first), and while it removes content.
		at, n := "removals", 1+rand.IntN(len(entries)-len(used))
		switch round % 4 {
		case 0:
			at, n = "index", 1+rand.IntN(2)
		case 1:
			at, n = "any", 1+rand.IntN(12)
		}
		var late *dsas.Release
		cmd, said := g.program(g.gc()...)
		events, stop := watchFolders(t, g.images, filepath.Join(g.images, "blobs", "sha256"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			ended <- cmd.Wait()
			stop()
		}()
		for name := range events {
			if name == "index.json" && late == nil {
				// A server that has not yet seen the new index gives a node what goes. It
				// has a second; who is too late here is no server.
				late = &before[len(before)-2]
				g.pin("w101", late.ID)
				if fi, err := os.Stat(filepath.Join(g.images, "index.json")); err != nil || time.Since(fi.ModTime()) > 900*time.Millisecond {
					late = &dsas.Release{}
				} else {
					pinned++
				}
			}
			if at == "any" || at == "index" && name == "index.json" || at == "removals" && name[0] == '-' && !strings.HasPrefix(name, "-.new-") {
				if n--; n == 0 {
					cmd.Process.Kill()
				}
			}
		}
		err = <-ended
		exit, ok := errors.AsType[*exec.ExitError](err)
		switch {
		case ok && exit.ExitCode() == -1:
			killed[at]++
		case err != nil:
			t.Fatalf("round %d: gc = %v\n%s", round, err, said)
		}
		list, _ := g.whole()
		names := releaseNames(list)
		want := append(slices.Clone(g.held), dsas.ReleaseName("web", g.last)) // the newest, too
		if late != nil && late.ID != "" {
			want = append(want, late.Name())
		}
		for _, name := range want {
			if !slices.Contains(names, name) {
				t.Errorf("round %d, killed at %s: %s, which is in use, is not among %v", round, at, name, names)
			}
		}
		if t.Failed() {
			break
		}
		g.pin("w101", "")
	}
	t.Logf("killed at: %v; %d releases came into use at the last moment", killed, pinned)
	if pinned == 0 || killed["index"] == 0 || killed["any"] == 0 || killed["removals"] == 0 {
		t.Errorf("of %d gcs were killed %v; want some at each kind of moment, and %d came into use meanwhile; want some", rounds, killed, pinned)
	}

	g.age()
	g.ok(g.gc()...)
	list, content := g.whole()
	names := releaseNames(list)
	want := append(slices.Clone(g.held), dsas.ReleaseName("web", g.last))
	if !slices.Equal(names, want) {
		t.Errorf("after a gc that had its end there are %v; want %v", names, want)
	}
	for _, dir := range []string{g.images, filepath.Join(g.images, "blobs", "sha256")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if name := e.Name(); !content[name] && !slices.Contains([]string{"blobs", "sha256", "index.json", "oci-layout", "lock"}, name) {
				t.Errorf("after a gc that had its end %s is left in %s", name, dir)
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(g.images, "index.json")); err != nil || bytes.Contains(b, []byte("dsas.going")) {
		t.Errorf("after a gc that had its end something is marked, %v:\n%s", err, b)
	}
}

// pin pins a node to a release in the server's database, whether it is in the
// store or not; "" takes the pin away.
func (g *gcStore) pin(node string, id dsas.Digest) {
	g.Helper()
	if _, err := g.store.UpdateNode(g.Context(), node, func(n *dsas.Node) error { n.Release = id; return nil }); err != nil {
		g.Fatal(err)
	}
}
