package capture

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/internal/xattr"
)

// capNetRaw is cap_net_raw+ep as setcap writes it, acl33 u:33:rw- on a file of
// mode 0644 as setfacl does.
const (
	capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl33     = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\x21\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
)

func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("DSAS_CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// TestAttrsCommand runs what nodes run, in a real shell with a real find and
// Perl, on a tree with real attributes.
func TestAttrsCommand(t *testing.T) {
	if _, err := exec.LookPath("perl"); err != nil {
		skipOrFail(t, "perl is not installed")
	}
	root := t.TempDir()
	for _, name := range []string{"usr/bin/x", "etc/two\nlines", "123", "-e", "etc/many", "etc/plain", "run/left"} {
		put(t, root, name, "x")
	}
	if err := os.Symlink("x", filepath.Join(root, "usr/bin/link")); err != nil {
		t.Fatal(err)
	}
	set := func(name, attr, value string) {
		t.Helper()
		if err := unix.Lsetxattr(filepath.Join(root, name), attr, []byte(value), 0); err != nil {
			skipOrFail(t, fmt.Sprintf("%s cannot be set here: %v", attr, err))
		}
	}
	set("usr/bin/x", xattr.Capability, capNetRaw)
	set("etc/two\nlines", xattr.ACL, acl33)
	set("123", "user.note", "a\x00b\xff")
	set("-e", "user.empty", "")
	set("etc", xattr.DefaultACL, acl33)
	set("run/left", "user.note", "no image has it")
	for i := range 20 {
		set("etc/many", fmt.Sprintf("user.%d", i), strings.Repeat("x", 100))
	}
	run := func(command string) (Tree, []string, bool) {
		t.Helper()
		tree, err := ReadFolder(root)
		if err != nil {
			t.Fatal(err)
		}
		for name, e := range tree {
			e.Attrs = ""
			tree[name] = e
		}
		cmd := exec.Command("/bin/sh", "-c", strings.Replace(command, "cd / ", "cd "+root+" ", 1))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		unheld, told, err := tree.ReadAttrs(strings.NewReader(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return tree, unheld, told
	}
	want, err := ReadFolder(root)
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "run/left")
	got, unheld, told := run(AttrsCommand)
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%q: perl says %q, we %q", name, got[name].Attrs.Map(), w.Attrs.Map())
		}
	}
	if got["run/left"].Attrs != "" || want["usr/bin/x"].Attrs.Map()[xattr.Capability] != capNetRaw || len(want["etc/many"].Attrs.Map()) != 20 {
		t.Errorf("attributes of run/left %q, usr/bin/x %q; want none, and its capability", got["run/left"].Attrs, want["usr/bin/x"].Attrs.Map())
	}
	if !told || !slices.Equal(unheld, xattr.Unheld(root)) {
		t.Errorf("ReadAttrs tells %v that %q cannot be held; want true, %q", told, unheld, xattr.Unheld(root))
	}
	// proc holds none of them.
	if _, unheld, told := run(strings.Replace(strings.Replace(AttrsCommand, "cd / ", "cd /proc/self/net ", 1), "find . ", "find . -maxdepth 0 ", 1)); !told || !reflect.DeepEqual(unheld, xattr.Classes) {
		t.Errorf("of /proc ReadAttrs tells %v, %q; want that it holds none", told, unheld)
	}
	if _, unheld, told := run(strings.Replace(AttrsCommand, "| perl ", "| no-such-perl ", 1)); told || !reflect.DeepEqual(unheld, xattr.Classes) {
		t.Errorf("without perl ReadAttrs = %q, %v; want nothing told, of no class", unheld, told)
	}
}

