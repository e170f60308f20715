package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/diskio"
	"dsas/server/blobs"
)

// A stop holds a command up in the middle of what it reads: begun is closed when
// it is there, goOn has it go on.
type stop func(g *gcStore, cmd *exec.Cmd, layer dsas.Digest) (begun chan struct{}, goOn func())

// atLayer puts a pipe in the place of a layer until somebody has begun to read it,
// and leaves the rest of the reading to goOn.
func atLayer(g *gcStore, _ *exec.Cmd, layer dsas.Digest) (begun chan struct{}, goOn func()) {
	name, kept := filepath.Join(g.images, "blobs", "sha256", layer.Hex()), filepath.Join(g.images, "kept")
	content, err := os.ReadFile(name)
	if err == nil {
		err = os.Rename(name, kept)
	}
	if err == nil {
		err = syscall.Mkfifo(name, 0o644)
	}
	if err == nil {
		err = os.Chmod(name, 0o644) // whatever the umask
	}
	if err != nil {
		g.Fatal(err)
	}
	begun = make(chan struct{})
	var w *os.File
	go func() {
		if w, err = os.OpenFile(name, os.O_WRONLY, 0); err == nil { // waits for who reads
			err = os.Rename(kept, name)
		}
		close(begun)
	}()
	return begun, func() {
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			g.Errorf("the reader of a layer does not read on: %v", err)
		}
		w.Close()
	}
}

// atUnpacking holds image edit up where it says that it unpacks: nobody reads
// what it says.
func atUnpacking(g *gcStore, cmd *exec.Cmd, _ dsas.Digest) (begun chan struct{}, goOn func()) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		g.Fatal(err)
	}
	for {
		if _, err := unix.Write(p[1], make([]byte, 512)); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			g.Fatal(err)
		}
	}
	if err := errors.Join(unix.SetNonblock(p[0], false), unix.SetNonblock(p[1], false)); err != nil {
		g.Fatal(err)
	}
	r, w := os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
	said := cmd.Stderr
	cmd.Stdout, cmd.Stderr = nil, w // or two would write to said at once
	g.Cleanup(func() { r.Close() })
	cache := filepath.Join(g.state, "cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		g.Fatal(err)
	}
	events, end := watchFolders(g.T, cache)
	begun = make(chan struct{})
	go func() {
		for name := range events {
			if strings.HasPrefix(name, "scratch-edit-") {
				close(begun)
				end()
			}
		}
	}()
	return begun, func() {
		w.Close()
		b, err := io.ReadAll(r) // until the command has ended
		if err != nil {
			g.Error(err)
		}
		said.Write(bytes.Trim(b, "\x00"))
	}
}

