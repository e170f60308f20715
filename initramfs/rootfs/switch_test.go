package rootfs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dsas/initramfs/rootfs"
)

// The switch is done for real, by a static program that is PID 1 of namespaces
// of its own, on a tmpfs that has become its root as an initramfs is.
func TestSwitchRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces and mounts want root")
	}
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-o", program, "./testdata/switched")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, wrong string) (string, error) {
		dir := t.TempDir()
		if err := rootfs.MountTmpfs(dir, 64<<20); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(dir, "init"), binary, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctxFor(t), program, dir, wrong)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Run("switches", func(t *testing.T) {
		out, err := run(t, "")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range []string{
			"pid=1 role=web greeting=hello err=<nil>",
			"/dev mount=true err=<nil>", "/proc mount=true err=<nil>", "/run mount=true err=<nil>",
			"/sys mount=false err=<nil>", // it had none mounted: an empty folder
			"marker <nil>", "cwd / <nil>", "up true",
		} {
			if !strings.Contains(out, want+"\n") {
				t.Errorf("in the new root: no %q in\n%s", want, out)
			}
		}
		// Mount points stay where something is mounted over: sysroot was the new root.
		if !strings.Contains(out, "old root [") || strings.Contains(out, "init") || strings.Contains(out, "lib") {
			t.Errorf("the old root still holds files:\n%s", out)
		}
	})
	for wrong, want := range map[string]string{
		"root on disk": "no memory file system",
		"no mount":     "not the top of a mount",
		"no init":      "no program /run/dsas/init",
	} {
		t.Run(wrong, func(t *testing.T) {
			out, err := run(t, wrong)
			if err == nil || !strings.Contains(out, want) || strings.Contains(out, "files are gone") {
				t.Errorf("SwitchRoot() with %s: %v, %s; want it refused: %s, and nothing touched", wrong, err, out, want)
			}
		})
	}
	if err := rootfs.SwitchRoot(t.TempDir(), "/init", []string{"x"}, nil); err == nil {
		t.Error("SwitchRoot() outside an initramfs = nil; want it refused")
	}
}