func TestReadAttrsRefuses(t *testing.T) {
	const end = "\x00\x00\x00"
	for name, text := range map[string]string{
		"no end":            "etc/x\x00user.a\x0031\x00",
		"cut off":           "etc/x\x00user.a\x00",
		"no hex":            "etc/x\x00user.a\x00x1\x00" + end,
		"no path":           "\x00user.a\x0031\x00" + end,
		"no class unheld":   "\x00trusted.a\x00\x00" + end,
		"an endless field":  strings.Repeat("a", 1<<20) + end,
		"no NUL at the end": end[:2],
	} {
		if _, _, err := (Tree{"etc/x": file("1")}).ReadAttrs(strings.NewReader(text)); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("ReadAttrs(%s) = %v; want ErrInvalid", name, err)
		}
	}
	// What is not in the list, on a disk, or none of an image's, is left out.
	tree := Tree{"etc/x": file("1"), "data": {Type: mounted}}
	text := "etc/new\x00user.a\x0031\x00data\x00user.a\x0031\x00etc/x\x00trusted.a\x0031\x00etc/x\x00user.b\x0032\x00\x00user.dsas\x00\x00" + end
	unheld, told, err := tree.ReadAttrs(strings.NewReader(text))
	if err != nil || !told || !slices.Equal(unheld, []string{"user."}) || len(tree) != 2 || tree["data"].Attrs != "" || tree["etc/x"].Attrs != xattr.Of(map[string]string{"user.b": "2"}) {
		t.Errorf("ReadAttrs = %q, %v, %v, %+v", unheld, told, err, tree)
	}
}

func TestCompareAttrs(t *testing.T) {
	caps, note := xattr.Of(map[string]string{xattr.Capability: capNetRaw}), xattr.Of(map[string]string{"user.note": "1"})
	acl := xattr.Of(map[string]string{xattr.ACL: acl33})
	with := func(mode uint32, a xattr.List) Entry {
		e := file("a")
		e.Mode, e.Attrs = mode, a
		return e
	}
	dir := Entry{Type: 'd', Mode: 0o755}
	dirACL := dir
	dirACL.Attrs = xattr.Of(map[string]string{xattr.DefaultACL: acl33})
	base := Tree{"etc": dir, "usr/bin/added": with(0o755, ""), "usr/bin/kept": with(0o755, caps), "usr/bin/gone": with(0o755, caps), "etc/acl": with(0o644, ""),
		"etc/note": with(0o644, note), "etc/changed": with(0o644, note), "etc/link": {Type: 'l', Link: "x", Attrs: note}, "etc/became": with(0o644, note)}
	now := Tree{"etc": dirACL, "usr/bin/added": with(0o755, caps), "usr/bin/kept": with(0o755, caps), "usr/bin/gone": with(0o755, ""), "etc/acl": with(0o664, acl),
		"etc/note": with(0o644, ""), "etc/changed": with(0o644, xattr.Of(map[string]string{"user.note": "2"})), "etc/link": {Type: 'l', Link: "x"}, "etc/became": {Type: 'l', Link: "x"},
		"etc/new": dirACL, "etc/new/file": with(0o644, note), "etc/odd": with(0o644, xattr.Of(map[string]string{"user.a=b": "2"}))}
	type change struct{ what, to, note string }
	changes := func(rules Rules) map[string]change {
		out := map[string]change{}
		for _, c := range Compare(base, now, rules, nil) {
			out[c.Path] = change{strings.Join(c.What, ", "), c.To, c.Note}
		}
		return out
	}
	const sidecar, pinned = "its extended attributes go to attributes", "the file goes with its attributes: where it is a package's, later versions of the package no longer bring it"
	const folder = "a definition cannot hold a folder's owner, mode and extended attributes; set them in the service's run"
	want := map[string]change{
		"/etc":           {"attribute " + xattr.DefaultACL + " added", "", folder},
		"/usr/bin/added": {"attribute security.capability added", "files/usr/bin/added", sidecar + "; " + pinned},
		"/usr/bin/gone":  {"attribute security.capability removed", "files/usr/bin/gone", pinned},
		"/etc/acl":       {"mode 0644 -> 0664, attribute " + xattr.ACL + " added", "files/etc/acl", sidecar + "; " + pinned},
		"/etc/note":      {"attribute user.note removed", "files/etc/note", pinned},
		"/etc/changed":   {"attribute user.note changed", "files/etc/changed", sidecar + "; " + pinned},
		"/etc/became":    {"type f -> l", "files/etc/became", ""},
		"/etc/new":       {"attribute " + xattr.DefaultACL + " added", "", folder},
		"/etc/new/file":  {"attribute user.note added", "files/etc/new/file", sidecar},
		"/etc/odd":       {"attribute user.a=b added", "", "an extended attribute's name has control characters, a backslash or = in it, or is no UTF-8"},
	}
	if got := changes(Rules{}); !reflect.DeepEqual(got, want) {
		t.Errorf("Compare = %+v\nwant %+v", got, want)
	}
	// tmpfs before Linux 6.6: what it lost is no change, and is carried.
	delete(want, "/etc/note")
	delete(want, "/etc/changed")
	now["etc/changed"] = with(0o644, "")
	if got := changes(Rules{Unheld: []string{"user."}}); !reflect.DeepEqual(got, want) {
		t.Errorf("Compare without user attributes = %+v\nwant %+v", got, want)
	}
	e := file("other")
	now["etc/note"] = e
	for _, c := range Compare(base, now, Rules{Unheld: []string{"user."}}, nil) {
		if c.Path == "/etc/note" && (c.now.Attrs != note || !slices.Equal(c.What, []string{"content"})) {
			t.Errorf("a changed file on it = %+v; want its content alone told, and its attributes carried", c)
		}
	}
}

