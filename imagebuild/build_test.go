package imagebuild

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"dsas"
	"dsas/server/blobs"
)

// These are parts of TestBuildRole, whose base and kernel they use.

// otherCache makes a cache beside the first one that has its kernel, and what
// else is named.
func otherCache(t *testing.T, opt Options, parts ...string) Options {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(opt.Cache), "other-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, p := range append([]string{"kernel", "locks"}, parts...) {
		how := "-al"
		if p == "apt" || p == "locks" { // files there are written anew in place
			how = "-a"
		}
		if out, err := exec.Command("cp", how, filepath.Join(opt.Cache, p), dir).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	opt.Cache = dir
	return opt
}

// newest gives the last release of a role, as another process sees it.
func newest(t *testing.T, storeDir, role string) dsas.Release {
	t.Helper()
	list, err := testStore(t, storeDir).Releases()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range slices.Backward(list) { // by role and number
		if r.Role == role {
			return r
		}
	}
	t.Fatalf("no release of role %s in %s", role, storeDir)
	return dsas.Release{}
}

// checkTwoFolders builds the same role in another folder, at another time, as
// root of a user namespace, with lists and packages fetched anew: all it
// shares are the locks, and a copy of the kernel.
func checkTwoFolders(t *testing.T, opt Options, store *blobs.Store, first dsas.Release) {
	m := first.Manifest
	dir, err := os.MkdirTemp("", "dsas-two-") // where another user may go
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cache, storeDir, program := filepath.Join(dir, "cache"), filepath.Join(dir, "store"), filepath.Join(dir, "test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"cp", "-a", filepath.Join(opt.Cache, "kernel"), filepath.Join(opt.Cache, "locks"), cache},
		{"cp", os.Args[0], program}, {"chown", "-R", "100000:100000", dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	cmd := exec.Command(program, "-test.run=^TestHelperBuild$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DSAS_TEST_BUILD="+cache+"\n"+storeDir+"\ntiny")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0}, Pdeathsig: syscall.SIGKILL}
	if out, err := runLocked(cmd); err != nil {
		t.Fatalf("build in a user namespace: %v\n%s", err, out)
	}
	other := testStore(t, storeDir)
	there := newest(t, storeDir, "tiny")
	if there.ID != first.ID {
		t.Errorf("release %s; want %s", there.ID, first.ID)
	}
	again := there.Manifest
	if len(again.Parts) != len(m.Parts) {
		t.Fatalf("parts = %+v; want %+v", again.Parts, m.Parts)
	}
	for i, p := range again.Parts {
		entries := readLayer(t, other, p)
		if p.DiffID != m.Parts[i].DiffID {
			t.Errorf("%s: diffID %s; want %s", p.Title, p.DiffID, m.Parts[i].DiffID)
			diffLayers(t, readLayer(t, store, m.Parts[i]), entries)
		}
		checkNoDay(t, entries)
	}
}

// runLocked keeps to one thread, for Pdeathsig.
func runLocked(cmd *exec.Cmd) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// checkNoDay looks for the day of the build, which two builds of one day have
// in common.
func checkNoDay(t *testing.T, entries []tarEntry) {
	today := [][]byte{[]byte(time.Now().UTC().Format("2006-01-02")), []byte(time.Now().UTC().Format("Mon, 02 Jan 2006"))}
	day := fmt.Appendf(nil, ":%d:", time.Now().Unix()/86400)
	for _, e := range entries {
		for _, d := range today {
			if bytes.Contains(e.data, d) {
				t.Errorf("%s holds the day of the build, %s", e.Name, d)
			}
		}
		if strings.HasPrefix(e.Name, "etc/") && bytes.Contains(e.data, day) {
			t.Errorf("%s holds the day of the build, %s", e.Name, day)
		}
	}
}

// againRole is built again and again: what it removes is not there, and names
// another layer.
func againRole(remove string) Definition {
	def := tinyRole()
	def.Role.Remove = append(def.Role.Remove, remove)
	def.FS.(fstest.MapFS)["files/etc/round"] = &fstest.MapFile{Data: []byte(remove)}
	return def
}

