package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// The names by which a layer removes what lower layers have (OCI image
// specification, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // aufs's own files, no whiteouts
)

const (
	page       = 4096
	limitSlack = 64 << 20 // bytes that a part may hold beyond 1.1 times its Unpacked
	// streamSlack allows for the tar's own headers and padding.
	streamSlack = 256 << 20
	noID        = 1<<32 - 1 // to chown: leave as it is
)

// unpacker applies tar streams, layer after layer, to the tree below one
// folder. Nothing in a tar reaches outside of it: names are looked up as if the
// folder were "/" (openat2, RESOLVE_IN_ROOT), links and all, and ".." is refused.
type unpacker struct {
	tree *tree
	log  *slog.Logger

	total     int64 // bytes of content, in whole pages, of all layers
	entries   int
	keptLinks int
	noXattrs  int

	// of the layer at hand
	lowest bool // there is nothing below it
	used   int64
	limit  int64
	// made holds the inodes this layer made or touched: a whiteout removes
	// what lower layers have, wherever it stands in the tar.
	made map[uint64]struct{}

	// What the kernel gives to a file that is made.
	uid, gid int
	umask    uint32
	// acls: a folder has a default ACL, by which new files in it have another
	// mode than they were asked for with (acl(5)).
	acls bool

	// dirTimes are set at the very end: every file made in a folder changes them.
	dirTimes map[string]time.Time
	buf      []byte // for the content of sparse entries
}

func newUnpacker(dest string, log *slog.Logger) (*unpacker, error) {
	t, err := openTree(dest)
	if err != nil {
		return nil, err
	}
	return &unpacker{tree: t, log: log, dirTimes: map[string]time.Time{},
		uid: unix.Geteuid(), gid: unix.Getegid(), umask: fileUmask()}, nil
}

func (u *unpacker) close() { u.tree.close() }

// begin starts a layer and gives the most bytes its tar may have.
func (u *unpacker) begin(p dsas.Part) (stream int64) {
	u.lowest = u.made == nil
	u.made = map[uint64]struct{}{}
	u.used, u.limit = 0, p.Unpacked+p.Unpacked/10+limitSlack
	if p.Unpacked <= 0 {
		if u.limit = u.tree.capacity(); u.limit <= 0 {
			u.limit = 1 << 40
		}
	}
	return 2*u.limit + streamSlack
}

// unpack applies one layer, and returns at the tar's last entry.
func (u *unpacker) unpack(ctx context.Context, r *stream) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := u.entry(h, tr, r); err != nil {
			return fmt.Errorf("unpack %.200q: %w", h.Name, err)
		}
		u.entries++
	}
}

// finish sets the folders' times.
func (u *unpacker) finish() error {
	for name, at := range u.dirTimes {
		dir, base := split(name)
		fd, err := u.tree.dir(dir, false)
		if err == nil {
			err = setTime(fd, base, at)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set time of %q: %w", name, err)
		}
	}
	return nil
}

// discard removes all there is.
func (u *unpacker) discard() error {
	u.tree.forget()
	return u.tree.empty()
}

// clean makes a tar's name relative to the root: "./usr/bin/", "/usr/bin" and
// "usr/bin" are one; "" is the root itself. ".." is refused: no honest image
// has it.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("a NUL in the name")
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", fmt.Errorf("name %.200q has .. in it", name)
		}
	}
	return path.Clean("/" + name)[1:], nil
}

