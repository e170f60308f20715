package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dsas"
)

// Timeouts of Mount; ctx may be shorter.
const (
	waitTimeout = 30 * time.Second // for the device to appear
	toolTimeout = 30 * time.Minute // mkfs or fsck of a large disk
)

// Mounter mounts devices below Root, with the tools that Root itself holds.
type Mounter struct {
	Root string // the role's root: "/sysroot"; tools run chrooted there
	Sys  string // default "/sys"
	Dev  string // default "/dev"
	Log  *slog.Logger
	Wait time.Duration // for the device to appear; default 30 s
	// Commands runs a tool; nil: as a child, chrooted to Root. PID 1 sets it
	// where its own reaping must know of every child.
	Commands func(*exec.Cmd) error
}

// Result is what Mount did.
type Result struct {
	Key     string
	Device  string // "/dev/vda"
	Content Content
	Mount   string // on the node: "/var/lib/mysql"; empty for swap
	Made    bool   // the file system was made just now
}

// String gives it for people.
func (r Result) String() string {
	what := fmt.Sprintf("%s (%s %s)", r.Device, sizeText(r.Content.Size), r.Content.Type)
	if r.Mount != "" {
		what += " on " + r.Mount
	}
	if r.Made {
		what += ", was blank, file system made"
	}
	return what
}

// Mount mounts the device that dev names as wish says. A blank one gets its
// file system first, where wish allows it; one that holds anything but wish's
// own file system is refused with dsas.ErrConflict and left as it is.
func (m Mounter) Mount(ctx context.Context, wish dsas.Device, dev string) (Result, error) {
	res, err := m.mount(ctx, wish, dev)
	if err != nil {
		return res, fmt.Errorf("mount %s: %w", wish.Key, err)
	}
	return res, nil
}

func (m Mounter) defaults() Mounter {
	if m.Root == "" {
		m.Root = "/"
	}
	if m.Sys == "" {
		m.Sys = "/sys"
	}
	if m.Dev == "" {
		m.Dev = "/dev"
	}
	if m.Wait == 0 {
		m.Wait = waitTimeout
	}
	if m.Log == nil {
		m.Log = slog.New(slog.DiscardHandler)
	}
	return m
}

func (m Mounter) mount(ctx context.Context, wish dsas.Device, dev string) (Result, error) {
	m = m.defaults()
	if wish.FS == "" {
		wish.FS = "ext4"
	}
	tool, known := makers()[wish.FS]
	if !known {
		return Result{}, fmt.Errorf("file system %q: use ext4, ext3, ext2, xfs, btrfs or swap: %w", wish.FS, dsas.ErrInvalid)
	}
	waiting, cancel := context.WithTimeout(ctx, m.Wait)
	node, err := Finder{Sys: m.Sys, Dev: m.Dev}.Wait(waiting, dev)
	cancel()
	if err != nil {
		return Result{}, err
	}
	res := Result{Key: wish.Key, Device: node, Mount: wish.Mount}
	if wish.FS == "swap" {
		res.Mount = ""
	}
	target := ""
	if wish.FS != "swap" {
		if target, err = m.target(wish.Mount); err != nil {
			return res, err
		}
		if done, err := mountedAs(node, target); err != nil || done {
			if done {
				res.Content, err = Probe(node)
			}
			return res, errors.Join(err, m.own(target, wish.Owner))
		}
	}
	if res.Content, err = m.probe(node); err != nil {
		return res, err
	}
	switch c := res.Content; {
	case c.Blank() && !wish.Format:
		return res, fmt.Errorf("%s is blank, and the role does not allow to make a file system on it (format): %w", node, dsas.ErrConflict)
	case c.Blank():
		m.Log.Info("make file system", "device", node, "fs", wish.FS)
		if err := m.make(ctx, node, wish, tool); err != nil {
			return res, err
		}
		res.Made = true
		if res.Content, err = Probe(node); err != nil {
			return res, err
		}
		if res.Content.Type != wish.FS {
			return res, fmt.Errorf("%s holds %s after %s was made on it", node, res.Content, wish.FS)
		}
	case c.Type != wish.FS:
		return res, fmt.Errorf("%s is not blank: it holds %s, and the role wants %s; it is left as it is (wipe it with the role wipe, or name another disk): %w", node, article(c), wish.FS, dsas.ErrConflict)
	default:
		if err := m.check(ctx, node, tool); err != nil {
			return res, err
		}
	}
	if wish.FS == "swap" {
		return res, swapOn(node)
	}
	// No set-user-id programs and no devices: it is data.
	if err := unix.Mount(node, target, wish.FS, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, ""); err != nil {
		hint := ""
		if errors.Is(err, unix.ENODEV) {
			hint = " (is the module " + wish.FS + " loaded?)"
		}
		return res, fmt.Errorf("mount %s (%s) on %s%s: %w", node, wish.FS, wish.Mount, hint, err)
	}
	return res, m.own(target, wish.Owner)
}

