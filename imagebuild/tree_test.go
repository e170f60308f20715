package imagebuild

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
	"dsas/server/blobs"
)

// write makes files; a name that ends in a slash is a folder.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(p, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func layerOf(t *testing.T, root string, below map[string]dirAttr) ([]tarEntry, *layer, error) {
	t.Helper()
	store := testStore(t, t.TempDir())
	opt := &Options{Store: store, Cache: t.TempDir()}
	l, err := makeLayer(t.Context(), opt, "test", "", func(w *layerWriter) error {
		w.below = below
		return w.tree(root, imageRule)
	})
	if err != nil {
		return nil, nil, err
	}
	return readLayer(t, store, l.Part), l, nil
}

func TestTree(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"etc/machine-id": "0123456789abcdef\n", "etc/keep": "k", "etc/ssh/ssh_host_rsa_key": "x", "etc/ssh/sshd_config": "c",
		"etc/shadow": "root:*:19000::::::\nsshd:!:19000::::::\n", "etc/shadow-": "root:$y$secret:1",
		"var/log/apt/term.log": "l", "var/log/nginx/": "", "var/lib/apt/lists/x_Packages": "p", "var/cache/apt/archives/x.deb": "d",
		"tmp/junk": "j", "dev/null2": "n", "usr/bin/a": "same", "boot/vmlinuz": "v", "var/lib/dpkg/status-old": "o",
	})
	if err := os.Link(filepath.Join(root, "usr/bin/a"), filepath.Join(root, "usr/bin/b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(filepath.Join(root, "etc/keep"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "usr/bin/a"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(root, "etc/keep"), "user.note", []byte("n"), 0); err != nil {
		t.Logf("no user attributes on this file system: %v", err)
	}
	entries, l, err := layerOf(t, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	want := []string{"bin", "boot/", "dev/", "etc/", "etc/keep", "etc/machine-id", "etc/shadow", "etc/ssh/", "etc/ssh/sshd_config",
		"tmp/", "usr/", "usr/bin/", "usr/bin/a", "usr/bin/b", "var/", "var/cache/", "var/cache/apt/", "var/lib/", "var/lib/apt/", "var/lib/apt/lists/", "var/lib/dpkg/",
		"var/log/", "var/log/apt/", "var/log/nginx/"}
	if !slices.Equal(names, want) {
		t.Errorf("entries = %q\nwant %q", names, want)
	}
	if e := find(entries, "etc/machine-id"); e.Size != 0 {
		t.Errorf("etc/machine-id has %d bytes; want 0", e.Size)
	}
	if e := find(entries, "usr/bin/a"); e.Mode != 0o4755 || string(e.data) != "same" || e.ModTime.Unix() != epoch {
		t.Errorf("usr/bin/a = %+v; want mode 4755, its content, the epoch", e)
	}
	if e := find(entries, "usr/bin/b"); e.Typeflag != tar.TypeLink || e.Linkname != "usr/bin/a" {
		t.Errorf("usr/bin/b = %+v; want a hard link to usr/bin/a", e)
	}
	if e := find(entries, "etc/keep"); !e.ModTime.Equal(old) {
		t.Errorf("etc/keep is of %v; want %v", e.ModTime, old)
	} else if getXattr(filepath.Join(root, "etc/keep"), "user.note") == "n" && e.PAXRecords["SCHILY.xattr.user.note"] != "n" {
		t.Errorf("etc/keep: records %q; want the user attribute", e.PAXRecords)
	}
	// keep, shadow, sshd_config and a: one page each.
	if l.Part.Unpacked != 4*page {
		t.Errorf("Unpacked = %d; want %d", l.Part.Unpacked, 4*page)
	}
	if d := l.Dirs["etc/ssh"]; d.Mode != 0o755 {
		t.Errorf("Dirs[etc/ssh] = %+v; want mode 755", d)
	}
}

func TestWhiteouts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making overlayfs's markers needs root")
	}
	upper := t.TempDir()
	write(t, upper, map[string]string{"etc/new": "n", "opq/x": "x", "made/y": "y"})
	if err := unix.Mknod(filepath.Join(upper, "etc/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"opq", "made"} {
		if err := unix.Setxattr(filepath.Join(upper, d), overlayOpaque, []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
	}
	entries, _, err := layerOf(t, upper, map[string]dirAttr{"etc": {}, "opq": {}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
		if e.PAXRecords["SCHILY.xattr."+overlayOpaque] != "" {
			t.Errorf("%s carries overlayfs's own attribute", e.Name)
		}
	}
	want := []string{"etc/", "etc/.wh.gone", "etc/new", "made/", "made/y", "opq/", "opq/.wh..wh..opq", "opq/x"}
	if !slices.Equal(names, want) {
		t.Errorf("entries = %q; want %q", names, want)
	}
}

func TestCapabilityKept(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"usr/bin/ping": "p"})
	// struct vfs_cap_data, revision 2: cap_net_raw (13) permitted and effective.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Setxattr(filepath.Join(root, "usr/bin/ping"), "security.capability", []byte(capability), 0); err != nil {
		t.Skipf("cannot set capabilities here: %v", err)
	}
	entries, _, err := layerOf(t, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := find(entries, "usr/bin/ping"); e == nil || e.PAXRecords["SCHILY.xattr.security.capability"] != capability {
		t.Errorf("usr/bin/ping = %+v; want its capability", e)
	}
}