// checkRandomKills ends builds with SIGKILL wherever they are just then. What
// is current must be whole, and of a build that had its end.
func checkRandomKills(t *testing.T, opt Options, store *blobs.Store, storeDir string) {
	rounds := 5
	if os.Getenv("DSAS_LONG") != "" {
		rounds = 40
	}
	build := func(i int, kill time.Duration) (ended bool) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHelperBuild$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("DSAS_TEST_BUILD=%s\n%s\n/none-%d", opt.Cache, storeDir, i))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if kill > 0 {
			timer := time.AfterFunc(kill, func() { cmd.Process.Kill() })
			defer timer.Stop()
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == -1 {
			return false
		}
		if err != nil {
			t.Fatalf("build %d: %v\n%s", i, err, &out)
		}
		return true
	}
	start := time.Now()
	build(0, 0)
	whole := time.Since(start)
	cur := newest(t, storeDir, "tiny").Manifest
	killed := 0
	for i := 1; i <= rounds; i++ {
		at := time.Duration(1 + rand.Int64N(int64(whole)))
		begun := time.Now()
		ended := build(i, at)
		if ended { // the first may have been slower than all others
			whole = min(whole, time.Since(begun))
		}
		after := newest(t, storeDir, "tiny").Manifest
		if !ended {
			killed++
		}
		checkWhole(t, store, after)
		// Killed after it published is as good as ended.
		if entries := readLayer(t, store, part(after, "files")); after.Digest != cur.Digest && string(find(entries, "etc/round").data) != fmt.Sprintf("/none-%d", i) {
			t.Errorf("killed after %v of %v: current is %s, of an older build than %s", at, whole, after.Digest, cur.Digest)
		}
		cur = after
	}
	t.Logf("%d of %d builds killed within %v", killed, rounds, whole)
	if killed == 0 {
		t.Error("no build was killed")
	}
	// What a killed build was writing may be another's work for a day; after that
	// the next build removes it.
	if err := os.WriteFile(filepath.Join(storeDir, "blobs/sha256/.new-left"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range unfinished(storeDir) {
		old := time.Now().Add(-25 * time.Hour)
		if err := os.Chtimes(name, old, old); err != nil {
			t.Error(err)
		}
	}
	if !build(rounds+1, 0) {
		t.Error("the build after the last kill did not end")
	}
	if left := unfinished(storeDir); len(left) > 0 {
		t.Errorf("unfinished content left: %q", left)
	}
}

// unfinished lists the files of a store that somebody is writing, or was.
func unfinished(storeDir string) []string {
	blobs, _ := filepath.Glob(filepath.Join(storeDir, "blobs/sha256/.new-*"))
	index, _ := filepath.Glob(filepath.Join(storeDir, ".new-*"))
	return slices.Concat(blobs, index)
}

// checkWhole reads all content of an image.
func checkWhole(t *testing.T, store *blobs.Store, m dsas.Manifest) {
	t.Helper()
	for _, p := range m.Parts {
		f, _, err := store.Blob(p.Digest)
		if err != nil {
			t.Errorf("part %s: %v", p.Title, err)
			continue
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if got := fmt.Sprintf("sha256:%x", h.Sum(nil)); err != nil || got != string(p.Digest) {
			t.Errorf("part %s: content is %s, %v; want %s", p.Title, got, err, p.Digest)
		}
	}
}

// checkFindings builds a role with one of everything that is refused.
func checkFindings(t *testing.T, opt Options, storeDir string, boot dsas.BootSet) {
	before := newest(t, storeDir, "tiny")
	bad := func() Definition {
		def := tinyRole()
		def.Role.Modules = []string{"ip_vs", "nosuchmodule"}
		def.Role.Services = []dsas.Service{{Name: "nginx"}}
		files := def.FS.(fstest.MapFS)
		files["role.yaml"].Data = []byte("name: tiny\nmodules: [ip_vs, nosuchmodule]\n")
		files["services/nginx/run"].Data = []byte("#!/bin/sh\nexec nginxx -g 'daemon off;'\n")
		files["services/nginx/check"] = &fstest.MapFile{Data: []byte("#!/usr/bin/python3\n")}
		files["files/etc/app.conf"] = &fstest.MapFile{Data: []byte("\naws = AKIA" + "Z7QW3ERT5YUI2OPA\n")}
		return def
	}
	_, err := BuildRole(t.Context(), opt, bad(), boot)
	var found *CheckError
	if !errors.As(err, &found) || !errors.Is(err, dsas.ErrInvalid) {
		t.Fatalf("BuildRole = %v; want a CheckError", err)
	}
	var got []string
	for _, f := range found.Findings {
		got = append(got, fmt.Sprintf("%s:%d %s", f.Path, f.Line, f.Rule))
	}
	want := []string{"files/etc/app.conf:2 aws-access-token", "role.yaml:2 module-missing", "services/nginx/check:1 interpreter-missing", "services/nginx/run:2 command-missing"}
	if !slices.Equal(got, want) {
		t.Errorf("findings = %q; want %q", got, want)
	}
	if after := newest(t, storeDir, "tiny"); after.ID != before.ID {
		t.Errorf("newest release = %s; want %s as before", after.Name(), before.Name())
	}
	// What is allowed passes, and is told.
	def := bad()
	def.Role.Modules = nil
	def.Role.Allow = []dsas.Allow{{Path: "services/nginx/*", Reason: "never started"}, {Path: "files/unused", Reason: "x"}}
	opt.Allow = []dsas.Allow{{Path: "files/etc/app.conf", Reason: "a sample from the provider's documentation"}}
	var report Report
	opt.Report = func(r Report) { report = r }
	for range 2 { // built, and up to date
		if _, err = BuildRole(t.Context(), opt, def, boot); err != nil {
			t.Fatal(err)
		}
		if len(report.Allowed) != 3 || report.Allowed[0].Allowed != "a sample from the provider's documentation" || !slices.Equal(report.UnusedAllow, []string{"files/unused"}) {
			t.Errorf("report = %+v; want three allowed findings with their reasons, and the unused one", report)
		}
		if !slices.ContainsFunc(report.Privileged, func(p Privileged) bool { return p.Path == "/usr/bin/passwd" && p.Mode == "4755" }) ||
			!slices.ContainsFunc(report.Privileged, func(p Privileged) bool {
				return p.Path == "/usr/bin/ping" && slices.Equal(p.Capabilities, []string{"cap_net_raw"})
			}) {
			t.Errorf("privileged = %+v; want passwd (setuid) and ping (cap_net_raw)", report.Privileged)
		}
	}
}

// checkLock has a mirror of its own whose one package gets a new version.
func checkLock(t *testing.T, opt Options, storeDir string, boot dsas.BootSet) {
	opt = otherCache(t, opt, "base", "apt", "layers")
	opt.Store = testStore(t, storeDir)
	opt.Etc = filepath.Join(t.TempDir(), "apt")
	if out, err := exec.Command("cp", "-a", "/etc/apt", opt.Etc).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	suite, err := hostSuite("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	mirror := filepath.Join(opt.Cache, "mirror")
	write(t, opt.Etc, map[string]string{"sources.list.d/probe.list": "deb [trusted=yes] copy:" + mirror + " " + suite + "/\n"})
	var report Report
	opt.Report = func(r Report) { report = r }
	round := 0
	build := func() error {
		round++
		def := Definition{Role: dsas.Role{Name: "probe", Packages: []string{"dsas-probe"}}, FS: fstest.MapFS{"files/etc/round": {Data: fmt.Append(nil, round)}}}
		_, err := BuildRole(t.Context(), opt, def, boot)
		return err
	}
	has := func(want string) {
		t.Helper()
		l, err := readLock(filepath.Join(opt.Cache, "locks/probe.lock"))
		if err != nil || l["dsas-probe"] != want {
			t.Errorf("lock = %v, %v; want dsas-probe %s", l, err, want)
		}
		m := newest(t, storeDir, "probe").Manifest
		if e := find(readLayer(t, opt.Store.(*blobs.Store), part(m, "packages")), "usr/share/dsas-probe/version"); e == nil || string(e.data) != want {
			t.Errorf("the image has dsas-probe %+v; want %s", e, want)
		}
	}
	// forget makes the next build fetch the lists and install the package.
	forget := func(more ...string) {
		layers, _ := filepath.Glob(filepath.Join(opt.Cache, "layers/packages-*"))
		debs, _ := filepath.Glob(filepath.Join(opt.Cache, "apt/archives/dsas-probe*"))
		for _, name := range append(append(layers, debs...), append(more, filepath.Join(opt.Cache, "apt/updated"))...) {
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	putProbe(t, filepath.Join(mirror, suite), "1.0")
	if err := build(); err != nil {
		t.Fatal(err)
	}
	has("1.0")
	putProbe(t, filepath.Join(mirror, suite), "2.0")
	forget()
	if err := build(); err != nil {
		t.Fatalf("with a mirror that has forgotten the locked version: %v", err)
	}
	has("1.0")
	if len(report.Packages)+len(report.Base) > 0 {
		t.Errorf("changes = %v %v; want none", report.Base, report.Packages)
	}
	forget(filepath.Join(opt.Cache, "apt/kept"), filepath.Join(opt.Cache, "apt/sources.list.d/kept.sources"))
	if err := build(); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "dsas-probe 1.0 (there is 2.0)") || !strings.Contains(err.Error(), "--refresh") {
		t.Errorf("with neither mirror nor cache: %v; want ErrNotFound that names package, versions and --refresh", err)
	}
	has("1.0")
	opt.Refresh = true
	if err := build(); err != nil {
		t.Fatal(err)
	}
	has("2.0")
	if len(report.Packages) != 1 || report.Packages[0] != (PackageChange{"dsas-probe", "1.0", "2.0"}) {
		t.Errorf("changes = %v; want dsas-probe 1.0 -> 2.0", report.Packages)
	}
}

// putProbe makes a mirror with one version of one package.
func putProbe(t *testing.T, dir, version string) {
	t.Helper()
	root := t.TempDir()
	control := "Package: dsas-probe\nVersion: " + version + "\nArchitecture: all\nMaintainer: dsas <dsas@example.net>\nDescription: probe\n"
	write(t, root, map[string]string{"DEBIAN/control": control, "usr/share/dsas-probe/version": version})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := "dsas-probe_" + version + "_all.deb"
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", root, filepath.Join(dir, name)).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	deb, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"Packages": fmt.Sprintf("%sFilename: %s/%s\nSize: %d\nSHA256: %x\n", control, filepath.Base(dir), name, len(deb), sha256.Sum256(deb))})
}
