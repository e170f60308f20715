// Package blobs keeps what nodes boot from: an OCI image layout with a release's
// image, kernel and initramfs by digest. Nothing in it is ever changed in place:
// a build adds content and then replaces the index by rename, and a node that is
// booting keeps reading the blobs it began with.
//
// The layout is OCI's own (image-layout.md of its image specification):
//
//	oci-layout         which layout it is
//	index.json         the releases: "web:7", and what a build proposed last, "web:latest"
//	blobs/sha256/HEX   content: manifests, configs, layers, kernels, initramfs
//	lock               ours: who changes the index
//
// The folder itself is locked (flock(2)) by who uses content (Store.Hold), shared, and
// by who removes what is unused (Store.GC), alone.
//
// What of it nodes boot is the server's to say (dsas.Published), and stands in
// its database.
package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dsas"
	"dsas/internal/diskio"
)

// Store is a folder of content. It is safe for use by several goroutines, and
// by several processes: the server reads while an image build writes.
type Store struct {
	dir string

	mu     sync.Mutex
	idx    *index                      // as last read
	looked time.Time                   // when its file was last looked at
	read   map[dsas.Digest]readRelease // by ID
	last   atomic.Pointer[asked]

	bootFiles   map[dsas.Digest]string // title, by digest
	bootFilesOf *index                 // that bootFiles was made for
}

// readRelease is a release and the line of the index that it was read for.
type readRelease struct {
	entry   entry
	release *dsas.Release
}

// Open makes the folders below dir where they are missing. Who may only read
// there, as the server where images are root's, finds an empty store until
// somebody who may write has opened it.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, read: map[dsas.Digest]readRelease{}}
	err := os.MkdirAll(s.blobDir(), 0o755)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		if _, statErr := os.Stat(dir); statErr == nil {
			return s, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) blobDir() string { return filepath.Join(s.dir, "blobs", "sha256") }

// tmpPrefix marks files that are being written; no digest begins with a dot.
const tmpPrefix = ".new-"

// Put stores what r gives and says its digest and length in bytes. What was
// there under that digest already stays. Nothing is left behind when r or the
// disk fails or ctx ends.
func (s *Store) Put(ctx context.Context, r io.Reader) (dsas.Digest, int64, error) {
	fail := func(err error) (dsas.Digest, int64, error) {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	s.sweep()
	f, err := os.CreateTemp(s.blobDir(), tmpPrefix+"*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, h), diskio.Reader(ctx, r), make([]byte, 1<<20))
	if err != nil {
		return fail(err)
	}
	d := dsas.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
	if fi, err := os.Stat(s.blobPath(d)); err == nil && fi.Size() == n {
		// Somebody counts on it from now on (GC.MinAge). Removed at this moment,
		// it is written anew.
		if now := time.Now(); os.Chtimes(s.blobPath(d), now, now) == nil {
			return d, n, nil
		}
	}
	if err := settle(f, s.blobPath(d)); err != nil {
		return fail(err)
	}
	return d, n, nil
}

// PutFile stores the content of the named file.
func (s *Store) PutFile(ctx context.Context, name string) (dsas.Digest, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	defer f.Close()
	return s.Put(ctx, f)
}

// Blob opens content for reading and gives its length in bytes. An unknown
// digest is dsas.ErrNotFound, a malformed one dsas.ErrInvalid.
func (s *Store) Blob(d dsas.Digest) (*os.File, int64, error) {
	// Also what keeps a path like "sha256:../../key" out of the file name.
	if _, err := dsas.ParseDigest(string(d)); err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", d.Short(), dsas.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	return f, fi.Size(), nil
}

// Has tells whether content with this digest and length is there.
func (s *Store) Has(d dsas.Digest, size int64) bool {
	if _, err := dsas.ParseDigest(string(d)); err != nil {
		return false
	}
	fi, err := os.Stat(s.blobPath(d))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == size
}

func (s *Store) blobPath(d dsas.Digest) string { return filepath.Join(s.blobDir(), d.Hex()) }

// settle makes f durable under its final name, readable by all: the server
// may run as another user than the one who builds.
func settle(f *os.File, name string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return diskio.SyncDir(filepath.Dir(name))
}

// staleAfter is longer than any write takes: an older temporary file is what a
// killed build left.
const staleAfter = 24 * time.Hour

func (s *Store) sweep() {
	for _, dir := range []string{s.blobDir(), s.dir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), tmpPrefix) {
				continue
			}
			if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > staleAfter {
				os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}
