package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"dsas"
)

// MountTmpfs mounts a tmpfs of at most size bytes at dest and makes dest where
// it is missing. Pages are taken as they are written. A size of 0 is 80 % of
// the memory: the kernel's own half is little for a root, and no bound at all
// would let a log file take the last page.
func MountTmpfs(dest string, size int64) error {
	limit := "80%"
	if size > 0 {
		limit = strconv.FormatInt(size, 10)
	}
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	// Memory is taken in pieces as large as a write, within the file's size
	// (kernel Documentation/admin-guide/mm/transhuge.rst, since Linux 6.14):
	// writing costs a third. An older kernel takes 2 MiB or a page, and a kernel
	// without huge pages does not know the option.
	options := "mode=0755,size=" + limit
	err := unix.Mount("tmpfs", dest, "tmpfs", 0, options+",huge=within_size") // neither nodev nor nosuid: it becomes the root
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dest, "tmpfs", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs (size %s) at %s: %w", limit, dest, err)
	}
	return nil
}

// moved are the mounts that go along to the new root.
func moved() []string { return []string{"/dev", "/proc", "/sys", "/run"} }

// SwitchRoot makes newroot the root and becomes init there: it moves the
// mounts of /dev, /proc, /sys and /run, frees the memory of the initramfs by
// removing its files, changes root and calls execve with init, args (the
// whole argv, the program's name first) and env. init is a path in the new root; /run is
// moved, so that a program put there before can be it. It returns only with an
// error: before anything was changed where newroot is no mount, init is not
// there or / is not the initramfs; else the system is in pieces.
func SwitchRoot(newroot, init string, args, env []string) error {
	if err := checkSwitch(newroot, init); err != nil {
		return fmt.Errorf("switch root to %s: %w", newroot, err)
	}
	if err := switchTo(newroot); err != nil {
		return fmt.Errorf("switch root to %s: %w", newroot, err)
	}
	if err := unix.Exec(init, args, env); err != nil {
		return fmt.Errorf("switch root: execute %s: %w", init, err)
	}
	return nil
}

// checkSwitch is what stands between a mistake and "rm -rf /".
func checkSwitch(newroot, init string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return fmt.Errorf("look at /: %w", err)
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("/ is no memory file system (type %#x): refused, its files would be removed: %w", fs.Type, dsas.ErrInvalid)
	}
	if unix.Getpid() != 1 {
		return fmt.Errorf("this is process %d, not 1: refused: %w", unix.Getpid(), dsas.ErrInvalid)
	}
	var root, dest, above unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{"/": &root, newroot: &dest, filepath.Dir(filepath.Clean(newroot)): &above} {
		if err := unix.Stat(path, st); err != nil {
			return fmt.Errorf("look at %s: %w", path, err)
		}
	}
	if dest.Mode&unix.S_IFMT != unix.S_IFDIR || dest.Dev == root.Dev || dest.Dev == above.Dev {
		return fmt.Errorf("%s is not the top of a mount of its own: %w", newroot, dsas.ErrInvalid)
	}
	// init may lie below a mount that is yet to be moved: look there as is.
	for _, path := range []string{filepath.Join(newroot, init), init} {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fmt.Errorf("no program %s, neither in the new root nor here: %w", init, dsas.ErrNotFound)
}

func switchTo(newroot string) error {
	for _, dir := range moved() {
		if err := move(dir, filepath.Join(newroot, dir)); err != nil {
			return err
		}
	}
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Chdir(newroot); err != nil {
		return fmt.Errorf("change to %s: %w", newroot, err)
	}
	// What cannot be removed costs memory, no boot.
	free(old, 0)
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", newroot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change to /: %w", err)
	}
	return nil
}

// move moves the mount at from; where there is none it makes the folder only.
func move(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	err := unix.Mount(from, to, "", unix.MS_MOVE, "")
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // no mount point
	}
	if err != nil {
		return fmt.Errorf("move %s to %s: %w", from, to, err)
	}
	return nil
}

// free removes all below dir that is on dir's own file system.
func free(dir, depth int) {
	t := &tree{}
	var top, st unix.Stat_t
	if depth > maxDepth || unix.Fstat(dir, &top) != nil {
		return
	}
	names, err := t.names(dir)
	if err != nil {
		return
	}
	for _, name := range names {
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != top.Dev {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.Unlinkat(dir, name, 0)
			continue
		}
		fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		free(fd, depth+1)
		unix.Close(fd)
		unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) // fails for a mount point: right
	}
}
