package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// mountBasics gives the init what every program takes for granted. What is
// mounted already stays: the second stage finds all of it, and a new tmpfs over
// /run would hide the state that it needs.
func mountBasics() error {
	for _, m := range []struct {
		fs, dir, data string
		flags         uintptr
	}{
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "mode=0755,size=64m", unix.MS_NOSUID | unix.MS_NODEV},
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
		if isMount(m.dir) {
			continue
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	return os.MkdirAll(runDir, 0o755)
}

// isMount tells whether dir is where a file system begins.
func isMount(dir string) bool {
	var here, above unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// runDir outlives switch_root: the init itself and its state are there.
const runDir = "/run/dsas"

// setClock sets the clock to the server's when it is off by more than a
// second: certificates, database and log times are right before any service
// starts.
func setClock(server time.Time) (off time.Duration, err error) {
	off = time.Until(server)
	if off.Abs() < time.Second {
		return off, nil
	}
	tv := unix.NsecToTimeval(server.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return off, fmt.Errorf("set clock to %s: %w", server.UTC().Format(time.RFC3339), err)
	}
	return off, nil
}

// copySelf puts the running init where it outlives the initramfs.
func copySelf(to string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("copy init: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copy init: %w", err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		return fmt.Errorf("copy init: %w", err)
	}
	return nil
}

// reboot ends the system. It returns only when the kernel refused.
func reboot(how int) error {
	unix.Sync()
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	return nil
}

// writeFile writes below root without following a link out of it; the file is
// the writer's own.
func writeFile(root, path string, content []byte, mode os.FileMode) error {
	return writeFileAs(root, path, content, mode, os.Geteuid(), os.Getegid())
}

// writeFileAs is writeFile with an owner.
func writeFileAs(root, path string, content []byte, mode os.FileMode, uid, gid int) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer r.Close()
	rel, err := filepath.Rel("/", filepath.Clean("/"+path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := r.MkdirAll(filepath.Dir(rel), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// A new file takes the old one's place at once: a service that reads it
	// meanwhile sees one or the other whole.
	tmp := rel + ".dsas-new"
	r.Remove(tmp)
	f, err := r.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(content)
	// Owner before mode: chown takes setuid bits away.
	if err == nil {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = r.Rename(tmp, rel)
	}
	if err != nil {
		r.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
