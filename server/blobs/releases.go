package blobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
)

// PutBoot stores the manifest of a kernel and initramfs whose content is here
// already, and gives b with its digest.
func (s *Store) PutBoot(ctx context.Context, b dsas.BootSet) (dsas.BootSet, error) {
	fail := func(err error) (dsas.BootSet, error) {
		return dsas.BootSet{}, fmt.Errorf("store kernel %s: %w", b.Release, err)
	}
	b.Kernel.Title, b.Initramfs.Title = "kernel", "initramfs"
	if b.Firmware != nil {
		f := *b.Firmware
		f.Title = "firmware"
		b.Firmware = &f
	}
	if err := s.checkParts(b.Parts()...); err != nil {
		return fail(err)
	}
	config, err := s.putJSON(ctx, emptyMedia, []byte("{}"))
	if err != nil {
		return fail(err)
	}
	raw, err := bootManifest(b, config)
	if err != nil {
		return fail(err)
	}
	d, err := s.putJSON(ctx, types.OCIManifestSchema1, raw)
	if err != nil {
		return fail(err)
	}
	b.Digest = dsas.Digest(d.Digest.String())
	return b, nil
}

// AddRelease stores a release whose content is here already, and gives it with
// its ID, number and digest. One that is here whole under that ID stays as it is,
// with its signatures; of one that lost content this takes the place.
func (s *Store) AddRelease(ctx context.Context, r dsas.Release) (dsas.Release, error) {
	fail := func(err error) (dsas.Release, error) {
		return dsas.Release{}, fmt.Errorf("store release of role %s: %w", r.Role, err)
	}
	if err := dsas.CheckName("role", r.Role); err != nil {
		return fail(err)
	}
	if len(r.Manifest.Parts) == 0 || len(r.Manifest.Parts) > maxLayers {
		return fail(fmt.Errorf("it has %d parts; 1 to %d may be: %w", len(r.Manifest.Parts), maxLayers, dsas.ErrInvalid))
	}
	if err := s.checkParts(r.Manifest.Parts...); err != nil {
		return fail(err)
	}
	r.Manifest.Role = r.Role
	r.Manifest.Parts = slices.Clone(r.Manifest.Parts)
	var err error
	if r.Boot, err = s.PutBoot(ctx, r.Boot); err != nil {
		return fail(err)
	}
	config, err := imageConfig(r)
	if err != nil {
		return fail(err)
	}
	c, err := s.putJSON(ctx, types.OCIConfigJSON, config)
	if err != nil {
		return fail(err)
	}
	raw, err := imageManifest(r, c)
	if err != nil {
		return fail(err)
	}
	d, err := s.putJSON(ctx, types.OCIManifestSchema1, raw)
	if err != nil {
		return fail(err)
	}
	r.Signed = dsas.Signed{Manifest: raw}
	r.ID, r.Manifest.Digest = dsas.Digest(c.Digest.String()), dsas.Digest(d.Digest.String())
	if r.Created.IsZero() {
		r.Created = time.Now()
	}
	r.Created = r.Created.UTC().Truncate(time.Second)
	var there *dsas.Release
	err = s.changeIndex(func(raw *v1.IndexManifest, idx *index) error {
		// What is signed and may be on its way to a node is not replaced by the same
		// content compressed in another way.
		if e, ok := idx.byID[r.ID]; ok {
			if have, err := s.release(r.ID, e); err == nil && s.checkParts(slices.Concat(have.Boot.Parts(), have.Manifest.Parts)...) == nil {
				there = have
				return errThere
			}
		}
		// A GC removes content under this lock.
		content, err := s.Content(&r)
		if err != nil {
			return err
		}
		for _, d := range content {
			if _, err := os.Stat(s.blobPath(d)); err != nil {
				return fmt.Errorf("blob %s was removed meanwhile; build it again: %w", d.Short(), dsas.ErrNotFound)
			}
		}
		last := idx.lastNumber(r.Role)
		r.Number = last + 1
		if e, ok := idx.byID[r.ID]; ok {
			r.Number, r.Created = e.number, e.created
		}
		if raw.Annotations == nil {
			raw.Annotations = map[string]string{}
		}
		raw.Annotations[noteNumber+r.Role] = strconv.Itoa(max(last, r.Number))
		setRef(raw, d, r.Name(), r)
		return nil
	})
	if errors.Is(err, errThere) {
		return *there, nil
	}
	if err != nil {
		return fail(err)
	}
	return r, nil
}

// errThere ends a change of the index for which there is no need.
var errThere = errors.New("it is there already")

// setRef makes ref name a release's manifest, in the place of what it named.
func setRef(raw *v1.IndexManifest, d v1.Descriptor, ref string, r dsas.Release) {
	raw.Manifests = slices.DeleteFunc(raw.Manifests, func(m v1.Descriptor) bool { return m.Annotations[noteRef] == ref })
	d.Platform = &v1.Platform{Architecture: architecture, OS: "linux"}
	d.Annotations = map[string]string{noteRef: ref, noteRelease: string(r.ID), noteCreated: r.Created.Format(time.RFC3339)}
	raw.Manifests = append(raw.Manifests, d)
}

