package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// need skips, or in CI fails, a test that lacks something.
func need(t *testing.T, have bool, what string) {
	t.Helper()
	if have {
		return
	}
	if os.Getenv("DSAS_CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		_, err := exec.LookPath(n)
		need(t, err == nil, n+" is missing")
	}
}

// inNamespace runs the rest of the calling test in a process with a mount
// namespace of its own. It returns true there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("DSAS_TEST_NAMESPACE") != "" {
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Fatalf("prepare namespace: %v", err)
		}
		return true
	}
	need(t, os.Getuid() == 0, "mounting needs root")
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), "DSAS_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespace: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("in namespace: %s", out)
	}
	return false
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// image makes a sparse file of that many bytes.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// loop makes a block device of an image.
func loop(t *testing.T, path string) string {
	t.Helper()
	dev := strings.TrimSpace(run(t, "losetup", "--find", "--show", path))
	t.Cleanup(func() { exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

func put(t *testing.T, path string, off int64, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(data), off); err != nil {
		t.Fatal(err)
	}
}

const (
	diskSize = 64 << 20
	xfsSize  = 320 << 20 // mkfs.xfs takes nothing below 300 MiB
)

// TestProbeRealTools has the formats' own tools write, and compares with what
// blkid says where it knows.
func TestProbeRealTools(t *testing.T) {
	needTools(t, "mkfs.ext4", "mkfs.xfs", "mkswap", "sfdisk", "blkid")
	cases := []struct {
		name  string
		cmd   []string
		stdin string
		kind  Kind
		typ   string
	}{
		{"ext2", []string{"mkfs.ext2", "-q", "-L", "old"}, "", KindFS, "ext2"},
		{"ext3", []string{"mkfs.ext3", "-q"}, "", KindFS, "ext3"},
		{"ext4", []string{"mkfs.ext4", "-q", "-L", "my data"}, "", KindFS, "ext4"},
		{"journal", []string{"mke2fs", "-q", "-O", "journal_dev"}, "", KindFS, "jbd"},
		{"xfs", []string{"mkfs.xfs", "-q", "-L", "xdata"}, "", KindFS, "xfs"},
		{"swap", []string{"mkswap", "-L", "sw"}, "", KindSwap, "swap"},
		{"gpt", []string{"sfdisk", "-q"}, "label: gpt\n,\n", KindPartition, "gpt"},
		{"empty gpt", []string{"sfdisk", "-q"}, "label: gpt\n", KindPartition, "gpt"},
		{"dos", []string{"sfdisk", "-q"}, "label: dos\n,\n", KindPartition, "dos"},
		{"empty dos", []string{"sfdisk", "-q"}, "label: dos\n", KindPartition, "dos"},
		{"sun", []string{"sfdisk", "-q"}, "label: sun\n", KindPartition, "sun"},
		{"sgi", []string{"sfdisk", "-q"}, "label: sgi\n", KindPartition, "sgi"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			size := int64(diskSize)
			if c.typ == "xfs" {
				size = xfsSize
			}
			path := image(t, size)
			cmd := exec.Command(c.cmd[0], append(c.cmd[1:], path)...)
			cmd.Stdin = strings.NewReader(c.stdin)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", c.cmd, err, out)
			}
			got, err := Probe(path)
			if err != nil || got.Kind != c.kind || got.Type != c.typ {
				t.Fatalf("Probe = %+v, %v; want %s %s", got, err, c.typ, c.kind)
			}
			if got.Size != size {
				t.Errorf("Probe: size %d; want %d", got.Size, size)
			}
			if c.kind != KindFS && c.kind != KindSwap {
				return
			}
			for key, have := range map[string]string{"UUID": got.UUID, "LABEL": got.Label} {
				out, _ := exec.Command("blkid", "-p", "-o", "value", "-s", key, path).Output()
				if want := strings.TrimSpace(string(out)); have != want {
					t.Errorf("Probe: %s %q; blkid says %q", key, have, want)
				}
			}
		})
	}
}

