package blobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"dsas"
)

// maxJSON bounds index, manifests and configs, in bytes.
const maxJSON = 4 << 20

// lookEvery is how long the index is trusted without a look at its file: it is
// asked for with every packet of a rack that powers up.
const lookEvery = 100 * time.Millisecond

// index is the layout's index.json as it was last read. It is never changed: a
// newer one takes its place.
type index struct {
	stamp stamp
	byID  map[dsas.Digest]entry // releases
	refs  map[string]dsas.Digest
	notes map[string]string
	raw   v1.IndexManifest // without going
	// marked: a GC runs, or was killed, that means to remove something. going are
	// the lines in question while it runs; of one that was killed they are in raw,
	// as if it had never been.
	marked bool
	going  []v1.Descriptor
}

// entry is a release's line in the index.
type entry struct {
	role    string
	number  int
	created time.Time
	digest  dsas.Digest // of the image's manifest
	signed  string      // digests of the signatures' manifests, with spaces between
}

// stamp tells one state of a file from another: each writing is a new inode.
type stamp struct {
	inode uint64
	mtime time.Time
	size  int64
}

func stampOf(fi fs.FileInfo) stamp {
	st := stamp{mtime: fi.ModTime(), size: fi.Size()}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		st.inode = sys.Ino
	}
	return st
}

func (s *Store) indexName() string { return filepath.Join(s.dir, "index.json") }

// index gives the index as it is now, or was up to lookEvery ago.
func (s *Store) index() (*index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.idx != nil && now.Sub(s.looked) < lookEvery {
		return s.idx, nil
	}
	idx, err := s.readIndex(s.idx)
	if err != nil {
		return nil, err
	}
	s.idx, s.looked = idx, now
	return idx, nil
}

// readIndex reads the file, unless had is what stands in it.
func (s *Store) readIndex(had *index) (*index, error) {
	idx, err := s.readRaw(had)
	if err != nil || !idx.marked {
		return idx, err
	}
	// Before the file is read: a GC that ends now has written it by then.
	runs, err := s.gcRuns()
	if err != nil {
		return nil, err
	}
	if idx, err = s.readRaw(nil); err != nil {
		return nil, err
	}
	raw := idx.raw
	raw.Manifests = []v1.Descriptor{} // the specification wants an array
	var going []v1.Descriptor
	for _, d := range idx.raw.Manifests {
		switch {
		case d.Annotations[noteGoing] == "":
		case runs:
			going = append(going, d)
			continue
		default:
			delete(d.Annotations, noteGoing)
		}
		raw.Manifests = append(raw.Manifests, d)
	}
	shown := parseIndex(raw)
	shown.stamp, shown.marked, shown.going = idx.stamp, idx.marked, going
	return shown, nil
}

// readRaw reads the file as it stands there, unless had is what stands in it and
// nothing is marked.
func (s *Store) readRaw(had *index) (*index, error) {
	f, err := os.Open(s.indexName())
	if errors.Is(err, fs.ErrNotExist) {
		return parseIndex(v1.IndexManifest{SchemaVersion: ociSchema, MediaType: types.OCIImageIndex}), nil
	}
	if err != nil {
		return nil, fmt.Errorf("image index: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("image index: %w", err)
	}
	if had != nil && had.stamp == stampOf(fi) && !had.marked {
		return had, nil
	}
	var raw v1.IndexManifest
	if err := decode(f, &raw); err != nil {
		return nil, fmt.Errorf("image index %s: %w", s.indexName(), err)
	}
	idx := parseIndex(raw)
	idx.stamp = stampOf(fi)
	idx.marked = slices.ContainsFunc(raw.Manifests, func(d v1.Descriptor) bool { return d.Annotations[noteGoing] != "" })
	return idx, nil
}

// decode reads one JSON text of a bounded size.
func decode(r io.Reader, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return err
	}
	if len(b) > maxJSON {
		return fmt.Errorf("larger than %d bytes: %w", maxJSON, dsas.ErrInvalid)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", err, dsas.ErrInvalid)
	}
	return nil
}

// noRelease is the error of a role that has none: one of a name that is close and
// has some may have been meant. Which roles there are the store does not know.
func (x *index) noRelease(role string) error {
	var known []string
	for _, e := range x.byID {
		known = append(known, e.role)
	}
	return fmt.Errorf("role %s has no release%s; build one with: dsas image build %s: %w", role, dsas.DidYouMean(role, known), role, dsas.ErrNotFound)
}

// newest gives the role's release with the highest number.
func (x *index) newest(role string) (id dsas.Digest, ok bool) {
	n := 0
	for d, e := range x.byID {
		if e.role == role && e.number > n {
			id, n, ok = d, e.number, true
		}
	}
	return id, ok
}

// parseIndex finds the releases in an index. Lines that are none of ours, as
// other tools add them, are left alone.
func parseIndex(raw v1.IndexManifest) *index {
	idx := &index{byID: map[dsas.Digest]entry{}, refs: map[string]dsas.Digest{}, notes: raw.Annotations, raw: raw}
	for _, d := range raw.Manifests {
		id, err := dsas.ParseDigest(d.Annotations[noteRelease])
		if err != nil {
			continue
		}
		ref, err := dsas.ParseReleaseRef(d.Annotations[noteRef])
		if err != nil || ref.Role == "" {
			continue
		}
		idx.refs[ref.String()] = id
		if ref.Number == 0 {
			continue
		}
		created, _ := time.Parse(time.RFC3339, d.Annotations[noteCreated])
		idx.byID[id] = entry{role: ref.Role, number: ref.Number, created: created, digest: dsas.Digest(d.Digest.String())}
	}
	addSignatures(idx)
	return idx
}

// lastNumber gives the last number that a role's releases were given: that of
// one that was removed is not given again.
func (idx *index) lastNumber(role string) int {
	n, _ := strconv.Atoi(idx.notes[noteNumber+role])
	for _, e := range idx.byID {
		if e.role == role {
			n = max(n, e.number)
		}
	}
	return n
}

// lockIndex does something while no process changes the index.
func (s *Store) lockIndex(do func() error) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("lock image index: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock image index: %w", err)
	}
	return do()
}

// changeIndex writes the index anew, whole or not at all, under a lock that
// holds for all processes. change gets a copy that is its own; what a GC that
// runs is about to remove (index.going) is not in it, and stays.
func (s *Store) changeIndex(change func(*v1.IndexManifest, *index) error) error {
	return s.lockIndex(func() error { return s.changeLocked(change) })
}

func (s *Store) changeLocked(change func(*v1.IndexManifest, *index) error) error {
	idx, err := s.readIndex(nil)
	if err != nil {
		return err
	}
	raw := idx.raw.DeepCopy()
	if err := change(raw, idx); err != nil {
		return err
	}
	raw.Manifests = append(raw.Manifests, idx.going...)
	// image-layout.md of OCI's image specification: the file says which layout it is.
	if _, err := os.Stat(filepath.Join(s.dir, "oci-layout")); err != nil {
		if err := s.replace(filepath.Join(s.dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
			return fmt.Errorf("write image index: %w", err)
		}
	}
	if err := s.replace(s.indexName(), raw); err != nil {
		return fmt.Errorf("write image index: %w", err)
	}
	s.forget()
	return nil
}

// Refresh has the next question look at the index's file.
func (s *Store) Refresh() { s.forget() }

// forget has the next index look at the file.
func (s *Store) forget() {
	s.mu.Lock()
	s.looked = time.Time{}
	s.mu.Unlock()
}

// replace writes a JSON file anew by rename.
func (s *Store) replace(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	return settle(f, name)
}
