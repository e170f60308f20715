package imagebuild

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/blobs"
)

func TestParseKernel(t *testing.T) {
	for name, want := range map[string]string{
		"6.1.0-50-amd64":                              "6.1.0-50-amd64",
		"linux-image-6.1.0-50-amd64":                  "6.1.0-50-amd64",
		"6.1.0-50-rt-amd64":                           "6.1.0-50-rt-amd64",
		"linux-image-6.1.0-50-cloud-amd64":            "6.1.0-50-cloud-amd64",
		"6.12.117+deb12-amd64":                        "6.12.117+deb12-amd64",
		"6.1.0-0.deb11.21-amd64":                      "6.1.0-0.deb11.21-amd64",
		"":                                            "",
		"amd64":                                       "",
		"linux-image-amd64":                           "", // the metapackages
		"linux-image-6.12-amd64":                      "",
		"6.1.0-50":                                    "",
		"6.1.0-50-arm64":                              "",
		"6.1.0-50-amd64-dbg":                          "",
		"6.1.0-50-amd64-unsigned":                     "",
		"6.1.0-50-AMD64":                              "",
		"6.1.0-50-amd64 ":                             "",
		"6.1.0-50-amd64\n":                            "",
		"6.1.0-50-amd64=6.1.176-1":                    "",
		"6.1.0-50-amd64/bookworm":                     "",
		"6.1.0-50-amd64:amd64":                        "",
		"6.1.0-50-amd64,6.1.0-51-amd64":               "",
		"6.1.0-*-amd64":                               "",
		"6.1.0-$(id)-amd64":                           "",
		"../6.1.0-50-amd64":                           "",
		"6.1.0-50/../../etc-amd64":                    "",
		"6.1.0-..-amd64":                              "",
		"--yes":                                       "",
		"-o=Dir::Etc::main=/x-6.1.0-amd64":            "",
		"linux-image-linux-image-6.1.0-50-amd64":      "",
		"6.1.0-" + strings.Repeat("a", 60) + "-amd64": "",
		"6.1.0-" + strings.Repeat("a", 64-12) + "-amd64":  "6.1.0-" + strings.Repeat("a", 64-12) + "-amd64",
		"6.1.0-" + strings.Repeat("-a", 1000) + "b-amd64": "",
	} {
		got, err := ParseKernel(name)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("ParseKernel(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestNoSuchKernel(t *testing.T) {
	var all []KernelID
	for abi := 60; abi >= 40; abi-- {
		all = append(all, KernelID{fmt.Sprintf("6.1.0-%d-amd64", abi), fmt.Sprintf("6.1.%d-1", 100+abi)}, KernelID{fmt.Sprintf("6.1.0-%d-rt-amd64", abi), fmt.Sprintf("6.1.%d-1", 100+abi)})
	}
	all = append([]KernelID{{"6.12.1+deb12-amd64", "6.12.1-1"}}, all...)
	for _, tt := range []struct {
		release    string
		all        []KernelID
		want, lack []string
	}{
		// Another number is no slip.
		{"6.1.0-61-amd64", all, []string{"linux-image-6.1.0-61-amd64", "newest first: 6.1.0-60-amd64, 6.1.0-59-amd64", "6.1.0-51-amd64; all: dsas kernel ls --available"}, []string{"did you mean", "-rt-", "6.12", "6.1.0-50-amd64"}},
		{"6.1.0-65-rt-amd64", all, []string{"newest first: 6.1.0-60-rt-amd64", `(did you mean "6.1.0-56-rt-amd64"?)`}, []string{"-60-amd64"}},
		{"6.1.0.50-amd64", all, []string{`(did you mean "6.1.0-50-amd64"?)`}, nil},
		{"5.10.0-1-amd64", all, []string{"newest first: 6.12.1+deb12-amd64, 6.1.0-60-amd64"}, []string{"-rt-"}},
		{"6.1.0-50-pt-amd64", all, []string{"newest first: 6.12.1+deb12-amd64, 6.1.0-60-amd64, 6.1.0-60-rt-amd64", `(did you mean "6.1.0-50-rt-amd64"?)`}, nil},
		{"6.1.0-50-amd64", nil, []string{"nor any other kernel"}, []string{"newest first"}},
	} {
		err := noSuchKernel(tt.release, tt.all)
		if !errors.Is(err, dsas.ErrNotFound) || len(err.Error()) > 500 {
			t.Errorf("noSuchKernel(%s) = %v; want ErrNotFound of less than 500 bytes", tt.release, err)
		}
		for _, want := range append(tt.want, "kernel "+tt.release) {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("noSuchKernel(%s) = %v; want %q in it", tt.release, err, want)
			}
		}
		for _, lack := range tt.lack {
			if strings.Contains(err.Error(), lack) {
				t.Errorf("noSuchKernel(%s) = %v; want no %q in it", tt.release, err, lack)
			}
		}
	}
}

// kernelMirror is a mirror of our own with kernels that are small and boot nothing.
type kernelMirror struct {
	t   *testing.T
	dir string // of the suite
	opt Options
}

func newKernelMirror(t *testing.T) *kernelMirror {
	t.Helper()
	need(t, "apt-get", "dpkg-deb", "zstd", "depmod")
	suite, err := hostSuite("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	top := t.TempDir()
	m := &kernelMirror{t: t, dir: filepath.Join(top, "mirror", suite)}
	write(t, top, map[string]string{
		"etc/sources.list": "deb [trusted=yes] copy:" + filepath.Dir(m.dir) + " " + suite + "/\n",
		"init":             "init",
		// As gobusybox lists its commands.
		"bb": "#!/bin/sh\necho ' - gosh' >&2\nexit 1\n",
	})
	if err := os.Chmod(filepath.Join(top, "bb"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.opt = Options{
		Store: testStore(t, filepath.Join(top, "images")), Cache: filepath.Join(top, "cache"), Locks: filepath.Join(top, "locks"), Etc: filepath.Join(top, "etc"),
		InitPath: filepath.Join(top, "init"), BBPath: filepath.Join(top, "bb"),
	}
	return m
}

// publish makes the mirror's content: these kernels, in versions that follow from
// the last number of their names, of which the metapackage names the newest.
// What apt has fetched before counts as old from now on.
func (m *kernelMirror) publish(newest string, kernels ...string) {
	m.t.Helper()
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Fatal(err)
	}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	var list strings.Builder
	meta := fmt.Sprintf("linux-image-%s (= %s)", newest, kernelVersion(newest))
	list.WriteString(m.deb("linux-image-amd64", kernelVersion(newest), "Depends: "+meta+"\n", nil))
	// What is no kernel, however it is called.
	list.WriteString(m.deb("linux-image-6.12-amd64", "6.12.1-1", "", nil))
	list.WriteString(m.deb("linux-image-6.1.0-9-amd64-dbg", "6.1.9-1", "", nil))
	list.WriteString(m.deb("linux-image-6.1.0-99-amd64-unsigned", "6.1.99-1", "", nil))
	for _, k := range kernels {
		list.WriteString(m.deb("linux-image-"+k, kernelVersion(k), "", map[string]string{
			"boot/vmlinuz-" + k:                                  "kernel " + k,
			"lib/modules/" + k + "/modules.order":                "",
			"lib/modules/" + k + "/modules.builtin":              "",
			"lib/modules/" + k + "/modules.builtin.modinfo":      "",
			"lib/modules/" + k + "/kernel/drivers/net/README.md": k,
		}))
	}
	write(m.t, m.dir, map[string]string{"Packages": list.String()})
	m.age()
}

// age makes the lists that were fetched old.
func (m *kernelMirror) age() {
	stamp := filepath.Join(m.opt.Cache, "apt/updated")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stamp, old, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
}

// kernelVersion gives 6.1.150-1 of 6.1.0-50-amd64.
func kernelVersion(release string) string {
	var a, b, c, abi int
	fmt.Sscanf(release, "%d.%d.%d-%d", &a, &b, &c, &abi)
	return fmt.Sprintf("%d.%d.%d-1", a, b, 100+abi)
}

// deb makes a package and gives its lines of the list.
func (m *kernelMirror) deb(name, version, more string, files map[string]string) string {
	m.t.Helper()
	root := m.t.TempDir()
	control := "Package: " + name + "\nVersion: " + version + "\nArchitecture: amd64\nMaintainer: dsas <dsas@example.net>\n" + more + "Description: probe\n"
	write(m.t, root, map[string]string{"DEBIAN/control": control})
	write(m.t, root, files)
	deb := name + "_" + version + "_amd64.deb"
	if out, err := exec.Command("dpkg-deb", "-Znone", "--root-owner-group", "-b", root, filepath.Join(m.dir, deb)).CombinedOutput(); err != nil {
		m.t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	content, err := os.ReadFile(filepath.Join(m.dir, deb))
	if err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprintf("%sFilename: %s/%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(m.dir), deb, len(content), sha256.Sum256(content))
}

// build is an ordinary build's first step; it wants this kernel and gives what
// it told.
func (m *kernelMirror) build(what string, refresh bool, want string) string {
	m.t.Helper()
	opt, said := m.opt, ""
	opt.Refresh, opt.Progress = refresh, func(line string) { said += line + "\n" }
	b, err := BuildBoot(m.t.Context(), opt)
	if err != nil || b.Release != want {
		m.t.Errorf("%s: the build has kernel %q, %v; want %s", what, b.Release, err, want)
	}
	return said
}

// update is UpdateKernel of one release.
func (m *kernelMirror) update(r RoleRelease, to string) (dsas.Release, error) {
	m.t.Helper()
	_, made, err := UpdateKernel(m.t.Context(), m.opt, []RoleRelease{r}, to)
	if err != nil {
		return dsas.Release{}, err
	}
	return made[0], nil
}

func TestKernels(t *testing.T) {
	m := newKernelMirror(t)
	m.publish("6.1.0-10-amd64", "6.1.0-8-amd64", "6.1.0-9-amd64", "6.1.0-9-rt-amd64", "6.1.0-10-amd64", "6.12.1+deb12-amd64")
	l, err := Kernels(t.Context(), m.opt)
	if err != nil {
		t.Fatal(err)
	}
	want := KernelList{Newest: KernelID{"6.1.0-10-amd64", "6.1.110-1"}, All: []KernelID{{"6.12.1+deb12-amd64", "6.12.100-1"}, {"6.1.0-10-amd64", "6.1.110-1"},
		{"6.1.0-9-amd64", "6.1.109-1"}, {"6.1.0-9-rt-amd64", "6.1.109-1"}, {"6.1.0-8-amd64", "6.1.108-1"}}}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("Kernels = %+v; want %+v", l, want)
	}
}

// TestKernelAskedFor: what holds a kernel, and what lets it go.
func TestKernelAskedFor(t *testing.T) {
	const older, newer, newest = "6.1.0-8-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64"
	m := newKernelMirror(t)
	m.publish(newer, older, newer)
	m.build("a first build", false, newer)
	web := RoleRelease{Release: oldRelease(t, m.opt.Store.(*blobs.Store), "web", "base", "modules")}

	was, now, err := KernelNews(t.Context(), m.opt, older)
	if err != nil || was == nil || was.Release != newer || now != (KernelID{older, "6.1.108-1"}) {
		t.Errorf("KernelNews(%s) = %v, %v, %v; want %s, and to come from %s", older, was, now, err, older, newer)
	}
	m.build("after a rehearsal", false, newer)

	// What is refused or fails changes nothing.
	if _, err := m.update(web, "6.1.0-7-amd64"); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), newer+", "+older) {
		t.Errorf("UpdateKernel to what is not there = %v; want ErrNotFound that lists %s and %s", err, newer, older)
	}
	if _, err := m.update(web, "../../x"); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("UpdateKernel to a path = %v; want ErrInvalid", err)
	}
	if _, err := m.update(RoleRelease{Release: web.Release, Modules: []string{"ip_vs"}}, older); err == nil || !strings.Contains(err.Error(), "ip_vs") {
		t.Errorf("UpdateKernel to a kernel without a module that the role names = %v; want that it fails", err)
	}
	m.build("after updates that failed", false, newer)

	made, err := m.update(web, older)
	if err != nil {
		t.Fatal(err)
	}
	checkOnlyKernel(t, web.Release, made)
	if made.Boot.Release != older {
		t.Errorf("the release boots %s; want %s", made.Boot.Release, older)
	}
	m.build("an ordinary build", false, older)
	if entries, _ := filepath.Glob(filepath.Join(m.opt.Cache, "kernel/linux-image-*")); len(entries) != 1 {
		t.Errorf("the cache has kernels %q; want one", entries)
	}

	m.publish(newest, older, newer, newest)
	if said := m.build("--refresh", true, older); !strings.Contains(said, "keeping kernel "+older) || !strings.Contains(said, newest) || !strings.Contains(said, "dsas kernel update") {
		t.Errorf("--refresh says %q; want that it keeps %s, behind %s, and the way out", said, older, newest)
	}
	l, err := Kernels(t.Context(), m.opt)
	if err != nil || l.Held == nil || l.Built == nil || l.Held.Release != older || l.Built.Release != older || l.Newest.Release != newest {
		t.Errorf("Kernels = %+v, %v; want %s asked for and built with, and %s the newest", l, err, older, newest)
	}
	// The cache may be emptied.
	if err := os.RemoveAll(m.opt.Cache); err != nil {
		t.Fatal(err)
	}
	m.build("with an empty cache", false, older)
	m.publish(newest, newer, newest)
	m.build("what the mirror forgot and the cache has", true, older)
	if err := os.RemoveAll(m.opt.Cache); err != nil {
		t.Fatal(err)
	}
	if _, err := BuildBoot(t.Context(), m.opt); err == nil || !strings.Contains(err.Error(), older) || !strings.Contains(err.Error(), "dsas kernel ls --available") || !strings.Contains(err.Error(), "dsas kernel update") {
		t.Errorf("what neither has = %v; want an error with the kernel and the ways out", err)
	}

	// Another one, and then none.
	if made, err = m.update(web, newer); err != nil || made.Boot.Release != newer {
		t.Errorf("UpdateKernel to another = %s, %v; want %s", made.Boot.Release, err, newer)
	}
	m.build("--refresh", true, newer)
	if made, err = m.update(web, ""); err != nil || made.Boot.Release != newest {
		t.Errorf("UpdateKernel to the newest = %s, %v; want %s", made.Boot.Release, err, newest)
	}
	m.build("an ordinary build", false, newest)
	if _, err := os.Stat(m.opt.heldPlace()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there still: %v", m.opt.heldPlace(), err)
	}
	m.publish("6.1.0-11-amd64", newest, "6.1.0-11-amd64")
	m.build("an ordinary build", false, newest)
	m.build("--refresh", true, "6.1.0-11-amd64")

	for _, bad := range []string{"", "linux-image-../x 1\n", "nginx 1\n", "linux-image-" + newest + " 1\nlinux-image-" + older + " 1\n", older + " 1\n", "linux-image-" + newest + " ../1\n"} {
		write(t, m.opt.Locks, map[string]string{"kernel.lock": bad})
		if _, err := BuildBoot(t.Context(), m.opt); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), m.opt.heldPlace()) || !strings.Contains(err.Error(), "dsas kernel update --to") {
			t.Errorf("with %q in %s: %v; want ErrInvalid, the file and the way out", bad, m.opt.heldPlace(), err)
		}
	}
	if _, err := m.update(web, newest); err != nil {
		t.Errorf("UpdateKernel over a damaged %s: %v", m.opt.heldPlace(), err)
	}
	m.build("an ordinary build", false, newest)
}

