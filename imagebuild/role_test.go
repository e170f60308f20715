package imagebuild

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/initramfs/modindex"
	"dsas/server/blobs"
)

// tinyRole has one of everything.
func tinyRole() Definition {
	return Definition{
		Role: dsas.Role{Name: "tiny", Packages: []string{"nginx-light", "openssh-server"}, Modules: []string{"ip_vs", "ip_vs_wlc"},
			Memory: "300MiB", Remove: []string{"/var/www", "/usr/share/doc/curl"}},
		FS: fstest.MapFS{
			"role.yaml":                      {Data: []byte("name: tiny")},
			"templates/page":                 {Data: []byte("not in the image")},
			"files/etc/nginx/conf.d/x.conf":  {Data: []byte("# x\n")},
			"files/usr/local/bin/hello":      {Data: []byte("#!/bin/sh\necho hello\n")},
			"files/root/.profile":            {Data: []byte("# ours\n")},
			"services/nginx/run":             {Data: []byte("#!/bin/sh\nexec nginx\n")},
			"services/nginx/log/run":         {Data: []byte("#!/bin/sh\nexec cat\n")},
			"services/nginx/notes.txt":       {Data: []byte("n")},
			"files/var/lib/tiny/state/empty": {},
		},
	}
}

type tarEntry struct {
	*tar.Header
	data []byte
}

// readLayer gives a part's entries in order.
func readLayer(t *testing.T, store *blobs.Store, p dsas.Part) []tarEntry {
	t.Helper()
	f, _, err := store.Blob(p.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zr, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	var out []tarEntry
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, tarEntry{h, b})
	}
}

func find(entries []tarEntry, name string) *tarEntry {
	for i, e := range entries {
		if strings.TrimSuffix(e.Name, "/") == name {
			return &entries[i]
		}
	}
	return nil
}

func part(m dsas.Manifest, title string) dsas.Part {
	for _, p := range m.Parts {
		if p.Title == title {
			return p
		}
	}
	return dsas.Part{}
}

// leftMounts gives the mounts below dir that this process sees.
func leftMounts(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir) {
			out = append(out, line)
		}
	}
	return out
}

// bootFor makes up what a release boots with: of the kernel whose modules the
// build takes, and else of no use.
func bootFor(t *testing.T, opt Options) dsas.BootSet {
	t.Helper()
	unlock, err := opt.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	a, err := openApt(t.Context(), &opt)
	if err != nil {
		t.Fatal(err)
	}
	k, err := findKernel(t.Context(), &opt, a)
	if err != nil {
		t.Fatal(err)
	}
	part := func(title string) dsas.Part {
		d, n, err := opt.Store.Put(t.Context(), strings.NewReader(title))
		if err != nil {
			t.Fatal(err)
		}
		return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title}
	}
	return dsas.BootSet{Release: k.Release, Kernel: part("kernel"), Initramfs: part("initramfs")}
}

