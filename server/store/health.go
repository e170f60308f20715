package store

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"
)

// health notices when the disk takes nothing any more, and when it does again.
type health struct {
	log  *slog.Logger
	path string // of the database

	mu    sync.Mutex
	since time.Time // of the first failure; zero: all is well
	said  time.Time
}

// sayEvery is how often a failure that lasts is logged.
const sayEvery = time.Minute

// isBroken tells whether err is the disk's doing, so that the same may work
// later.
func isBroken(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case sqlite3.ErrFull, sqlite3.ErrReadonly, sqlite3.ErrIoErr, sqlite3.ErrCantOpen:
		return true
	}
	return false
}

// explain says what is wrong with the disk and what to do.
func explain(path string, err error) error {
	var e sqlite3.Error
	errors.As(err, &e)
	switch e.Code {
	case sqlite3.ErrFull:
		return fmt.Errorf("the disk that holds %s is full; free some of it, and it goes on by itself (df -h shows it): %w", path, err)
	case sqlite3.ErrReadonly:
		return fmt.Errorf("%s cannot be written, its file system or the file is read-only; make it writable (mount -o remount,rw), and it goes on by itself: %w", path, err)
	}
	return fmt.Errorf("%s cannot be written, the disk fails (dmesg may say more): %w", path, err)
}

// broken notes a failed write and gives its error in words.
func (h *health) broken(err error) error {
	err = explain(h.path, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.since.IsZero() {
		h.since = now
	}
	if now.Sub(h.said) >= sayEvery {
		h.said = now
		h.log.Error("nothing can be saved: nodes with an address of their own still get it; new leases, boots and changes are refused until this is mended", "err", err)
	}
	return err
}

// well notes a write that got to disk.
func (h *health) well() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.since.IsZero() {
		h.log.Info("what happens is saved again", "failed for", time.Since(h.since).Round(time.Second))
		h.since, h.said = time.Time{}, time.Time{}
	}
}

// Writable tells why nothing could be saved lately; nil: it could.
func (s *Store) Writable() error {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	if s.health.since.IsZero() {
		return nil
	}
	return fmt.Errorf("nothing could be saved since %s; the log says why", s.health.since.Format(time.RFC3339))
}