// TestProbeBackupGPT: a disk whose beginning was wiped still has a partition
// table at its end.
func TestProbeBackupGPT(t *testing.T) {
	needTools(t, "sfdisk")
	path := image(t, diskSize)
	cmd := exec.Command("sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader("label: gpt\n,\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	put(t, path, 0, strings.Repeat("\x00", area))
	got, err := Probe(path)
	if err != nil || got.Kind != KindPartition || got.Type != "gpt" {
		t.Errorf("Probe = %+v, %v; want a gpt", got, err)
	}
}

func TestProbeMagics(t *testing.T) {
	const size = 64 << 20
	cases := []struct {
		off   int64
		magic string
		kind  Kind
		typ   string
	}{
		{0, "LUKS\xba\xbe\x00\x02", KindEncrypted, "LUKS"},
		{512, "LABELONE", KindLVM, "LVM2"},
		{0, "\xfc\x4e\x2b\xa9", KindRAID, "md"},
		{4096, "\xfc\x4e\x2b\xa9", KindRAID, "md"},
		{size - 8192, "\xfc\x4e\x2b\xa9", KindRAID, "md"},
		{size - 65536, "\xfc\x4e\x2b\xa9", KindRAID, "md"},
		{size - 1024, "Intel Raid ISM Cfg Sig. 1.3", KindRAID, "Intel"},
		{65536 + 64, "_BHRfS_M", KindFS, "btrfs"},
		{128 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00", KindFS, "zfs"},
		{32769, "CD001", KindFS, "iso9660"},
		{3, "NTFS    ", KindFS, "ntfs"},
		{65536 - 10, "SWAPSPACE2", KindSwap, "swap"},
		{510, "\x55\xaa", KindPartition, "dos"},
		{0, "InnoDB?", KindData, ""},
		{size / 2, "in the middle", KindBlank, ""}, // not looked at
		{area - 1, "x", KindData, ""},
		{size - area, "x", KindData, ""},
		{size - 1, "\x01", KindData, ""},
	}
	for _, c := range cases {
		path := image(t, size)
		put(t, path, c.off, c.magic)
		got, err := Probe(path)
		if err != nil || got.Kind != c.kind || got.Type != c.typ {
			t.Errorf("Probe with %q at %d = %+v, %v; want %s %q", c.magic, c.off, got, err, c.kind, c.typ)
		}
	}
	if got, err := Probe(image(t, size)); err != nil || !got.Blank() {
		t.Errorf("Probe(zeroes) = %+v, %v; want blank", got, err)
	}
	if got, err := Probe(image(t, 1000)); err != nil || !got.Blank() {
		t.Errorf("Probe(1000 bytes) = %+v, %v; want blank", got, err)
	}
	if _, err := Probe(image(t, 0)); err == nil {
		t.Error("Probe(empty): no error; want one: nothing is not blank")
	}
	if _, err := Probe(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Probe(no file): %v; want ErrNotExist", err)
	}
}

// imageRoot makes a root like a role's, with this machine's tools in it.
func imageRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"usr", "etc", "dev", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("/usr", filepath.Join(root, "usr"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(root, "usr"), unix.MNT_DETACH) })
	for name, text := range map[string]string{"passwd": "root:x:0:0::/:\nmysql:x:107:113::/:\n", "group": "root:x:0:\nmysql:x:113:\n"} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestMount(t *testing.T) {
	needTools(t, "mkfs.ext4", "losetup", "e2fsck")
	if !inNamespace(t) {
		return
	}
	root := imageRoot(t)
	dev := loop(t, image(t, diskSize))
	wish := dsas.Device{Key: "DBDEVICE", Mount: "/var/lib/mysql", FS: "ext4", Owner: "mysql:mysql"}
	m := Mounter{Root: root}
	if _, err := m.Mount(t.Context(), wish, dev); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "blank") {
		t.Fatalf("Mount of a blank disk without leave to format: %v; want ErrConflict and the word blank", err)
	}
	wish.Format = true
	res, err := m.Mount(t.Context(), wish, dev)
	if err != nil {
		t.Fatalf("Mount: %v", err)
	}
	if !res.Made || res.Content.Type != "ext4" || res.Content.Label != "DBDEVICE" {
		t.Errorf("Mount = %+v; want an ext4 made, labelled DBDEVICE", res)
	}
	mnt := filepath.Join(root, "var/lib/mysql")
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	var st unix.Stat_t
	if err := unix.Stat(mnt, &st); err != nil || st.Uid != 107 || st.Gid != 113 {
		t.Errorf("owner of the mount = %d:%d, %v; want mysql's 107:113", st.Uid, st.Gid, err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "row"), []byte("still here"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Again while mounted: nothing happens.
	if res, err := m.Mount(t.Context(), wish, dev); err != nil || res.Made {
		t.Errorf("Mount again = %+v, %v; want nothing made", res, err)
	}
	// Elsewhere while mounted: in use.
	other := wish
	other.Mount = "/var/lib/other"
	if _, err := m.Mount(t.Context(), other, dev); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Mount of a mounted disk elsewhere: %v; want ErrConflict, in use", err)
	}
	// The next boot: what was written is there.
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	res, err = m.Mount(t.Context(), wish, dev)
	if err != nil || res.Made {
		t.Fatalf("Mount at the next boot = %+v, %v; want it as it is", res, err)
	}
	if b, err := os.ReadFile(filepath.Join(mnt, "row")); string(b) != "still here" {
		t.Errorf("row = %q, %v; want what was written", b, err)
	}
	if !strings.Contains(fmt.Sprint(res), "64 MiB ext4") || !strings.Contains(fmt.Sprint(res), "/var/lib/mysql") {
		t.Errorf("String() = %s; want size, file system and mount", res)
	}
	// By what is on it.
	for _, name := range []string{"/dev/disk/by-uuid/" + res.Content.UUID, "/dev/disk/by-label/DBDEVICE"} {
		if got, err := (Finder{Sys: "/sys", Dev: "/dev"}).Find(name); err != nil || "/dev/"+got != dev {
			t.Errorf("Find(%s) = %s, %v; want %s", name, got, err, dev)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(root, "dev")); err != nil || len(entries) > 0 {
		t.Errorf("dev of the root: %d entries, %v; want the binding gone", len(entries), err)
	}
}

// TestMountRefuses checks that a disk that is not blank stays as it is, byte
// for byte, whatever the role allows.
func TestMountRefuses(t *testing.T) {
	needTools(t, "mkfs.ext4", "mkfs.xfs", "mkswap", "sfdisk", "losetup")
	if !inNamespace(t) {
		return
	}
	root := imageRoot(t)
	cases := []struct {
		name, want string
		prepare    func(path string)
	}{
		{"xfs", "an xfs file system", func(p string) { run(t, "mkfs.xfs", "-q", p) }},
		{"swap", "swap", func(p string) { run(t, "mkswap", p) }},
		{"ext3", "an ext3 file system", func(p string) { run(t, "mkfs.ext3", "-q", p) }},
		{"LVM", "LVM2 LVM volume", func(p string) { put(t, p, 512, "LABELONE") }},
		{"md", "md RAID member", func(p string) { put(t, p, diskSize-65536, "\xfc\x4e\x2b\xa9") }},
		{"partitions", "partition", func(p string) {
			cmd := exec.Command("sfdisk", "-q", p)
			cmd.Stdin = strings.NewReader("label: gpt\n,\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sfdisk: %v\n%s", err, out)
			}
		}},
		{"data", "unknown data", func(p string) { put(t, p, 300000, "precious") }},
		{"data at the end", "unknown data", func(p string) { put(t, p, diskSize-9, "precious") }},
	}
	for _, c := range cases {
		size := int64(diskSize)
		if c.name == "xfs" {
			size = xfsSize
		}
		path := image(t, size)
		c.prepare(path)
		before := run(t, "sha256sum", path)
		dev := loop(t, path)
		wish := dsas.Device{Key: "DBDEVICE", Mount: "/var/lib/mysql", FS: "ext4", Format: true}
		res, err := Mounter{Root: root}.Mount(t.Context(), wish, dev)
		if !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dev) || res.Made {
			t.Errorf("%s: Mount = %+v, %v; want ErrConflict with %q and %s", c.name, res, err, c.want, dev)
		}
		run(t, "losetup", "--detach", dev)
		if after := run(t, "sha256sum", path); after != before {
			t.Errorf("%s: the disk was written to", c.name)
		}
	}
	// A read-only disk, a tool that the image lacks, a file system of fantasy,
	// a disk that is not there.
	ro := strings.TrimSpace(run(t, "losetup", "--read-only", "--find", "--show", image(t, diskSize)))
	t.Cleanup(func() { exec.Command("losetup", "--detach", ro).Run() })
	blank := loop(t, image(t, diskSize))
	empty := t.TempDir()
	more := []struct {
		root, fs, mount, dev string
		want                 error
		text                 string
	}{
		{root, "ext4", "/data", ro, dsas.ErrConflict, "read-only"},
		{empty, "ext4", "/data", blank, dsas.ErrNotFound, "mkfs.ext4 is not in the role's image"},
		{root, "reiser5", "/data", blank, dsas.ErrInvalid, "use ext4"},
		{root, "ext4", "data", blank, dsas.ErrInvalid, "absolute path"},
		{root, "ext4", "/", blank, dsas.ErrInvalid, "absolute path"},
		{root, "ext4", "/data", "/dev/disk/by-id/nothing", dsas.ErrNotFound, "this node has"},
		{root, "ext4", "/data", "/etc/passwd", dsas.ErrInvalid, "/dev/"},
	}
	for _, c := range more {
		m := Mounter{Root: c.root, Wait: 200 * time.Millisecond}
		_, err := m.Mount(t.Context(), dsas.Device{Key: "DBDEVICE", Mount: c.mount, FS: c.fs, Format: true}, c.dev)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("Mount(%s on %s, %s): %v; want %v with %q", c.dev, c.mount, c.fs, err, c.want, c.text)
		}
	}
	if got, err := Probe(blank); err != nil || !got.Blank() {
		t.Errorf("Probe(%s) = %+v, %v; want it still blank", blank, got, err)
	}
}