// gcWaiting starts dsas image gc, and gives what it says first.
func (g *gcStore) gcWaiting() (first string, end func() string) {
	g.Helper()
	cmd, _ := g.program(g.gc()...)
	cmd.Stdout, cmd.Stderr = nil, nil
	out, in, err := os.Pipe()
	if err != nil {
		g.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	in.Close()
	if err != nil {
		g.Fatal(err)
	}
	r := bufio.NewReader(out)
	first, err = r.ReadString('\n')
	return first, func() string {
		g.Helper()
		rest, readErr := io.ReadAll(r)
		out.Close()
		if waitErr := cmd.Wait(); err != nil || readErr != nil || waitErr != nil {
			g.Errorf("gc = %v, %v, %v; want nil\n%s%s", err, readErr, waitErr, first, rest)
		}
		return string(rest)
	}
}

// storeReader is a command that is stopped in the middle of a read of what nobody uses.
type storeReader struct {
	args []string
	stop stop
	as   func(*exec.Cmd)
	says string // with exit status 1; empty: it ends well
	gone bool   // gc removes what it read
}

// TestGCWaitsForReaders: what reads a release that nobody uses has its content to
// the end; gc says who it waits for, and goes on then.
func TestGCWaitsForReaders(t *testing.T) {
	out, err := os.MkdirTemp("", "dsas") // t.TempDir's are closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(out) })
	open := filepath.Join(out, "open")
	if err := errors.Join(os.Mkdir(open, 0o777), os.Chmod(open, 0o777), os.Chmod(out, 0o755)); err != nil {
		t.Fatal(err)
	}
	readers := map[string]storeReader{
		"diff":   {args: words("image diff web:1 web:2"), stop: atLayer, gone: true},
		"export": {args: []string{"image", "export", "web:1", filepath.Join(out, "web1")}, stop: atLayer, gone: true},
		// Nobody may write in the store but root.
		"diff as nobody":   {args: words("image diff web:1 web:2"), stop: atLayer, as: asNobody, gone: true},
		"export as nobody": {args: []string{"image", "export", "web:1", filepath.Join(open, "web1")}, stop: atLayer, as: asNobody, gone: true},
		// The tree has no program: it has been unpacked and read when that is found.
		"edit":    {args: words("image edit web:1 --dry-run -- /none"), stop: atUnpacking, says: "nothing is changed", gone: true},
		"capture": {args: words("image capture w103 --dry-run"), stop: atLayer},
	}
	for name, r := range readers {
		t.Run(name, func(t *testing.T) {
			if (name == "edit" || r.as != nil) && os.Geteuid() != 0 {
				skipOrFail(t, "root alone edits, and becomes others")
			}
			g := newReadStore(t)
			if name == "capture" {
				g.captured()
			}
			one, err := g.releases.Find(dsas.ReleaseRef{Role: "web", Number: 1})
			if err != nil {
				t.Fatal(err)
			}
			layer := one.Manifest.Parts[0].Digest
			args := append([]string{r.args[0], r.args[1], "--state", g.state, "--config", os.DevNull}, r.args[2:]...)
			cmd, said := g.program(args...)
			if r.as != nil {
				r.as(cmd)
			}
			begun, goOn := r.stop(g, cmd, layer)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-begun:
			case err := <-ended:
				t.Fatalf("%v ended with %v and read nothing\n%s", args, err, said)
			}
			first, end := g.gcWaiting()
			if !strings.Contains(first, "waiting for who uses the image store") || !strings.Contains(first, strings.Join(args, " ")[:40]) {
				t.Errorf("gc says %q; want that it waits, and for %v", first, args)
			}
			if _, err := g.releases.Find(dsas.ReleaseRef{Role: "web", Number: 1}); err != nil {
				t.Errorf("while gc waits: %v", err)
			}
			goOn()
			if err := <-ended; (err != nil) != (r.says != "") || !strings.Contains(said.String(), r.says) {
				t.Errorf("%v ended with %v; want %q\n%s", args, err, r.says, said)
			}
			rest := end()
			f, _, err := g.releases.Blob(layer)
			if err == nil {
				f.Close()
			}
			if (err != nil) != r.gone || strings.Contains(rest, "removed web:1 ") != r.gone {
				t.Errorf("then gc said %q, and the layer is there: %v; want it removed: %t", rest, err, r.gone)
			}
		})
	}
}

// TestReadersWaitForGC: who comes while gc runs says so, and finds what is left.
func TestReadersWaitForGC(t *testing.T) {
	g := newReadStore(t)
	unlock := make(chan struct{})
	gc := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		_, err := g.releases.GC(t.Context(), blobs.GC{Unused: func(ctx context.Context, list []dsas.Release) ([]dsas.Digest, error) {
			select {
			case <-started: // the second time
			default:
				close(started)
			}
			<-unlock
			return []dsas.Digest{list[0].ID}, nil
		}})
		gc <- err
	}()
	<-started
	var said bytes.Buffer
	cmd, _ := g.program("image", "diff", "web:1", "web:2", "--state", g.state, "--config", os.DevNull)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = &said, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		w.Close()
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.Contains(line, "waiting for dsas image gc") {
		t.Errorf("image diff while gc runs says %q, %v; want that it waits", line, err)
	}
	close(unlock)
	go io.Copy(io.Discard, r)
	if err := <-gc; err != nil {
		t.Errorf("gc = %v; want nil", err)
	}
	// Of a release that is gone it says so, before it has shown half of it.
	if err := <-ended; err == nil || said.Len() > 0 {
		t.Errorf("image diff of what was removed = %v, and it showed %q; want an error alone", err, &said)
	}
}

// newReadStore has three releases of web of real layers, which nobody uses, and
// all is old.
func newReadStore(t *testing.T) *gcStore {
	t.Helper()
	c := newCLI(t)
	g := &gcStore{cliTest: c, state: filepath.Dir(c.socket), images: filepath.Join(filepath.Dir(c.socket), "images")}
	if err := os.Chmod(g.state, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two", "three"} {
		base := layerOf(t, g.releases.Store, "base", "etc/motd", text)
		d, n, err := g.releases.Put(t.Context(), strings.NewReader("k"))
		if err != nil {
			t.Fatal(err)
		}
		kernel := dsas.Part{Digest: d, DiffID: d, Size: n, Title: "kernel", MediaType: layers.MediaTar}
		if _, err := g.releases.AddRelease(t.Context(), dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "6.1", Kernel: kernel, Initramfs: kernel},
			Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{base}}}); err != nil {
			t.Fatal(err)
		}
	}
	g.age()
	return g
}

