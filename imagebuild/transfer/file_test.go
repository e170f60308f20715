package transfer_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
	"dsas/imagebuild/transfer"
	"dsas/server/blobs"
)

// TestExportLeavesFiles: what is there is replaced only when somebody says so, and
// only where it is a file; what fails leaves nothing.
func TestExportLeavesFiles(t *testing.T) {
	s := open(t)
	r := seed(t, s)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"there.tar": "mine", "there": "mine", "target": "mine"} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("target", at("link.tar")), os.Symlink("nowhere", at("lost.tar")), os.Symlink(os.DevNull, at("null.tar")), os.Mkdir(at("folder.tar"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, e := range []struct {
		dest, format string
		force        bool
		want         string
	}{
		{at("there.tar"), "", false, "--force"},
		{at("there"), transfer.FormatDocker, false, "--force"},
		{at("there"), "", false, "ends in .tar"},
		{at("link.tar"), "", false, "--force"},
		{at("lost.tar"), "", true, "leads nowhere"},
		{at("null.tar"), "", true, "it is no file"},
		{os.DevNull, transfer.FormatDocker, true, "it is no file"},
		{at("folder.tar"), "", true, "it is a folder"},
		{at("new.tgz"), "", false, "ends in .tar"},
		{at("none/new.tar"), "", false, "there is no folder"},
		{"", "", false, "name a folder"},
	} {
		_, err := (transfer.Export{Store: s, Release: r, Dest: e.dest, Format: e.format, Force: e.force}).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), e.want) {
			t.Errorf("export to %s, force %v = %v; want %q", e.dest, e.force, err, e.want)
		}
	}
	for _, name := range []string{"there.tar", "there", "target"} {
		if b, err := os.ReadFile(at(name)); err != nil || string(b) != "mine" {
			t.Errorf("%s = %q, %v; want it as it was", name, b, err)
		}
	}
	lost := r
	lost.Manifest.Digest = digest([]byte("not in the store"))
	if _, err := (transfer.Export{Store: s, Release: lost, Dest: at("there.tar"), Force: true}).Run(t.Context()); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("export of what is not there = %v; want ErrNotFound", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 7 {
		t.Errorf("exports that failed left something: %v, %v", entries, err)
	}
	for _, dest := range []string{at("there.tar"), at("link.tar")} {
		if _, err := (transfer.Export{Store: s, Release: r, Dest: dest, Force: true}).Run(t.Context()); err != nil {
			t.Errorf("export to %s with force = %v", dest, err)
		}
	}
	for _, name := range []string{"there.tar", "target"} {
		if fi, err := os.Stat(at(name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s was 0600, and what replaced it is %v, %v", name, fi.Mode(), err)
		}
	}
	if to, err := os.Readlink(at("link.tar")); err != nil || to != "target" {
		t.Errorf("the link to the file that was replaced leads to %q, %v", to, err)
	}
	if out := run(t, importer(s, at("target"))); out.Release.ID != r.ID {
		t.Errorf("what replaced the file holds %s; want the release", out.Release.Name())
	}
}

// TestImportCut: an archive that ends too early, wherever, is told as such, and
// nothing comes of it.
func TestImportCut(t *testing.T) {
	from := open(t)
	r := seed(t, from)
	dir := t.TempDir()
	oci, docker, root := filepath.Join(dir, "oci.tar"), filepath.Join(dir, "docker.tar"), filepath.Join(dir, "root.tar")
	export(t, from, r, oci, "")
	export(t, from, r, docker, transfer.FormatDocker)
	// Random, so that gzip leaves as much.
	if err := os.WriteFile(root, tarOf(t, ent{name: "etc/motd", body: rand.Text() + strings.Repeat("x", 5000)}), 0o644); err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(dir, "root.tar.gz")
	if err := os.WriteFile(packed, gz(t, plain), 0o644); err != nil {
		t.Fatal(err)
	}
	to := open(t)
	last := seed(t, to)
	for _, name := range []string{oci, docker, root, packed} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := []int{0, 600, len(b) / 2, len(b) - 1500}
		if name == oci || name == docker {
			at = append(at, entryStarts(t, b)...)
		}
		if name == packed {
			at = []int{0, len(b) / 2, len(b) - 1}
		}
		for _, n := range at {
			part := filepath.Join(dir, "cut")
			if err := os.WriteFile(part, b[:n], 0o644); err != nil {
				t.Fatal(err)
			}
			im := importer(to, part)
			if name == oci { // else it is here, and not asked for
				im.Store = without{to}
			}
			_, err := im.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), part+": ") || !strings.Contains(err.Error(), "cut") || !strings.Contains(err.Error(), "copy it again") || strings.Contains(err.Error(), "scratch") {
				t.Errorf("import of %d of %d bytes of %s = %v; want that it was cut", n, len(b), filepath.Base(name), err)
			}
		}
	}
	if list, err := to.Releases(); err != nil || len(list) != 1 || list[0].ID != last.ID {
		t.Errorf("releases after that: %v, %v; want the one of before", list, err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{text: "it is no tar", os.DevNull: "neither a file nor a folder", "": "is empty"} {
		if _, err := importer(to, source).Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "cut") {
			t.Errorf("import of %q = %v; want %q", source, err, want)
		}
	}
}

// without is a store in which no release is.
type without struct{ *blobs.Store }

func (without) Releases() ([]dsas.Release, error) { return nil, nil }

// entryStarts gives where a tar's entries begin, but for the first: a file that
// was cut there looks whole to whoever reads a tar.
func entryStarts(t *testing.T, b []byte) (at []int) {
	t.Helper()
	r := bytes.NewReader(b)
	tr := tar.NewReader(r)
	for {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return at[1:]
		}
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, len(b)-r.Len()-512)
	}
}
