package imagebuild

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/initramfs/modindex"
	"dsas/server/blobs"
)

// need skips a test that lacks a program of the machine; not in CI, where all
// of them must be there.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("DSAS_CI") != "" {
				t.Fatalf("%s is missing", p)
			}
			t.Skipf("%s is missing", p)
		}
	}
}

// cacheDir is kept between runs, so that packages are fetched once.
func cacheDir(t *testing.T) string {
	t.Helper()
	d := os.Getenv("DSAS_TEST_CACHE")
	if d == "" {
		d = filepath.Join("..", "build", "test-cache")
	}
	d, err := filepath.Abs(d)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testStore(t *testing.T, dir string) *blobs.Store {
	t.Helper()
	s, err := blobs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func buildToyInit(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./testdata/toyinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build toyinit: %v\n%s", err, b)
	}
	return out
}

// bbProgram is what make built, or is built now.
func bbProgram(t *testing.T) string {
	t.Helper()
	out, err := filepath.Abs("../build/bb")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(out); err != nil {
		if b, err := exec.Command("./bb/build.sh", out).CombinedOutput(); err != nil {
			t.Fatalf("build.sh: %v\n%s", err, b)
		}
	}
	return out
}

func blobPath(t *testing.T, s *blobs.Store, d dsas.Digest) string {
	t.Helper()
	f, _, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Name()
}

func bootOptions(t *testing.T, store *blobs.Store) Options {
	return Options{
		Store: store, Cache: filepath.Join(cacheDir(t), "cache"),
		InitPath: buildToyInit(t), BBPath: bbProgram(t), Keys: map[string]string{"0123": "RWQtest"},
		Progress: func(line string) { t.Log(line) },
	}
}

// TestBuildBoot builds the real thing and lets a real kernel unpack it.
func TestBuildBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads a kernel and boots it")
	}
	need(t, "apt-get", "dpkg-deb", "zstd", "cpio", "qemu-system-x86_64")
	store := testStore(t, t.TempDir())
	opt := bootOptions(t, store)
	start := time.Now()
	b, err := BuildBoot(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built in %v: kernel %d, initramfs %d (%d unpacked)", time.Since(start), b.Kernel.Size, b.Initramfs.Size, b.Initramfs.Unpacked)
	if max := int64(16 << 20); b.Initramfs.Size > max {
		t.Errorf("initramfs has %d bytes; want at most %d", b.Initramfs.Size, max)
	}

	if want := []string{"RWQtest"}; !slices.Equal(b.Keys, want) {
		t.Errorf("keys of the initramfs = %q; want %q", b.Keys, want)
	}

	start = time.Now()
	again, err := BuildBoot(t.Context(), opt)
	if err != nil || again.Initramfs.Digest != b.Initramfs.Digest {
		t.Errorf("second BuildBoot = %s, %v; want %s", again.Initramfs.Digest, err, b.Initramfs.Digest)
	}
	t.Logf("no-change build in %v", time.Since(start))

	t.Run("cpio lists it", func(t *testing.T) { checkCpioList(t, store, b) })
	t.Run("kernel boots it", func(t *testing.T) { checkBoots(t, store, b) })
}

func checkCpioList(t *testing.T, store *blobs.Store, b dsas.BootSet) {
	plain, err := exec.Command("zstd", "-dc", blobPath(t, store, b.Initramfs.Digest)).Output()
	if err != nil {
		t.Fatalf("zstd -dc: %v", err)
	}
	// Each by itself: cpio reads in blocks of 512 bytes, and the second one begins
	// within one, where the kernel looks for it and cpio does not.
	trailer := bytes.Index(plain, []byte("TRAILER!!!"))
	second := trailer + bytes.Index(plain[trailer:], []byte("070701"))
	var out []byte
	for _, archive := range [][]byte{plain[:second], plain[second:]} {
		cmd := exec.Command("cpio", "-itv", "--quiet")
		cmd.Stdin = bytes.NewReader(archive)
		list, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cpio -it: %v\n%s", err, list)
		}
		out = append(out, list...)
	}
	for _, want := range []string{
		`-rwxr-xr-x +1 root +root .* init`, `-rwxr-xr-x .* bbin/bb`, `l.* bbin/ls -> bb`, `l.* bin/sh -> /bbin/gosh`,
		`-rw-r--r-- .* etc/dsas-modules.json`, `-rw-r--r-- .* etc/dsas/release-keys/0123.pub`, `drwxr-xr-x .* sysroot`,
		`/e1000e\.ko`, `/igb\.ko`, `/ixgbe\.ko`, `/ice\.ko`, `/i40e\.ko`, `/mlx5_core\.ko`, `/bnxt_en\.ko`, `/tg3\.ko`, `/r8169\.ko`,
		`/ena\.ko`, `/gve\.ko`, `/vmxnet3\.ko`, `/hv_netvsc\.ko`, `/xen-netfront\.ko`, `/virtio_net\.ko`,
		`/bonding\.ko`, `/8021q\.ko`, `/overlay\.ko`, `/i6300esb\.ko`, `/iTCO_wdt\.ko`, `/softdog\.ko`,
		`/ahci\.ko`, `/nvme\.ko`, `/sd_mod\.ko`, `/mpt3sas\.ko`, `/megaraid_sas\.ko`, `/smartpqi\.ko`, `/hpsa\.ko`,
		`/raid1\.ko`, `/dm-mod\.ko`, `/ext4\.ko`, `/vfat\.ko`, `/crc32c_generic\.ko`,
		`/virtio_pci\.ko`, `/virtio_blk\.ko`, `/virtio_scsi\.ko`, `/virtio-rng\.ko`, `/virtio_balloon\.ko`,
	} {
		if !regexp.MustCompile(`(?m)` + want + `$`).Match(out) {
			t.Errorf("cpio -itv lacks %s", want)
		}
	}
}