// captured has node w103 run web:1.
func (g *gcStore) captured() {
	g.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		skipOrFail(g.T, "ssh is not installed")
	}
	g.Setenv("HOME", g.TempDir())
	g.ok(words("node add w103 --role web --mac 52:54:00:00:01:03")...)
	one, err := g.releases.Find(dsas.ReleaseRef{Role: "web", Number: 1})
	if err != nil {
		g.Fatal(err)
	}
	mac, _ := dsas.ParseMAC("52:54:00:00:01:03")
	if err := g.store.CreateBoot(g.Context(), dsas.Boot{ID: "b3", Node: "w103", MAC: mac, Role: "web", Image: one.ID, TokenHash: []byte("b3"), Session: []byte("s")}); err != nil {
		g.Fatal(err)
	}
	root := g.TempDir()
	if err := os.WriteFile(filepath.Join(root, "x"), []byte("x"), 0o644); err != nil {
		g.Fatal(err)
	}
	info := nodeSSHD(g.T, inTree(g.T, root))
	g.ssh = func(dsas.Node) dsas.SSHInfo { return info }
}

// asNobody runs a program as a user who owns nothing. The test's program may be
// where that user cannot go.
func asNobody(cmd *exec.Cmd) {
	cmd.Path = "/proc/self/exe"
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// TestScratchOfTheKilled: what a killed edit or import leaves in the cache goes
// with the next gc, import or edit, when it is old; what one that runs has there
// stays, however old.
func TestScratchOfTheKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "root alone edits")
	}
	g := newReadStore(t)
	cache := filepath.Join(g.state, "cache")
	in := func() string {
		t.Helper()
		entries, err := os.ReadDir(cache)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "scratch-") {
				names = append(names, e.Name()[:strings.LastIndex(e.Name(), "-")])
			}
		}
		return strings.Join(names, " ")
	}
	old := func() {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(cache, "scratch-*"))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-2 * diskio.ScratchAge)
		for _, name := range names {
			if err := os.Chtimes(name, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	start := func(args ...string) (*exec.Cmd, chan struct{}) {
		t.Helper()
		cmd, _ := g.program(append(args[:2:2], append([]string{"--state", g.state, "--config", os.DevNull}, args[2:]...)...)...)
		if args[1] == "edit" {
			begun, _ := atUnpacking(g, cmd, "")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			return cmd, begun
		}
		events, end := watchFolders(t, cache)
		begun := make(chan struct{})
		go func() {
			for name := range events {
				if strings.HasPrefix(name, "scratch-import-") {
					close(begun)
					end()
				}
			}
		}()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, begun
	}
	// The edit has unpacked nothing yet, the import waits for its archive.
	edit, editing := start("image", "edit", "web:1", "--dry-run", "--", "/none")
	<-editing
	archive := filepath.Join(t.TempDir(), "archive")
	if err := syscall.Mkfifo(archive, 0o600); err != nil {
		t.Fatal(err)
	}
	imp, importing := start("image", "import", "web", "oci-archive:"+archive)
	<-importing
	w, err := os.OpenFile(archive, os.O_WRONLY, 0) // until it reads: its lock is taken
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	old()
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, []byte("no tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	tryImport := func() result {
		return g.runIn("", "image", "import", "web", root, "--state", g.state, "--config", os.DevNull)
	}
	tryImport()
	if got := in(); got != "scratch-edit scratch-import" {
		t.Fatalf("while edit and import run, another import leaves %q in the cache; want theirs", got)
	}
	for _, cmd := range []*exec.Cmd{edit, imp} {
		cmd.Process.Kill()
		cmd.Wait()
	}
	if res := tryImport(); in() != "" || !shows(res.errors, "removed scratch-edit-", "from the cache") {
		t.Errorf("after they were killed, an import leaves %q in the cache, and says %q; want both removed", in(), res.errors)
	}

	imp, importing = start("image", "import", "web", "oci-archive:"+archive)
	<-importing
	imp.Process.Kill()
	imp.Wait()
	g.ok(g.gc()...)
	if got := in(); got != "scratch-import" {
		t.Errorf("at once after it was killed, gc leaves %q; want what is young", got)
	}
	old()
	g.ok(g.gc("--dry-run")...)
	if got := in(); got != "scratch-import" {
		t.Errorf("gc --dry-run leaves %q; want all", got)
	}
	g.ok(g.gc()...)
	if got := in(); got != "" {
		t.Errorf("an hour later gc leaves %q; want nothing", got)
	}
}
