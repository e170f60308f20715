package xattr

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dsas"
)

// capNetRaw is cap_net_raw+ep as setcap writes it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl writes one in its form on disk; entries are tag, permissions, and an ID.
func acl(entries ...[3]uint32) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), byte(e[0]>>8), byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return string(b)
}

const none = 0xffffffff

// acl33 is u::rw-,u:33:rw-,g::r--,m::rw-,o::r--.
var acl33 = acl([3]uint32{aclUserObj, 6, none}, [3]uint32{0x02, 6, 33}, [3]uint32{aclGroupObj, 4, none}, [3]uint32{aclMask, 6, none}, [3]uint32{aclOther, 4, none})

func TestList(t *testing.T) {
	values := map[string]string{Capability: capNetRaw, "user.note": "a\x00b", "trusted.x": "1", "user.overlay.opaque": "y"}
	l := Of(values)
	if got := l.Map(); !reflect.DeepEqual(got, values) {
		t.Errorf("Of(%q).Map() = %q", values, got)
	}
	if got, want := l.Kept(), Of(map[string]string{Capability: capNetRaw, "user.note": "a\x00b"}); got != want {
		t.Errorf("Kept() = %q; want %q", got, want)
	}
	if got := OfPAX(l.Records()); got != l {
		t.Errorf("OfPAX(Records()) = %q; want %q", got, l)
	}
	if got := OfPAX(map[string]string{"path": "x"}); got != "" || got.Records() != nil {
		t.Errorf("OfPAX(no attribute) = %q, %v; want none", got, got.Records())
	}
	mode := acl([3]uint32{aclUserObj, 6, none}, [3]uint32{aclGroupObj, 4, none}, [3]uint32{aclOther, 4, none})
	if got := Of(map[string]string{ACL: mode}); got != "" {
		t.Errorf("Of(an ACL that is a mode) = %q; want none, as Linux keeps it", got)
	}
	if got, want := Of(map[string]string{"user.a": "1", "user.b": "1"}).Over(Of(map[string]string{"user.b": "0", "user.c": "0"})), Of(map[string]string{"user.a": "1", "user.b": "1", "user.c": "0"}); got != want {
		t.Errorf("Over = %q; want %q", got, want)
	}
}

func TestClass(t *testing.T) {
	for name, want := range map[string]string{
		Capability: Capability, ACL: "system.posix_acl_", DefaultACL: "system.posix_acl_", "user.x": "user.",
		"security.capabilityx": "", "security.selinux": "", "trusted.overlay.opaque": "", "user.overlay.opaque": "", "user": "", "": "",
	} {
		if got := Class(name); got != want {
			t.Errorf("Class(%q) = %q; want %q", name, got, want)
		}
	}
}

func TestMode(t *testing.T) {
	for name, c := range map[string]struct {
		attrs      map[string]string
		mode, want uint32
	}{
		"none":         {nil, 0o4755, 0o4755},
		"mask":         {map[string]string{ACL: acl33}, 0o2644, 0o2664},
		"no mask":      {map[string]string{ACL: acl([3]uint32{aclUserObj, 7, none}, [3]uint32{aclGroupObj, 5, none}, [3]uint32{aclOther, 0, none}, [3]uint32{0, 0, 0})}, 0o644, 0o750},
		"not an ACL":   {map[string]string{ACL: "x"}, 0o644, 0o644},
		"of a version": {map[string]string{ACL: "\x09\x00\x00\x00" + acl33[4:]}, 0o644, 0o644},
	} {
		if got := Of(c.attrs).Mode(c.mode); got != c.want {
			t.Errorf("%s: Mode(%o) = %o; want %o", name, c.mode, got, c.want)
		}
	}
}

