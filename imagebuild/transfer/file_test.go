package transfer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
	"dsas/imagebuild/transfer"
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
		{at("none/new.tar"), "", false, "no such file"},
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
	if to, err := os.Readlink(at("link.tar")); err != nil || to != "target" {
		t.Errorf("the link to the file that was replaced leads to %q, %v", to, err)
	}
	if out := run(t, importer(s, at("target"))); out.Release.ID != r.ID {
		t.Errorf("what replaced the file holds %s; want the release", out.Release.Name())
	}
}
