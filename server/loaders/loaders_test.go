package loaders

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dsas"
	"dsas/server/boot"
)

// TestAllAreServed: what is brought here is what package boot names, and the
// other way round.
func TestAllAreServed(t *testing.T) {
	var names []string
	for _, l := range All() {
		names = append(names, l.Name)
	}
	if got, want := strings.Join(names, " "), strings.Join(boot.LoaderFiles(), " "); got != want {
		t.Errorf("All = %s; want %s", got, want)
	}
}

func TestInstall(t *testing.T) {
	src, dir := t.TempDir(), filepath.Join(t.TempDir(), "loaders")
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(src, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := []Loader{
		{Name: "a.efi", Source: write("a", "one"), Package: "a-package"},
		{Name: "optional.efi", Source: filepath.Join(src, "none"), Package: "b-package", Set: SecureBoot},
	}
	if err := install(dir, list); err != nil {
		t.Fatalf("install with an optional loader missing: %v; want none", err)
	}
	got := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return string(b)
	}
	if got("a.efi") != "one" {
		t.Errorf("a.efi = %q; want one", got("a.efi"))
	}
	// What was fetched stays; what the machine has installed is newer.
	if err := os.WriteFile(filepath.Join(dir, "optional.efi"), []byte("fetched"), 0o644); err != nil {
		t.Fatal(err)
	}
	write("a", "two")
	if err := install(dir, list); err != nil || got("a.efi") != "two" || got("optional.efi") != "fetched" {
		t.Errorf("install again: %v, %q, %q; want two and fetched", err, got("a.efi"), got("optional.efi"))
	}
	list[1].Source = write("installed", "installed")
	if err := install(dir, list); err != nil || got("optional.efi") != "installed" {
		t.Errorf("install with the package on the machine: %v, %q; want installed", err, got("optional.efi"))
	}
	// One that is not optional is an error that names the package; the rest is there.
	list = append([]Loader{{Name: "c.0", Source: filepath.Join(src, "none"), Package: "c-package"}}, list...)
	write("a", "three")
	err := install(dir, list)
	if !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "apt-get install c-package") || got("a.efi") != "three" {
		t.Errorf("install with a loader missing: %v, %q; want the package named and the rest installed", err, got("a.efi"))
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, boot.FileShimX64), []byte("MZ"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		switch {
		case l.Name == boot.FileShimX64:
			if l.Size != 2 || l.Remedy != "" {
				t.Errorf("%s = %d bytes, remedy %q; want 2 and none", l.Name, l.Size, l.Remedy)
			}
		case l.Size != 0 || l.Remedy == "":
			t.Errorf("%s = %d bytes, remedy %q; want 0 and one", l.Name, l.Size, l.Remedy)
		case l.Name == boot.FileGRUBARM64 && l.Remedy != "dsas loader fetch arm64":
			t.Errorf("%s: remedy %q; want dsas loader fetch arm64", l.Name, l.Remedy)
		}
	}
}

func TestFetchRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loaders")
	err := Fetch(t.Context(), dir, []string{SecureBoot, "mips"})
	if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), `"mips"`) {
		t.Errorf("Fetch(mips) = %v; want ErrInvalid that names it", err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	// apt that cannot reach its sources: its words, and nothing half done.
	t.Setenv("APT_CONFIG", filepath.Join(t.TempDir(), "apt.conf"))
	parts := t.TempDir()
	if err := os.WriteFile(os.Getenv("APT_CONFIG"), []byte("Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \""+parts+"\";\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err = Fetch(t.Context(), dir, []string{SecureBoot})
	if err == nil || !strings.Contains(err.Error(), "shim-signed") || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("Fetch without sources = %v; want apt's error, which names shim-signed", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("Fetch without sources left %v; want nothing", list)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "dsas-loaders-*")); len(left) != 0 {
		t.Errorf("Fetch left %v behind", left)
	}
}

// TestPutForAll: root's umask, or the mode that the server left, must not keep
// the server's user from what root fetched.
func TestPutForAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shimx64.efi")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer syscall.Umask(syscall.Umask(0o077))
	if err := put(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode().Perm(); got != 0o644 {
		t.Errorf("mode after put = %#o; want 0644", got)
	}
}