// TestModulesKeepKernel: modules for an image from elsewhere are those of the
// kernel that was asked for, over an emptied cache too, and for another kernel
// nothing is fetched, kept or removed.
func TestModulesKeepKernel(t *testing.T) {
	const older, newer = "6.1.0-8-amd64", "6.1.0-9-amd64"
	m := newKernelMirror(t)
	m.publish(newer, older, newer)
	web := RoleRelease{Release: oldRelease(t, m.opt.Store.(*blobs.Store), "web", "base", "modules")}
	made, err := m.update(web, older)
	if err != nil {
		t.Fatal(err)
	}
	kept := func() []string {
		t.Helper()
		entries, err := filepath.Glob(filepath.Join(m.opt.Cache, "kernel/*"))
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	before := kept()
	if _, err := Modules(t.Context(), m.opt, dsas.Role{Name: "web"}, dsas.BootSet{Release: newer}); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "of kernel "+older) {
		t.Errorf("Modules of %s = %v; want ErrConflict, which names %s", newer, err, older)
	}
	if got := kept(); !reflect.DeepEqual(got, before) {
		t.Errorf("after it the cache has %q; want %q", got, before)
	}
	if err := os.RemoveAll(m.opt.Cache); err != nil {
		t.Fatal(err)
	}
	if _, err := Modules(t.Context(), m.opt, dsas.Role{Name: "web"}, dsas.BootSet{Release: newer}); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("Modules of %s with an empty cache = %v; want ErrConflict", newer, err)
	}
	if got := kept(); len(got) != 0 {
		t.Errorf("after it the cache has %q; want nothing fetched", got)
	}
	if p, err := Modules(t.Context(), m.opt, dsas.Role{Name: "web"}, made.Boot); err != nil || p.DiffID != made.Manifest.Parts[1].DiffID {
		t.Errorf("Modules of %s with an empty cache = %+v, %v; want the layer of %s", older, p, err, made.Name())
	}
	m.build("a build after it", false, older)
}

// TestKernelNotSettled: an update that fails at its last step names what it made,
// and the next one takes that up.
func TestKernelNotSettled(t *testing.T) {
	const older, newer = "6.1.0-8-amd64", "6.1.0-9-amd64"
	m := newKernelMirror(t)
	m.publish(newer, older, newer)
	web := RoleRelease{Release: oldRelease(t, m.opt.Store.(*blobs.Store), "web", "base", "modules")}
	write(t, m.opt.Locks, map[string]string{"kernel.lock/in/the/way": ""})
	if _, err := m.update(web, ""); err == nil || !strings.Contains(err.Error(), "not signed and not published: web:2; running it again mends that") {
		t.Errorf("UpdateKernel that cannot let go of a kernel = %v; want web:2 named, and the way out", err)
	}
	if err := os.RemoveAll(m.opt.heldPlace()); err != nil {
		t.Fatal(err)
	}
	if made, err := m.update(web, ""); err != nil || made.Name() != "web:2" {
		t.Errorf("UpdateKernel again = %s, %v; want web:2", made.Name(), err)
	}
}