// TestWriteAttrs: attributes go to the definition's own file of them, those of
// other files stay there, and those of a file that has none any more go.
func TestWriteAttrs(t *testing.T) {
	folder := t.TempDir()
	put(t, folder, "role.yaml", "name: web")
	caps, note := xattr.Of(map[string]string{xattr.Capability: capNetRaw}), xattr.Of(map[string]string{"user.note": "1"})
	put(t, folder, attrsFile, string(xattr.Dump(map[string]xattr.List{"etc/other": note, "etc/gone": note, "etc/became": note})))
	now := func(a xattr.List) Entry { return Entry{Type: 'f', Attrs: a} }
	chosen := []Change{{Path: "/usr/bin/x", To: "files/usr/bin/x", now: now(caps)}, {Path: "/etc/gone", To: "files/etc/gone", now: now(""), was: now(note)},
		{Path: "/etc/became", To: "files/etc/became", now: Entry{Type: 'l', Link: "x", Attrs: note}}}
	contents := map[string]Content{"usr/bin/x": {Data: []byte("x")}, "etc/gone": {Data: []byte("x")}, "etc/became": {Link: "x"}}
	done, err := Write(folder, os.DirFS(folder), chosen, contents)
	if err != nil || len(done) != 4 || done[3].Path != attrsFile {
		t.Fatalf("Write = %+v, %v; want three files and %s", done, err, attrsFile)
	}
	got, err := readAttrs(os.DirFS(folder))
	if want := (map[string]xattr.List{"etc/other": note, "usr/bin/x": caps}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("attributes = %q, %v; want %q", got, err, want)
	}
	if attrs, err := xattr.Read(filepath.Join(folder, "files/usr/bin/x")); err != nil || attrs != "" {
		t.Errorf("the file itself has %q, %v; want none, as it stands on the machine that builds", attrs, err)
	}
	if done, err := Write(folder, os.DirFS(folder), chosen, contents); err != nil || len(done) != 3 {
		t.Errorf("Write of the same = %+v, %v; want %s left alone", done, err, attrsFile)
	}
	def := fstest.MapFS{"files/etc/a": {Data: []byte("x")}, attrsFile: {Data: xattr.Dump(map[string]xattr.List{"etc/a": note})}}
	was := file("x")
	was.Sum = fmt.Sprintf("%x", sha256.Sum256([]byte("x")))
	clash := []Change{{Path: "/etc/a", To: "files/etc/a", was: was, now: now(caps)}}
	if got, err := Conflicts(def, clash, map[string]Content{"etc/a": {Data: []byte("y")}}); err != nil || len(got) != 1 {
		t.Errorf("Conflicts where the definition has other attributes = %+v, %v; want the file", got, err)
	}
	put(t, folder, attrsFile, "user.x=1\n")
	if _, err := Write(folder, os.DirFS(folder), chosen, contents); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Write over attributes that cannot be read = %v; want ErrInvalid", err)
	}
}