const keyText = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n"

func TestSecretsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"etc/nginx/site.key": keyText,
		"opt/legacy.pem":     "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIEpAIBAAKCAQEAxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n",
		"etc/shadow":         "root:$y$j9T$abc$def:19000::::::\n",
		"etc/gshadow":        "adm:$6$x$y::\n",
	} {
		root := t.TempDir()
		write(t, root, map[string]string{name: content})
		_, _, err := layerOf(t, root, nil)
		if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "b3Bl") || strings.Contains(err.Error(), "j9T") {
			t.Errorf("layer with %s = %v; want ErrInvalid that names it and does not quote it", name, err)
		}
		found, err := checkSources([]source{{"files/" + name, []byte(content)}})
		if err != nil || len(found) == 0 || found[0].Path != "files/"+name || found[0].Line == 0 || found[0].Way == "" {
			t.Errorf("checkSources(%s) = %+v, %v; want a finding with its line", name, found, err)
		}
	}
	if found := secretsIn("etc/shadow", []byte("a:*:1\neve::19000::::::\n")); len(found) != 1 || found[0].Rule != "empty-password" || found[0].Line != 2 {
		t.Errorf("empty password = %+v; want one finding in line 2", found)
	}
	// A program that reads keys has the marker and no key.
	if found := secretsIn("usr/bin/ssh", []byte("\x00-----BEGIN OPENSSH PRIVATE KEY-----\n\x00-----END OPENSSH PRIVATE KEY-----\n\x00"+strings.Repeat("x", 100))); len(found) > 0 {
		t.Errorf("a program with the marker = %+v; want nothing", found)
	}
}

func TestReadFilesRefuses(t *testing.T) {
	for name, want := range map[string]string{
		"files/lib/modules/x": "files/usr/lib/modules/x", "files/bin/x": "files/usr/bin/x", "files/etc/.wh.x": "removal",
	} {
		_, err := readFiles(Definition{FS: fstest.MapFS{name: {Data: []byte("x")}}})
		if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("readFiles(%s) = %v; want ErrInvalid with %q", name, err, want)
		}
	}
	if got, err := readFiles(Definition{FS: fstest.MapFS{"role.yaml": {}}}); err != nil || len(got) != 0 {
		t.Errorf("readFiles(no files) = %v, %v; want none", got, err)
	}
}

// Modes and bytes are the same from embed (no modes) and from a folder.
func TestReadFilesModes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"files/usr/bin/tool": "#!/bin/sh\n", "services/a/run": "exec a\n", "files/etc/c": "c"})
	if err := os.Symlink("c", filepath.Join(dir, "files/etc/l")); err != nil {
		t.Fatal(err)
	}
	got, err := readFiles(Definition{FS: os.DirFS(dir)})
	if err != nil {
		t.Fatal(err)
	}
	want := []roleFile{{Path: "etc/c", Mode: 0o644}, {Path: "etc/dsas/services/a/run", Mode: 0o755}, {Path: "etc/l", Mode: 0o777, Link: "c"}, {Path: "usr/bin/tool", Mode: 0o755}}
	for i := range want {
		if i >= len(got) || got[i].Path != want[i].Path || got[i].Mode != want[i].Mode || got[i].Link != want[i].Link {
			t.Fatalf("readFiles = %+v; want %+v", got, want)
		}
	}
}

