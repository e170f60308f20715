package main

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/capture"
	"dsas/imagebuild"
	"dsas/imagebuild/layers"
	"dsas/initramfs/rootfs"
	"dsas/internal/xattr"
	"dsas/roles"
	"dsas/server/blobs"
)

// nodeSSHD is an SSH server on 127.0.0.1 that lets everybody in and answers a
// command with what answer gives.
func nodeSSHD(t *testing.T, answer func(command string, stdin io.Reader) []byte) dsas.SSHInfo {
	t.Helper()
	port, key := listenSSH(t, func(_, command string, ch ssh.Channel) uint32 {
		ch.Write(answer(command, ch))
		return 0
	})
	return dsas.SSHInfo{Address: netip.MustParseAddr("127.0.0.1"), Port: port, HostKey: key}
}

// inTree runs what a node would, with a folder in the place of its root.
func inTree(t *testing.T, root string) func(command string, stdin io.Reader) []byte {
	return func(command string, stdin io.Reader) []byte {
		for _, top := range []string{"find /", "cd /", "-C /"} {
			command = strings.ReplaceAll(command, top+" ", strings.TrimSuffix(top, "/")+root+" ")
		}
		cmd := exec.Command("sh", "-c", command)
		if strings.Contains(command, " -0 ") || strings.Contains(command, "-T -") {
			cmd.Stdin = stdin
		}
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		return out
	}
}

