package roles

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestExtends: a definition over the shipped one has all that has, and what it
// says itself wins; the folder that is made for a shipped role changes nothing.
func TestExtends(t *testing.T) {
	dir := t.TempDir()
	set, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	web, err := set.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	folder, made, err := Folder(dir, web)
	if err != nil || !made || folder != filepath.Join(dir, "web") {
		t.Fatalf("Folder(web) = %q, %v, %v; want web's, made", folder, made, err)
	}
	load := func() Definition {
		t.Helper()
		set, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		def, err := set.Get("web")
		if err != nil {
			t.Fatal(err)
		}
		return def
	}
	def := load()
	if def.Source != folder {
		t.Errorf("Source = %q; want %q", def.Source, folder)
	}
	same := def.Role
	same.Extends = ""
	if !reflect.DeepEqual(same, web.Role) {
		t.Errorf("an empty overlay's role = %+v; want the shipped one's %+v", same, web.Role)
	}
	if again, made, err := Folder(dir, def); err != nil || made || again != folder {
		t.Errorf("Folder of one's own = %q, %v, %v; want it as it is", again, made, err)
	}
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("files/etc/nginx/nginx.conf", "mine")
	put("role.yaml", "name: web\nextends: shipped\npackages: [vim-tiny]\nmemory: 1GiB\n")
	def = load()
	if b, err := fs.ReadFile(def.FS, "files/etc/nginx/nginx.conf"); err != nil || string(b) != "mine" {
		t.Errorf("overlaid nginx.conf = %q, %v; want mine", b, err)
	}
	if _, err := fs.ReadFile(def.FS, "services/nginx/run"); err != nil {
		t.Errorf("services/nginx/run of the shipped role: %v", err)
	}
	got := strings.Join(def.Role.Packages, " ")
	if !strings.Contains(got, "nginx-light") || !strings.Contains(got, "vim-tiny") || def.Role.Memory != "1GiB" || !def.Role.CarriesSites {
		t.Errorf("role = %+v; want nginx-light and vim-tiny, 1GiB, and its sites", def.Role)
	}
	for text, want := range map[string]string{"name: web\nextends: other\n": `extends "other"`, "name: cache\nextends: shipped\n": "no role cache comes with"} {
		name := strings.TrimPrefix(strings.SplitN(text, "\n", 2)[0], "name: ")
		put("../"+name+"/role.yaml", text)
		if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load of %q = %v; want an error with %q", text, err, want)
		}
	}
}