func checkBoots(t *testing.T, store *blobs.Store, b dsas.BootSet) {
	// A second cpio after the first, as the loaders join them.
	extra := newArchive()
	extra.file("lib/firmware/toy.bin", 0o644, []byte("toy"))
	fw, err := putCpios(t.Context(), &Options{Store: store, Cache: t.TempDir()}, nil, "firmware", extra)
	if err != nil {
		t.Fatal(err)
	}
	joined := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(joined)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []dsas.Digest{b.Initramfs.Digest, fw.Digest} {
		p, err := os.Open(blobPath(t, store, d))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, p); err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot", "-net", "none",
		"-kernel", blobPath(t, store, b.Kernel.Digest), "-initrd", joined,
		"-append", "console=ttyS0 panic=-1 quiet").CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`toy: modules (\d+) of (\d+)`).FindStringSubmatch(string(out))
	if m == nil || m[1] != m[2] || m[1] == "0" {
		t.Errorf("modules on the node: %q; want all\n%s", m, out)
	}
	for _, want := range []string{
		"toy: shell 42 " + b.Release + "  <nil>", "toy: firmware there",
		"toy: loaded [virtio_ring virtio failover net_failover virtio_net] <nil>", "toy: end",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("console lacks %q:\n%s", want, out)
		}
	}
}

// TestScanModules checks the index against kmod's own reading.
func TestScanModules(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the kernel that TestBuildBoot downloads")
	}
	need(t, "modinfo", "apt-get")
	opt := Options{Store: testStore(t, t.TempDir()), Cache: filepath.Join(cacheDir(t), "cache")}
	unlock, err := opt.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	a, err := openApt(t.Context(), &opt)
	if err != nil {
		t.Fatal(err)
	}
	k, err := findKernel(t.Context(), &opt, a)
	if err != nil {
		t.Fatal(err)
	}
	set, err := k.moduleSet()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(set.Index.Modules); n < 3000 {
		t.Errorf("%d modules; want 3000 at least", n)
	}
	for _, name := range []string{"igb", "ext4", "ip_vs", "bonding", "nf_conntrack", "virtio_net"} {
		m := set.Index.Modules[name]
		file := filepath.Join(k.modules(), m.Path)
		out, err := exec.Command("modinfo", "-F", "depends", file).Output()
		if err != nil {
			t.Fatalf("modinfo %s: %v", file, err)
		}
		var want []string
		for _, d := range strings.FieldsFunc(strings.TrimSpace(string(out)), func(r rune) bool { return r == ',' }) {
			want = append(want, modindex.Name(d))
		}
		if !slices.Equal(m.Depends, want) {
			t.Errorf("%s depends = %q; want %q", name, m.Depends, want)
		}
		out, err = exec.Command("modinfo", "-F", "alias", file).Output()
		if err != nil {
			t.Fatalf("modinfo %s: %v", file, err)
		}
		for _, alias := range strings.Fields(string(out)) {
			if !slices.Contains(set.Index.Aliases, modindex.Alias{Pattern: alias, Module: name}) {
				t.Errorf("index lacks alias %s of %s", alias, name)
			}
		}
	}
	// FINDINGS: ip_vs fails with ENOENT unless crc32c_generic is loaded before.
	got, err := set.Index.Closure("ip_vs")
	if i, j := slices.Index(got, "libcrc32c"), slices.Index(got, "ip_vs"); err != nil || i < 0 || i > j {
		t.Errorf("Closure(ip_vs) = %q, %v; want libcrc32c before ip_vs", got, err)
	}
	if got := set.Index.Match("pci:v00008086d00001533sv00001028sd0000076Dbc02sc00i00"); !slices.Equal(got, []string{"igb"}) {
		t.Errorf("Match(an I210) = %q; want igb", got)
	}
	if !set.Index.IsBuiltin("unix") && !set.Index.IsBuiltin("ipv6") && !set.Index.IsBuiltin("ext2") && len(set.Index.Builtin) < 50 {
		t.Errorf("%d builtins", len(set.Index.Builtin))
	}
	// Whatever the initramfs takes is complete.
	mods, err := choose(set.Index, initramfsFolders, initramfsModules)
	if err != nil {
		t.Fatal(err)
	}
	sub := set.Index.Subset(mods)
	for n := range sub.Modules {
		if _, err := sub.Closure(n); err != nil {
			t.Errorf("Closure(%s) in the initramfs: %v", n, err)
		}
	}
}

