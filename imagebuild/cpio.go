package imagebuild

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
)

// archive collects the files of a cpio and writes them always the same way:
// sorted, owned by root, one time stamp, inodes counted from 1.
type archive struct{ entries map[string]entry }

type entry struct {
	mode   cpio.FileMode
	data   []byte // content, or a symlink's target
	source string // or: the file whose content it is
}

func newArchive() *archive { return &archive{entries: map[string]entry{}} }

// add puts an entry and the folders above it. Names have no leading slash.
func (a *archive) add(name string, e entry) {
	a.entries[name] = e
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if _, ok := a.entries[d]; !ok {
			a.entries[d] = entry{mode: cpio.TypeDir | 0o755}
		}
	}
}

func (a *archive) dir(name string) { a.add(name, entry{mode: cpio.TypeDir | 0o755}) }
func (a *archive) symlink(name, target string) {
	a.add(name, entry{mode: cpio.TypeSymlink | 0o777, data: []byte(target)})
}
func (a *archive) file(name string, mode cpio.FileMode, data []byte) {
	a.add(name, entry{mode: cpio.TypeReg | mode, data: data})
}
func (a *archive) copy(name string, mode cpio.FileMode, source string) {
	a.add(name, entry{mode: cpio.TypeReg | mode, source: source})
}

// write writes the archive in the "new ASCII" format that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func (a *archive) write(w io.Writer) error {
	cw := cpio.NewWriter(w)
	names := make([]string, 0, len(a.entries))
	for n := range a.entries {
		names = append(names, n)
	}
	slices.Sort(names) // a folder before what is in it, similar modules side by side
	for i, n := range names {
		e := a.entries[n]
		data := e.data
		if e.source != "" {
			var err error
			if data, err = os.ReadFile(e.source); err != nil {
				return fmt.Errorf("write cpio: %w", err)
			}
		}
		h := &cpio.Header{Name: n, Mode: e.mode, Inode: int64(i + 1), Links: 1, ModTime: time.Unix(epoch, 0), Size: int64(len(data))}
		if e.mode&cpio.ModeType == cpio.TypeDir {
			h.Links = 2
		}
		if err := cw.WriteHeader(h); err != nil {
			return fmt.Errorf("write cpio %s: %w", n, err)
		}
		if _, err := io.Copy(cw, bytes.NewReader(data)); err != nil {
			return fmt.Errorf("write cpio %s: %w", n, err)
		}
	}
	if err := cw.Close(); err != nil {
		return fmt.Errorf("write cpio: %w", err)
	}
	return nil
}

// list gives the names, for tests and messages.
func (a *archive) list(prefix string) []string {
	var out []string
	for n := range a.entries {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
