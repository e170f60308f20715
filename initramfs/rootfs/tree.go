package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"dsas"
)

const (
	maxDirs  = 64   // folders held open
	maxDepth = 2048 // of a tree that is removed: each level holds a descriptor
)

// tree is a folder seen as a root, and some of its folders held open: a tar
// has the files of one folder in a row.
type tree struct {
	root int
	path string
	dirs map[string]int
	// setgid: there is a folder that gives its group to what is made in it.
	setgid bool
	// gone are descriptors that no name leads to any more. They are closed by
	// sweep, between two entries: the entry at hand may have them still.
	gone []int
}

// openTree refuses a folder that is not empty: it could not be told later
// what to remove.
func openTree(path string) (*tree, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t := &tree{root: fd, path: path, dirs: map[string]int{}}
	names, err := t.names(fd)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s holds %q already: unpack into an empty folder: %w", path, names[0], dsas.ErrConflict)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	t.setgid = true
	t.setgid = t.inherits(fd)
	return t, nil
}

func (t *tree) close() {
	t.forget()
	t.sweep()
	unix.Close(t.root)
}

// capacity is the file system's size in bytes; 0: it sets no limit.
func (t *tree) capacity() int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.root, &st); err != nil {
		return 0
	}
	return int64(st.Blocks) * int64(st.Bsize)
}

// in looks name up as if the tree were "/": links, absolute ones and "..",
// stay inside, and no mount in it is entered.
func (t *tree) in(name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for range 100 {
		fd, err := unix.Openat2(t.root, name, &how)
		// EAGAIN: something was renamed anywhere while ".." was looked up.
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// dir gives a folder, "" being the root; make makes it and those above it
// where they are missing. The descriptor is the tree's, and good until
// the next sweep.
func (t *tree) dir(name string, make bool) (int, error) {
	if name == "" {
		return t.root, nil
	}
	if fd, ok := t.dirs[name]; ok {
		return fd, nil
	}
	fd, err := t.in(name)
	if make && errors.Is(err, unix.ENOENT) {
		above, base := split(name)
		parent, e := t.dir(above, true)
		if e != nil {
			return -1, e
		}
		if e := unix.Mkdirat(parent, base, 0o755); e != nil {
			return -1, fmt.Errorf("make folder %.200q: %w", name, e)
		}
		fd, err = t.in(name)
	}
	if err != nil {
		return -1, fmt.Errorf("open folder %.200q: %w", name, err)
	}
	if len(t.dirs) >= maxDirs {
		t.forget()
	}
	t.dirs[name] = fd
	return fd, nil
}

// inherits says whether a file made in dir may have got the folder's group
// (inode(7), S_ISGID).
func (t *tree) inherits(dir int) bool {
	if !t.setgid {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(dir, &st) != nil || st.Mode&unix.S_ISGID != 0
}

// forget drops the folders held open: a name may lead elsewhere now.
func (t *tree) forget() {
	for _, fd := range t.dirs {
		t.gone = append(t.gone, fd)
	}
	clear(t.dirs)
}

// sweep closes what was forgotten.
func (t *tree) sweep() {
	for _, fd := range t.gone {
		unix.Close(fd)
	}
	t.gone = t.gone[:0]
}

// remove takes away name in parent with all below it, other than what stands
// in keep (inodes) and the folders that lead there. What is not there is fine.
func (t *tree) remove(parent int, name string, keep map[uint64]struct{}, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("remove %.200q: more than %d folders deep", name, maxDepth)
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %.200q: %w", name, err)
	}
	_, kept := keep[st.Ino]
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if kept {
			return nil
		}
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return fmt.Errorf("remove %.200q: %w", name, err)
		}
		return nil
	}
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("remove %.200q: %w", name, err)
	}
	err = t.removeIn(fd, keep, depth+1)
	unix.Close(fd)
	if err != nil || kept {
		return err
	}
	err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	if err != nil && !(keep != nil && errors.Is(err, unix.ENOTEMPTY)) {
		return fmt.Errorf("remove %.200q: %w", name, err)
	}
	return nil
}

// removeIn empties a folder.
func (t *tree) removeIn(dir int, keep map[uint64]struct{}, depth int) error {
	names, err := t.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := t.remove(dir, name, keep, depth); err != nil {
			return err
		}
	}
	return nil
}

// empty removes all there is in the tree.
func (t *tree) empty() error { return t.removeIn(t.root, nil, 0) }

// names lists a folder. It opens it anew: dir may be an O_PATH descriptor, and
// has a place that it would have to be rewound from.
func (t *tree) names(dir int) ([]string, error) {
	fd, err := openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("list folder: %w", err)
	}
	f := os.NewFile(uintptr(fd), "folder")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list folder: %w", err)
	}
	return names, nil
}

func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
