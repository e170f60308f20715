package tftp

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mappings shares the memory of files between transfers: each file is mapped
// once, however many boxes load it, and its pages are the page cache's. The
// process never reads them itself, only the kernel does when it sends, so a
// file that is cut off meanwhile is an error and no SIGBUS.
type mappings struct {
	mu  sync.Mutex
	all map[fileKey]*mapping
}

// fileKey is one state of one file.
type fileKey struct {
	dev, ino    uint64
	size        int64
	mtime, born time.Duration
}

type mapping struct {
	key  fileKey
	b    []byte
	refs int
}

func newMappings() *mappings { return &mappings{all: map[fileKey]*mapping{}} }

// of gives the content's bytes where they are or can be had in memory, and
// what is to be called when they are no longer used. nil: read it with ReadAt.
func (m *mappings) of(c Content) (b []byte, release func()) {
	switch c := c.(type) {
	case *byteContent:
		return c.all, func() {}
	case *fileContent:
		return m.file(c.File, c.info)
	}
	return nil, func() {}
}

func (m *mappings) file(f *os.File, info os.FileInfo) ([]byte, func()) {
	none := func() {}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Size() == 0 || info.Size() != int64(int(info.Size())) {
		return nil, none
	}
	key := fileKey{uint64(st.Dev), st.Ino, info.Size(), time.Duration(st.Mtim.Nano()), time.Duration(st.Ctim.Nano())}
	m.mu.Lock()
	defer m.mu.Unlock()
	mp := m.all[key]
	if mp == nil {
		b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, none // some file systems cannot
		}
		unix.Madvise(b, unix.MADV_WILLNEED) //nolint:errcheck // only a hint
		mp = &mapping{key: key, b: b}
		m.all[key] = mp
	}
	mp.refs++
	return mp.b, func() { m.release(mp) }
}

func (m *mappings) release(mp *mapping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mp.refs--; mp.refs == 0 {
		delete(m.all, mp.key)
		unix.Munmap(mp.b) //nolint:errcheck // it was mapped
	}
}
