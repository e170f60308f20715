package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/roles"
	"dsas/server/blobs"
)

// layerOf stores a layer with these files, name and content in turn.
func layerOf(t *testing.T, s *blobs.Store, title string, files ...string) dsas.Part {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(files[i+1]))
	}
	w.Close()
	sum := sha256.Sum256(b.Bytes())
	d, n, err := s.Put(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	return dsas.Part{Digest: d, DiffID: dsas.Digest("sha256:" + hex.EncodeToString(sum[:])), Size: n, Title: title, MediaType: layers.MediaTar, Unpacked: 4096 * int64(len(files)/2)}
}

// transferStore has two releases of web that differ in a package, a file and
// the initramfs.
func transferStore(t *testing.T, dir string) (one, two dsas.Release) {
	t.Helper()
	s, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	content := func(title, text string) dsas.Part {
		d, n, err := s.Put(t.Context(), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title, MediaType: "application/x"}
	}
	status := func(version string) string {
		return "Package: nginx\nStatus: install ok installed\nArchitecture: amd64\nVersion: " + version + "\n\n"
	}
	base := layerOf(t, s, "base", "etc/motd", "hello", "usr/bin/env", "x", "bin/sh", "x", "var/lib/dpkg/status", status("1.22"))
	modules := layerOf(t, s, "modules", "usr/lib/modules/6.1/dsas-modules.json", "x")
	add := func(initramfs string, parts ...dsas.Part) dsas.Release {
		r, err := s.AddRelease(t.Context(), dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "6.1", Kernel: content("kernel", "k"), Initramfs: content("initramfs", initramfs)},
			Manifest: dsas.Manifest{Kernel: "6.1", Parts: parts}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one = add("i", base, modules)
	two = add("i2", base, modules, layerOf(t, s, "files", "etc/.wh.motd", "", "etc/new", "12345", "var/lib/dpkg/status", status("1.24"), "etc/dsas/services/nginx/run", "#!/bin/sh\n", "etc/dsas/services/sshd/run", "#!/bin/sh\n"))
	return one, two
}

func TestImageDiff(t *testing.T) {
	c := newCLI(t)
	one, two := transferStore(t, filepath.Dir(c.socket))
	out := c.ok("image", "diff", "web:1", "web:2", "--state", filepath.Dir(c.socket), "--config", os.DevNull)
	for _, want := range [][]string{
		{"web:1 -> web:2"}, {"kernel", "6.1"}, {"boots with", "another initramfs"}, {"nginx", "1.22", "1.24"},
		{"added", "5 B", "/etc/new"}, {"removed", "5 B", "/etc/motd"}, {"changed", "content", "/var/lib/dpkg/status"},
		{"3 added, 1 removed, 1 changed"},
	} {
		c.wantLine(out, want...)
	}
	var got imageDiff
	if err := json.Unmarshal([]byte(c.ok("image", "diff", "web:1", "web:2", "--state", filepath.Dir(c.socket), "--config", os.DevNull, "--json")), &got); err != nil {
		t.Fatal(err)
	}
	if got.From.ID != one.ID || got.To.ID != two.ID || !reflect.DeepEqual(got.Boot, []string{"initramfs"}) || len(got.Files) != 5 ||
		!reflect.DeepEqual(got.Packages, []layers.Package{{Name: "nginx", Old: "1.22", New: "1.24"}}) {
		t.Errorf("image diff --json = %+v", got)
	}
	c.wantLine(c.ok("image", "diff", "web:1", "web:1", "--state", filepath.Dir(c.socket), "--config", os.DevNull), "The same files.")

	// One release: against what is published.
	c.fails(1, []string{"image", "diff", "web:2", "--state", filepath.Dir(c.socket), "--config", os.DevNull}, "nothing is published", "name two releases")
	if _, err := c.store.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		p.Publish(one.ID, "test", time.Now())
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	c.wantLine(c.ok("image", "diff", "web:2", "--state", filepath.Dir(c.socket), "--config", os.DevNull), "web:1 -> web:2")
}

func TestImageExportImport(t *testing.T) {
	c := newCLI(t)
	_, two := transferStore(t, filepath.Dir(c.socket))
	keys := filepath.Join(t.TempDir(), "keys")
	at := func(dir string, args ...string) []string {
		return append([]string{"image"}, append(args, "--state", dir, "--config", os.DevNull, "--keys-dir", keys)...)
	}
	archive := filepath.Join(t.TempDir(), "web.tar")
	c.wantLine(c.ok(at(filepath.Dir(c.socket), "export", "web:2", archive)...), "web:2", archive)
	c.fails(1, at(filepath.Dir(c.socket), "export", "web:3", archive), "web:3")
	c.fails(1, at(filepath.Dir(c.socket), "export", "web:1", archive), archive, "there already", "--force")
	c.ok(at(filepath.Dir(c.socket), "export", "web:1", archive, "--force", "--format", "docker")...)
	c.wantLine(c.ok(at(filepath.Dir(c.socket), "export", "web:2", archive, "--force")...), "web:2", archive)
	c.fails(2, at(filepath.Dir(c.socket), "export", "web:2", "registry"), "no registry is set")

	other := t.TempDir()
	res := c.runIn("", at(other, "import", "web", archive)...)
	if res.code != 0 || !shows(res.out, "web:1", two.ID.Short(), "from OCI archive") || strings.Contains(res.errors, "warning") {
		t.Errorf("import = %+v; want web:1 with the same ID, no warning", res)
	}
	s, err := blobs.Open(filepath.Join(other, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.Proposals(); err != nil || p["web"] != two.ID {
		t.Errorf("proposed: %v, %v; want the imported release", p, err)
	}
	c.wantLine(c.ok(at(other, "import", "web", archive, "--no-publish")...), "web:1", "was here already")

	var diff imageDiff
	// What is no release of ours: without the role's service it says so.
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, tarBytes(t, "etc/motd", "foreign"), 0o644); err != nil {
		t.Fatal(err)
	}
	res = c.runIn("", at(other, "import", "web", root, "--no-publish", "--kernel", "web:1")...)
	if res.code != 0 || !shows(res.out, "web:2", "from tar") || !shows(res.errors, "warning", "/etc/dsas/services/nginx/run") {
		t.Errorf("import of a root tar = %+v; want web:2 and a warning for nginx", res)
	}
	res = c.runIn("", at(other, "import", "web", root, "--no-publish", "--files")...)
	if res.code != 0 || !shows(res.out, "web:3", "from tar") || !shows(res.errors, "warning", "nginx/run", "/bin/sh") || strings.Contains(res.errors, "has no run") {
		t.Errorf("import with the role's files = %+v; want web:3, and a warning that there is no shell for them", res)
	}
	if err := json.Unmarshal([]byte(c.ok(at(other, "diff", "web:2", "web:3", "--json")...)), &diff); err != nil ||
		!slices.ContainsFunc(diff.Files, func(f layers.File) bool { return f.Path == "/etc/dsas/services/nginx/run" && f.Kind == "added" }) {
		t.Errorf("what --files adds: %+v, %v; want nginx's run", diff.Files, err)
	}
	if p, err := s.Proposals(); err != nil || p["web"] != two.ID {
		t.Errorf("proposed after --no-publish: %v, %v; want what was before", p, err)
	}
	// Its services could not start: nodes boot it only when somebody says so.
	c.fails(1, at(other, "import", "web", root), "web:2", "not published", "--files", "--canary", "dsas image publish web:2")
	c.fails(1, at(other, "import", "web", root, "--files"), "web:3", "not published", "dsas image publish web:3")
	res = c.runIn("", at(other, "import", "web", root, "--json")...)
	var got imported
	if err := json.Unmarshal([]byte(res.out), &got); err != nil || res.code != 1 || got.Published || len(got.Warnings) == 0 || len(got.Services) != 0 || got.Services == nil {
		t.Errorf("import --json = %+v, %v; want exit status 1, not published, and why", res, err)
	}
	if p, err := s.Proposals(); err != nil || p["web"] != two.ID {
		t.Errorf("proposed: %v, %v; want what was before", p, err)
	}
	c.fails(2, at(other, "import", "web", root, "--publish", "--no-publish"), "exclude")
	c.wantLine(c.ok(at(other, "import", "web", root, "--publish")...), "web:2")
	if p, err := s.Proposals(); err != nil || p["web"] == two.ID {
		t.Errorf("proposed after --publish: %v, %v; want the imported release", p, err)
	}
	c.fails(1, at(other, "import", "web", root, "--kernel", "5.10"), "5.10", "6.1")
	c.fails(1, at(other, "import", "nosuch", root), "nosuch")
	secret := filepath.Join(t.TempDir(), "secret.tar")
	if err := os.WriteFile(secret, tarBytes(t, "etc/shadow", "root:$6$salt$hash:1::::::\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.fails(1, at(other, "import", "web", secret), "/etc/shadow", "has a password")
}

func tarBytes(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte(content))
	w.Close()
	return b.Bytes()
}

// TestImportDefinition: what the server would render of a release from elsewhere
// is taken when the operator says so, or has it already.
func TestImportDefinition(t *testing.T) {
	c := newCLI(t)
	set, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	def, err := set.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	def.Role.Description = "as it was elsewhere"
	frozen, err := roles.Freeze(def)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(c.socket)
	_, two := transferStore(t, dir)
	from, err := blobs.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	two.Definition = frozen
	if two, err = from.AddRelease(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	keys, archive := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "web.tar")
	at := func(dir string, args ...string) []string {
		return append([]string{"image"}, append(args, "--state", dir, "--config", os.DevNull, "--keys-dir", keys)...)
	}
	c.ok(at(dir, "export", two.Name(), archive)...)
	other := t.TempDir()
	res := c.runIn("", at(other, "import", "web", archive)...)
	if res.code != 0 || strings.Contains(res.out, two.ID.Short()) || !shows(res.errors, "not taken", "--trust-definition") {
		t.Errorf("import of another's definition = %+v; want another release, and a warning that says why", res)
	}
	c.wantLine(c.ok(at(other, "import", "web", archive, "--trust-definition")...), "web:2", two.ID.Short())
	c.wantLine(c.ok(at(other, "import", "web", archive)...), "web:2", two.ID.Short(), "was here already")
}

// TestImportKeepsKernel: an image that needs modules gets them by the lock that
// builds keep to, in the state folder, and not by one in the cache.
func TestImportKeepsKernel(t *testing.T) {
	c := newCLI(t)
	dir := filepath.Dir(c.socket)
	transferStore(t, dir)
	place := filepath.Join(dir, "locks", "kernel.lock")
	if err := errors.Join(os.Mkdir(filepath.Dir(place), 0o755), os.WriteFile(place, []byte("damaged"), 0o644)); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, tarBytes(t, "etc/motd", "foreign"), 0o644); err != nil {
		t.Fatal(err)
	}
	// lb has no release whose modules it could take.
	c.fails(1, []string{"image", "import", "lb", root, "--kernel", "web:1", "--state", dir, "--config", os.DevNull, "--keys-dir", filepath.Join(t.TempDir(), "keys")}, place)
}

// TestImportAgain: what nodes boot already, and comes again with findings, is no
// failure, as the server says, or what was proposed last.
func TestImportAgain(t *testing.T) {
	c := newCLI(t)
	served := filepath.Dir(c.socket)
	one, _ := transferStore(t, served)
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, tarBytes(t, "etc/motd", "foreign"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	transferStore(t, other)
	for _, dir := range []string{served, other} {
		at := []string{"image", "import", "web", root, "--kernel", "web:1", "--state", dir, "--config", os.DevNull, "--keys-dir", filepath.Join(t.TempDir(), "keys")}
		c.fails(1, at, "web:3", "not published")
		r := c.runIn("", append(at, "--publish")...)
		if r.code != 0 || dir == other && !shows(r.out, "web:3", "was here already; nodes boot it") {
			t.Errorf("import --publish = %+v; want web:3", r)
		}
		if dir == served { // as the server would that is told of it
			if _, err := c.store.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
				proposed, err := c.releases.Store.Proposals()
				p.Publish(proposed["web"], "test", time.Now())
				return nil, err
			}); err != nil {
				t.Fatal(err)
			}
		}
		r = c.runIn("", at...)
		if r.code != 0 || !shows(r.out, "web:3", "was here already; nodes boot it") || !shows(r.errors, "warning", "nginx/run") {
			t.Errorf("import of what nodes boot = %+v; want that said, with the warnings, and exit status 0", r)
		}
		var got imported
		r = c.runIn("", append(at, "--json")...)
		if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 0 || !got.Same || !got.Published {
			t.Errorf("import --json of what nodes boot = %+v, %v; want it the same and published", r, err)
		}
	}
	// The server's word counts, and not what was proposed once.
	if _, err := c.store.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		p.Publish(one.ID, "test", time.Now())
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	c.fails(1, []string{"image", "import", "web", root, "--kernel", "web:1", "--state", served, "--config", os.DevNull, "--keys-dir", filepath.Join(t.TempDir(), "keys")}, "web:3", "not published")
}

// stopAt cancels when it is told a word.
type stopAt struct {
	word string
	stop func()
}

func (s stopAt) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.word)) {
		s.stop()
	}
	return len(p), nil
}

