package imagebuild

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dsas"
)

// blobFolder is a folder of blobs by their digest.
type blobFolder string

func (dir blobFolder) Blob(d dsas.Digest) (*os.File, int64, error) {
	f, err := os.Open(filepath.Join(string(dir), d.Hex()))
	return f, 0, err
}

func (dir blobFolder) layer(t *testing.T, headers ...tar.Header) dsas.Part {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		text := h.Uname // the content
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(text))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(text)[:h.Size])
	}
	w.Close()
	sum := sha256.Sum256(b.Bytes())
	if err := os.WriteFile(filepath.Join(string(dir), hex.EncodeToString(sum[:])), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return dsas.Part{Digest: dsas.Digest("sha256:" + hex.EncodeToString(sum[:]))}
}

// TestCheckForeignServices: images of others are looked at as a node would have
// them: whiteouts, links for folders, names without the folders they are in.
func TestCheckForeignServices(t *testing.T) {
	dir := blobFolder(t.TempDir())
	file := func(name, text string) tar.Header { return tar.Header{Name: name, Mode: 0o755, Uname: text} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	role := dsas.Role{Name: "x", Services: []dsas.Service{{Name: "a"}, {Name: "b"}}}
	run := func(s, text string) tar.Header { return file("./etc/dsas/services/"+s+"/run", text) }
	base := dir.layer(t, tar.Header{Name: "usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755}, file("usr/bin/dash", "x"), link("usr/bin/sh", "dash"), link("bin", "usr/bin"), file("opt/app", "x"), file("opt/old", "x"))
	for _, c := range []struct {
		name  string
		parts []dsas.Part
		allow []dsas.Allow
		want  []string
	}{
		{"all there", []dsas.Part{base, dir.layer(t, run("a", "#!/bin/sh\nexec /opt/app\n"), run("b", "\x7fELF"))}, nil, nil},
		{"nothing", []dsas.Part{base}, nil, []string{"/etc/dsas/services/a/run: run-missing", "/etc/dsas/services/b/run: run-missing"}},
		{"a folder over a link", []dsas.Part{base, dir.layer(t, tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, file("bin/more", "x"), run("a", "#!/bin/sh\nexec more\n"), run("b", "#!/usr/bin/sh\nexec dash\n"))}, nil, nil},
		{"a command that is gone", []dsas.Part{base, dir.layer(t, run("a", "#!/bin/sh\nexec /opt/old\n"), run("b", "#!/bin/sh\n")), dir.layer(t, file("opt/.wh.old", ""))}, nil, []string{"/etc/dsas/services/a/run: command-missing"}},
		{"what is allowed", []dsas.Part{base, dir.layer(t, run("a", "#!/bin/sh\nexec /opt/none\n"), run("b", "#!/bin/sh\n"))}, []dsas.Allow{{Path: "services/a/run", Reason: "it comes later"}}, nil},
		{"no rights", []dsas.Part{base, dir.layer(t, tar.Header{Name: "etc/dsas/services/a/run", Mode: 0o644, Uname: "#!/bin/sh\n"}, run("b", "#!/bin/bash\n"))}, nil, []string{"/etc/dsas/services/a/run: not-executable", "/etc/dsas/services/b/run: interpreter-missing"}},
		{"one file by two names", []dsas.Part{base, dir.layer(t, run("a", "#!/bin/none\n"), tar.Header{Name: "etc/dsas/services/b/run", Typeflag: tar.TypeLink, Linkname: "./etc/dsas/services/a/run"})}, nil, []string{"/etc/dsas/services/a/run: interpreter-missing", "/etc/dsas/services/b/run: interpreter-missing"}},
	} {
		role.Allow = c.allow
		found, err := CheckServices(t.Context(), dir, role, c.parts)
		var got []string
		for _, f := range found {
			got = append(got, f.Path+": "+f.Rule)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: CheckServices = %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// TestCheckManyScripts: what is read of an image's services is bounded over all
// its layers, and what is not looked at is told.
func TestCheckManyScripts(t *testing.T) {
	dir := blobFolder(t.TempDir())
	const half = maxScripts / maxScript / 2
	layer := func(from, n int) dsas.Part {
		headers := []tar.Header{{Name: "etc/dsas/services/a/run", Mode: 0o755, Uname: "\x7fELF"}, {Name: "etc/dsas/services/a/large", Mode: 0o755, Uname: strings.Repeat("x", maxScript+1)}}
		for i := range n {
			headers = append(headers, tar.Header{Name: fmt.Sprintf("etc/dsas/services/a/data/%03d", from+i), Mode: 0o755, Uname: strings.Repeat("x", maxScript-8)})
		}
		return dir.layer(t, headers...)
	}
	role := dsas.Role{Name: "x", Services: []dsas.Service{{Name: "a"}}}
	for _, c := range []struct {
		name  string
		parts []dsas.Part
		want  []string
	}{
		{"what has room", []dsas.Part{layer(0, half), layer(half, half)}, nil},
		{"one more", []dsas.Part{layer(0, half), layer(half, half+1)}, []string{fmt.Sprintf("/etc/dsas/services/a/data/%03d: scripts-too-large", 2*half)}},
	} {
		found, err := CheckServices(t.Context(), dir, role, c.parts)
		var got []string
		for _, f := range found {
			got = append(got, f.Path+": "+f.Rule)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: CheckServices = %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}