func article(c Content) string {
	if c.Kind == KindData || c.Kind == KindSwap {
		return c.String()
	}
	if strings.ContainsRune("aeiouxAEIOUF", rune(c.String()[0])) {
		return "an " + c.String()
	}
	return "a " + c.String()
}

// probe says what is on node, and refuses one that is in use: by a mount, by
// swap, or by a device made of it (md, LVM).
func (m Mounter) probe(node string) (Content, error) {
	name := filepath.Base(node)
	sys := filepath.Join(m.Sys, "class/block", name)
	if holders, err := os.ReadDir(filepath.Join(sys, "holders")); err == nil && len(holders) > 0 {
		return Content{}, fmt.Errorf("%s is part of %s: %w", node, holders[0].Name(), dsas.ErrConflict)
	}
	parts, _ := filepath.Glob(filepath.Join(sys, name+"*", "partition"))
	if len(parts) > 0 {
		return Content{}, fmt.Errorf("%s has partitions (%s): name one of them, or wipe the disk: %w", node, filepath.Base(filepath.Dir(parts[0])), dsas.ErrConflict)
	}
	if attr(sys, "ro") == "1" {
		return Content{}, fmt.Errorf("%s is read-only: %w", node, dsas.ErrConflict)
	}
	// The kernel lets nobody have a mounted device exclusively.
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return Content{}, fmt.Errorf("%s is in use: mounted, or part of another device: %w", node, dsas.ErrConflict)
	}
	if err != nil {
		return Content{}, fmt.Errorf("open disk: %w", err)
	}
	defer f.Close()
	c, err := probe(f)
	if err != nil {
		return Content{}, fmt.Errorf("probe disk %s: %w", node, err)
	}
	return c, nil
}

// target makes the mount point below Root and gives its path.
func (m Mounter) target(mount string) (string, error) {
	if !filepath.IsAbs(mount) || filepath.Clean(mount) == "/" {
		return "", fmt.Errorf("mount point %q: give an absolute path: %w", mount, dsas.ErrInvalid)
	}
	r, err := os.OpenRoot(m.Root)
	if err != nil {
		return "", fmt.Errorf("open root: %w", err)
	}
	defer r.Close()
	// os.Root holds every step below Root, whatever links the image has.
	rel := strings.TrimPrefix(filepath.Clean(mount), "/")
	if err := r.MkdirAll(rel, 0o755); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	return filepath.EvalSymlinks(filepath.Join(m.Root, rel))
}

// mountedAs tells whether node is mounted on target; it is an error when
// something else is there. Devices are compared by number, since one has
// several names.
func mountedAs(node, target string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", node, err)
	}
	want := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// proc(5): id, parent, major:minor, root, mount point, ...
		f := strings.Fields(sc.Text())
		if len(f) < 5 || f[4] != target {
			continue
		}
		if f[2] == want {
			return true, nil
		}
		return false, fmt.Errorf("%s has something mounted already: %w", target, dsas.ErrConflict)
	}
	return false, sc.Err()
}

// own gives the mount's top to its owner ("user:group", by the names that
// Root knows).
func (m Mounter) own(target, owner string) error {
	if owner == "" || target == "" {
		return nil
	}
	user, group, _ := strings.Cut(owner, ":")
	uid, err := idOf(filepath.Join(m.Root, "etc/passwd"), user)
	if err != nil {
		return fmt.Errorf("owner %s: %w", owner, err)
	}
	gid := -1
	if group != "" {
		if gid, err = idOf(filepath.Join(m.Root, "etc/group"), group); err != nil {
			return fmt.Errorf("owner %s: %w", owner, err)
		}
	}
	if err := os.Lchown(target, uid, gid); err != nil {
		return fmt.Errorf("owner %s: %w", owner, err)
	}
	return nil
}

// idOf finds name's number, the third field of passwd(5) and of group(5).
func idOf(path, name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) > 2 && f[0] == name {
			return strconv.Atoi(f[2])
		}
	}
	return 0, fmt.Errorf("%s is not in the image's %s: %w", name, filepath.Base(path), dsas.ErrNotFound)
}

// swapOn begins to swap on node; that it does already is fine.
func swapOn(node string) error {
	p, err := unix.BytePtrFromString(node)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 && errno != unix.EBUSY {
		return fmt.Errorf("swap on %s: %w", node, errno)
	}
	return nil
}
