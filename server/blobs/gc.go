package blobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
	"dsas/internal/diskio"
)

// GC says what GC is to remove.
type GC struct {
	// Unused gives those of releases that nobody needs. It is asked once more
	// after they were taken out of the index: what was published, pinned or
	// booted meanwhile goes back into it.
	Unused func(ctx context.Context, releases []dsas.Release) ([]dsas.Digest, error)
	// MinAge is how old content has to be that no release refers to: somebody
	// may be about to. Zero: an hour.
	MinAge time.Duration
	// Settle is how long a server may go on with the index that it has read.
	// Zero: a second.
	Settle time.Duration
	DryRun bool
	// Waiting is called when others who hold the store have to end first, with
	// who they are as far as that can be seen ("COMMAND LINE (process PID)"), and
	// again when they are others; nil: nobody is told.
	Waiting func(users []string)
	// Wait is how long others are waited for; then it is dsas.ErrConflict, and
	// nothing is removed. Zero: until ctx ends.
	Wait time.Duration
}

// GCDone is what was removed, or would be.
type GCDone struct {
	Releases []string `json:"releases"` // names
	Blobs    int      `json:"blobs"`
	Bytes    int64    `json:"bytes"`
	Young    int      `json:"young"` // blobs of no release that were left, since they are new
}

// GC removes releases that nobody needs, and then the content that nothing in
// the index refers to. The index goes first: killed in the middle, it leaves
// content that the next one removes, and no release without its content. It
// waits for who holds the store (Hold) until ctx ends.
func (s *Store) GC(ctx context.Context, gc GC) (GCDone, error) {
	fail := func(err error) (GCDone, error) { return GCDone{}, fmt.Errorf("remove unused images: %w", err) }
	if gc.MinAge == 0 {
		gc.MinAge = time.Hour
	}
	if gc.Settle == 0 {
		gc.Settle = time.Second
	}
	if gc.Waiting == nil {
		gc.Waiting = func([]string) {}
	}
	if !gc.DryRun {
		unlock, err := s.lockForGC(ctx, gc)
		if err != nil {
			return fail(err)
		}
		defer unlock()
		left, err := s.bringBack(func(dsas.Digest) bool { return true })
		if err != nil {
			return fail(err)
		}
		if left { // the server is asked what it lists
			settleDown(ctx, gc)
		}
		s.sweep()
	}
	s.forget()
	all, err := s.Releases()
	if err != nil {
		return fail(err)
	}
	unused, err := gc.Unused(ctx, all)
	if err != nil {
		return fail(err)
	}
	if len(unused) > 0 && !gc.DryRun {
		// What ends it later would end it between releases and their content.
		idx, err := s.readIndex(nil)
		if err == nil {
			_, err = s.marked(idx, unused)
		}
		if err != nil {
			return fail(err)
		}
		if unused, err = s.drop(ctx, gc, all, unused); err != nil {
			return fail(err)
		}
	}
	done := GCDone{Releases: []string{}}
	for _, r := range all {
		if slices.Contains(unused, r.ID) {
			done.Releases = append(done.Releases, r.Name())
		}
	}
	if err := s.sweepBlobs(ctx, gc, unused, &done); err != nil {
		return fail(err)
	}
	return done, nil
}