// TestMountWaits has the disk appear while Mount waits for it.
func TestMountWaits(t *testing.T) {
	needTools(t, "mkfs.ext4", "losetup")
	if !inNamespace(t) {
		return
	}
	root := imageRoot(t)
	path := image(t, diskSize)
	dev := strings.TrimSpace(run(t, "losetup", "--find"))
	done := make(chan error, 1)
	go func() {
		m := Mounter{Root: root, Wait: time.Minute}
		res, err := m.Mount(t.Context(), dsas.Device{Key: "FSDEVICE", Mount: "/srv", FS: "ext4", Format: true}, dev)
		if err == nil && !res.Made {
			err = fmt.Errorf("%+v; want it made", res)
		}
		done <- err
	}()
	run(t, "losetup", dev, path)
	t.Cleanup(func() {
		unix.Unmount(filepath.Join(root, "srv"), unix.MNT_DETACH)
		exec.Command("losetup", "--detach", dev).Run()
	})
	if err := <-done; err != nil {
		t.Errorf("Mount: %v", err)
	}
}

// TestNames builds the part of a node's sysfs that names come from.
func TestNames(t *testing.T) {
	sys := t.TempDir()
	mk := func(path string, attrs map[string]string) {
		t.Helper()
		full := filepath.Join(sys, path)
		if err := os.MkdirAll(full, 0o755); err != nil {
			t.Fatal(err)
		}
		for k, v := range attrs {
			if k == "subsystem" {
				if err := os.Symlink("/sys/bus/"+v, filepath.Join(full, k)); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(full, k)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(full, k), []byte(v), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	class := func(name, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, "class/block"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, path), filepath.Join(sys, "class/block", name)); err != nil {
			t.Fatal(err)
		}
	}
	identify := func(model, serial string) string {
		b := make([]byte, 60+512)
		set := func(word, n int, s string) {
			for i := range n {
				c := byte(' ')
				if i < len(s) {
					c = s[i]
				}
				b[60+2*word+(i^1)] = c
			}
		}
		set(10, 20, serial)
		set(27, 40, model)
		return string(b)
	}
	const pci = "devices/pci0000:00/"
	mk(pci+"0000:00:05.0", map[string]string{"subsystem": "pci"})
	mk(pci+"0000:00:05.0/virtio2", map[string]string{"subsystem": "virtio"})
	mk(pci+"0000:00:05.0/virtio2/block/vda", map[string]string{"size": "2048", "serial": "DB 1", "subsystem": "block"})
	mk(pci+"0000:00:05.0/virtio2/block/vda/vda2", map[string]string{"size": "1024", "partition": "2", "subsystem": "block"})
	mk(pci+"0000:01:00.0", map[string]string{"subsystem": "pci"})
	mk(pci+"0000:01:00.0/nvme/nvme0", map[string]string{"subsystem": "nvme", "serial": "S4EV  ", "model": "Fast SSD   "})
	mk(pci+"0000:01:00.0/nvme/nvme0/nvme0n1", map[string]string{"size": "2048", "nsid": "1", "wwid": "eui.0025385b", "subsystem": "block",
		"device/serial": "S4EV  ", "device/model": "Fast SSD   "})
	mk(pci+"0000:00:1f.2", map[string]string{"subsystem": "pci"})
	mk(pci+"0000:00:1f.2/ata3/ata_port/ata3", map[string]string{"port_no": "1"})
	mk(pci+"0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0", map[string]string{"subsystem": "scsi"})
	mk(pci+"0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0/block/sda", map[string]string{"size": "2048", "subsystem": "block",
		"device/wwid": "naa.5000c500a1b2c3d4", "device/vendor": "ATA     ", "device/model": "Spinner 2000", "device/vpd_pg89": identify("Spinner 2000 Deluxe", "W123")})
	mk(pci+"0000:00:07.0", map[string]string{"subsystem": "pci"})
	mk(pci+"0000:00:07.0/host4", nil)
	mk(pci+"0000:00:07.0/host5/target5:0:3/5:0:3:1", map[string]string{"subsystem": "scsi"})
	mk(pci+"0000:00:07.0/host5/target5:0:3/5:0:3:1/block/sdb", map[string]string{"size": "2048", "subsystem": "block",
		"device/vendor": "QEMU    ", "device/model": "QEMU HARDDISK   ", "device/vpd_pg80": "\x00\x80\x00\x03FS1"})
	mk("devices/virtual/block/ram0", map[string]string{"size": "2048", "subsystem": "block"})
	class("vda", pci+"0000:00:05.0/virtio2/block/vda")
	class("vda2", pci+"0000:00:05.0/virtio2/block/vda/vda2")
	class("nvme0n1", pci+"0000:01:00.0/nvme/nvme0/nvme0n1")
	class("sda", pci+"0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0/block/sda")
	class("sdb", pci+"0000:00:07.0/host5/target5:0:3/5:0:3:1/block/sdb")
	class("ram0", "devices/virtual/block/ram0")

	f := Finder{Sys: sys, Dev: t.TempDir()}
	for name, want := range map[string]string{
		"/dev/vda":                                        "vda",
		"/dev/disk/by-path/pci-0000:00:05.0":              "vda",
		"/dev/disk/by-path/virtio-pci-0000:00:05.0":       "vda",
		"/dev/disk/by-path/pci-0000:00:05.0-part2":        "vda2",
		"/dev/disk/by-id/virtio-DB_1":                     "vda",
		"/dev/disk/by-id/virtio-DB_1-part2":               "vda2",
		"/dev/disk/by-serial/DB_1":                        "vda",
		"/dev/disk/by-path/pci-0000:01:00.0-nvme-1":       "nvme0n1",
		"/dev/disk/by-id/nvme-eui.0025385b":               "nvme0n1",
		"/dev/disk/by-id/nvme-Fast_SSD_S4EV":              "nvme0n1",
		"/dev/disk/by-path/pci-0000:00:1f.2-ata-1":        "sda",
		"/dev/disk/by-path/pci-0000:00:1f.2-ata-1.0":      "sda",
		"/dev/disk/by-id/wwn-0x5000c500a1b2c3d4":          "sda",
		"/dev/disk/by-id/ata-Spinner_2000_Deluxe_W123":    "sda",
		"/dev/disk/by-path/pci-0000:00:07.0-scsi-1:0:3:1": "sdb",
		"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_FS1":    "sdb",
	} {
		if got, err := f.Find(name); err != nil || got != want {
			t.Errorf("Find(%s) = %q, %v; want %s", name, got, err, want)
		}
	}
	_, err := f.Find("/dev/disk/by-id/virtio-DB2")
	if !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "/dev/vda") || !strings.Contains(err.Error(), "by-path/pci-0000:00:05.0") {
		t.Errorf("Find of what is not there: %v; want ErrNotFound and the disks that are", err)
	}
	all, err := f.List()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(all, func(d Found) bool { return d.Name == "ram0" }) || len(all) != 5 {
		t.Errorf("List() = %v; want five, without ram0", all)
	}
	if _, err := f.Find("/dev/mapper/x"); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Find(/dev/mapper/x): %v; want ErrInvalid", err)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("XFSB"), int64(4096))
	f.Add(bytes.Repeat([]byte{0}, 2000), int64(1<<21))
	f.Add([]byte{0xeb}, int64(510))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		if size < int64(len(data)) || size > 4<<20 || size == 0 {
			return
		}
		img := make([]byte, size)
		copy(img, data)
		c, err := probe(bytes.NewReader(img))
		if err != nil {
			t.Fatalf("probe: %v", err)
		}
		if c.Blank() && len(data) <= area && !zero(data) {
			t.Errorf("probe(%q, %d bytes) = blank; want data seen", data, size)
		}
	})
}
