package layers_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/imagebuild/layers"
)

// e is one entry of a test's tar: a file, unless told.
type e struct {
	name, body string
	typ        byte
	link       string
	mode       int64
	uid        int
	pax        map[string]string
}

func tarOf(t testing.TB, list ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range list {
		h := &tar.Header{Name: x.name, Typeflag: x.typ, Linkname: x.link, Mode: x.mode, Uid: x.uid, PAXRecords: x.pax}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(x.body))
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, x.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func treeOf(t testing.TB, tars ...[]byte) *layers.Tree {
	t.Helper()
	tree := layers.NewTree()
	for _, b := range tars {
		l, err := layers.Read(t.Context(), bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		tree.Apply(l)
	}
	return tree
}

func dpkg(list ...string) string {
	var b strings.Builder
	for i := 0; i < len(list); i += 2 {
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\nDescription: x\n more\n\n", list[i], list[i+1])
	}
	return b.String()
}

func TestCompare(t *testing.T) {
	base := tarOf(t,
		e{name: "./", typ: tar.TypeDir},
		e{name: "./usr/lib/", typ: tar.TypeDir}, e{name: "lib", typ: tar.TypeSymlink, link: "usr/lib"},
		e{name: "usr/lib/a", body: "a"}, e{name: "usr/lib/hard", typ: tar.TypeLink, link: "./usr/lib/a"},
		e{name: "etc/same", body: "x"}, e{name: "etc/mode", body: "x"}, e{name: "etc/owner", body: "x"}, e{name: "etc/caps", body: "x"},
		e{name: "etc/gone", body: "12345"}, e{name: "etc/link", typ: tar.TypeSymlink, link: "same"}, e{name: "etc/kind", body: "x"},
		e{name: "var/old/one", body: "1"}, e{name: "var/old/two/three", body: "3"}, e{name: "var/lib/dpkg/status", body: dpkg("nginx", "1.22", "curl", "7", "left", "1")})
	from := treeOf(t, base)
	to := treeOf(t, base, tarOf(t,
		e{name: "lib/a", body: "changed"},           // through the link
		e{name: "lib/", typ: tar.TypeDir},           // which stays one
		e{name: "etc/mode", body: "x", mode: 0o755}, //
		e{name: "etc/owner", body: "x", uid: 33},    //
		e{name: "etc/caps", body: "x", pax: map[string]string{"SCHILY.xattr.security.capability": "c"}},
		e{name: "etc/link", typ: tar.TypeSymlink, link: "mode"},
		e{name: "etc/kind/", typ: tar.TypeDir},
		e{name: "etc/new", body: "123"},
		e{name: "etc/.wh.gone"},
		e{name: "var/old/four", body: "4"}, e{name: "var/old/.wh..wh..opq"}, // removes what is below alone
		e{name: "var/lib/dpkg/status", body: dpkg("nginx", "1.24", "curl", "7", "added", "2")},
	))
	got := layers.Compare(from, to)
	want := layers.Diff{
		Packages: []layers.Package{{"added", "", "2"}, {"left", "1", ""}, {"nginx", "1.22", "1.24"}},
		Files: []layers.File{
			{"/etc/caps", "changed", []string{"attributes"}, 1, 1},
			{"/etc/gone", "removed", nil, 5, 0},
			{"/etc/kind", "changed", []string{"type", "mode"}, 1, 0},
			{"/etc/link", "changed", []string{"link"}, 0, 0},
			{"/etc/mode", "changed", []string{"mode"}, 1, 1},
			{"/etc/new", "added", nil, 0, 3},
			{"/etc/owner", "changed", []string{"owner"}, 1, 1},
			{"/usr/lib/a", "changed", []string{"content"}, 1, 7},
			{"/var/lib/dpkg/status", "changed", []string{"content"}, int64(len(dpkg("nginx", "1.22", "curl", "7", "left", "1"))), int64(len(dpkg("nginx", "1.24", "curl", "7", "added", "2")))},
			{"/var/old/four", "added", nil, 0, 1},
			{"/var/old/one", "removed", nil, 1, 0},
			{"/var/old/two/three", "removed", nil, 1, 0},
		},
	}
	want.Files[2].What = []string{"type"} // both 0644
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Compare = %+v\nwant %+v", got, want)
	}
	if same := layers.Compare(to, to); len(same.Files) != 0 || len(same.Packages) != 0 {
		t.Errorf("Compare(x, x) = %+v; want nothing", same)
	}
	if hard, ok := from.Entry("usr/lib/hard"); !ok || hard.Size != 1 || hard.Type != tar.TypeReg {
		t.Errorf("hard link = %+v, %v; want its other name's content", hard, ok)
	}
}

// What counts of an entry is what the node makes of it, and times are told and
// not compared.
func TestEntries(t *testing.T) {
	acl := map[string]string{"SCHILY.xattr.system.posix_acl_default": "a"}
	tree := treeOf(t,
		tarOf(t, e{name: "d/", typ: tar.TypeDir, pax: acl}, e{name: "old", body: "1234"}, e{name: "f", body: "x", pax: map[string]string{"SCHILY.xattr.user.a": "1"}}),
		tarOf(t, e{typ: tar.TypeXGlobalHeader, pax: map[string]string{"comment": "of git archive"}}, e{name: "d/", typ: tar.TypeDir, mode: 0o755}, e{name: "f", body: "x"}))
	if d, _ := tree.Entry("d"); d.Mode != 0o755 || d.Attrs.Map()["system.posix_acl_default"] != "a" {
		t.Errorf("a folder over a folder = %+v; want the upper's mode, and its own attributes left", d)
	}
	if f, _ := tree.Entry("f"); f.Attrs != "" {
		t.Errorf("a file over a file has %q; want nothing of the lower one's", f.Attrs.Map())
	}
	if n := tree.Len(); n != 3 {
		t.Errorf("%d entries; want 3, none of them a record for the whole tar", n)
	}
	at := func(unix int64) *layers.Tree {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: time.Unix(unix, 0)}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return treeOf(t, b.Bytes())
	}
	if f, _ := at(7).Entry("f"); f.MTime != 7 {
		t.Errorf("time = %d; want 7", f.MTime)
	}
	if d := layers.Compare(at(7), at(8)); len(d.Files) != 0 {
		t.Errorf("Compare of another time = %+v; want nothing", d.Files)
	}
}