// TestImageCapture is the command from ssh to the definition, with a real ssh,
// find, sha256sum and tar; and then with a node that lies.
func TestImageCapture(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		skipOrFail(t, "ssh is not installed")
	}
	t.Setenv("HOME", t.TempDir())
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	state := filepath.Dir(c.socket) // where newCLI has its images
	conf := filepath.Join(state, "dsas.yaml")
	own := filepath.Join(state, "roles")
	if err := os.WriteFile(conf, []byte("state: "+state+"\nroles: "+own+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	capt := func(args ...string) []string {
		return append([]string{"image", "capture", "w101", "--config", conf, "--no-build"}, args...)
	}
	c.fails(1, capt("--yes"), "no boot of it is known")

	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	text := (&carryTest{T: t}).shipped("files/etc/nginx/nginx.conf")
	if err := w.WriteHeader(&tar.Header{Name: "etc/nginx/nginx.conf", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d, n, err := c.releases.Put(t.Context(), &layer)
	if err != nil {
		t.Fatal(err)
	}
	part := dsas.Part{Digest: d, DiffID: d, Size: n, Title: "base", MediaType: "application/vnd.oci.image.layer.v1.tar"}
	rel, err := c.releases.AddRelease(t.Context(), dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "6.1", Kernel: part, Initramfs: part}, Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{part}}})
	if err != nil {
		t.Fatal(err)
	}
	mac, err := dsas.ParseMAC("52:54:00:00:01:01")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.CreateBoot(t.Context(), dsas.Boot{ID: "b1", Node: "w101", MAC: mac, Role: "web", Image: rel.ID, TokenHash: []byte("t"), Session: []byte("s")}); err != nil {
		t.Fatal(err)
	}

	// A node that lies about what it has, or sends something else.
	root := "d\x00755\x000\x000\x000\x001.0\x005\x00\x00\x00"
	entry := func(kind, name, link string) string {
		return strings.Join([]string{kind, "644", "0", "0", "3", "1.0", "5", name, link}, "\x00") + "\x00"
	}
	pack := func(h *tar.Header, content string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Size, h.Mode = int64(len(content)), 0o644
		w.WriteHeader(h)
		io.WriteString(w, content)
		w.Close()
		return b.Bytes()
	}
	good := root + entry("f", "etc/x", "")
	for name, lie := range map[string]struct {
		list  string
		attrs string
		tar   []byte
		says  string
	}{
		"dots":          {root + entry("f", "../../etc/x", ""), "", nil, "etc/x"},
		"below a link":  {root + entry("l", "etc", "/") + entry("f", "etc/x", ""), "", nil, "no folder"},
		"nothing":       {"", "", nil, "empty"},
		"no attributes": {good, "etc/x\x00user.a\x00", nil, "end in the middle"},
		"another file":  {good, "", pack(&tar.Header{Name: "../../../x"}, "abc"), "not asked for"},
		"a link":        {good, "", pack(&tar.Header{Name: "etc/x", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}, ""), "another type"},
		"no tar":        {good, "", []byte("abc"), "files"},
	} {
		info := nodeSSHD(t, func(command string, stdin io.Reader) []byte {
			switch command {
			case capture.ListCommand:
				return []byte(lie.list)
			case capture.AttrsCommand:
				return []byte(lie.attrs)
			}
			return lie.tar
		})
		c.ssh = func(dsas.Node) dsas.SSHInfo { return info }
		if r := c.runIn("", capt("--yes")...); r.code != 1 || !strings.Contains(r.errors, lie.says) {
			t.Errorf("capture of a node that sends %s = %d, %s; want 1, %q", name, r.code, r.errors, lie.says)
		}
		if _, err := os.Stat(own); err == nil {
			t.Fatalf("after %s, %s is there", name, own)
		}
	}

	tree := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("etc/nginx/nginx.conf", text)
	info := nodeSSHD(t, inTree(t, tree))
	c.ssh = func(dsas.Node) dsas.SSHInfo { return info }
	// The same content at another time: told apart by its digest.
	if out := c.ok(capt("--dry-run")...); strings.Contains(out, "content") {
		t.Errorf("an untouched nginx.conf is shown:\n%s", out)
	}
	changed := strings.ToUpper(text) // of the same size
	put("etc/nginx/nginx.conf", changed)
	put("etc/nginx/new.conf", "new")
	c.wantLine(c.ok(capt("--dry-run")...), "/etc/nginx/nginx.conf", "content")
	c.fails(2, capt(), "nobody is there to choose")
	c.fails(2, capt("--path", "/nowhere"), "/nowhere")
	c.wantLine(c.ok(capt("--path", "/etc/nginx/*.conf")...), "wrote", "web/files/etc/nginx/new.conf")
	for name, want := range map[string]string{"nginx.conf": changed, "new.conf": "new"} {
		if b, err := os.ReadFile(filepath.Join(own, "web/files/etc/nginx", name)); err != nil || string(b) != want {
			t.Errorf("%s = %.40q, %v; want the node's", name, b, err)
		}
	}

	// Attributes, all the way: set on the node, and there again on what a build
	// makes of the definition.
	put("usr/local/bin/sniff", "#!/bin/sh\n")
	sniff := filepath.Join(tree, "usr/local/bin/sniff")
	if err := os.Chmod(sniff, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("setcap", "cap_net_raw+ep", sniff).CombinedOutput(); err != nil {
		skipOrFail(t, "setcap: "+err.Error()+": "+string(out))
	}
	if err := unix.Lsetxattr(sniff, xattr.ACL, []byte(acl33), 0); err != nil {
		skipOrFail(t, "an ACL cannot be set here: "+err.Error())
	}
	want, err := xattr.Read(sniff)
	if err != nil {
		t.Fatal(err)
	}
	c.wantLine(c.ok(capt("--dry-run")...), "/usr/local/bin/sniff", "attribute security.capability added", "go to attributes")
	c.wantLine(c.ok(capt("--path", "/usr/local/bin/sniff")...), "wrote", "web/attributes")
	set, err := roles.Load(own)
	if err != nil {
		t.Fatal(err)
	}
	def, err := set.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	files, ok, err := imagebuild.RoleFiles(t.Context(), imagebuild.Options{Store: c.releases.Store, Cache: t.TempDir()}, imagebuild.Definition{Role: def.Role, FS: def.FS}, nil)
	if err != nil || !ok {
		t.Fatalf("RoleFiles = %v, %v", ok, err)
	}
	built := t.TempDir()
	options := rootfs.Options{Client: &http.Client{Transport: storeTransport{c.releases.Store}}, BaseURL: "http://store", Manifest: dsas.Manifest{Role: "web", Parts: []dsas.Part{files}}, Dest: built}
	if _, err := rootfs.Fetch(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	got, err := xattr.Read(filepath.Join(built, "usr/local/bin/sniff"))
	if err != nil || got != want || got.Map()[xattr.Capability] == "" {
		t.Errorf("the built sniff has %q, %v; want the node's %q", got.Map(), err, want.Map())
	}
	if st, err := os.Stat(filepath.Join(built, "usr/local/bin/sniff")); err != nil || st.Mode().Perm() != 0o775 {
		t.Errorf("the built sniff = %v, %v; want the mode of its ACL", st.Mode(), err)
	}
	// The release that was built of it and the node are the same.
	l, err := layers.Read(t.Context(), open(t, c.releases.Store, files.Digest))
	if err != nil {
		t.Fatal(err)
	}
	image := layers.NewTree()
	image.Apply(l)
	node, err := capture.ReadFolder(tree)
	if err != nil {
		t.Fatal(err)
	}
	release := capture.OfLayers(image)
	e := release["usr/local/bin/sniff"]
	e.MTime, e.UID, e.GID = node["usr/local/bin/sniff"].MTime, os.Getuid(), os.Getgid()
	if diff := capture.Compare(capture.Tree{"x": e}, capture.Tree{"x": node["usr/local/bin/sniff"]}, capture.Rules{}, nil); len(diff) != 0 {
		t.Errorf("after the build Compare tells %+v; want nothing", diff)
	}
}

// acl33 is u::rwx,u:33:rwx,g::r-x,m::rwx,o::r-x as setfacl writes it.
const acl33 = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x21\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"

func open(t *testing.T, s *blobs.Store, d dsas.Digest) io.Reader {
	t.Helper()
	f, _, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