// TestBuildRole builds a small role for real.
func TestBuildRole(t *testing.T) {
	if testing.Short() {
		t.Skip("installs a Debian system")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	need(t, "mmdebstrap", "apt-get", "depmod", "dpkg-deb", "modprobe")
	storeDir := t.TempDir()
	store := testStore(t, storeDir)
	opt := Options{Store: store, Cache: filepath.Join(cacheDir(t), "cache"), Progress: func(line string) { t.Log(line) }}
	def := tinyRole()
	start := time.Now()
	boot := bootFor(t, opt)
	first, err := BuildRole(t.Context(), opt, def, boot)
	if err != nil {
		t.Fatal(err)
	}
	m := first.Manifest
	t.Logf("built in %v", time.Since(start))
	var titles []string
	for _, p := range m.Parts {
		titles = append(titles, p.Title)
		t.Logf("%-9s %9d compressed %9d unpacked", p.Title, p.Size, p.Unpacked)
	}
	if want := []string{"base", "packages", "modules", "files"}; !slices.Equal(titles, want) {
		t.Fatalf("parts = %q; want %q", titles, want)
	}
	if m.Memory != 300<<20 || m.Kernel == "" || m.Digest == "" {
		t.Errorf("manifest = %+v; want memory 300 MiB, a kernel, a digest", m)
	}
	t.Run("base", func(t *testing.T) { checkBase(t, readLayer(t, store, part(m, "base"))) })
	t.Run("packages", func(t *testing.T) { checkPackages(t, readLayer(t, store, part(m, "packages"))) })
	t.Run("files", func(t *testing.T) { checkFiles(t, readLayer(t, store, part(m, "files"))) })
	t.Run("modules", func(t *testing.T) { checkModules(t, readLayer(t, store, part(m, "modules")), m.Kernel) })
	t.Run("no change", func(t *testing.T) {
		start := time.Now()
		again, err := BuildRole(t.Context(), opt, def, boot)
		if err != nil || again.ID != first.ID || again.Number != 1 || !again.Created.Equal(first.Created) {
			t.Errorf("second BuildRole = %s %s, %v; want tiny:1 %s", again.Name(), again.ID, err, first.ID)
		}
		t.Logf("no-change build in %v", time.Since(start))
	})
	t.Run("one file changed", func(t *testing.T) {
		def := tinyRole()
		def.FS.(fstest.MapFS)["files/usr/local/bin/hello"].Data = []byte("#!/bin/sh\necho holla\n")
		start := time.Now()
		next, err := BuildRole(t.Context(), opt, def, boot)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("built in %v", time.Since(start))
		changed := next.Manifest
		if next.ID == first.ID || next.Number != 2 {
			t.Errorf("release %s %s; want tiny:2, another than %s", next.Name(), next.ID, first.ID)
		}
		if !slices.Equal(changed.Parts[:3], m.Parts[:3]) || changed.Parts[3].DiffID == m.Parts[3].DiffID {
			t.Errorf("parts = %+v; want only the last to differ from %+v", changed.Parts, m.Parts)
		}
	})
	t.Run("mounts", func(t *testing.T) {
		if left := leftMounts(t, opt.Cache); len(left) > 0 {
			t.Errorf("mounts left: %q", left)
		}
		if _, err := os.Stat(filepath.Join(opt.Cache, "work")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("work folder left: %v", err)
		}
	})
	t.Run("killed", func(t *testing.T) { checkKilled(t, opt, store, storeDir, boot) })
	t.Run("killed at random", func(t *testing.T) { checkRandomKills(t, opt, store, storeDir) })
	t.Run("findings", func(t *testing.T) { checkFindings(t, opt, storeDir, boot) })
	t.Run("lock", func(t *testing.T) { checkLock(t, opt, storeDir, boot) })
	t.Run("two folders", func(t *testing.T) { checkTwoFolders(t, opt, store, first) })
}

func diffLayers(t *testing.T, a, b []tarEntry) {
	n := 0
	for _, e := range a {
		o := find(b, strings.TrimSuffix(e.Name, "/"))
		if o == nil {
			t.Logf("gone: %s", e.Name)
		} else if !bytes.Equal(e.data, o.data) || e.Mode != o.Mode || !e.ModTime.Equal(o.ModTime) || e.Uid != o.Uid {
			t.Logf("differs: %s (%d, %d bytes; %v, %v)", e.Name, len(e.data), len(o.data), e.ModTime, o.ModTime)
			if n++; n < 4 && len(e.data) < 2000 {
				t.Logf("%s\n%s", e.data, o.data)
			}
		}
	}
}

func checkBase(t *testing.T, entries []tarEntry) {
	for _, name := range []string{"usr/bin/bash", "usr/sbin/sshd", "usr/sbin/ip", "usr/bin/ping", "usr/sbin/modprobe", "etc/ssl/certs/ca-certificates.crt", "var/log"} {
		if find(entries, name) == nil {
			t.Errorf("base lacks %s", name)
		}
	}
	if e := find(entries, "lib"); e == nil || e.Linkname != "usr/lib" {
		t.Errorf("lib = %+v; want a link to usr/lib", e)
	}
	if e := find(entries, "etc/machine-id"); e == nil || e.Size != 0 {
		t.Errorf("etc/machine-id: %+v; want an empty file", e)
	}
	last := ""
	for _, e := range entries {
		for _, bad := range []string{"etc/ssh/ssh_host_", "var/lib/apt/lists/", "var/cache/apt/", "etc/apt/sources.list.d/d", "usr/share/man/man", "dev/", "proc/", "usr/lib/systemd/systemd"} {
			if strings.HasPrefix(e.Name, bad) && e.Name != bad && !strings.HasPrefix(e.Name, "usr/lib/systemd/systemd-") {
				t.Errorf("base has %s", e.Name)
			}
		}
		if strings.HasPrefix(e.Name, "var/log/") && e.Typeflag == tar.TypeReg {
			t.Errorf("base has the log %s", e.Name)
		}
		if e.ModTime.Unix() > epoch {
			t.Errorf("%s is of %v; want none after the epoch", e.Name, e.ModTime)
		}
		if e.Uname != "" || e.Gname != "" {
			t.Errorf("%s has owner names %s:%s; want numbers only", e.Name, e.Uname, e.Gname)
		}
		last = e.Name
	}
	if last == "" {
		t.Error("base is empty")
	}
	if e := find(entries, "etc/shadow"); e == nil || !strings.Contains(string(e.data), "root:*") {
		t.Errorf("etc/shadow: root is not locked: %v", e)
	}
}

func checkPackages(t *testing.T, entries []tarEntry) {
	for _, name := range []string{"usr/sbin/nginx", "etc/nginx/nginx.conf", "var/lib/dpkg/status", "var/log/nginx"} {
		if find(entries, name) == nil {
			t.Errorf("packages lacks %s", name)
		}
	}
	// Emptied folders: of the packages' own nothing is there, of the base's a
	// whiteout.
	if e := find(entries, "var/www/html"); e != nil {
		t.Errorf("packages has %s; want var/www emptied", e.Name)
	}
	if find(entries, "usr/share/doc/curl/.wh.copyright") == nil {
		t.Error("packages lacks the whiteout of /usr/share/doc/curl/copyright")
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, "usr/share/man/man") || strings.HasPrefix(e.Name, "var/cache/apt/") || strings.Contains(e.Name, "policy-rc.d") {
			t.Errorf("packages has %s", e.Name)
		}
		if first, _, _ := strings.Cut(e.Name, "/"); slices.Contains(usrmerge, first) {
			t.Errorf("packages has %s, which takes the place of a link", e.Name)
		}
	}
}