// Propose asks for a release to become what its role's nodes boot. The server
// takes that up (dsas.Published.Proposed); who builds needs none.
func (s *Store) Propose(id dsas.Digest) error {
	r, err := s.Release(id)
	if err != nil {
		return fmt.Errorf("propose release: %w", err)
	}
	return s.changeIndex(func(raw *v1.IndexManifest, idx *index) error {
		i := slices.IndexFunc(raw.Manifests, func(m v1.Descriptor) bool { return m.Annotations[noteRef] == r.Name() })
		if i < 0 {
			return fmt.Errorf("propose release %s: removed meanwhile: %w", r.Name(), dsas.ErrNotFound)
		}
		setRef(raw, raw.Manifests[i], dsas.ReleaseRef{Role: r.Role}.String(), *r)
		return nil
	})
}

// Release gives a release by its ID, or dsas.ErrNotFound. It costs a look at the
// index's file at most ten times a second, so it may be asked for every boot
// decision. The caller must not change it.
func (s *Store) Release(id dsas.Digest) (*dsas.Release, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	// It is asked with every packet of a rack that powers up, mostly for the same.
	if a := s.last.Load(); a != nil && a.of == idx && a.release.ID == id {
		return a.release, nil
	}
	e, ok := idx.byID[id]
	if !ok {
		return nil, fmt.Errorf("release %s: not in the store (dsas image ls): %w", id.Short(), dsas.ErrNotFound)
	}
	r, err := s.release(id, e)
	if err == nil {
		s.last.Store(&asked{idx, r})
	}
	return r, err
}

// asked is the release that was asked for last, and the index it was found by.
type asked struct {
	of      *index
	release *dsas.Release
}

// Find gives the release that ref names, or dsas.ErrNotFound; for a role without a
// number its newest, whether nodes boot it or not. One that was added just now is found.
func (s *Store) Find(ref dsas.ReleaseRef) (*dsas.Release, error) {
	r, err := s.find(ref)
	if errors.Is(err, dsas.ErrNotFound) {
		s.forget()
		r, err = s.find(ref)
	}
	return r, err
}

func (s *Store) find(ref dsas.ReleaseRef) (*dsas.Release, error) {
	if ref.ID != "" {
		return s.Release(ref.ID)
	}
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	if ref.Number == 0 {
		id, ok := idx.newest(ref.Role)
		if !ok {
			return nil, idx.noRelease(ref.Role)
		}
		return s.Release(id)
	}
	id, ok := idx.refs[ref.String()]
	if !ok {
		if _, has := idx.newest(ref.Role); !has {
			return nil, fmt.Errorf("there is no release %s: %w", ref, idx.noRelease(ref.Role))
		}
		return nil, fmt.Errorf("there is no release %s; dsas image ls %s lists them: %w", ref, ref.Role, dsas.ErrNotFound)
	}
	return s.Release(id)
}

// Releases gives all releases, by role and number. One whose manifest, config or
// boot manifest is lost or cannot be read as such is among them as damaged, so
// that it does not take the others with it. What was changed and can still be
// read is for its signature to tell.
func (s *Store) Releases() ([]dsas.Release, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	out := make([]dsas.Release, 0, len(idx.byID))
	for id, e := range idx.byID {
		r, err := s.release(id, e)
		if errors.Is(err, dsas.ErrNotFound) || errors.Is(err, dsas.ErrInvalid) {
			r = &dsas.Release{ID: id, Role: e.role, Number: e.number, Created: e.created, Damaged: err.Error(),
				Manifest: dsas.Manifest{Role: e.role, Digest: e.digest}}
		} else if err != nil {
			return nil, err // a disk that cannot be read says nothing of the release
		}
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b dsas.Release) int {
		return cmp.Or(strings.Compare(a.Role, b.Role), a.Number-b.Number)
	})
	return out, nil
}

// Proposals gives, by role, the release that the last build asked to publish.
// It looks at the index's file whenever it is asked.
func (s *Store) Proposals() (map[string]dsas.Digest, error) {
	s.forget()
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	out := map[string]dsas.Digest{}
	for _, e := range idx.byID {
		if id, ok := idx.refs[dsas.ReleaseRef{Role: e.role}.String()]; ok {
			out[e.role] = id
		}
	}
	return out, nil
}

