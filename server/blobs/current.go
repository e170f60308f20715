package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dsas"
)

// maxJSON bounds a manifest's file, in bytes.
const maxJSON = 1 << 20

// stamp tells one state of a file from another: each publishing is a new inode.
type stamp struct {
	inode uint64
	mtime time.Time
	size  int64
}

type cached struct {
	stamp stamp
	value any
}

// Current gives the role's current manifest; dsas.ErrNotFound where no image
// of it was built. It costs one stat(2) while nothing was published, so it may
// be asked for every boot decision. The caller must not change its Parts.
func (s *Store) Current(role string) (dsas.Manifest, error) {
	if err := dsas.CheckName("role", role); err != nil {
		return dsas.Manifest{}, fmt.Errorf("current image: %w", err)
	}
	m, err := load[dsas.Manifest](s, filepath.Join(s.roleDir(), role+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("image of role %s: %w (build it with: dsas image build %s)", role, dsas.ErrNotFound, role)
	}
	if err != nil {
		return m, fmt.Errorf("image of role %s: %w", role, err)
	}
	return m, nil
}

// Boot gives the current kernel and initramfs; dsas.ErrNotFound where none was
// built. It is as cheap as Current.
func (s *Store) Boot() (dsas.BootSet, error) {
	b, err := load[dsas.BootSet](s, filepath.Join(s.dir, "boot.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("kernel and initramfs: %w (build them with: dsas image build)", dsas.ErrNotFound)
	}
	if err != nil {
		return b, fmt.Errorf("kernel and initramfs: %w", err)
	}
	return b, nil
}

// Images gives the current manifest of every role that has one, by role name.
func (s *Store) Images() ([]dsas.Manifest, error) {
	entries, err := os.ReadDir(s.roleDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was built yet
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []dsas.Manifest
	for _, e := range entries {
		role, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(role, ".") {
			continue
		}
		m, err := s.Current(role)
		if errors.Is(err, dsas.ErrNotFound) { // removed since the folder was read
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		out = append(out, m)
	}
	return out, nil
}

// Publish makes m the role's current manifest and gives it with its digest.
// Every part must be in the store.
func (s *Store) Publish(m dsas.Manifest) (dsas.Manifest, error) {
	fail := func(err error) (dsas.Manifest, error) {
		return dsas.Manifest{}, fmt.Errorf("publish image of role %s: %w", m.Role, err)
	}
	if err := dsas.CheckName("role", m.Role); err != nil {
		return fail(err)
	}
	if len(m.Parts) == 0 {
		return fail(fmt.Errorf("it has no parts: %w", dsas.ErrInvalid))
	}
	if err := s.checkParts(m.Parts...); err != nil {
		return fail(err)
	}
	// Kept by digest too: a node that is booting reads the one it began with.
	m.Digest = ""
	b, err := json.Marshal(m)
	if err != nil {
		return fail(err)
	}
	d, _, err := s.Put(context.Background(), bytes.NewReader(b))
	if err != nil {
		return fail(err)
	}
	m.Digest = d
	m.Parts = slices.Clone(m.Parts) // ours is the cached one
	if err := s.replace(filepath.Join(s.roleDir(), m.Role+".json"), m); err != nil {
		return fail(err)
	}
	return m, nil
}

// PublishBoot makes b the kernel and initramfs that every boot from now on gets.
func (s *Store) PublishBoot(b dsas.BootSet) error {
	parts := []dsas.Part{b.Kernel, b.Initramfs}
	if b.Firmware != nil {
		parts = append(parts, *b.Firmware)
	}
	if err := s.checkParts(parts...); err != nil {
		return fmt.Errorf("publish kernel %s: %w", b.Release, err)
	}
	if err := s.replace(filepath.Join(s.dir, "boot.json"), b); err != nil {
		return fmt.Errorf("publish kernel %s: %w", b.Release, err)
	}
	return nil
}

// Manifest gives a published manifest by its digest, current or not.
func (s *Store) Manifest(d dsas.Digest) (dsas.Manifest, error) {
	f, size, err := s.Blob(d)
	if err != nil {
		return dsas.Manifest{}, fmt.Errorf("image %s: %w", d.Short(), err)
	}
	defer f.Close()
	var m dsas.Manifest
	if size > maxJSON {
		return m, fmt.Errorf("image %s: %d bytes are no manifest: %w", d.Short(), size, dsas.ErrInvalid)
	}
	if err := json.NewDecoder(f).Decode(&m); err != nil {
		return m, fmt.Errorf("image %s: %w: %w", d.Short(), err, dsas.ErrInvalid)
	}
	if len(m.Parts) == 0 {
		return m, fmt.Errorf("image %s: not a manifest: %w", d.Short(), dsas.ErrInvalid)
	}
	m.Digest = d
	return m, nil
}

// ManifestDigest gives the SHA-256 of m's JSON without its Digest field.
func ManifestDigest(m dsas.Manifest) (dsas.Digest, error) {
	m.Digest = ""
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return dsas.Digest("sha256:" + hex.EncodeToString(sum[:])), nil
}

func (s *Store) checkParts(parts ...dsas.Part) error {
	for _, p := range parts {
		if _, err := dsas.ParseDigest(string(p.Digest)); err != nil {
			return fmt.Errorf("part %q: %w", p.Title, err)
		}
		if !s.Has(p.Digest, p.Size) {
			return fmt.Errorf("part %q: blob %s with %d bytes: %w", p.Title, p.Digest.Short(), p.Size, dsas.ErrNotFound)
		}
	}
	return nil
}

func (s *Store) replace(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	return settle(f, name)
}

// load reads the JSON file or what is remembered of it.
func load[T any](s *Store, name string) (T, error) {
	var zero T
	fi, err := os.Stat(name)
	if err != nil {
		return zero, err
	}
	s.mu.Lock()
	c, ok := s.cache[name]
	s.mu.Unlock()
	if v, same := c.value.(T); ok && same && c.stamp == stampOf(fi) {
		return v, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return zero, err
	}
	defer f.Close()
	// Of the open file: the name may mean another one by now.
	if fi, err = f.Stat(); err != nil {
		return zero, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return zero, err
	}
	if len(b) > maxJSON {
		return zero, fmt.Errorf("%s is larger than %d bytes: %w", name, maxJSON, dsas.ErrInvalid)
	}
	var v T
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&v); err != nil {
		return zero, fmt.Errorf("%s: %w: %w", name, err, dsas.ErrInvalid)
	}
	s.mu.Lock()
	s.cache[name] = cached{stampOf(fi), v}
	s.mu.Unlock()
	return v, nil
}

func stampOf(fi fs.FileInfo) stamp {
	st := stamp{mtime: fi.ModTime(), size: fi.Size()}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		st.inode = sys.Ino
	}
	return st
}
