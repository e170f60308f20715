package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dsas"
)

// maker makes and checks a file system.
type maker struct {
	mkfs, fsck []string // program and arguments; the device comes last
	label      string   // option that sets a label
}

func makers() map[string]maker {
	// mke2fs without -F asks before it writes over something it knows: with
	// no one to answer it gives up, which is one more lock on the door.
	ext := func(t string) maker {
		return maker{mkfs: []string{"mkfs." + t, "-q"}, fsck: []string{"e2fsck", "-p"}, label: "-L"}
	}
	return map[string]maker{
		"ext2": ext("ext2"), "ext3": ext("ext3"), "ext4": ext("ext4"),
		"xfs":   {mkfs: []string{"mkfs.xfs", "-q"}, label: "-L"},
		"btrfs": {mkfs: []string{"mkfs.btrfs", "-q"}, label: "-L"},
		"swap":  {mkfs: []string{"mkswap"}, label: "-L"},
	}
}

// make makes the file system, labelled with the key, on a blank device.
func (m Mounter) make(ctx context.Context, node string, wish dsas.Device, t maker) error {
	label := wish.Key
	if len(label) > 12 { // xfs takes no more
		label = label[:12]
	}
	args := append([]string{}, t.mkfs[1:]...)
	args = append(args, t.label, label, "/dev/"+filepath.Base(node))
	if _, err := m.run(ctx, t.mkfs[0], args...); err != nil {
		return fmt.Errorf("make %s on %s: %w", wish.FS, node, err)
	}
	return nil
}

// check repairs what can be repaired without asking, where there is a tool
// for it; the others replay their journal when they are mounted.
func (m Mounter) check(ctx context.Context, node string, t maker) error {
	if len(t.fsck) == 0 {
		return nil
	}
	args := append(append([]string{}, t.fsck[1:]...), "/dev/"+filepath.Base(node))
	out, err := m.run(ctx, t.fsck[0], args...)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, dsas.ErrNotFound): // an image without the tool
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 1: // errors, all repaired
		m.Log.Warn("file system repaired", "device", node, "output", out)
		return nil
	case err != nil:
		return fmt.Errorf("check %s (repair it by hand from the role rescue): %w", node, err)
	}
	return nil
}

// run runs one of Root's programs in Root, with the devices there.
func (m Mounter) run(ctx context.Context, program string, args ...string) (string, error) {
	path := ""
	for _, dir := range []string{"usr/sbin", "sbin", "usr/bin", "bin"} {
		if st, err := os.Stat(filepath.Join(m.Root, dir, program)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			path = "/" + dir + "/" + program
			break
		}
	}
	if path == "" {
		return "", fmt.Errorf("%s is not in the role's image; add its package to the role: %w", program, dsas.ErrNotFound)
	}
	undo, err := m.bindDev()
	if err != nil {
		return "", err
	}
	defer undo()
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if m.Root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.Root}
		cmd.Path, cmd.Err = path, nil
	}
	start := m.Commands
	if start == nil {
		start = (*exec.Cmd).Run
	}
	err = start(cmd)
	text := strings.TrimSpace(out.String())
	if len(text) > 500 {
		text = "..." + text[len(text)-500:]
	}
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", program, err, text)
	}
	return text, nil
}

// bindDev makes the devices visible below Root, where they are not yet.
func (m Mounter) bindDev() (undo func(), err error) {
	if m.Root == "/" {
		return func() {}, nil
	}
	dev := filepath.Join(m.Root, "dev")
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", dev, err)
	}
	if err := unix.Mount(m.Dev, dev, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("bind %s to %s: %w", m.Dev, dev, err)
	}
	return func() {
		if err := unix.Unmount(dev, unix.MNT_DETACH); err != nil {
			m.Log.Warn("unbind devices", "path", dev, "err", err)
		}
	}, nil
}
