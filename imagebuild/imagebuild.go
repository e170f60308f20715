// Package imagebuild makes what nodes boot: the kernel and initramfs that all
// roles share (BuildBoot), and a role's image from its definition (BuildRole).
// It takes everything from Debian packages, by way of the apt configuration of
// the machine it runs on, and installs nothing there.
//
// What is slow is kept in a cache folder under a hash of its inputs, so that a
// build that changes nothing is a comparison of hashes. The folder may be
// removed at any time between builds.
package imagebuild

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/internal/diskio"
)

// builder changes when the same inputs give other bytes, so that nothing an
// older program cached is taken for current.
const builder = "4"

// epoch is the time stamp of everything in an initramfs or an image, in place
// of the time of the build: 2024-01-01. Newer files are clamped to it.
const epoch = 1704067200

// defaultMaxAge is how long the package lists count as fresh.
const defaultMaxAge = 24 * time.Hour

// refreshAge is how old lists may be where newer ones are asked for.
const refreshAge = 2 * time.Minute

// Store is where built content and releases go.
type Store interface {
	// Put stores what r gives under its digest.
	Put(ctx context.Context, r io.Reader) (dsas.Digest, int64, error)
	// Has tells whether content of this digest and length (bytes) is there.
	Has(d dsas.Digest, size int64) bool
	// Release gives a release by its ID, or dsas.ErrNotFound.
	Release(id dsas.Digest) (*dsas.Release, error)
	// AddRelease stores a release whose content is there; what is there under
	// its ID already is the same.
	AddRelease(ctx context.Context, r dsas.Release) (dsas.Release, error)
}

// Options says with what and where to build.
type Options struct {
	Store Store
	Cache string // folder for packages, trees and hashes

	InitPath string // static dsas-init, for BuildBoot
	BBPath   string // u-root's commands as one program (bb/build.sh), for BuildBoot
	// Keys are the public keys by one of which a release must be signed that boots
	// with the initramfs, in minisign's base64, by ID. Without any, our init refuses
	// every release.
	Keys map[string]string

	// Locks is the folder of the base's lock, and of those roles whose
	// definition names no place for theirs; empty: "locks" in the cache.
	Locks string
	// Refresh resolves the versions of all packages anew, from lists that are
	// fetched now (of several builds in a row, the first does). Else those of
	// the locks are taken; for packages that no lock has yet, the lists are
	// fetched when they are older than MaxAge (default 24 h).
	Refresh bool
	MaxAge  time.Duration
	// Allow lets findings of the checks pass, beside what role.yaml allows.
	Allow []dsas.Allow

	// Progress gets one line for each step, for people; nil: silence.
	Progress func(line string)
	// Fraction gets how far the step is that Progress told last: parts, or
	// bytes where total is 0 because nobody knows it. nil: nothing.
	Fraction func(done, total int64)
	// Report gets what is to be told of a role's image once it is built.
	Report func(Report)

	// Etc is where apt's configuration of the machine is; empty: /etc/apt.
	Etc string

	allow *allowance // of the role that is being built

	// lock is the cache's, handed on to what works in it (isolate).
	lock *os.File
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

func (o *Options) fraction(done, total int64) {
	if o.Fraction != nil {
		o.Fraction(done, total)
	}
}

func (o *Options) maxAge() time.Duration {
	if o.Refresh {
		return refreshAge
	}
	if o.MaxAge > 0 {
		return o.MaxAge
	}
	return defaultMaxAge
}

// open checks o, makes the cache folder and takes its lock: one build at a
// time per cache. Call the result to let go.
func (o *Options) open(ctx context.Context) (unlock func(), err error) {
	if o.Store == nil {
		return nil, fmt.Errorf("build: no store given: %w", dsas.ErrInvalid)
	}
	return o.openCache(ctx)
}

// openCache is open for who needs no store.
func (o *Options) openCache(ctx context.Context) (unlock func(), err error) {
	if o.Cache == "" {
		return nil, fmt.Errorf("build: no cache folder given: %w", dsas.ErrInvalid)
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, fmt.Errorf("build: cache folder: %w", err)
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, fmt.Errorf("build: cache folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(o.Cache, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("build: cache folder: %w", err)
	}
	for waiting := false; ; waiting = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			o.lock = f
			SweepCache(o.Cache, func(line string) { o.say("%s", line) })
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("build: lock %s: %w", f.Name(), err)
		}
		if !waiting {
			o.say("waiting for another build that uses %s", o.Cache)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("build: lock %s: %w", f.Name(), ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// SweepCache removes what commands that were killed left in a cache folder, and
// says so. No command fails for it.
func SweepCache(cache string, say func(line string)) {
	removed, err := diskio.SweepScratch(cache, diskio.ScratchAge)
	for _, name := range removed {
		say("removed " + name + " from the cache, which a killed command had left")
	}
	if err != nil {
		say("what killed commands left in the cache could not be removed: " + err.Error())
	}
}

// key hashes inputs into a name for what they make.
func key(inputs ...any) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, in := range append([]any{builder, epoch}, inputs...) {
		if err := enc.Encode(in); err != nil {
			panic(err) // only for types that cannot be JSON: a slip in this package
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// hashFile gives the SHA-256 of a file in hex.
func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// readJSON fills v from a file of the cache; false where it is not there or
// not readable, which for a cache is the same.
func readJSON(name string, v any) bool {
	b, err := os.ReadFile(name)
	return err == nil && json.Unmarshal(b, v) == nil
}

// writeJSON replaces a file of the cache.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
