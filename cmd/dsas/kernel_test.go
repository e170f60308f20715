package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
	"dsas/imagebuild"
	"dsas/server/blobs"
)

// TestKernelToIsRefused: what would reach apt or the file system is wrong usage,
// and is never taken for the newest kernel.
func TestKernelToIsRefused(t *testing.T) {
	c := newCLI(t)
	for _, to := range []string{"", "6.1.0-50", "../../etc/passwd", "--option=x", "linux-image-amd64", "6.1.0-50-amd64=1"} {
		c.fails(2, []string{"kernel", "update", "--to=" + to}, "--to: kernel", "6.1.0-50-rt-amd64", "dsas kernel ls --available")
	}
}

func TestKernelUpdated(t *testing.T) {
	older, newer := imagebuild.KernelID{Release: "6.1.0-8-amd64", Version: "6.1.8-1"}, imagebuild.KernelID{Release: "6.1.0-9-amd64", Version: "6.1.9-1"}
	step := func(role, kernel, next string) kernelStep {
		return kernelStep{Role: role, Old: role + ":1", OldKernel: kernel, New: next}
	}
	for _, tt := range []struct {
		name string
		u    kernelUpdate
		dry  bool
		want []string
	}{
		{"back", kernelUpdate{Built: &newer, Kernel: older, Held: true, Releases: []kernelStep{step("web", newer.Release, "web:2")}}, false,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1) -> 6.1.0-8-amd64 (6.1.8-1), which builds keep until the next dsas kernel update", "web web:1 6.1.0-9-amd64 web:2 6.1.0-8-amd64"}},
		{"a rehearsal of it", kernelUpdate{Built: &newer, Kernel: older, Held: true, Releases: []kernelStep{step("lb", older.Release, ""), step("web", newer.Release, "")}}, true,
			[]string{"(6.1.8-1), which builds would keep", "lb lb:1 6.1.0-8-amd64 as it is, unless its package", "web web:1 6.1.0-9-amd64 would be made 6.1.0-8-amd64"}},
		{"to stay", kernelUpdate{Built: &newer, Kernel: newer, Held: true, Releases: []kernelStep{step("web", newer.Release, "web:1")}}, false,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1), which builds keep", "web web:1 6.1.0-9-amd64 as it is"}},
		{"before the first build", kernelUpdate{Kernel: older, Held: true}, false, []string{"kernel 6.1.0-8-amd64 (6.1.8-1), which builds keep", "No role has a release yet"}},
		{"nothing new", kernelUpdate{Built: &newer, Kernel: newer, Releases: []kernelStep{step("web", newer.Release, "")}}, true,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1), the newest", "web web:1 6.1.0-9-amd64 as it is, unless dsas has a newer initramfs"}},
	} {
		var out bytes.Buffer
		a := &app{stdout: &out}
		if err := a.kernelUpdated(tt.u, tt.dry); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		got := strings.Join(strings.Fields(out.String()), " ")
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: it says\n%s\nwant %q in it", tt.name, out.String(), want)
			}
		}
	}
}

func TestAvailableKernels(t *testing.T) {
	id := func(abi string) imagebuild.KernelID {
		return imagebuild.KernelID{Release: "6.1.0-" + abi + "-amd64", Version: "6.1." + abi + "-1"}
	}
	held := id("8")
	got := availableKernels(imagebuild.KernelList{Newest: id("9"), Built: &held, Held: &held, All: []imagebuild.KernelID{id("9"), id("8"), id("7")}}, []kernelView{
		{Kernel: "6.1.0-8-amd64", Current: []string{"web"}, Releases: []string{"web:3"}, Running: []string{"w101"}},
		{Kernel: "6.1.0-8-amd64", Releases: []string{"web:2"}}, // with another initramfs
		{Kernel: "5.10.0-1-amd64", Current: []string{"old"}, Releases: []string{"old:1"}},
	})
	if len(got) != 3 {
		t.Fatalf("availableKernels = %+v; want the mirrors' three", got)
	}
	if k := got[0]; !k.Newest || k.Built || k.Held || k.Releases != nil {
		t.Errorf("availableKernels = %+v first; want the newest, which nobody uses", k)
	}
	if k := got[1]; k.Newest || !k.Built || !k.Held || strings.Join(k.Current, " ") != "web" || strings.Join(k.Releases, " ") != "web:3 web:2" || strings.Join(k.Running, " ") != "w101" {
		t.Errorf("availableKernels = %+v second; want it asked for, and in use by web", k)
	}
	if k := got[2]; k.Newest || k.Built || k.Held || k.Current != nil {
		t.Errorf("availableKernels = %+v third; want it in no use", k)
	}
}

// TestProposeAll: a release that was rolled back is not published by asking for
// its kernel once more, and that is said.
func TestProposeAll(t *testing.T) {
	c := newCLI(t)
	one, two := addRelease(t, c.releases.Store, "web", "one"), addRelease(t, c.releases.Store, "web", "two")
	var said bytes.Buffer
	a := &app{stderr: &said}
	a.Server = c.socket
	propose := func(old, made dsas.Release) string {
		t.Helper()
		said.Reset()
		if err := a.proposeAll(t.Context(), c.releases.Store, []dsas.Release{old}, []dsas.Release{made}); err != nil {
			t.Fatal(err)
		}
		return said.String()
	}
	if got := propose(dsas.Release{}, one) + propose(one, two) + propose(two, two); got != "" {
		t.Errorf("publishing says %q; want nothing", got)
	}
	c.wantLine(c.ok("image", "ls", "web"), "web:2", "current")
	c.ok("image", "rollback", "web")
	if got := propose(one, two); !strings.Contains(got, "nodes do not get release web:2") || !strings.Contains(got, "dsas image publish web:2") {
		t.Errorf("after a roll-back it says %q; want that nodes stay, and the way out", got)
	}
}

