package roles

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"dsas"
)

// write makes files below a new folder and gives the folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func get(t *testing.T, s *Set, name string) Definition {
	t.Helper()
	d, err := s.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func shippedSet(t *testing.T) *Set {
	t.Helper()
	set, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestLoadShipped(t *testing.T) {
	set := shippedSet(t)
	var names []string
	for _, r := range set.Roles() {
		names = append(names, r.Name)
	}
	if want := []string{"db", "inventory", "lb", "rescue", "web"}; !slices.Equal(names, want) {
		t.Errorf("Roles() = %v; want %v", names, want)
	}
	for _, d := range set.Definitions() {
		if d.Source != SourceShipped {
			t.Errorf("%s: Source = %q; want %q", d.Role.Name, d.Source, SourceShipped)
		}
		if _, err := dsas.ParseDigest(d.Digest); err != nil {
			t.Errorf("%s: Digest: %v", d.Role.Name, err)
		}
		if !slices.Contains(d.Role.Packages, "openssh-server") || d.Role.Services[0].Name != "sshd" {
			t.Errorf("%s: has not what %s gives: packages %v, services %v", d.Role.Name, commonDir, d.Role.Packages, d.Role.Services)
		}
		for _, s := range d.Role.Services {
			if st, err := fs.Stat(d.FS, "services/"+s.Name+"/run"); err != nil || st.Mode() != 0o755 {
				t.Errorf("%s: services/%s/run: mode %v, error %v; want -rwxr-xr-x", d.Role.Name, s.Name, st, err)
			}
		}
		if st, err := fs.Stat(d.FS, "files/etc/ssh/sshd_config.d/dsas.conf"); err != nil || st.Mode() != 0o644 {
			t.Errorf("%s: sshd's configuration: %v, error %v; want -rw-r--r--", d.Role.Name, st, err)
		}
	}
	if _, err := set.Get("nosuch"); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "rescue") {
		t.Errorf("Get(nosuch) error = %v; want ErrNotFound with the roles there are", err)
	}
}

// Every scheduler that a site may choose has its module on the balancer.
func TestLBHasSchedulerModules(t *testing.T) {
	lb := get(t, shippedSet(t), "lb")
	for _, s := range dsas.Schedulers() {
		if !slices.Contains(lb.Role.Modules, "ip_vs_"+s) {
			t.Errorf("lb's modules %v: no ip_vs_%s", lb.Role.Modules, s)
		}
	}
}

func TestLoadUserFolder(t *testing.T) {
	dir := write(t, map[string]string{
		// Takes the place of the shipped one, sshd included.
		"web/role.yaml":          "name: web\ndescription: own\nservices: [{name: sshd, timeout: 5s}, {name: app, after: [sshd]}]\n",
		"web/services/app/run":   "#!/bin/sh\nexec sleep infinity\n",
		"web/services/sshd/run":  "#!/bin/sh\n# own\nexec /usr/sbin/sshd -D\n",
		"cache/role.yaml":        "name: cache\ndescription: new\n",
		"cache/files/etc/x":      "x",
		"_common/files/etc/motd": "ours\n",
		".git/config":            "no role",
		"README":                 "no role",
	})
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	web := get(t, set, "web")
	if web.Role.Description != "own" || web.Source != filepath.Join(dir, "web") {
		t.Errorf("web = %q from %q; want the user's", web.Role.Description, web.Source)
	}
	if len(web.Role.Services) != 2 || web.Role.Services[0].Timeout == 0 {
		t.Errorf("web's services = %+v; want the user's sshd and app", web.Role.Services)
	}
	if text, _ := fs.ReadFile(web.FS, "services/sshd/run"); !strings.Contains(string(text), "# own") {
		t.Errorf("services/sshd/run = %q; want the user's", text)
	}
	if st, err := fs.Stat(web.FS, "services/app/run"); err != nil || st.Mode() != 0o755 {
		t.Errorf("services/app/run: %v, %v; want mode 0755 whatever the file has", st, err)
	}
	for _, name := range []string{"cache", "lb"} {
		if text, _ := fs.ReadFile(get(t, set, name).FS, "files/etc/motd"); string(text) != "ours\n" {
			t.Errorf("%s: files/etc/motd = %q; want the user's %s below every role", name, text, commonDir)
		}
	}
	if err := fstest.TestFS(web.FS, "services/app/run", "services/sshd/run", "files/etc/ssh/sshd_config.d/dsas.conf", "files/etc/motd", "role.yaml"); err != nil {
		t.Error(err)
	}
}