func TestDecompress(t *testing.T) {
	plain := tarOf(t, e{name: "f", body: "content"})
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(plain)
	w.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zst := enc.EncodeAll(plain, nil)
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'x', 'x'}, zst...)
	for media, packed := range map[string][][]byte{
		layers.MediaTar: {plain, {}}, layers.MediaGzip: {gz.Bytes()}, layers.MediaZstd: {zst, skippable},
	} {
		for _, b := range packed {
			r, got, err := layers.Decompress(bytes.NewReader(b))
			if err != nil || got != media {
				t.Errorf("Decompress = %q, %v; want %q", got, err, media)
				continue
			}
			inside, err := io.ReadAll(r)
			if err != nil || len(b) > 0 && !bytes.Equal(inside, plain) {
				t.Errorf("%s: %d bytes inside, %v; want the tar's %d", media, len(inside), err, len(plain))
			}
		}
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"etc/motd": "etc/motd", "./etc//motd": "etc/motd", "/etc/": "etc", "./": ".", "": ".", "..a/b..": "..a/b..",
		"../etc": "", "etc/../../x": "", "a/..": "", "a\x00b": "",
	} {
		got, err := layers.CleanName(name)
		if got != want || (want == "") != errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("CleanName(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

// A loop of links and one that points above the root end somewhere inside.
func TestLinksStayInside(t *testing.T) {
	tree := treeOf(t, tarOf(t,
		e{name: "a", typ: tar.TypeSymlink, link: "b"}, e{name: "b", typ: tar.TypeSymlink, link: "a"}, e{name: "a/f", body: "1"},
		e{name: "up", typ: tar.TypeSymlink, link: "../../.."}, e{name: "up/g", body: "2"}))
	if _, ok := tree.Entry("g"); !ok || tree.Len() != 5 {
		t.Errorf("%d entries, g: %v; want 5, and g at the top", tree.Len(), ok)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(tarOf(f, e{name: "usr/", typ: tar.TypeDir}, e{name: "usr/.wh.x"}, e{name: "l", typ: tar.TypeLink, link: "usr/y"}))
	f.Add(tarOf(f, e{name: "a", typ: tar.TypeSymlink, link: "/a/a"}, e{name: "a/b/.wh..wh..opq"}, e{name: "var/lib/dpkg/status", body: dpkg("a", "1")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := layers.Read(context.Background(), bytes.NewReader(b))
		if err != nil {
			return
		}
		tree := layers.NewTree()
		tree.Apply(l)
		before := tree.Len()
		tree.Apply(l)
		if d := layers.Compare(tree, tree); len(d.Files) != 0 {
			t.Errorf("a tree of %d (%d) entries differs from itself: %+v", tree.Len(), before, d.Files)
		}
	})
}

// BenchmarkDiff compares two images of 10,000 files that share a base layer.
func BenchmarkDiff(b *testing.B) {
	var list []e
	for i := range 10_000 {
		list = append(list, e{name: fmt.Sprintf("usr/share/d%02d/f%05d", i%100, i), body: strings.Repeat(fmt.Sprint(i), 4000)})
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		b.Fatal(err)
	}
	base := enc.EncodeAll(tarOf(b, list...), nil)
	top := tarOf(b, e{name: "usr/share/d01/.wh.f00001"}, e{name: "etc/new", body: "x"})
	for b.Loop() {
		from, to := treeOf(b, base), treeOf(b, base, top)
		if d := layers.Compare(from, to); len(d.Files) != 2 {
			b.Fatalf("%d files differ; want 2", len(d.Files))
		}
	}
}