func TestDump(t *testing.T) {
	files := map[string]List{
		"usr/bin/ping":    Of(map[string]string{Capability: capNetRaw}),
		`etc/back\slash`:  Of(map[string]string{"user.note": "hello", "user.quote": `"`, "user.empty": "", "user.bytes": "\xff\n", ACL: acl33}),
		"etc/with spaces": Of(map[string]string{"user.größe": "1"}),
		"etc/nothing":     "",
	}
	text := string(Dump(files))
	for _, want := range []string{"# file: usr/bin/ping\nsecurity.capability=0sAQAAAgAgAAAAAAAAAAAAAAAAAAA=\n", `# file: etc/back\134slash`, `user.note="hello"`, `user.quote=0sIg==`} {
		if !strings.Contains(text, want) {
			t.Errorf("Dump lacks %q:\n%s", want, text)
		}
	}
	delete(files, "etc/nothing")
	if got, err := ParseDump([]byte(text)); err != nil || !reflect.DeepEqual(got, files) {
		t.Errorf("ParseDump(Dump) = %q, %v; want %q", got, err, files)
	}
	// As getfattr may write it too.
	got, err := ParseDump([]byte("# a comment\r\n# file: /etc/a\\040b\nuser.x=\"\\\"\\101\\\\\"\nuser.y=0x6869\n"))
	if want := (map[string]List{"etc/a b": Of(map[string]string{"user.x": `"A\`, "user.y": "hi"})}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseDump of getfattr's = %q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{
		"user.x=\"1\"\n", "# file: ../etc\n", "# file: .\n", "# file: a\nsecurity.selinux=\"x\"\n", "# file: a\nuser.x\n", "# file: a\nuser.x=1\n",
		"# file: a\nuser.x=0xg\n", "# file: a\nuser.x=0s!\n", "# file: a\nuser.x=\"\\8\"\n", "# file: a\nuser.x=\"\"\nuser.x=\"\"\n",
		"# file: a\nuser.a\\b=\"\"\n", "# file: a\nuser.x=0x" + strings.Repeat("00", MaxValue+1),
	} {
		if got, err := ParseDump([]byte(bad)); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("ParseDump(%.60q) = %q, %v; want ErrInvalid with the line", bad, got, err)
		}
	}
}

func FuzzParseDump(f *testing.F) {
	f.Add([]byte("# file: usr/bin/ping\nsecurity.capability=0sAQAAAgAgAAAAAAAAAAAAAAAAAAA=\nuser.a=\"\\101\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := ParseDump(b)
		if err != nil {
			return
		}
		for file, l := range files {
			if strings.ContainsFunc(file, func(r rune) bool { return r < ' ' }) || l == "" {
				return // a definition has no such file; Dump leaves it out
			}
		}
		if again, err := ParseDump(Dump(files)); err != nil || !reflect.DeepEqual(again, files) {
			t.Errorf("ParseDump(Dump(%q)) = %q, %v", files, again, err)
		}
	})
}

// TestRead: what real files have, on whatever file system the test runs.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name, value := range map[string]string{"user.note": "hello", ACL: acl33, Capability: capNetRaw} {
		err := unix.Lsetxattr(file, name, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) != slices.Contains(Unheld(dir), Class(name)) {
			t.Errorf("Unheld = %q; setting %s: %v", Unheld(dir), name, err)
		}
		switch {
		case err == nil:
			want[name] = value
		case os.Getenv("DSAS_CI") != "":
			t.Errorf("%s cannot be set here: %v", name, err)
		default:
			t.Logf("%s cannot be set here: %v", name, err)
		}
	}
	if got, err := Read(file); err != nil || got != Of(want) {
		t.Errorf("Read = %q, %v; want %q", got.Map(), err, want)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := Of(want).Mode(0o644); got != uint32(st.Mode().Perm()) {
		t.Errorf("Mode = %o; the kernel says %o", got, st.Mode().Perm())
	}
	if got, err := Read(filepath.Join(dir, "l")); err != nil || got != "" {
		t.Errorf("Read of a link = %q, %v; want nothing of the file it leads to", got.Map(), err)
	}
}
