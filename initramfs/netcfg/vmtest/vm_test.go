// Package vmtest tries kmod, netcfg and disk on Debian's own kernel in QEMU:
// bonding, VLANs, renaming and coldplug need modules, which the machine that
// runs the tests may not have. This file is the host's side; the test binary,
// built static, is the guest's /init (guest_test.go).
package vmtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dsas/initramfs/modindex"
)

// mark begins the guest's lines on the serial console.
const mark = "DSAS-TEST "

const cmdline = "console=ttyS0 panic=-1 quiet loglevel=4 dsas.server=http://10.77.0.1:8080 dsas.node=w101 dsas.boot=b1 dsas.token=t " +
	"dsas.ip=10.77.0.101/24 dsas.gw=10.77.0.1 dsas.ports=52:54:00:00:01:01,52:54:00:00:01:02 " +
	"dsas.bond=bond0:mode=active-backup:miimon=100:primary=eth0:updelay=250 BOOTIF=01-52-54-00-00-01-01"

func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guest()
		return
	}
	os.Exit(m.Run())
}

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

func output(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// kernelPackage gives Debian's kernel package, from DSAS_TEST_KERNEL or
// downloaded once.
func kernelPackage(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("DSAS_TEST_KERNEL"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	cache = filepath.Join(cache, "dsas-test")
	if have, _ := filepath.Glob(filepath.Join(cache, "linux-image-*.deb")); len(have) > 0 {
		return have[len(have)-1]
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	show, err := exec.Command("apt-cache", "depends", "linux-image-amd64").Output()
	need(t, err == nil, "apt-cache does not know linux-image-amd64: apt-get update")
	m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(show)
	if m == nil {
		t.Fatalf("apt-cache depends linux-image-amd64: %s; want a kernel package", show)
	}
	part := t.TempDir()
	out, err := exec.Command("sh", "-c", `cd "$1" && apt-get -o APT::Sandbox::User=root download "$2"`, "sh", part, string(m[1])).CombinedOutput()
	need(t, err == nil, fmt.Sprintf("apt-get download %s: %s", m[1], out))
	got, _ := filepath.Glob(filepath.Join(part, "*.deb"))
	if len(got) != 1 {
		t.Fatalf("apt-get download %s left %v; want one package", m[1], got)
	}
	deb := filepath.Join(cache, filepath.Base(got[0]))
	output(t, "", "cp", got[0], deb+".part")
	if err := os.Rename(deb+".part", deb); err != nil {
		t.Fatal(err)
	}
	return deb
}

// unpack takes the kernel and the modules that the guest needs out of the
// package, and gives the kernel and the index that depmod's files make.
func unpack(t *testing.T, deb, root string) (kernel string, ix *modindex.Index) {
	t.Helper()
	script := `dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards './boot/vmlinuz-*' './lib/modules/*/modules.builtin*' ./lib/modules/*/modules.order \
		'*/kernel/drivers/virtio/*' '*/kernel/drivers/net/bonding/*' '*/kernel/drivers/net/virtio_net.ko*' '*/kernel/drivers/net/net_failover.ko*' \
		'*/kernel/drivers/block/virtio_blk.ko*' '*/kernel/net/*'`
	output(t, "", "sh", "-c", script, "sh", deb, root)
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if len(kernels) != 1 {
		t.Fatalf("kernels in %s: %v; want one", deb, kernels)
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	output(t, "", "depmod", "-b", root, release)
	dir := filepath.Join(root, "lib/modules", release)
	ix = &modindex.Index{Release: release, Modules: map[string]modindex.Module{}}
	name := func(path string) string {
		base, _, _ := strings.Cut(filepath.Base(path), ".ko")
		return modindex.Name(base)
	}
	lines := func(file string) []string {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	for _, l := range lines("modules.dep") {
		path, deps, _ := strings.Cut(l, ":")
		m := modindex.Module{Path: path}
		for d := range strings.FieldsSeq(deps) {
			m.Depends = append(m.Depends, name(d))
		}
		ix.Modules[name(path)] = m
	}
	for _, l := range lines("modules.alias") {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "alias" {
			ix.Aliases = append(ix.Aliases, modindex.Alias{Pattern: f[1], Module: modindex.Name(f[2])})
		}
	}
	for _, l := range lines("modules.builtin") {
		ix.Builtin = append(ix.Builtin, name(l))
	}
	return kernels[0], ix
}

// initramfs packs root with the guest's /init.
func initramfs(t *testing.T, root string, ix *modindex.Index) string {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(root, "boot")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(root, "etc", modindex.File))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ix.Write(f); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(root, "init"), "dsas/initramfs/netcfg/vmtest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	out := filepath.Join(t.TempDir(), "initramfs")
	output(t, root, "sh", "-c", `find . | cpio -o -H newc --quiet >"$1"`, "sh", out)
	return out
}

// TestGuest boots the guest, does to its hardware what it asks for, and
// reports its checks as subtests.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	for _, tool := range []string{"qemu-system-x86_64", "depmod", "cpio", "dpkg-deb", "go"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool+" is missing")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	kernel, ix := unpack(t, kernelPackage(t), root)
	vmlinuz := filepath.Join(dir, "vmlinuz")
	if err := os.Rename(kernel, vmlinuz); err != nil {
		t.Fatal(err)
	}
	initrd := initramfs(t, root, ix)
	blank := filepath.Join(dir, "blank")
	if err := os.WriteFile(blank, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(blank, 16<<20); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	monitor := filepath.Join(dir, "monitor")
	vm := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults",
		"-no-reboot", "-serial", "stdio", "-monitor", "unix:"+monitor+",server=on,wait=off",
		"-kernel", vmlinuz, "-initrd", initrd, "-append", cmdline,
		// A hub with QEMU's own little network on it, which answers ARP and
		// DHCP, lets nothing out, and is the switch for all three NICs. Their
		// order on the bus is not that of dsas.ports.
		"-netdev", "user,id=u,restrict=on,net=10.77.0.0/24,host=10.77.0.1,dhcpstart=10.77.0.50", "-netdev", "hubport,id=hu,hubid=0,netdev=u",
		"-netdev", "hubport,id=h0,hubid=0", "-device", "virtio-net-pci,netdev=h0,id=third,mac=52:54:00:00:01:09,romfile=",
		"-netdev", "hubport,id=h1,hubid=0", "-device", "virtio-net-pci,netdev=h1,id=second,mac=52:54:00:00:01:02,romfile=",
		"-netdev", "hubport,id=h2,hubid=0", "-device", "virtio-net-pci,netdev=h2,id=first,mac=52:54:00:00:01:01,romfile=",
		"-drive", "if=none,id=d0,format=raw,file="+blank)
	serial, err := vm.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	vm.Stderr = &stderr
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { vm.Process.Kill(); vm.Wait() }()
	var log bytes.Buffer
	done := false
	lines := bufio.NewScanner(io.TeeReader(serial, &log))
	for lines.Scan() {
		_, line, ok := strings.Cut(strings.TrimSpace(lines.Text()), mark)
		if !ok {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "HOST":
			if err := tell(monitor, rest); err != nil {
				t.Fatalf("monitor: %v", err)
			}
		case "PASS":
			t.Run(rest, func(*testing.T) {})
		case "FAIL":
			name, why, _ := strings.Cut(rest, ": ")
			t.Run(name, func(t *testing.T) { t.Error(why) })
		case "DONE":
			done = true
		}
	}
	t.Logf("serial console:\n%s", log.String())
	if !done {
		t.Errorf("the guest did not come to its end; qemu: %s", stderr.String())
	}
}

// tell gives QEMU's monitor a command and waits for its prompt.
func tell(monitor, command string) error {
	c, err := net.Dial("unix", monitor)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(c)
	prompt := func() error {
		var seen []byte
		for !bytes.HasSuffix(seen, []byte("(qemu) ")) {
			b, err := r.ReadByte()
			if err != nil {
				return fmt.Errorf("%s: %w (%q)", command, err, seen)
			}
			seen = append(seen, b)
		}
		if bytes.Contains(seen, []byte("Error")) {
			return fmt.Errorf("%s: %q", command, seen)
		}
		return nil
	}
	if err := prompt(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "%s\n", command); err != nil {
		return err
	}
	return prompt()
}
