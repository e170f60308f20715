package capture

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"dsas"
	"dsas/imagebuild/layers"
)

// layerOf writes a tar of entries, each "path" (a folder with a slash at its
// end), "path=content", "path->target" or "path=>hard link".
func layerOf(t *testing.T, entries ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Mode: 0o644, ModTime: time.Unix(1700000000, 0)}
		content := ""
		if name, to, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Linkname, h.Typeflag, h.Mode = name, to, tar.TypeSymlink, 0o777
		} else if name, to, ok := strings.Cut(e, "=>"); ok {
			h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeLink
		} else if name, text, ok := strings.Cut(e, "="); ok {
			h.Name, h.Typeflag, content = name, tar.TypeReg, text
		} else {
			h.Name, h.Typeflag, h.Mode = e, tar.TypeDir, 0o755
		}
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func treeOf(t *testing.T, tars ...*bytes.Buffer) Tree {
	t.Helper()
	image := layers.NewTree()
	for _, b := range tars {
		l, err := layers.Read(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		image.Apply(l)
	}
	return OfLayers(image)
}

func TestOfLayers(t *testing.T) {
	tree := treeOf(t,
		layerOf(t, "etc/", "etc/a=1", "etc/b=2", "etc/gone/", "etc/gone/x=1", "opt/", "opt/old=1", "opt/sub/", "opt/sub/y=1", "usr/", "usr/lib/", "lib->usr/lib", "hard=>etc/a", "folder/", "folder/z=1"),
		layerOf(t, "etc/.wh.gone=", "etc/a=changed", "opt/.wh..wh..opq=", "opt/new=1", "lib/", "lib/so=1", "folder=now a file"))
	got := slices.Sorted(maps.Keys(tree))
	want := []string{"etc", "etc/a", "etc/b", "folder", "hard", "lib", "opt", "opt/new", "usr", "usr/lib", "usr/lib/so"}
	if !slices.Equal(got, want) {
		t.Errorf("OfLayers gives %v; want %v", got, want)
	}
	if e := tree["lib"]; e.Type != 'l' || e.Link != "usr/lib" {
		t.Errorf("a folder over a link gives %+v; want the link", e)
	}
	if e, sum := tree["hard"], fmt.Sprintf("%x", sha256.Sum256([]byte("1"))); e.Type != 'f' || e.Size != 1 || e.MTime != 1700000000 || e.Sum != sum {
		t.Errorf("the hard link is %+v; want the file as it was in its layer", e)
	}
}

// record is an entry as find prints it.
func record(kind, mode, size, at, device, name, link string) string {
	return strings.Join([]string{kind, mode, "0", "0", size, at, device, name, link}, "\x00") + "\x00"
}

var rootRecord = record("d", "755", "100", "1700000000.5", "5", "", "")

func TestReadListing(t *testing.T) {
	tree, err := ReadListing(strings.NewReader(rootRecord +
		record("d", "755", "60", "1700000000.1", "5", "etc", "") + record("f", "4755", "12", "1700000001.9999", "5", "etc/two\nlines", "") +
		record("l", "777", "3", "1700000000.0", "5", "etc/link", "../x") + record("d", "755", "9", "1700000000.0", "77", "data", "")))
	if err != nil {
		t.Fatal(err)
	}
	if e := tree["etc/two\nlines"]; e.Type != 'f' || e.Mode != 0o4755 || e.Size != 12 || e.MTime != 1700000001 {
		t.Errorf("file = %+v", e)
	}
	if e := tree["etc/link"]; e.Type != 'l' || e.Link != "../x" {
		t.Errorf("link = %+v", e)
	}
	if e := tree["data"]; e.Type != mounted {
		t.Errorf("a disk's folder = %+v; want it marked as mounted", e)
	}
	for name, text := range map[string]string{
		"nothing":           "",
		"no root":           record("f", "644", "1", "1.0", "5", "x", ""),
		"cut off":           rootRecord + "f\x00644\x00",
		"no NUL at the end": strings.TrimSuffix(rootRecord, "\x00"),
		"dots":              rootRecord + record("f", "644", "1", "1.0", "5", "../etc/passwd", ""),
		"dots within":       rootRecord + record("f", "644", "1", "1.0", "5", "etc/../../x", ""),
		"absolute":          rootRecord + record("f", "644", "1", "1.0", "5", "/etc/passwd", ""),
		"trailing slash":    rootRecord + record("f", "644", "1", "1.0", "5", "etc/", ""),
		"empty name again":  rootRecord + rootRecord,
		"negative size":     rootRecord + record("f", "644", "-1", "1.0", "5", "x", ""),
		"size of 2^64":      rootRecord + record("f", "644", "18446744073709551616", "1.0", "5", "x", ""),
		"mode":              rootRecord + record("f", "99", "1", "1.0", "5", "x", ""),
		"mode too large":    rootRecord + record("f", "100644", "1", "1.0", "5", "x", ""),
		"type":              rootRecord + record("z", "644", "1", "1.0", "5", "x", ""),
		"own mark":          rootRecord + record("m", "644", "1", "1.0", "5", "x", ""),
		"time":              rootRecord + record("f", "644", "1", "now", "5", "x", ""),
		"twice":             rootRecord + record("f", "644", "1", "1.0", "5", "x", "") + record("f", "644", "1", "1.0", "5", "x", ""),
		"below a link":      rootRecord + record("l", "777", "1", "1.0", "5", "etc", "/") + record("f", "644", "1", "1.0", "5", "etc/x", ""),
		"below, before it":  rootRecord + record("f", "644", "1", "1.0", "5", "etc/x/y", "") + record("l", "777", "1", "1.0", "5", "etc", "/"),
		"an endless field":  rootRecord + strings.Repeat("a", 1<<20) + "\x00",
		"names out of step": rootRecord + record("f", "644", "1", "1.0", "5", "a\x00b", ""),
	} {
		if _, err := ReadListing(strings.NewReader(text)); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("ReadListing(%s) = %v; want ErrInvalid", name, err)
		}
	}
}