// split gives the folder and the last part; the root is "." in itself.
func split(name string) (dir, base string) {
	if name == "" {
		return "", "."
	}
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

func (u *unpacker) entry(h *tar.Header, tr *tar.Reader, r *stream) error {
	u.tree.sweep()
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= noID || h.Gid >= noID {
		return fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	dir, base := split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		if u.lowest {
			return nil
		}
		return u.whiteout(dir, base)
	}
	if name == "" && h.Typeflag != tar.TypeDir {
		return errors.New("the root itself can only be a folder")
	}
	parent, err := u.tree.dir(dir, true)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.folder(parent, name, base, h)
	}
	delete(u.dirTimes, name)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = u.file(parent, base, h, tr, r)
	case tar.TypeLink:
		return u.hardLink(parent, base, h) // owner, mode and times are the other name's
	case tar.TypeSymlink:
		err = u.replacing(parent, base, func() error { return unix.Symlinkat(h.Linkname, parent, base) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.node(parent, base, h)
	default:
		return fmt.Errorf("entry of type %q is none that a root file system has", h.Typeflag)
	}
	if err != nil || h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse {
		return err
	}
	if err := u.attributes(parent, base, h); err != nil {
		return err
	}
	return setTime(parent, base, h.ModTime)
}

// whiteout removes what lower layers have: one name, or all in a folder.
func (u *unpacker) whiteout(dir, base string) error {
	parent, err := u.tree.dir(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	u.tree.forget()
	if base == whiteoutOpaque {
		return u.tree.removeIn(parent, u.made, 0)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errors.New("a whiteout of no name")
	}
	return u.tree.remove(parent, name, u.made, 0)
}

// folder makes a folder, or sets the attributes of the one there is. Where a
// symbolic link to a folder stands in its place, the link stays and nothing
// else happens: a layer with "lib/" must not take away Debian's link from /lib
// to usr/lib. The OCI specification would have it replaced; a layer that
// really wants that has a whiteout of the name before it.
func (u *unpacker) folder(parent int, name, base string, h *tar.Header) error {
	var st unix.Stat_t
	err := unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) || base == "." {
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = nil
		case unix.S_IFLNK:
			if _, err := u.tree.dir(name, false); err == nil {
				u.keptLinks++
				u.log.Debug("link to a folder kept, where a layer has a folder", "path", name)
				return nil
			}
			fallthrough
		default:
			if err := u.clear(parent, base); err != nil {
				return err
			}
			err = unix.Mkdirat(parent, base, 0o700)
		}
	}
	if err != nil {
		return err
	}
	if err := u.attributes(parent, base, h); err != nil {
		return err
	}
	u.tree.setgid = u.tree.setgid || h.Mode&unix.S_ISGID != 0
	u.dirTimes[name] = h.ModTime
	return nil
}

// replacing makes something, and where its name is taken makes it once more
// after clearing the name.
func (u *unpacker) replacing(parent int, base string, make func() error) error {
	err := make()
	if errors.Is(err, unix.EEXIST) {
		if err := u.clear(parent, base); err != nil {
			return err
		}
		err = make()
	}
	return err
}

func (u *unpacker) clear(parent int, base string) error {
	u.tree.forget() // the way to a folder held open may lead through the name
	return u.tree.remove(parent, base, nil, 0)
}

func (u *unpacker) charge(size int64) error {
	if size < 0 {
		return fmt.Errorf("size %d", size)
	}
	if size > u.limit-u.used {
		return fmt.Errorf("%w: %d bytes and %d more, where it may have %d", errTooLong, u.used, size, u.limit)
	}
	n := (size + page - 1) / page * page
	u.used += n
	u.total += n
	return nil
}

func (u *unpacker) file(parent int, base string, h *tar.Header, tr *tar.Reader, r *stream) error {
	if err := u.charge(h.Size); err != nil {
		return err
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	mode := uint32(h.Mode) & 0o777
	fd, err := openat(parent, base, flags, mode)
	if errors.Is(err, unix.EEXIST) {
		if err := u.clear(parent, base); err != nil {
			return err
		}
		fd, err = openat(parent, base, flags, mode)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.content(fd, h, tr, r); err != nil {
		return err
	}
	return u.attributesOf(fd, u.acls || u.tree.inherits(parent), h)
}

// hardLink gives the other name's file this name too. Both are looked up below
// the root; a last part that is a symbolic link is linked, not followed.
func (u *unpacker) hardLink(parent int, base string, h *tar.Header) error {
	name, err := clean(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if name == "" {
		return errors.New("hard link to the root")
	}
	dir, old := split(name)
	from, err := u.tree.dir(dir, false)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	var st, there unix.Stat_t
	if err := unix.Fstatat(from, old, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("hard link to the folder %.200q", h.Linkname)
	}
	// Where the name is that file already, clearing it might lose the file.
	err = unix.Fstatat(parent, base, &there, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || there.Ino != st.Ino || there.Dev != st.Dev {
		err := u.replacing(parent, base, func() error { return unix.Linkat(from, old, parent, base, 0) })
		if err != nil {
			return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
		}
	}
	if !u.lowest {
		u.made[st.Ino] = struct{}{}
	}
	return nil
}

func (u *unpacker) node(parent int, base string, h *tar.Header) error {
	var mode uint32 = unix.S_IFIFO
	var dev uint64
	switch h.Typeflag {
	case tar.TypeChar:
		mode, dev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		mode, dev = unix.S_IFBLK, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	return u.replacing(parent, base, func() error { return unix.Mknodat(parent, base, mode|0o600, int(dev)) })
}
