package dist

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestInstalled installs the package in a virtual machine that runs a real
// Debian with systemd, and looks there (testdata/vm/proof.sh) at all that the
// unit and the package promise.
func TestInstalled(t *testing.T) {
	if os.Getenv("DSAS_LONG") == "" {
		t.Skip("DSAS_LONG is not set: make test-long")
	}
	need(t, "mmdebstrap", "qemu-system-x86_64", "cpio", "zstd", "unshare", "depmod")
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	deb := buildDeb(t, t.TempDir())
	base, err := filepath.Abs("../../../build/vm")
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "testdata/vm/build.sh", base)

	// What is added to the base comes last, and wins.
	extra := t.TempDir()
	for to, from := range map[string]string{
		"init": "testdata/vm/init", "proof.sh": "testdata/vm/proof.sh", "etc/systemd/system/proof.service": "testdata/vm/proof.service", "dsas.deb": deb,
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(extra, to)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := filepath.Join(extra, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../proof.service", filepath.Join(want, "proof.service")); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	sh(t, "sh", "-c", `cp "$1/base.cpio.zst" "$2" && cd "$3" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet | zstd -q -3 >>"$2"`, "sh", base, initrd, extra)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072",
		"-kernel", filepath.Join(base, "vmlinuz"), "-initrd", initrd, "-nic", "none", "-display", "none", "-no-reboot", "-serial", "stdio", "-device", "virtio-rng-pci",
		"-append", "console=ttyS0 panic=-1 quiet systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service rdinit=/init")
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	err = cmd.Run()
	out := strings.ReplaceAll(console.String(), "\r", "")
	if err != nil || !strings.Contains(out, "PROOF end") {
		t.Fatalf("the machine did not come to the end: %v\n%s", err, out)
	}
	for _, line := range regexp.MustCompile(`(?m)^PROOF ok: .*$|^.*Overall exposure.*$`).FindAllString(out, -1) {
		t.Log(line)
	}
	if failed := regexp.MustCompile(`(?m)^PROOF FAIL: .*$`).FindAllString(out, -1); len(failed) > 0 {
		t.Errorf("%s\n\nthe whole console:\n%s", strings.Join(failed, "\n"), out)
	}
}