// tinyMirror has apt look at a mirror of our own, with these kernels, of which the
// first is the newest. They boot nothing; nor do the programs for the initramfs.
func tinyMirror(t *testing.T, kernels ...string) {
	t.Helper()
	for _, program := range []string{"apt-get", "dpkg-deb", "zstd", "depmod"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	top := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(top, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	_, suite, found := strings.Cut(string(release), "VERSION_CODENAME=")
	if suite, _, _ = strings.Cut(suite, "\n"); !found {
		t.Skip("no Debian")
	}
	var list strings.Builder
	deb := func(name, version, more string) {
		t.Helper()
		control := "Package: " + name + "\nVersion: " + version + "\nArchitecture: amd64\nMaintainer: x <x@example.net>\n" + more + "Description: probe\n"
		put(name+"/DEBIAN/control", control, 0o644)
		file := filepath.Join(top, "mirror", suite, name+".deb")
		put("mirror/"+suite+"/x", "", 0o644)
		if out, err := exec.Command("dpkg-deb", "-Znone", "--root-owner-group", "-b", filepath.Join(top, name), file).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v\n%s", err, out)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "%sFilename: %s/%s.deb\nSize: %d\nSHA256: %x\n\n", control, suite, name, len(b), sha256.Sum256(b))
	}
	for i, k := range kernels {
		for name, text := range map[string]string{"boot/vmlinuz-" + k: "kernel " + k, "lib/modules/" + k + "/modules.order": "", "lib/modules/" + k + "/modules.builtin": "",
			"lib/modules/" + k + "/modules.builtin.modinfo": "", "lib/modules/" + k + "/kernel/drivers/net/x": k} {
			put("linux-image-"+k+"/"+name, text, 0o644)
		}
		deb("linux-image-"+k, fmt.Sprintf("6.1.%d-1", 100-i), "")
	}
	deb("linux-image-amd64", "6.1.100-1", "Depends: linux-image-"+kernels[0]+" (= 6.1.100-1)\n")
	put("mirror/"+suite+"/Packages", list.String(), 0o644)
	put("apt/sources.list", "deb [trusted=yes] copy:"+filepath.Join(top, "mirror")+" "+suite+"/\n", 0o644)
	put("lib/dsas-init", "init", 0o755)
	put("lib/bb", "#!/bin/sh\necho ' - gosh' >&2\nexit 1\n", 0o755) // as gobusybox lists its commands
	t.Setenv("DSAS_LIB", filepath.Join(top, "lib"))
	t.Setenv("DSAS_APT", filepath.Join(top, "apt"))
}

// TestKernelBeforeFirstBuild: a kernel can be picked before there is a store, and
// be let go before there is a release that could get another.
func TestKernelBeforeFirstBuild(t *testing.T) {
	const older, newer = "6.1.0-8-amd64", "6.1.0-9-amd64"
	tinyMirror(t, newer, older)
	c := newCLI(t)
	dir := t.TempDir()
	place := filepath.Join(dir, "locks", "kernel.lock")
	kernel := func(args ...string) []string {
		return append([]string{"kernel"}, append(args, "--state", dir, "--config", os.DevNull, "--keys-dir", filepath.Join(dir, "keys"))...)
	}
	there := func(name string) bool { _, err := os.Stat(name); return err == nil }

	c.fails(1, kernel("update"), "there is no image store")
	c.wantLine(c.ok(kernel("ls", "--available")...), older)
	c.wantLine(c.ok(kernel("update", "--to", older, "--dry-run")...), "kernel "+older, "builds would keep")
	if there(filepath.Join(dir, "images")) || there(place) {
		t.Error("a list or a rehearsal has made a store or held a kernel")
	}
	c.wantLine(c.ok(kernel("update", "--to", older)...), "kernel "+older, "which builds keep")
	if b, err := os.ReadFile(place); err != nil || !strings.Contains(string(b), "linux-image-"+older+" ") {
		t.Errorf("%s = %q, %v; want %s in it", place, b, err, older)
	}
	c.wantLine(c.ok(kernel("ls", "--available")...), older, "was asked for")

	// What is held, or ought to be, is let go without a release.
	for _, text := range []string{"", "damaged"} {
		if text != "" {
			if err := os.WriteFile(place, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.wantLine(c.ok(kernel("update", "--dry-run")...), newer)
		if !there(place) {
			t.Error("a rehearsal let the kernel go")
		}
		r := c.runIn("", kernel("update")...)
		if r.code != 0 || !shows(r.out, newer) || !strings.Contains(r.errors, "is let go") || there(place) {
			t.Errorf("kernel update over %q = %+v, still held %v; want it let go", text, r, there(place))
		}
	}
	c.fails(1, kernel("update"), "no role has a release")

	// Nor does an image from elsewhere, which can get no other kernel, keep it.
	images, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	addRelease(t, images, "web", "foreign")
	c.fails(1, kernel("update"), "no role has a release that can get another kernel")
	c.ok(kernel("update", "--to", older)...)
	if r := c.runIn("", kernel("update")...); r.code != 0 || !shows(r.out, "web", "left as it is") || there(place) {
		t.Errorf("kernel update with a foreign release = %+v, still held %v; want it let go", r, there(place))
	}
}
