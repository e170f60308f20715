package rootfs_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/rootfs"
)

// unpack applies layers to a new folder.
func unpack(t *testing.T, layers ...[]ent) (string, rootfs.Stats, error) {
	t.Helper()
	s, dir := newShop(t), dest(t)
	var parts []dsas.Part
	for _, l := range layers {
		parts = append(parts, s.add(t, tarOf(t, l...)))
	}
	stats, err := rootfs.Fetch(ctxFor(t), s.options(dir, parts...))
	return dir, stats, err
}

func mustUnpack(t *testing.T, layers ...[]ent) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners and device nodes want root")
	}
	dir, _, err := unpack(t, layers...)
	if err != nil {
		t.Fatalf("Fetch() = %v; want nil", err)
	}
	return dir
}

func lstat(t *testing.T, path ...string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(filepath.Join(path...), &st); err != nil {
		t.Fatalf("lstat %s: %v", filepath.Join(path...), err)
	}
	return st
}

func gone(t *testing.T, path ...string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(path...)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v); want it gone", filepath.Join(path...), err)
	}
}

func TestAttributes(t *testing.T) {
	at := time.Unix(1_600_000_000, 123_000_000)
	// cap_net_raw+ep, revision 2 (linux/capability.h, struct vfs_cap_data).
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir := mustUnpack(t, []ent{
		{name: "d/", typ: tar.TypeDir, mode: 0o1777, uid: 5, gid: 6, at: at},
		{name: "d/su", body: "x", mode: 0o4755, uid: 7, gid: 8, at: at, pax: map[string]string{}},
		{name: "d/cap", body: "x", mode: 0o755, at: at, pax: map[string]string{"SCHILY.xattr.security.capability": caps}},
		{name: "d/link", typ: tar.TypeSymlink, link: "su", uid: 9, gid: 10, at: at},
		{name: "d/hard", typ: tar.TypeLink, link: "d/su"},
		{name: "d/null", typ: tar.TypeChar, mode: 0o666, major: 1, minor: 3, uid: 11, at: at},
		{name: "d/disk", typ: tar.TypeBlock, mode: 0o660, major: 8, minor: 1},
		{name: "d/fifo", typ: tar.TypeFifo, mode: 0o600},
		{name: "implied/by/file", body: "x"},
		{name: "/absolute", body: "inside"},
		{name: "setgid/", typ: tar.TypeDir, mode: 0o2775, gid: 50},
		{name: "setgid/f", body: "x", gid: 0},
		{name: "user-xattr", body: "x", pax: map[string]string{"SCHILY.xattr.user.note": "hello"}},
	})
	for path, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{
		"d":               {unix.S_IFDIR | 0o1777, 5, 6},
		"d/su":            {unix.S_IFREG | 0o4755, 7, 8},
		"d/link":          {unix.S_IFLNK | 0o777, 9, 10},
		"d/null":          {unix.S_IFCHR | 0o666, 11, 0},
		"d/disk":          {unix.S_IFBLK | 0o660, 0, 0},
		"d/fifo":          {unix.S_IFIFO | 0o600, 0, 0},
		"implied":         {unix.S_IFDIR | 0o755, 0, 0},
		"implied/by/file": {unix.S_IFREG | 0o644, 0, 0},
		"setgid":          {unix.S_IFDIR | 0o2775, 0, 50},
		"setgid/f":        {unix.S_IFREG | 0o644, 0, 0},
	} {
		if st := lstat(t, dir, path); st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: mode %o owner %d:%d; want %o %d:%d", path, st.Mode, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
	}
	// The folder's time too, although files were made in it after its entry.
	for _, path := range []string{"d", "d/link", "d/cap", "d/null"} {
		// ustar has whole seconds; only PAX entries carry more.
		if st := lstat(t, dir, path); st.Mtim.Sec != at.Unix() {
			t.Errorf("%s: mtime %d; want %d", path, st.Mtim.Sec, at.Unix())
		}
	}
	if a, b := lstat(t, dir, "d/su"), lstat(t, dir, "d/hard"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("d/hard has inode %d, links %d; want d/su's %d and 2", b.Ino, b.Nlink, a.Ino)
	}
	if st := lstat(t, dir, "d/null"); unix.Major(st.Rdev) != 1 || unix.Minor(st.Rdev) != 3 {
		t.Errorf("d/null is device %d:%d; want 1:3", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(dir, "d/cap"), "security.capability", buf)
	if err != nil || string(buf[:n]) != caps {
		t.Errorf("security.capability = %x, %v; want %x", buf[:max(n, 0)], err, caps)
	}
	if got := read(t, dir, "absolute"); got != "inside" {
		t.Errorf("/absolute = %q; want it inside the tree", got)
	}
}

func TestSparse(t *testing.T) {
	body := strings.Repeat("a", 5000) + strings.Repeat("\x00", 1<<20) + "end"
	dir := mustUnpack(t, []ent{{name: "sparse", body: body}, {name: "hollow", size: 3<<20 + 5}})
	if got := read(t, dir, "sparse"); got != body {
		t.Error("content of a sparse file differs")
	}
	if st := lstat(t, dir, "sparse"); st.Blocks*512 > 64<<10 {
		t.Errorf("sparse takes %d bytes; want its holes left out", st.Blocks*512)
	}
	if st := lstat(t, dir, "hollow"); st.Size != 3<<20+5 || st.Blocks*512 > 64<<10 {
		t.Errorf("hollow has size %d and takes %d; want %d and next to nothing", st.Size, st.Blocks*512, 3<<20+5)
	}
}

func TestWhiteouts(t *testing.T) {
	lower := []ent{
		{name: "d/gone", body: "x"}, {name: "d/stays", body: "x"}, {name: "d/sub/deep/f", body: "x"},
		{name: "opq/a", body: "x"}, {name: "opq/sub/b", body: "x"}, {name: "opq/both", body: "lower"},
		{name: "sym", typ: tar.TypeSymlink, link: "d"},
		{name: "real/f", body: "x"}, {name: "alias", typ: tar.TypeSymlink, link: "real"},
	}
	dir := mustUnpack(t, lower, []ent{
		{name: "d/.wh.gone"}, {name: "d/.wh.sub"}, {name: "d/.wh.never-was"}, {name: "nowhere/.wh.x"},
		// The opaque mark may stand anywhere among this layer's own entries.
		{name: "opq/new", body: "new"}, {name: "opq/both", body: "upper"}, {name: "opq/kept/c", body: "c"},
		{name: "opq/.wh..wh..opq"},
		{name: "opq/late", body: "late"},
		// A layer's own entry outlives its whiteout, whichever comes first.
		{name: "self", body: "self"}, {name: ".wh.self"},
		{name: ".wh.sym"}, {name: "sym/now-a-folder", body: "x"},
		{name: ".wh..wh.plnk/", typ: tar.TypeDir}, // aufs's own
	})
	gone(t, dir, "d/gone")
	gone(t, dir, "d/sub")
	gone(t, dir, "opq/a")
	gone(t, dir, "opq/sub")
	gone(t, dir, "nowhere")
	gone(t, dir, "d/now-a-folder")
	for path, want := range map[string]string{"d/stays": "x", "opq/new": "new", "opq/both": "upper", "opq/kept/c": "c",
		"opq/late": "late", "self": "self", "sym/now-a-folder": "x", "real/f": "x"} {
		if got := read(t, dir, path); got != want {
			t.Errorf("%s = %q; want %q", path, got, want)
		}
	}
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if strings.HasPrefix(filepath.Base(path), ".wh.") {
			t.Errorf("%s was made; want no whiteout in the tree", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestKindsReplaceEachOther(t *testing.T) {
	dir := mustUnpack(t, []ent{
		{name: "file-to-dir", body: "x"}, {name: "dir-to-file/a/b", body: "x"}, {name: "dir-to-link/a", body: "x"},
		{name: "link-to-file", typ: tar.TypeSymlink, link: "target"}, {name: "target", body: "target"},
		{name: "dangling", typ: tar.TypeSymlink, link: "nothing"},
		{name: "dir/", typ: tar.TypeDir, mode: 0o700}, {name: "dir/kept", body: "x"},
		{name: "h1", body: "one"}, {name: "h2", typ: tar.TypeLink, link: "h1"},
		{name: "usr/lib/x", body: "x"}, {name: "lib", typ: tar.TypeSymlink, link: "usr/lib"},
		{name: "lib64", typ: tar.TypeSymlink, link: "/usr/lib"}, // absolute: inside the tree
		{name: "really", typ: tar.TypeSymlink, link: "usr"},
	}, []ent{
		{name: "file-to-dir/", typ: tar.TypeDir}, {name: "file-to-dir/f", body: "new"},
		{name: "dir-to-file", body: "now a file"},
		{name: "dir-to-link", typ: tar.TypeSymlink, link: "dir"},
		{name: "link-to-file", body: "own"},
		{name: "dangling/", typ: tar.TypeDir},
		{name: "dir/", typ: tar.TypeDir, mode: 0o750},
		{name: "h1", body: "other"},
		{name: "h2", typ: tar.TypeLink, link: "h2"}, // onto itself
		{name: "lib/", typ: tar.TypeDir, mode: 0o700}, {name: "lib/new", body: "via link"},
		{name: "lib64/", typ: tar.TypeDir}, {name: "lib64/new64", body: "via absolute link"},
		{name: ".wh.really"}, {name: "really/", typ: tar.TypeDir}, {name: "really/f", body: "own folder"},
	})
	for path, want := range map[string]string{
		"file-to-dir/f": "new", "dir-to-file": "now a file", "dir-to-link/kept": "x", "link-to-file": "own", "target": "target",
		"h1": "other", "h2": "one", "usr/lib/new": "via link", "usr/lib/new64": "via absolute link", "really/f": "own folder", "dir/kept": "x",
	} {
		if got := read(t, dir, path); got != want {
			t.Errorf("%s = %q; want %q", path, got, want)
		}
	}
	for path, want := range map[string]uint32{"lib": unix.S_IFLNK, "lib64": unix.S_IFLNK, "dangling": unix.S_IFDIR, "really": unix.S_IFDIR} {
		if st := lstat(t, dir, path); st.Mode&unix.S_IFMT != want {
			t.Errorf("%s has type %o; want %o", path, st.Mode&unix.S_IFMT, want)
		}
	}
	if st := lstat(t, dir, "dir"); st.Mode&0o777 != 0o750 {
		t.Errorf("dir has mode %o; want the later layer's 750", st.Mode&0o777)
	}
	if st := lstat(t, dir, "usr/lib"); st.Mode&0o777 != 0o755 {
		t.Errorf("usr/lib has mode %o; want it untouched by the entry lib/", st.Mode&0o777)
	}
}

// Each tries to reach a file outside the tree. It may be refused or land inside.
func TestHostileTarsStayInside(t *testing.T) {
	outside := dest(t) // on the same file system: a hard link could reach it
	secret := filepath.Join(outside, "secret")
	up := strings.Repeat("../", 20)
	for name, ents := range map[string][]ent{
		"dot dot":            {{name: up + secret, body: "evil"}},
		"dot dot in between": {{name: "a/../../../../../../../.." + secret, body: "evil"}},
		"absolute":           {{name: secret, body: "evil"}},
		"through link":       {{name: "esc", typ: tar.TypeSymlink, link: outside}, {name: "esc/secret", body: "evil"}},
		"through relative link": {{name: "esc", typ: tar.TypeSymlink, link: up + outside},
			{name: "esc/secret", body: "evil"}},
		"through two links": {{name: "up", typ: tar.TypeSymlink, link: ".."}, {name: "esc", typ: tar.TypeSymlink, link: "up/up/up/up" + outside},
			{name: "esc/secret", body: "evil"}},
		"through the file's own link": {{name: "f", typ: tar.TypeSymlink, link: secret}, {name: "f", body: "evil"}},
		"through magic link":          {{name: "esc", typ: tar.TypeSymlink, link: "/proc/self/cwd"}, {name: "esc/secret", body: "evil"}},
		"folder onto link":            {{name: "esc", typ: tar.TypeSymlink, link: outside}, {name: "esc/", typ: tar.TypeDir, mode: 0o777}},
		"mode through link":           {{name: "esc", typ: tar.TypeSymlink, link: secret, mode: 0o777, uid: 12345}},
		"hard link absolute":          {{name: "h", typ: tar.TypeLink, link: secret}, {name: "h", body: "evil"}},
		"hard link dot dot":           {{name: "h", typ: tar.TypeLink, link: up + secret}},
		"hard link through link": {{name: "esc", typ: tar.TypeSymlink, link: outside},
			{name: "h", typ: tar.TypeLink, link: "esc/secret"}},
		"hard link to link, then write": {{name: "s", typ: tar.TypeSymlink, link: secret}, {name: "h", typ: tar.TypeLink, link: "s"},
			{name: "h", body: "evil"}},
		"whiteout through link": {{name: "esc", typ: tar.TypeSymlink, link: outside}, {name: "esc/.wh.secret"}},
		"opaque through link":   {{name: "esc", typ: tar.TypeSymlink, link: outside}, {name: "esc/.wh..wh..opq"}},
		"whiteout dot dot":      {{name: ".wh..."}, {name: ".wh..."}, {name: "a/.wh..."}},
		"xattr through link": {{name: "esc", typ: tar.TypeSymlink, link: secret,
			pax: map[string]string{"SCHILY.xattr.trusted.evil": "1"}}},
		"node through link": {{name: "esc", typ: tar.TypeSymlink, link: outside}, {name: "esc/dev", typ: tar.TypeChar, major: 1, minor: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(secret, []byte("secret"), 0o640); err != nil {
				t.Fatal(err)
			}
			before := lstat(t, secret)
			// As a second layer too: whiteouts mean something there only.
			dir, _, err := unpack(t, []ent{{name: "base", body: "x"}}, ents)
			t.Logf("Fetch() = %v", err)
			if got := read(t, secret); got != "secret" {
				t.Errorf("outside file = %q; want it untouched", got)
			}
			after := lstat(t, secret)
			if before.Ctim != after.Ctim || after.Nlink != 1 {
				t.Errorf("outside file was touched: %+v, before %+v", after, before)
			}
			if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
				t.Errorf("outside folder holds %v, %v; want the secret alone", names, err)
			}
			if err != nil {
				checkEmpty(t, dir)
			}
		})
	}
}

// What no honest tar has is refused by name, and nothing of the image stays.
func TestRefusedEntries(t *testing.T) {
	for name, ents := range map[string][]ent{
		"dot dot":             {{name: "ok", body: "x"}, {name: "../x", body: "x"}},
		"hard link dot dot":   {{name: "h", typ: tar.TypeLink, link: "../x"}},
		"hard link missing":   {{name: "h", typ: tar.TypeLink, link: "missing"}},
		"hard link to folder": {{name: "d/", typ: tar.TypeDir}, {name: "h", typ: tar.TypeLink, link: "d"}},
		"root as file":        {{name: ".", body: "x"}},
		"below a file":        {{name: "f", body: "x"}, {name: "f/g", body: "x"}},
		"link circle":         {{name: "a", typ: tar.TypeSymlink, link: "b"}, {name: "b", typ: tar.TypeSymlink, link: "a"}, {name: "a/f", body: "x"}},
		"unknown type":        {{name: "x", typ: 'Z'}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, err := unpack(t, ents)
			var content *rootfs.ContentError
			if !errors.As(err, &content) {
				t.Fatalf("Fetch() = %v; want a ContentError", err)
			}
			checkEmpty(t, dir)
		})
	}
}

func TestManyFolders(t *testing.T) {
	var ents []ent
	for i := range 300 {
		ents = append(ents, ent{name: fmt.Sprintf("d%d/%s/f", i%150, strings.Repeat("x/", i%7)), body: fmt.Sprint(i)})
	}
	ents = append(ents, ent{name: strings.Repeat("deep/", 500) + "f", body: "deep"})
	dir := mustUnpack(t, ents)
	if got := read(t, dir, strings.Repeat("deep/", 500)+"f"); got != "deep" {
		t.Errorf("the deep file = %q; want deep", got)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(open) > 60 {
		t.Errorf("%d descriptors open after Fetch (%v); want them closed", len(open), err)
	}
}

func TestNoRoomIsNoBadPart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts want root")
	}
	dir := t.TempDir()
	if err := rootfs.MountTmpfs(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := newShop(t)
	part := s.add(t, tarOf(t, ent{name: "f", body: noise(2 << 20)}))
	_, err := rootfs.Fetch(context.Background(), s.options(dir, part))
	if !errors.Is(err, unix.ENOSPC) || rootfs.BadPart(err) {
		t.Errorf("Fetch() into a small tmpfs = %v; want no space, which is no bad part", err)
	}
	checkEmpty(t, dir)
}

// GNU tar's own sparse entries, in its three formats.
func TestSparseEntries(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, 5<<20 + 17} {
		if _, err := f.WriteAt([]byte("content"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(8<<20), f.Close(), os.WriteFile(filepath.Join(src, "zlast"), []byte("after it"), 0o644)); err != nil {
		t.Fatal(err)
	}
	want := read(t, src, "sparse")
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		tarred, err := exec.Command("tar", append(format, "--sparse", "-C", src, "-c", "sparse", "zlast")...).Output()
		if err != nil || len(tarred) > 1<<20 {
			t.Fatalf("tar %v: %d bytes, %v; want a sparse archive", format, len(tarred), err)
		}
		s, dir := newShop(t), dest(t)
		if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, s.add(t, tarred))); err != nil {
			t.Fatalf("tar %v: Fetch() = %v", format, err)
		}
		if st := lstat(t, dir, "sparse"); read(t, dir, "sparse") != want || st.Blocks*512 > 64<<10 || read(t, dir, "zlast") != "after it" {
			t.Errorf("tar %v: sparse differs, or takes %d bytes, or what follows is lost", format, st.Blocks*512)
		}
	}
}