func checkFiles(t *testing.T, entries []tarEntry) {
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	want := []string{"etc/", "etc/dsas/", "etc/dsas/services/", "etc/dsas/services/nginx/", "etc/dsas/services/nginx/log/", "etc/dsas/services/nginx/log/run",
		"etc/dsas/services/nginx/notes.txt", "etc/dsas/services/nginx/run", "etc/nginx/", "etc/nginx/conf.d/", "etc/nginx/conf.d/x.conf",
		"root/", "root/.profile", "usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/hello",
		"var/", "var/lib/", "var/lib/tiny/", "var/lib/tiny/state/", "var/lib/tiny/state/empty"}
	if !slices.Equal(names, want) {
		t.Errorf("files = %q\nwant %q", names, want)
	}
	for name, mode := range map[string]int64{"etc/dsas/services/nginx/run": 0o755, "etc/dsas/services/nginx/log/run": 0o755, "etc/dsas/services/nginx/notes.txt": 0o644,
		"usr/local/bin/hello": 0o755, "etc/nginx/conf.d/x.conf": 0o644, "root": 0o700} {
		if e := find(entries, name); e == nil || e.Mode != mode {
			t.Errorf("%s: %+v; want mode %o", name, e, mode)
		}
	}
}

func checkModules(t *testing.T, entries []tarEntry, release string) {
	dir := t.TempDir()
	top := "usr/lib/modules/" + release
	for _, e := range entries {
		to := filepath.Join(dir, e.Name)
		if e.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(to, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(to, e.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ix, err := modindex.ReadFile(filepath.Join(dir, top, modindex.File))
	if err != nil {
		t.Fatal(err)
	}
	for n, m := range ix.Modules {
		if find(entries, top+"/"+m.Path) == nil {
			t.Errorf("index names %s, which is not there", m.Path)
		}
		if _, err := ix.Closure(n); err != nil {
			t.Errorf("Closure(%s): %v", n, err)
		}
	}
	if _, err := ix.Closure("ip_vs_wlc", "nf_tables", "xfs", "nfs", "dm_mod", "drbd", "br_netfilter"); err != nil {
		t.Error(err)
	}
	// kmod's own view: by name and, as the kernel asks, by alias.
	for _, name := range []string{"ip_vs_wlc", "fs-xfs", "nft-expr-masq"} {
		out, err := exec.Command("modprobe", "-d", filepath.Join(dir, "usr"), "-S", release, "--show-depends", name).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "insmod ") {
			t.Errorf("modprobe --show-depends %s: %v\n%s", name, err, out)
		}
	}
}

// checkKilled ends a build with SIGKILL in the middle of the installation.
func checkKilled(t *testing.T, opt Options, store *blobs.Store, storeDir string, boot dsas.BootSet) {
	before, err := store.Releases()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperBuild$", "-test.v")
	cmd.Env = append(os.Environ(), "DSAS_TEST_BUILD="+opt.Cache+"\n"+storeDir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	deadline := time.After(5 * time.Minute)
	for installing := false; !installing; {
		select {
		case err := <-exited:
			t.Fatalf("the build ended before it could be killed: %v", err)
		case <-deadline:
			cmd.Process.Kill()
			t.Fatal("the build did not come to its installation")
		case <-time.After(time.Millisecond):
			// dpkg is at work: its folder has been copied up.
			_, err := os.Stat(filepath.Join(opt.Cache, "work/upper/var/lib/dpkg"))
			installing = err == nil
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-exited
	again, err := blobs.Open(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := again.Releases(); err != nil || len(after) != len(before) {
		t.Errorf("releases = %v, %v; want %v as before", after, err, before)
	}
	r, err := BuildRole(t.Context(), opt, killedRole(), boot)
	if err != nil {
		t.Fatalf("build after a killed one: %v", err)
	}
	if find(readLayer(t, store, part(r.Manifest, "packages")), "usr/bin/rsync") == nil {
		t.Error("packages lacks rsync")
	}
	// Neither here nor in a namespace that some process still has.
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, name := range tables {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(opt.Cache)) {
			t.Errorf("mounts left in %s", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(storeDir, "blobs/sha256/.new-*")); len(left) > 0 {
		t.Errorf("unfinished content left: %q", left)
	}
}

func killedRole() Definition {
	def := tinyRole()
	def.Role.Packages = append(def.Role.Packages, "fping", "rsync")
	return def
}

// TestHelperBuild is the process that checkKilled kills.
func TestHelperBuild(t *testing.T) {
	args := strings.Split(os.Getenv("DSAS_TEST_BUILD"), "\n")
	if len(args) < 2 {
		t.Skip("only run by TestBuildRole")
	}
	def := killedRole()
	if len(args) == 3 && args[2] == "tiny" {
		def = tinyRole()
	} else if len(args) == 3 {
		def = againRole(args[2])
	}
	opt := Options{Store: testStore(t, args[1]), Cache: args[0]}
	if _, err := BuildRole(t.Context(), opt, def, bootFor(t, opt)); err != nil {
		t.Fatal(err)
	}
}