// Attributes of a role's own files stand in the definition's file of them.
func TestReadFilesAttrs(t *testing.T) {
	note, caps := xattr.Of(map[string]string{"user.note": "1"}), xattr.Of(map[string]string{xattr.Capability: capNetRaw})
	def := func(attrs string) Definition {
		return Definition{FS: fstest.MapFS{"files/usr/bin/x": {Data: []byte("x"), Mode: 0o755}, "files/etc/c": {Data: []byte("c")}, "services/a/run": {Data: []byte("#!/bin/sh\n")},
			"files/etc/l": {Data: []byte("c"), Mode: fs.ModeSymlink}, AttrsFile: {Data: []byte(attrs)}}}
	}
	files, err := readFiles(def(string(xattr.Dump(map[string]xattr.List{"usr/bin/x": caps, "etc/dsas/services/a/run": note}))))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := readFiles(def(""))
	if err != nil || plain.sum() == files.sum() {
		t.Errorf("the same key with and without attributes, %v; want another build", err)
	}
	if p := merge(filesIndex(files)).listPrivileged(); len(p) != 1 || p[0].Path != "/usr/bin/x" || !reflect.DeepEqual(p[0].Capabilities, []string{"cap_net_raw"}) {
		t.Errorf("privileged files = %+v; want /usr/bin/x with cap_net_raw", p)
	}
	opt := Options{Store: testStore(t, t.TempDir()), Cache: t.TempDir()}
	l, err := filesLayer(t.Context(), &opt, files)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := opt.Store.(*blobs.Store).Blob(l.Part.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read, err := layers.Read(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	tree := layers.NewTree()
	tree.Apply(read)
	for name, want := range map[string]xattr.List{"usr/bin/x": caps, "etc/c": "", "etc/dsas/services/a/run": note} {
		if e, ok := tree.Entry(name); !ok || e.Attrs != want {
			t.Errorf("%s in the layer = %+v, %v; want attributes %q", name, e, ok, want.Map())
		}
	}
	for attrs, want := range map[string]string{
		"# file: etc/nosuch\nuser.a=\"1\"\n": "none of the role's own files",
		"# file: etc/l\nuser.a=\"1\"\n":      "is a symlink",
		"# file: etc/c\nsecurity.x=\"1\"\n":  "line 2",
	} {
		if _, err := readFiles(def(attrs)); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), AttrsFile) {
			t.Errorf("readFiles with %q = %v; want ErrInvalid with %q", attrs, err, want)
		}
	}
}

// capNetRaw is cap_net_raw+ep as setcap writes it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestContentTime(t *testing.T) {
	a, b := contentTime([]byte("aa")), contentTime([]byte("ab"))
	if a.Equal(b) || !a.Equal(contentTime([]byte("aa"))) || a.Unix() > epoch {
		t.Errorf("contentTime: %v, %v; want different, stable, before the epoch", a, b)
	}
}

func TestBuildRoleRefuses(t *testing.T) {
	store := testStore(t, t.TempDir())
	opt := Options{Store: store, Cache: t.TempDir()}
	for _, role := range []dsas.Role{{Name: "../x"}, {Name: "web", Memory: "lots"}, {Name: "web", Memory: "-1MiB"}, {Name: "web", Remove: []string{"/"}}, {Name: "web", Remove: []string{"var/x"}}, {Name: "web", Remove: []string{"/var/../etc"}}} {
		if _, err := BuildRole(t.Context(), opt, Definition{Role: role}, dsas.BootSet{}); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("BuildRole(%+v) = %v; want ErrInvalid", role, err)
		}
	}
	if _, err := BuildBoot(t.Context(), opt); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("BuildBoot(no programs) = %v; want ErrInvalid", err)
	}
	if _, err := BuildBoot(t.Context(), Options{}); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("BuildBoot(nothing) = %v; want ErrInvalid", err)
	}
}
