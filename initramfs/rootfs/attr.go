package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xattrPrefix is how PAX records carry extended attributes (star's extension).
const xattrPrefix = "SCHILY.xattr."

// attributes sets owner, mode and extended attributes of what stands at base
// in parent, in this order: chown takes the setuid bit and capabilities away.
func (u *unpacker) attributes(parent int, base string, h *tar.Header) error {
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink { // a link has no mode of its own
		if err := unix.Fchmodat(parent, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode %o: %w", h.Mode, err)
		}
	}
	if err := u.note(parent, base, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// There is no setxattrat before Linux 6.13; /proc takes its place. The
	// last part is not followed.
	at := "/proc/self/fd/" + strconv.Itoa(parent) + "/" + base
	return u.xattrs(h, func(name string, value []byte) error { return unix.Lsetxattr(at, name, value, 0) })
}

// attributesOf does the same for a file that was just made, open, and sets its
// time. It asks for nothing that is so already: most files of an image are
// root's own, and were made with their mode.
func (u *unpacker) attributesOf(fd int, inherits bool, h *tar.Header) error {
	owned := h.Uid == u.uid && h.Gid == u.gid && !inherits
	if !owned {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
		}
	}
	if mode := uint32(h.Mode) & 0o7777; !owned || mode != u.created(mode) {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("mode %o: %w", h.Mode, err)
		}
	}
	if err := u.note(fd, "", unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := u.xattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	return setTimeOf(fd, h.ModTime)
}

// created is the mode that a file has which was made with mode.
func (u *unpacker) created(mode uint32) uint32 { return mode & 0o777 &^ u.umask }

// note remembers that this layer made or touched the file.
func (u *unpacker) note(fd int, base string, flags int) error {
	if u.lowest {
		return nil // no whiteout will ask
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, flags); err != nil {
		return err
	}
	u.made[st.Ino] = struct{}{}
	return nil
}

func (u *unpacker) xattrs(h *tar.Header, set func(name string, value []byte) error) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrPrefix)
		if !ok {
			continue
		}
		if name == "system.posix_acl_default" {
			u.acls = true
		}
		err := set(name, []byte(value))
		switch {
		case err == nil:
		case name != "security.capability" && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)):
			// tmpfs has no user.* before Linux 6.6, a symbolic link never
			// has: a loss, none that keeps a node from booting.
			u.noXattrs++
		default:
			return fmt.Errorf("extended attribute %.60q: %w", name, err)
		}
	}
	return nil
}

func setTime(parent int, base string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return fmt.Errorf("time %s: %w", at, err)
	}
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setTimeOf is setTime for an open file: utimensat(2) of a descriptor, which
// is spared the look-up of a name.
func setTimeOf(fd int, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return fmt.Errorf("time %s: %w", at, err)
	}
	both := [2]unix.Timespec{ts, ts}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&both)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("time %s: %w", at, errno)
	}
	return nil
}

// fileUmask is the process's umask, of Linux's /proc/self/status: umask(2)
// cannot be asked without being changed, for all threads. Where it cannot be
// read, all bits.
func fileUmask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 12); err == nil {
				return uint32(mask)
			}
		}
	}
	return 0o777
}

var zeroes [page]byte

// content writes a file's, and leaves out whole pages of zeroes: a sparse file
// stays one, and costs no memory in tmpfs.
func (u *unpacker) content(fd int, h *tar.Header, tr *tar.Reader, r *stream) error {
	w := fileWriter{fd: fd}
	if sparse(h) { // the tar.Reader knows where its pieces go
		if u.buf == nil {
			u.buf = make([]byte, block)
		}
		for w.off < h.Size {
			n, err := io.ReadFull(tr, u.buf[:min(int64(len(u.buf)), h.Size-w.off)])
			if err != nil {
				return fmt.Errorf("read tar: %w", err)
			}
			if err := w.write(u.buf[:n]); err != nil {
				return err
			}
		}
		return w.finish(h.Size)
	}
	for w.off < h.Size {
		b, err := r.take(h.Size - w.off)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := w.write(b); err != nil {
			return err
		}
	}
	return w.finish(h.Size)
}

// sparse says whether an entry's content does not lie in the tar as it is
// (tar(5), "Sparse files" in the GNU and PAX formats).
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// fileWriter writes a file from its beginning on.
type fileWriter struct {
	fd  int
	off int64
	end int64 // of what was really written
}

// write writes b in pieces that end where the file's pages do. Those of zeroes
// are left out: what is not written of a new file reads as zeroes.
func (w *fileWriter) write(b []byte) error {
	for len(b) > 0 {
		data := 0
		for data < len(b) {
			piece := min(page-int(w.off+int64(data))&(page-1), len(b)-data)
			if b[data] == 0 && bytes.Equal(b[data:data+piece], zeroes[:piece]) {
				if data > 0 {
					break
				}
				w.off, b = w.off+int64(piece), b[piece:]
				continue
			}
			data += piece
		}
		if data == 0 {
			return nil
		}
		if err := pwriteAll(w.fd, b[:data], w.off); err != nil {
			return err
		}
		w.off, b = w.off+int64(data), b[data:]
		w.end = w.off
	}
	return nil
}

// finish gives the file its size where it ends in a hole.
func (w *fileWriter) finish(size int64) error {
	if w.end < size {
		return unix.Ftruncate(w.fd, size)
	}
	return nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// isSystem says whether err is this node's doing (no room, no permission) and
// says nothing of the part.
func isSystem(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.ENOMEM, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EPERM, unix.EACCES,
		unix.EMFILE, unix.ENFILE, unix.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
