package main

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/capture"
	"dsas/roles"
	"dsas/server/blobs"
)

func TestPick(t *testing.T) {
	for _, c := range []struct {
		line string
		want []int
		ok   bool
	}{
		{"", nil, true}, {"none\n", nil, true}, {"all\n", []int{0, 1, 2, 3, 4}, true}, {"1", []int{0}, true},
		{" 1, 3-5\n", []int{0, 2, 3, 4}, true}, {"2 2 1-2", []int{1, 0}, true},
		{"0", nil, false}, {"6", nil, false}, {"3-2", nil, false}, {"-1", nil, false}, {"x", nil, false}, {"1-", nil, false}, {"1-99999999999999999999", nil, false},
	} {
		got, err := pick(c.line, 5)
		if !reflect.DeepEqual(got, c.want) || (err == nil) != c.ok {
			t.Errorf("pick(%q) = %v, %v; want %v, ok %v", c.line, got, err, c.want, c.ok)
		}
	}
}

func TestKernelsOf(t *testing.T) {
	view := func(name, role, kernel, boot string, current bool, running ...string) dsas.ReleaseView {
		v := dsas.ReleaseView{Name: name, Current: current, Running: running}
		v.Role, v.Boot = role, dsas.BootSet{Release: kernel, Digest: dsas.Digest(boot), Kernel: dsas.Part{Size: 2}, Initramfs: dsas.Part{Size: 3}}
		return v
	}
	got := kernelsOf([]dsas.ReleaseView{view("lb:1", "lb", "6.1", "a", true), view("web:1", "web", "6.1", "a", false, "w101"), view("web:2", "web", "6.2", "b", true), view("web:3", "web", "6.2", "c", false)})
	want := []kernelView{
		{Kernel: "6.1", Boot: "a", Size: 5, Current: []string{"lb"}, Releases: []string{"lb:1", "web:1"}, Running: []string{"w101"}},
		{Kernel: "6.2", Boot: "b", Size: 5, Current: []string{"web"}, Releases: []string{"web:2"}},
		{Kernel: "6.2", Boot: "c", Size: 5, Releases: []string{"web:3"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("kernelsOf = %+v; want %+v", got, want)
	}
}

// carryTest is a release of the shipped role web, and a carrier of its changes.
type carryTest struct {
	*testing.T
	cfg         config
	out, errOut bytes.Buffer
	want        capture.Tree
}

func newCarryTest(t *testing.T) *carryTest {
	t.Helper()
	dir := t.TempDir()
	c := &carryTest{T: t, cfg: config{State: filepath.Join(dir, "state"), Roles: filepath.Join(dir, "roles")}}
	store, err := blobs.Open(c.cfg.path("images"))
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, text := range map[string]string{"etc/nginx/nginx.conf": c.shipped("files/etc/nginx/nginx.conf"), "etc/other": "of a package"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d, n, err := store.Put(t.Context(), &layer)
	if err != nil {
		t.Fatal(err)
	}
	part := dsas.Part{Digest: d, DiffID: d, Size: n, Title: "base", MediaType: "application/vnd.oci.image.layer.v1.tar"}
	if _, err := store.AddRelease(t.Context(), dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "6.1", Kernel: part, Initramfs: part}, Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{part}}}); err != nil {
		t.Fatal(err)
	}
	return c
}

// shipped gives a file of the role web that comes with the program.
func (c *carryTest) shipped(name string) string {
	c.Helper()
	set, err := roles.Load("")
	if err != nil {
		c.Fatal(err)
	}
	def, err := set.Get("web")
	if err != nil {
		c.Fatal(err)
	}
	f, err := def.FS.Open(name)
	if err != nil {
		c.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		c.Fatal(err)
	}
	return b.String()
}

// carry carries home a tree that has these files beside, or other than, the release's.
func (c *carryTest) carry(files map[string]string, set func(*carrier)) error {
	c.Helper()
	c.out.Reset()
	car, err := newCarrier(c.Context(), &app{stdin: strings.NewReader(""), stdout: &c.out, stderr: &c.errOut}, c.cfg, dsas.ReleaseRef{Role: "web", Number: 1})
	if err != nil {
		c.Fatal(err)
	}
	defer car.letGo()
	car.of, car.noBuild = "w101", true
	set(car)
	if c.want, err = car.tree(context.Background()); err != nil {
		c.Fatal(err)
	}
	root := c.TempDir()
	put := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			c.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			c.Fatal(err)
		}
	}
	put("etc/nginx/nginx.conf", c.shipped("files/etc/nginx/nginx.conf"))
	put("etc/other", "of a package")
	for name, text := range files {
		put(name, text)
	}
	got, err := capture.ReadFolder(root)
	if err != nil {
		c.Fatal(err)
	}
	for name, e := range got { // whoever runs the test
		e.UID, e.GID = 0, 0
		if e.Type == 'd' {
			delete(got, name)
			continue
		}
		got[name] = e
	}
	if err := got.SumLocal(root, capture.Doubtful(c.want, got, car.rules)); err != nil {
		c.Fatal(err)
	}
	return car.carry(c.Context(), c.want, got, func(chosen []capture.Change) (map[string]capture.Content, error) {
		return capture.ReadLocal(root, chosen)
	})
}