func TestCpioReproducible(t *testing.T) {
	need(t, "cpio")
	src := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(src, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := func(order []int) []byte {
		a := newArchive()
		add := []func(){
			func() { a.file("etc/x", 0o644, []byte("x")) },
			func() { a.symlink("bin/sh", "/bbin/gosh") },
			func() { a.copy("init", 0o755, src) },
			func() { a.dir("proc") },
		}
		for _, i := range order {
			add[i]()
		}
		var b bytes.Buffer
		if err := a.write(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := build([]int{0, 1, 2, 3})
	if err := os.Chtimes(src, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if two := build([]int{3, 2, 1, 0}); !bytes.Equal(one, two) {
		t.Error("two builds of the same files differ")
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-id", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(one)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio -id: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "init")); err != nil || string(b) != "from a file" {
		t.Errorf("init = %q, %v", b, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "bin/sh")); err != nil || l != "/bbin/gosh" {
		t.Errorf("bin/sh -> %q, %v; want /bbin/gosh", l, err)
	}
	out, err := func() ([]byte, error) {
		cmd := exec.Command("cpio", "-itv", "--quiet")
		cmd.Stdin = bytes.NewReader(one)
		return cmd.Output()
	}()
	if err != nil || !regexp.MustCompile(`Jan +1 +2024 etc/x`).Match(out) {
		t.Errorf("cpio -itv: %v\n%s", err, out)
	}
}

func TestParseModinfo(t *testing.T) {
	m := parseModinfo("license=GPL\x00depends=i2c-algo-bit,mii\x00alias=pci:v1*\x00softdep=pre: crypto-crc32c a post: b\x00firmware=x/y.bin\x00junk\x00")
	got := fmt.Sprintf("%+v", m)
	want := "{depends:[i2c_algo_bit mii] softPre:[crypto-crc32c a] softPost:[b] aliases:[pci:v1*] firmware:[x/y.bin]}"
	if got != want {
		t.Errorf("parseModinfo = %s; want %s", got, want)
	}
}

func TestPickFirmware(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"lib/firmware/bnx2/a.fw": "a", "lib/firmware/bnx2/unused.fw": "u", "usr/lib/firmware/tigon/t.bin": "t",
		"lib/firmware/intel-ucode/06-01": "M1", "lib/firmware/intel-ucode/06-02": "M2", "lib/firmware/amd-ucode/x.bin.asc": "sig",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a.fw", filepath.Join(root, "lib/firmware/bnx2/link.fw")); err != nil {
		t.Fatal(err)
	}
	set := &moduleSet{Firmware: map[string][]string{"bnx2": {"bnx2/a.fw", "bnx2/link.fw", "bnx2/gone.fw"}, "tg3": {"tigon/*.bin"}, "wifi": {"bnx2/unused.fw"}}}
	early, late, err := pickFirmware(root, set, []string{"bnx2", "tg3"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"lib/firmware/bnx2/a.fw", "lib/firmware/bnx2/link.fw", "lib/firmware/tigon/t.bin"}
	var files []string
	for _, n := range late.list("") {
		if late.entries[n].source != "" {
			files = append(files, n)
		}
	}
	if !slices.Equal(files, want) {
		t.Errorf("late = %q; want %q", files, want)
	}
	if e := early.entries["kernel/x86/microcode/GenuineIntel.bin"]; string(e.data) != "M1M2" {
		t.Errorf("GenuineIntel.bin = %q; want M1M2", e.data)
	}
	if _, ok := early.entries["kernel/x86/microcode/AuthenticAMD.bin"]; ok {
		t.Error("AuthenticAMD.bin made of signatures; want none")
	}
}