// drop takes releases out of the index, unless they are needed after all. First
// it hides them, by a mark that counts while a GC runs: a server that has looked
// at the index then gives them to nobody, and one that had not yet is heard of
// when Unused is asked again. Killed in between, it has removed nothing, also
// not what a server took into use at the last moment.
func (s *Store) drop(ctx context.Context, gc GC, all []dsas.Release, unused []dsas.Digest) ([]dsas.Digest, error) {
	err := s.changeIndex(func(raw *v1.IndexManifest, _ *index) error {
		var lines []v1.Descriptor
		raw.Manifests, lines = split(raw.Manifests, unused)
		for _, l := range lines { // each is of a release or a signature, by its annotations
			l.Annotations[noteGoing] = "gc"
		}
		raw.Manifests = append(raw.Manifests, lines...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	// From here on it is done or undone, whatever becomes of ctx.
	settleDown(ctx, gc)
	still, err := gc.Unused(ctx, all)
	if err != nil {
		still = nil // nothing is known: all go back
	}
	goes := func(d dsas.Digest) bool { return slices.Contains(still, d) }
	_, backErr := s.bringBack(func(d dsas.Digest) bool { return !goes(d) })
	if err := errors.Join(err, backErr); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(unused), func(d dsas.Digest) bool { return !goes(d) }), nil
}

// settleDown waits until all servers have looked at the index as it is now.
func settleDown(ctx context.Context, gc GC) {
	select {
	case <-time.After(gc.Settle):
	case <-ctx.Done():
	}
}

// bringBack ends what drop, of this GC or one that was killed, began: of the
// lines that it marked those of the releases that stay are as they were, and the
// others are no more. It is for the GC that runs, and tells whether there were any.
func (s *Store) bringBack(stays func(dsas.Digest) bool) (were bool, err error) {
	err = s.changeIndex(func(raw *v1.IndexManifest, idx *index) error {
		if len(idx.going) == 0 {
			return errThere
		}
		var back []dsas.Digest
		for _, l := range idx.going {
			if id := dsas.Digest(l.Annotations[noteRelease]); id != "" && stays(id) {
				back = append(back, id)
			}
		}
		var again []v1.Descriptor
		if len(back) > 0 {
			_, again = split(idx.going, back)
		}
		for _, l := range again {
			delete(l.Annotations, noteGoing)
			ref := l.Annotations[noteRef] // a signature has none
			taken := func(m v1.Descriptor) bool {
				return m.Annotations[noteRef] == ref && (ref != "" || m.Digest == l.Digest)
			}
			if !slices.ContainsFunc(raw.Manifests, taken) {
				raw.Manifests = append(raw.Manifests, l)
			}
		}
		idx.going = nil
		return nil
	})
	if errors.Is(err, errThere) {
		return false, nil
	}
	return err == nil, err
}

// split parts an index's lines into those of other things and those of releases,
// signatures with what they sign; where that is not there, they are nobody's.
func split(lines []v1.Descriptor, releases []dsas.Digest) (others, of []v1.Descriptor) {
	others = []v1.Descriptor{} // the specification wants an array
	for _, l := range lines {
		if slices.Contains(releases, dsas.Digest(l.Annotations[noteRelease])) {
			of = append(of, l)
		} else {
			others = append(others, l)
		}
	}
	stays := map[dsas.Digest]bool{}
	for _, l := range others {
		stays[dsas.Digest(l.Digest.String())] = true
	}
	others = slices.DeleteFunc(others, func(l v1.Descriptor) bool {
		subject := signs(l)
		if subject == "" || stays[subject] {
			return false
		}
		of = append(of, l)
		return true
	})
	return others, of
}

// sweepBlobs removes what nothing in the index refers to. AddRelease looks under
// the same lock whether its content is there, so neither undoes the other.
func (s *Store) sweepBlobs(ctx context.Context, gc GC, unused []dsas.Digest, done *GCDone) error {
	return s.lockIndex(func() error {
		idx, err := s.readIndex(nil)
		if err != nil {
			return err
		}
		used, err := s.marked(idx, unused) // of a dry run these are still there
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(s.blobDir())
		if err != nil {
			return err
		}
		defer diskio.SyncDir(s.blobDir())
		for _, e := range entries {
			d, err := dsas.ParseDigest("sha256:" + e.Name())
			if err != nil || used.seen[d] {
				continue // what is being written has another name
			}
			fi, err := e.Info()
			if err != nil || !fi.Mode().IsRegular() {
				continue
			}
			if time.Since(fi.ModTime()) < gc.MinAge {
				done.Young++
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if !gc.DryRun {
				if err := os.Remove(filepath.Join(s.blobDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			done.Blobs++
			done.Bytes += fi.Size()
		}
		return nil
	})
}

// marked collects what an index refers to, but for what these releases do alone.
func (s *Store) marked(idx *index, without []dsas.Digest) (*marks, error) {
	lines, _ := split(idx.raw.Manifests, without)
	used := &marks{store: s, seen: map[dsas.Digest]bool{}}
	for _, l := range lines {
		err := used.mark(l)
		if ref, refErr := dsas.ParseReleaseRef(l.Annotations[noteRef]); err != nil && refErr == nil {
			err = fmt.Errorf("release %s is damaged and in use: dsas image build %s makes it anew, or have nothing boot it nor go back to it, and it is removed too: %w", ref, ref.Role, err)
		}
		if err != nil {
			return nil, err
		}
	}
	return used, nil
}

// marks collects what an index refers to, also by lines that are none of ours.
type marks struct {
	store *Store
	seen  map[dsas.Digest]bool
}

// references are what OCI's manifests and indexes (manifest.md, image-index.md)
// refer to. A subject is not among them: what speaks about an image does not
// keep it.
type references struct {
	Config      *v1.Descriptor    `json:"config"`
	Layers      []v1.Descriptor   `json:"layers"`
	Manifests   []v1.Descriptor   `json:"manifests"`
	Blobs       []v1.Descriptor   `json:"blobs"` // of artifact manifests, as they once were
	Annotations map[string]string `json:"annotations"`
}

// mark marks d and, where it is a manifest or an index, what it refers to.
func (m *marks) mark(d v1.Descriptor) error {
	digest := dsas.Digest(d.Digest.String())
	if m.seen[digest] {
		return nil
	}
	m.seen[digest] = true
	if _, err := dsas.ParseDigest(string(digest)); err != nil {
		return nil // another hash: not in our folder
	}
	manifest := d.MediaType.IsImage() || d.MediaType.IsIndex()
	refs, err := m.read(digest, manifest)
	if errors.Is(err, dsas.ErrNotFound) {
		return nil // a layout need not be whole
	}
	if err != nil && (manifest || d.MediaType == "") {
		return fmt.Errorf("what %s refers to is not known, so nothing was removed; take its line out of %s if it is not needed: %w", digest.Short(), m.store.indexName(), err)
	}
	if err != nil {
		return nil // JSON of another kind
	}
	next := slices.Concat(refs.Layers, refs.Manifests, refs.Blobs)
	if refs.Config != nil {
		next = append(next, *refs.Config)
	}
	if boot, err := v1.NewHash(refs.Annotations[noteBoot]); err == nil {
		next = append(next, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: boot})
	}
	for _, n := range next {
		if err := m.mark(n); err != nil {
			return err
		}
	}
	return nil
}

// read gives what a blob refers to: nothing where it is no JSON object. A manifest
// is one, and what its digest says: else its layers would be nobody's.
func (m *marks) read(d dsas.Digest, manifest bool) (refs references, err error) {
	f, size, err := m.store.Blob(d)
	if err != nil {
		return refs, err
	}
	defer f.Close()
	if size > maxJSON && !manifest {
		return refs, nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxJSON))
	if err != nil {
		return refs, err
	}
	if manifest && digestOf(b) != d {
		return refs, fmt.Errorf("it is not what its digest says: it was damaged: %w", dsas.ErrInvalid)
	}
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '{' {
		return refs, nil
	}
	if err := json.Unmarshal(b, &refs); err != nil {
		return refs, fmt.Errorf("%w: %w", err, dsas.ErrInvalid)
	}
	return refs, nil
}