// TestCarry: what was chosen, and that alone, is in the definition, from where
// the role is read; what must not be in an image is refused.
func TestCarry(t *testing.T) {
	c := newCarryTest(t)
	path := func(p ...string) func(*carrier) { return func(car *carrier) { car.patterns = p } }
	own := filepath.Join(c.cfg.Roles, "web")
	if err := c.carry(nil, func(*carrier) {}); err != nil || !strings.Contains(c.out.String(), "w101 is as release web:1 has it") {
		t.Errorf("carry of no change = %v, %q", err, c.out.String())
	}
	files := map[string]string{"etc/nginx/nginx.conf": "mine\n", "etc/motd": "also mine\n", "var/www/dsas/index.html": "rendered"}
	if err := c.carry(files, func(car *carrier) { car.dry = true }); err != nil || !strings.Contains(c.out.String(), "/etc/motd") || strings.Contains(c.out.String(), "index.html") {
		t.Errorf("a rehearsal = %v, %s; want /etc/motd told, and nothing that is rendered", err, c.out.String())
	}
	if err := c.carry(files, func(*carrier) {}); err == nil || !strings.Contains(err.Error(), "nobody is there to choose") {
		t.Errorf("carry with nobody to choose = %v", err)
	}
	key := "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n"
	if err := c.carry(map[string]string{"etc/nginx/tls.pem": key}, func(car *carrier) { car.all = true }); err == nil || !strings.Contains(err.Error(), "private key") {
		t.Errorf("carry of a private key = %v; want it refused", err)
	}
	if _, err := os.Stat(own); err == nil {
		t.Errorf("%s is there after nothing was carried", own)
	}
	if err := c.carry(files, path("/etc/nginx")); err != nil {
		t.Fatal(err)
	}
	set, err := roles.Load(c.cfg.Roles)
	if err != nil {
		t.Fatal(err)
	}
	def, err := set.Get("web")
	if err != nil || def.Source != own {
		t.Fatalf("web is defined in %q, %v; want %s", def.Source, err, own)
	}
	if b, err := os.ReadFile(filepath.Join(own, "files/etc/nginx/nginx.conf")); err != nil || string(b) != "mine\n" {
		t.Errorf("nginx.conf of the definition = %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(own, "files/etc/motd")); err == nil {
		t.Error("/etc/motd was carried; want only what was chosen")
	}
	// The definition has another nginx.conf now than web:1 was built of.
	files["etc/nginx/nginx.conf"] = "somebody else's\n"
	if err := c.carry(files, path("/etc/nginx")); err == nil || !strings.Contains(err.Error(), "no longer what web:1 was built of") {
		t.Errorf("carry over a newer definition = %v; want a refusal", err)
	}
	if err := c.carry(files, func(car *carrier) { car.all, car.force = true, true }); err != nil {
		t.Errorf("carry --force = %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(own, "files/etc/nginx/nginx.conf")); err != nil || string(b) != "somebody else's\n" {
		t.Errorf("after --force nginx.conf = %q, %v", b, err)
	}
}

// TestKernelSteps: an image from elsewhere does not keep the others from a kernel.
func TestKernelSteps(t *testing.T) {
	release := func(role string, titles ...string) dsas.Release {
		r := dsas.Release{Role: role, Number: 1, Boot: dsas.BootSet{Release: "6.1"}}
		for _, title := range titles {
			r.Manifest.Parts = append(r.Manifest.Parts, dsas.Part{Title: title})
		}
		return r
	}
	list, steps, at := kernelSteps([]dsas.Release{release("foreign", "layer 1"), release("lb", "base", "modules"), release("twice", "modules", "modules"), release("web", "modules", "files")})
	if len(list) != 2 || list[0].Role != "lb" || list[1].Role != "web" || !reflect.DeepEqual(at, []int{1, 3}) {
		t.Errorf("kernelSteps takes %v, %v; want lb and web, the second and the fourth", list, at)
	}
	for i, want := range []string{"foreign:1 has no layer of kernel modules", "", "twice:1 has two layers", ""} {
		if got := steps[i].Skipped; !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s is skipped for %q; want %q", steps[i].Old, got, want)
		}
	}
}