// Content lists all blobs that a release is made of, each once.
func (s *Store) Content(r *dsas.Release) ([]dsas.Digest, error) {
	out := []dsas.Digest{r.Manifest.Digest, r.ID, r.Boot.Digest}
	var boot v1.Manifest
	if err := s.getJSON(r.Boot.Digest, &boot); err != nil {
		return nil, fmt.Errorf("release %s: kernel and initramfs: %w", r.Name(), err)
	}
	out = append(out, dsas.Digest(boot.Config.Digest.String()))
	for _, p := range slices.Concat(r.Boot.Parts(), r.Manifest.Parts) {
		out = append(out, p.Digest)
	}
	signatures, err := s.signatureContent(r.ID)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", r.Name(), err)
	}
	out = append(out, signatures...)
	slices.Sort(out)
	return slices.Compact(out), nil
}

// BootFile tells what d is to the releases there are: "kernel", "initramfs",
// "firmware", or "" where it is none of these.
func (s *Store) BootFile(d dsas.Digest) (title string, err error) {
	idx, err := s.index()
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	files, of := s.bootFiles, s.bootFilesOf
	s.mu.Unlock()
	if of != idx {
		files = map[dsas.Digest]string{}
		for id, e := range idx.byID {
			r, err := s.release(id, e)
			if errors.Is(err, dsas.ErrNotFound) || errors.Is(err, dsas.ErrInvalid) {
				continue // it is told where it is asked for
			}
			if err != nil {
				return "", err // of the moment: nothing is remembered
			}
			for _, p := range r.Boot.Parts() {
				files[p.Digest] = p.Title
			}
		}
		s.mu.Lock()
		s.bootFiles, s.bootFilesOf = files, idx
		s.mu.Unlock()
	}
	return files[d], nil
}

// release reads a release's manifest and config, or remembers them.
func (s *Store) release(id dsas.Digest, e entry) (*dsas.Release, error) {
	s.mu.Lock()
	known, ok := s.read[id]
	s.mu.Unlock()
	if ok && known.entry == e {
		return known.release, nil
	}
	name := dsas.ReleaseName(e.role, e.number)
	r, err := s.readRelease(e.digest)
	if err == nil {
		r.Signed.Signatures, err = s.readSignatures(e)
	}
	if errors.Is(err, dsas.ErrNotFound) || errors.Is(err, dsas.ErrInvalid) {
		return nil, fmt.Errorf("release %s is damaged (dsas image build %s makes it anew): %w", name, e.role, err)
	}
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", name, err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("release %s: the index says %s, its config is %s: %w", name, id.Short(), r.ID.Short(), dsas.ErrInvalid)
	}
	r.Role, r.Number, r.Created, r.Manifest.Role = e.role, e.number, e.created, e.role
	s.mu.Lock()
	s.read[id] = readRelease{e, &r}
	s.mu.Unlock()
	return &r, nil
}

// readRelease reads an image's manifest, its config and its boot artifact.
func (s *Store) readRelease(d dsas.Digest) (dsas.Release, error) {
	var r dsas.Release
	var m v1.Manifest
	var c v1.ConfigFile
	var err error
	if r.Signed.Manifest, err = s.getBytes(d); err == nil {
		err = decode(bytes.NewReader(r.Signed.Manifest), &m)
	}
	if err != nil {
		return r, fmt.Errorf("manifest: %w", err)
	}
	r.ID = dsas.Digest(m.Config.Digest.String())
	if err := s.getJSON(r.ID, &c); err != nil {
		return r, fmt.Errorf("config: %w", err)
	}
	if r.Manifest, err = parseImage(&m, &c); err != nil {
		return r, err
	}
	r.Manifest.Digest = d
	if r.Definition, err = base64.StdEncoding.DecodeString(c.Config.Labels[labelDefine]); err != nil {
		return r, fmt.Errorf("role definition: %w: %w", err, dsas.ErrInvalid)
	}
	at := dsas.Digest(m.Annotations[noteBoot])
	boot, err := s.getBytes(at)
	if err != nil {
		return r, fmt.Errorf("kernel and initramfs: %w", err)
	}
	if r.Boot, err = dsas.ParseBootManifest(boot); err != nil {
		return r, err
	}
	r.Boot.Digest = at
	return r, nil
}

func (s *Store) putJSON(ctx context.Context, media types.MediaType, b []byte) (v1.Descriptor, error) {
	// Put leaves what has the right length. What describes a release is small, so
	// damage is looked for: that is how building anew mends it.
	if at := digestOf(b); s.damaged(at) {
		if err := os.Remove(s.blobPath(at)); err != nil {
			return v1.Descriptor{}, err
		}
	}
	d, n, err := s.Put(ctx, bytes.NewReader(b))
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, err := v1.NewHash(string(d))
	return v1.Descriptor{MediaType: media, Digest: h, Size: n}, err
}

func (s *Store) getJSON(d dsas.Digest, v any) error {
	b, err := s.getBytes(d)
	if err != nil {
		return err
	}
	return decode(bytes.NewReader(b), v)
}

// damaged tells whether a description is there that is not what it was.
func (s *Store) damaged(d dsas.Digest) bool {
	b, err := s.getBytes(d)
	return errors.Is(err, dsas.ErrInvalid) || err == nil && digestOf(b) != d
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
