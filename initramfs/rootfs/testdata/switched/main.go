// Command switched stands in for a node's init in the test of SwitchRoot: as
// "first" it switches, as "second" it says what it finds in the new root.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dsas/initramfs/rootfs"
)

func main() {
	if os.Args[0] == "second" {
		second()
		return
	}
	if err := first(); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// first makes of the folder it was given (a tmpfs with this program in it) a
// root such as the kernel makes of an initramfs, and leaves it.
func first() error {
	dir, wrong := os.Args[1], os.Args[2]
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if wrong == "root on disk" {
		return rootfs.SwitchRoot(dir, "/init", []string{"second"}, nil)
	}
	// As a move onto /, since nobody pivots away from an initramfs.
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, m := range [][2]string{{"proc", "/proc"}, {"tmpfs", "/run"}, {"tmpfs", "/dev"}} {
		os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	os.MkdirAll("/lib/modules/deep", 0o755)
	os.WriteFile("/lib/modules/deep/file", make([]byte, 1<<20), 0o644)
	os.WriteFile("/dev/marker", nil, 0o644)
	if err := os.MkdirAll("/run/dsas", 0o755); err != nil {
		return err
	}
	if wrong != "no mount" {
		if err := rootfs.MountTmpfs("/sysroot", 64<<20); err != nil {
			return err
		}
	}
	os.MkdirAll("/sysroot/etc", 0o755)
	os.WriteFile("/sysroot/etc/role", []byte("web"), 0o644)
	if wrong != "no init" {
		b, err := os.ReadFile("/init")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/run/dsas/init", b, 0o755); err != nil {
			return err
		}
	}
	// What stays of the old root is seen by its descriptor only.
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = rootfs.SwitchRoot("/sysroot", "/run/dsas/init", []string{"second", fmt.Sprint(old)}, []string{"GREETING=hello"})
	if _, e := os.Stat("/lib/modules/deep/file"); e != nil {
		return fmt.Errorf("%w; and files are gone: %w", err, e)
	}
	return err
}

func second() {
	role, err := os.ReadFile("/etc/role")
	fmt.Printf("pid=%d role=%s greeting=%s err=%v\n", os.Getpid(), role, os.Getenv("GREETING"), err)
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		var top, st unix.Stat_t
		unix.Stat("/", &top)
		err := unix.Stat(dir, &st)
		fmt.Printf("%s mount=%t err=%v\n", dir, st.Dev != top.Dev, err)
	}
	_, err = os.Stat("/dev/marker")
	fmt.Println("marker", err)
	cwd, err := os.Getwd()
	fmt.Println("cwd", cwd, err)
	var old int
	fmt.Sscan(os.Args[1], &old)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", old))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	fmt.Println("old root", names, err)
	fmt.Println("up", tops("/.."))
}

func tops(dir string) bool {
	_, err := os.Stat(dir + "/etc/role")
	return err == nil
}