func TestLoadFolderThatIsNotThere(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("Load of a folder that is not there: %v; want nil", err)
	}
}

// A broken definition is reported, hides no other, and its place is not taken
// by the shipped one.
func TestLoadBroken(t *testing.T) {
	dir := write(t, map[string]string{
		"web/role.yaml":   "name: web\ndescription: own\npackage: [x]\n",
		"cache/role.yaml": "name: cache\ndescription: new\n",
		"empty/files/x":   "",
	})
	set, err := Load(dir)
	if err == nil {
		t.Fatal("Load of a broken definition: no error")
	}
	for _, want := range []string{"load role web", "line 3", `"package"`, `"packages"`, "load role empty", "role.yaml"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Load error = %v; want it to name %s", err, want)
		}
	}
	if _, err := set.Get("web"); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Get(web) error = %v; want ErrNotFound, not the shipped one", err)
	}
	get(t, set, "cache")
	get(t, set, "lb")
}

func TestDigestFollowsContentAndMode(t *testing.T) {
	files := map[string]string{
		"x/role.yaml":       "name: x\ndescription: x\n",
		"x/files/opt/a":     "a",
		"x/files/opt/empty": "",
	}
	load := func(change func(dir string)) string {
		dir := write(t, files)
		change(filepath.Join(dir, "x"))
		set, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return get(t, set, "x").Digest
	}
	base := load(func(string) {})
	if again := load(func(string) {}); again != base {
		t.Errorf("digest of the same tree = %s and %s; want the same", base, again)
	}
	if got := load(func(d string) { os.Chmod(d+"/files/opt/a", 0o600) }); got != base {
		t.Error("digest changed with a umask")
	}
	for name, change := range map[string]func(d string){
		"content": func(d string) { os.WriteFile(d+"/files/opt/a", []byte("b"), 0o644) },
		"x bit":   func(d string) { os.Chmod(d+"/files/opt/a", 0o755) },
		"name":    func(d string) { os.Rename(d+"/files/opt/a", d+"/files/opt/b") },
		"link":    func(d string) { os.Symlink("/etc/passwd", d+"/files/opt/link") },
		"folder":  func(d string) { os.Mkdir(d+"/files/opt/dir", 0o755) },
	} {
		if got := load(change); got == base {
			t.Errorf("digest is the same after a change of %s", name)
		}
	}
}

// A symlink in files/ is the node's affair and stays a link; anywhere else it
// could make the server read any of its own files.
func TestSymlinks(t *testing.T) {
	dir := write(t, map[string]string{"x/role.yaml": "name: x\ndescription: x\n", "x/files/opt/a": "a"})
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "x/files/opt/link")); err != nil {
		t.Fatal(err)
	}
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	x := get(t, set, "x")
	if to, err := fs.ReadLink(x.FS, "files/opt/link"); to != "/etc/shadow" || err != nil {
		t.Errorf("ReadLink = %q, %v; want /etc/shadow", to, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "x/templates"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "x/templates/t")); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "x/role.yaml"), []byte("name: x\ndescription: x\ntemplates: [{source: t, path: /etc/t}]\n"), 0o644)
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "templates/t") {
		t.Errorf("Load with a template that is a symlink: %v; want an error that names it", err)
	}
}