// TestListCommand runs what nodes run, in a real shell with a real find, sha256sum
// and tar, on a tree of its own; / is replaced by it.
func TestListCommand(t *testing.T) {
	root := t.TempDir()
	put(t, root, "etc/a b", "content")
	put(t, root, "etc/two\nlines", "x")
	put(t, root, "-rf", "a name like a flag")
	put(t, root, "run/left", "x")
	if err := os.Symlink("/somewhere", filepath.Join(root, "etc/link")); err != nil {
		t.Fatal(err)
	}
	sh := func(command string, names []string) *bytes.Buffer {
		t.Helper()
		for _, top := range []string{"find /", "-path /", "cd /", "-C /"} {
			command = strings.ReplaceAll(command, top+" ", strings.TrimSuffix(top, "/")+root+" ")
			if top == "-path /" {
				command = strings.ReplaceAll(command, "-path /run", "-path "+root+"/run")
			}
		}
		cmd := exec.Command("sh", "-c", command)
		cmd.Stdin = Names(names)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return bytes.NewBuffer(out)
	}
	tree, err := ReadListing(sh(ListCommand, nil))
	if err != nil {
		t.Fatal(err)
	}
	local, err := ReadFolder(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc", "etc/a b", "etc/two\nlines", "etc/link", "-rf"} {
		if tree[name] != local[name] || tree[name].Type == 0 {
			t.Errorf("%q: find says %+v, lstat %+v", name, tree[name], local[name])
		}
	}
	if _, ok := tree["run/left"]; ok {
		t.Error("run/left is listed; want what no image holds left out")
	}
	names := []string{"-rf", "etc/a b", "etc/gone", "etc/two\nlines"}
	if err := tree.ReadSums(sh(SumCommand, names), names); err != nil {
		t.Fatal(err)
	}
	if err := local.SumLocal(root, []string{"-rf", "etc/a b", "etc/two\nlines"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"-rf", "etc/a b", "etc/two\nlines"} {
		if tree[name].Sum == "" || tree[name].Sum != local[name].Sum {
			t.Errorf("%q: sha256sum says %q, we %q", name, tree[name].Sum, local[name].Sum)
		}
	}
	if err := tree.ReadSums(strings.NewReader(strings.Repeat("a", 64)+"  etc/passwd\x00"), names); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("ReadSums of what was not asked for = %v; want ErrInvalid", err)
	}
	delete(tree, "etc/two\nlines")
	var chosen []Change
	for _, c := range Compare(Tree{"etc": tree["etc"]}, tree, Rules{}, nil) {
		if c.To != "" {
			chosen = append(chosen, c)
		}
	}
	contents, err := ReadContents(sh(PackCommand, Paths(chosen)), chosen)
	if err != nil || string(contents["etc/a b"].Data) != "content" || contents["etc/link"].Link != "/somewhere" || string(contents["-rf"].Data) != "a name like a flag" {
		t.Errorf("ReadContents = %v, %v", contents, err)
	}
}