// TestImportStopped: a release that is listed is signed, wherever an import is
// stopped after that.
func TestImportStopped(t *testing.T) {
	c := newCLI(t)
	dir := filepath.Dir(c.socket)
	transferStore(t, dir)
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, tarBytes(t, "etc/motd", "foreign"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := run(ctx, []string{"--server", c.socket, "image", "import", "web", root, "--kernel", "web:1", "--publish", "--state", dir, "--config", os.DevNull, "--keys-dir", filepath.Join(t.TempDir(), "keys")},
		strings.NewReader(""), io.Discard, stopAt{"signed by key", cancel})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("import that is stopped when it has signed = %v; want that it was stopped before it was checked and published", err)
	}
	r, err := c.releases.Store.Find(dsas.ReleaseRef{Role: "web", Number: 3})
	if err != nil || len(r.Signed.Signatures) == 0 {
		t.Errorf("it left %+v, %v; want web:3 signed", r, err)
	}
	if p, err := c.releases.Store.Proposals(); err != nil || p["web"] != "" {
		t.Errorf("it proposed %v, %v; want nothing", p, err)
	}
}

// TestImportSlip: of a slip in the source nothing is made.
func TestImportSlip(t *testing.T) {
	c := newCLI(t)
	dir := filepath.Join(t.TempDir(), "state")
	for _, source := range []string{"nosuch.tar", "nosuch.tar:web", "oci-archive:/nosuch/x.tar", "tar:nosuch", "registry:/x/y"} {
		c.fails(1, []string{"image", "import", "web", source, "--state", dir, "--config", os.DevNull, "--keys-dir", filepath.Join(dir, "keys")}, source, "no such file", "registry://HOST/NAME:TAG")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v; want that nothing was made", dir, err)
	}
}
