package rootfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/rootfs"
)

const mib = 1 << 20

func TestNeed(t *testing.T) {
	tarZstd := func(size, unpacked int64) dsas.Part {
		return dsas.Part{Size: size, Unpacked: unpacked, MediaType: dsas.MediaTarZstd}
	}
	for name, c := range map[string]struct {
		parts         []dsas.Part
		root, atLeast int64 // without what inodes take
	}{
		"all said":       {[]dsas.Part{tarZstd(16*mib, 48*mib), tarZstd(16*mib, 32*mib)}, 80 * mib, 80 * mib},
		"one not said":   {[]dsas.Part{tarZstd(16*mib, 48*mib), tarZstd(16*mib, 0)}, 112 * mib, 64 * mib},
		"none said":      {[]dsas.Part{tarZstd(16*mib, 0)}, 64 * mib, 16 * mib},
		"gzip, not said": {[]dsas.Part{{Size: 16 * mib, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}}, 64 * mib, 16 * mib},
		"plain tar":      {[]dsas.Part{{Size: 16 * mib, MediaType: "application/vnd.oci.image.layer.v1.tar"}}, 16 * mib, 16 * mib},
	} {
		d := rootfs.Need(dsas.Manifest{Memory: 5, Parts: c.parts})
		if want := (rootfs.Demand{Root: c.root / 16 * 17, AtLeast: c.atLeast / 16 * 17, Role: 5}); d != want {
			t.Errorf("%s: Need() = %+v; want %+v", name, d, want)
		}
		if d.Guessed() != (c.root != c.atLeast) {
			t.Errorf("%s: Guessed() = %v; want %v", name, d.Guessed(), c.root != c.atLeast)
		}
	}
}

func TestRoom(t *testing.T) {
	sure := rootfs.Demand{Root: 300 * mib, AtLeast: 300 * mib, Role: 200 * mib}
	small := rootfs.Demand{Root: 300 * mib, AtLeast: 300 * mib, Role: 10 * mib}
	guessed := rootfs.Demand{Root: 300 * mib, AtLeast: 75 * mib, Role: 200 * mib}
	for name, c := range map[string]struct {
		d         rootfs.Demand
		available int64
		limit     int64
		size      int64  // 0: refused
		says      string // warning or error
	}{
		"just enough":           {sure, 500, 0, 300, ""},
		"a mebibyte less":       {sure, 499, 0, 0, "500 MiB are needed (the root file system takes 300 MiB, its programs 200 MiB (memory in the role)) and 499 of the node's 1000 MiB are available: give the node 1 MiB more, or another role"},
		"fetching takes more":   {small, 363, 0, 0, "364 MiB are needed (the root file system takes 300 MiB, fetching it 64 MiB) and 363"},
		"programs' is kept":     {sure, 900, 0, 700, ""},
		"four fifths at most":   {small, 990, 0, 800, ""},
		"the role's own":        {sure, 900, 400, 400, ""},
		"the role's too small":  {sure, 900, 299, 0, "may have 299 MiB (rootSize) and its image takes 300 MiB: raise rootSize"},
		"guess fits":            {guessed, 500, 0, 300, ""},
		"guess may not":         {guessed, 499, 0, 299, "may not suffice: parts of the image do not say what they take; by their size it is about 300 MiB, which with what else is needed makes 500, and 499 MiB are available"},
		"not even the least":    {guessed, 274, 0, 0, "275 MiB are needed at least"},
		"guess over the role's": {guessed, 900, 200, 200, "it may have 200 MiB"},
	} {
		plan, err := rootfs.Room(c.d, rootfs.Memory{Total: 1000 * mib, Available: c.available * mib}, c.limit*mib)
		said := plan.Warning
		if err != nil {
			said = err.Error()
		}
		var m *rootfs.MemoryError
		if plan.Size != c.size*mib || (c.size == 0) != errors.As(err, &m) || !strings.Contains(said, c.says) || c.says == "" && said != "" {
			t.Errorf("%s: Room() = %d MiB, %q; want %d MiB (0: a MemoryError), %q", name, plan.Size/mib, said, c.size, c.says)
		}
	}
}

func TestReadMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meminfo")
	for text, want := range map[string]rootfs.Memory{
		"MemTotal:        2048 kB\nMemFree:          10 kB\nMemAvailable:    1024 kB\n": {Total: 2 * mib, Available: mib},
		"MemTotal:        2048 kB\n":                        {},
		"MemTotal:        2048 kB\nMemAvailable:    much\n": {},
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := rootfs.ReadMemory(file)
		if got != want || (err != nil) != (want == rootfs.Memory{}) {
			t.Errorf("ReadMemory(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	if m, err := rootfs.ReadMemory(""); err != nil || m.Available <= 0 || m.Total < m.Available {
		t.Errorf("ReadMemory(/proc/meminfo) = %+v, %v; want what the machine has", m, err)
	}
}

// The tmpfs has the size that was asked for, and holes in files stay holes in
// it: it takes memory in pieces larger than a page.
func TestMountTmpfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts want root")
	}
	dir := t.TempDir()
	if err := rootfs.MountTmpfs(dir, 96*mib); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Blocks)*st.Bsize != 96*mib {
		t.Errorf("the tmpfs has %d bytes, %v; want 96 MiB", int64(st.Blocks)*st.Bsize, err)
	}
	s := newShop(t)
	hole := strings.Repeat("\x00", 16*mib)
	part := s.add(t, tarOf(t, ent{name: "sparse", body: "begin" + hole + "middle" + hole + "end"}))
	if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, part)); err != nil {
		t.Fatal(err)
	}
	// A huge page for each of the three, where the kernel takes those.
	if st := lstat(t, dir, "sparse"); st.Blocks*512 > 6*mib {
		t.Errorf("a file of 32 MiB with 3 pages of content takes %d KiB; want its holes left out", st.Blocks/2)
	}
}