func put(t *testing.T, root, name, content string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func file(content string) Entry {
	return Entry{Type: 'f', Mode: 0o644, Size: int64(len(content)), MTime: int64(len(content)), Sum: fmt.Sprintf("sum of %s", content)}
}

func TestCompare(t *testing.T) {
	dir := Entry{Type: 'd', Mode: 0o755}
	with := func(e Entry, change func(*Entry)) Entry { change(&e); return e }
	base := Tree{"etc": dir, "etc/same": file("a"), "etc/conf": file("a"), "etc/gone": dir, "etc/gone/x": file("a"), "etc/perm": file("a"), "etc/exec": file("a"),
		"etc/owner": file("a"), "etc/link": {Type: 'l', Link: "a"}, "srv/data": dir, "srv/data/inside": file("a"), "etc/folder": dir, "etc/touched": file("a"), "bin": {Type: 'l', Link: "usr/bin"},
		"etc/dsas/services/nginx/run": with(file("a"), func(e *Entry) { e.Mode = 0o755 })}
	now := Tree{"etc": with(dir, func(e *Entry) { e.Mode = 0o700 }), "etc/same": file("a"), "etc/conf": file("bb"), "etc/perm": with(file("a"), func(e *Entry) { e.Mode = 0o640 }),
		"etc/exec": with(file("a"), func(e *Entry) { e.Mode = 0o755 }), "etc/owner": with(file("a"), func(e *Entry) { e.UID = 33 }), "etc/link": {Type: 'l', Link: "/etc/conf"},
		"srv/data": {Type: mounted}, "etc/folder": {Type: 'l', Link: "/"}, "etc/touched": with(file("a"), func(e *Entry) { e.MTime = 99 }), "bin": {Type: 'l', Link: "usr/bin"},
		"etc/new": dir, "etc/new/file": file("a"), "etc/empty": dir, "etc/secret": with(file("k"), func(e *Entry) { e.Mode = 0o600 }), "etc/huge": {Type: 'f', Mode: 0o644, Size: 1 << 62},
		"etc/two\nlines": file("a"), "bin/x": file("a"), "etc/sock": {Type: 's'}, "etc/.wh.conf": file("a"), "etc/passwd": file("x"),
		"etc/dsas/services/nginx/run": with(file("bb"), func(e *Entry) { e.Mode = 0o755 }), "etc/dsas/services/other/run": file("a"), "etc/dsas/services/nginx/role.yaml": file("a"),
		"run/x": file("a"), "etc/rendered": file("a"), "dropped/x": file("a"), "etc/ssh/ssh_host_rsa_key": file("a"), "var/log/x": file("a"), "etc/.conf.swp": file("a"), "etc/dsas.conf": file("a"),
		"etc/machine-id": file("a"), "root/.bash_history": file("a"), "home/ann/.ssh/id_rsa": file("a"), "opt/app/id_ed25519": file("a"), "var/lib/dpkg/status": file("a"), "var/lib/nginx/body": dir}
	rules := Rules{Rendered: []string{"/etc/rendered"}, LeftOut: func(name string, dir bool) bool { return name == "dropped" && dir }}
	if got := Doubtful(base, with2(now, "etc/touched", func(e *Entry) { e.Sum = "" }), rules); !slices.Equal(got, []string{"etc/touched"}) {
		t.Errorf("Doubtful = %v; want etc/touched", got)
	}
	got := map[string]Change{}
	for _, c := range Compare(base, now, rules, []string{"nginx"}) {
		got[c.Path] = c
	}
	want := map[string]struct{ kind, to, says string }{
		"/etc":                               {Changed, "", "folder's owner and mode"},
		"/etc/conf":                          {Changed, "files/etc/conf", ""},
		"/etc/gone":                          {Removed, "", "cannot remove"},
		"/etc/perm":                          {Changed, "", "0755 or 0644"},
		"/etc/exec":                          {Changed, "files/etc/exec", ""},
		"/etc/owner":                         {Changed, "", "root's"},
		"/etc/link":                          {Changed, "files/etc/link", ""},
		"/etc/folder":                        {Changed, "", "it was a folder"},
		"/etc/new/file":                      {Added, "files/etc/new/file", ""},
		"/etc/empty":                         {Added, "", "empty folder"},
		"/etc/secret":                        {Added, "files/etc/secret", "others may not read it"},
		"/etc/huge":                          {Added, "", "larger than"},
		"/etc/two\nlines":                    {Added, "", "control characters"},
		"/bin/x":                             {Added, "", "is a link to /usr/bin"},
		"/etc/sock":                          {Added, "", "neither a file nor"},
		"/etc/.wh.conf":                      {Added, "", ".wh."},
		"/etc/passwd":                        {Added, "", "users and groups"},
		"/etc/dsas/services/nginx/run":       {Changed, "services/nginx/run", ""},
		"/etc/dsas/services/other/run":       {Added, "", "no service other"},
		"/etc/dsas/services/nginx/role.yaml": {Added, "", "a service has run"},
	}
	for p, w := range want {
		g, ok := got[p]
		if !ok || g.Kind != w.kind || g.To != w.to || !strings.Contains(g.Note, w.says) {
			t.Errorf("Compare of %q = %+v; want %+v", p, g, w)
		}
		delete(got, p)
	}
	for p, c := range got {
		t.Errorf("Compare tells %q: %+v; want it left out", p, c)
	}
}

func with2(t Tree, name string, change func(*Entry)) Tree {
	out := Tree{}
	for n, e := range t {
		if n == name {
			change(&e)
		}
		out[n] = e
	}
	return out
}

func TestChoose(t *testing.T) {
	all := []Change{{Path: "/etc/a.conf", To: "files/etc/a.conf"}, {Path: "/etc/key", To: "files/etc/key", Private: true}, {Path: "/etc/nginx/x", To: "files/etc/nginx/x"}, {Path: "/gone", Note: "because"}}
	for _, c := range []struct{ patterns, want, fails string }{
		{"", "/etc/a.conf /etc/nginx/x", ""},
		{"/etc", "/etc/a.conf /etc/nginx/x", ""},
		{"/etc/nginx/", "/etc/nginx/x", ""},
		{"/etc/*.conf", "/etc/a.conf", ""},
		{"/etc/key", "/etc/key", ""},
		{"/etc/k*", "", "wants its whole path"},
		{"/nowhere", "", "nothing there"},
		{"/et", "", "nothing there"},
		{"/gone", "", "because"},
		{"/etc/a.conf /nowhere", "", "/nowhere"},
		{"/[", "", "pattern"},
	} {
		chosen, err := Choose(all, strings.Fields(c.patterns))
		var got []string
		for _, ch := range chosen {
			got = append(got, ch.Path)
		}
		if strings.Join(got, " ") != c.want || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("Choose(%q) = %v, %v; want %q, %q", c.patterns, got, err, c.want, c.fails)
		}
	}
}

// TestReadContents: a node sends what was asked for and nothing else.
func TestReadContents(t *testing.T) {
	chosen := []Change{{Path: "/etc/a", now: Entry{Type: 'f'}}, {Path: "/etc/l", now: Entry{Type: 'l'}}}
	if got, err := ReadContents(layerOf(t, "etc/a=1", "etc/l->x"), chosen); err != nil || string(got["etc/a"].Data) != "1" || got["etc/l"].Link != "x" {
		t.Errorf("ReadContents = %v, %v", got, err)
	}
	huge := func() *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "etc/a", Typeflag: tar.TypeReg, Size: 1 << 40})
		return &b
	}
	for name, b := range map[string]*bytes.Buffer{
		"another file":      layerOf(t, "etc/a=1", "etc/l->x", "etc/passwd=1"),
		"a file with dots":  layerOf(t, "../etc/a=1"),
		"an absolute path":  layerOf(t, "/etc/a=1"),
		"a file twice":      layerOf(t, "etc/a=1", "etc/a=2", "etc/l->x"),
		"a link for a file": layerOf(t, "etc/a->/etc/shadow", "etc/l->x"),
		"a file for a link": layerOf(t, "etc/a=1", "etc/l=1"),
		"a hard link":       layerOf(t, "etc/l->x", "etc/a=>etc/l"),
		"a file of 1 TiB":   huge(),
		"nothing":           layerOf(t),
		"no tar":            bytes.NewBufferString(strings.Repeat("x", 2048)),
	} {
		if got, err := ReadContents(b, chosen); err == nil {
			t.Errorf("ReadContents of %s = %v; want an error", name, got)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "web")
	put(t, folder, "role.yaml", "name: web")
	put(t, folder, "files/etc/old", "old")
	put(t, folder, "files/etc/folder/x", "x")
	put(t, dir, "outside", "outside")
	for link, to := range map[string]string{"files/out": "../..", "files/in": "..", "files/etc/link": "../../role.yaml"} {
		if err := os.Symlink(to, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	f := func(to string, mode uint32, content string) (Change, map[string]Content) {
		return Change{Path: "/x", To: to}, map[string]Content{"x": {Data: []byte(content), Mode: mode}}
	}
	for _, c := range []struct {
		to, content string
		mode, want  uint32
	}{
		{"files/etc/old", "new", 0o600, 0o644},
		{"files/etc/deep/er/new", "new", 0o4755, 0o755},
		{"files/etc/script", "#!/bin/sh\n", 0o644, 0o755},
		{"services/nginx/run", "x", 0o644, 0o755},
		{"files/etc/link", "a file in a link's place", 0o644, 0o644},
	} {
		ch, contents := f(c.to, c.mode, c.content)
		if _, err := Write(folder, os.DirFS(folder), []Change{ch}, contents); err != nil {
			t.Errorf("Write(%s) = %v", c.to, err)
			continue
		}
		p := filepath.Join(folder, c.to)
		b, _ := os.ReadFile(p)
		if st, err := os.Lstat(p); err != nil || string(b) != c.content || uint32(st.Mode()) != c.want {
			t.Errorf("Write(%s) gives %q, %v, %v; want %q, %o", c.to, b, st.Mode(), err, c.content, c.want)
		}
	}
	if _, err := Write(folder, os.DirFS(folder), []Change{{Path: "/x", To: "files/abs"}}, map[string]Content{"x": {Link: "/etc/shadow"}}); err != nil {
		t.Errorf("Write of a symlink = %v", err)
	}
	if to, _ := os.Readlink(filepath.Join(folder, "files/abs")); to != "/etc/shadow" {
		t.Errorf("the symlink leads to %q; want it as it is", to)
	}
	for _, to := range []string{"role.yaml", "files/../role.yaml", "/etc/passwd", "../outside", "templates/x", "files/out/outside", "files/in/role.yaml", "files/etc/old/below", "files/etc/folder", "files/abs/x", ""} {
		ch, contents := f(to, 0o644, "pwned")
		if done, err := Write(folder, os.DirFS(folder), []Change{ch}, contents); err == nil {
			t.Errorf("Write(%q) = %v; want an error", to, done)
		}
	}
	for name, want := range map[string]string{"role.yaml": "name: web", "../outside": "outside", "files/etc/folder/x": "x", "files/etc/old": "new"} {
		if b, err := os.ReadFile(filepath.Join(folder, name)); err != nil || string(b) != want {
			t.Errorf("%s = %q, %v; want it left as %q", name, b, err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(folder, "files/etc/.dsas-new*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestConflicts: what was changed in the definition since is not overwritten unasked.
func TestConflicts(t *testing.T) {
	def := fstest.MapFS{"files/etc/a": {Data: []byte("one")}, "files/etc/b": {Data: []byte("later")}, "files/etc/c": {Data: []byte("new")}}
	tree := treeOf(t, layerOf(t, "etc/a=one", "etc/b=one", "etc/c=one", "etc/d=one"))
	var chosen []Change
	contents := map[string]Content{}
	for _, n := range []string{"a", "b", "c", "d"} {
		chosen = append(chosen, Change{Path: "/etc/" + n, To: "files/etc/" + n, was: tree["etc/"+n]})
		contents["etc/"+n] = Content{Data: []byte("new")}
	}
	got, err := Conflicts(def, chosen, contents)
	if err != nil || len(got) != 1 || got[0].Path != "/etc/b" {
		t.Errorf("Conflicts = %+v, %v; want /etc/b alone", got, err)
	}
}

func FuzzReadListing(f *testing.F) {
	f.Add([]byte(rootRecord + record("f", "644", "1", "1.0", "5", "x", "")))
	f.Add([]byte(rootRecord + record("l", "777", "1", "1.0", "5", "etc", "/")))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := ReadListing(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, c := range Compare(Tree{}, tree, Rules{}, nil) {
			if c.To != "" && !strings.HasPrefix(c.To, "files/") || strings.Contains("/"+c.To+"/", "/../") {
				t.Errorf("%q would go to %q", c.Path, c.To)
			}
		}
	})
}
