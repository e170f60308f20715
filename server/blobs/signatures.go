package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
)

// How a signature is written in OCI's terms: an artifact with the minisign text
// as its one layer, whose subject is the manifest that is signed (image
// specification 1.1, "Guidelines for Artifact Usage"). So any program that copies
// an image with its referrers takes the signatures along. Its line of the index
// has no name and says what it refers to, as the descriptors do that a registry
// answers to GET /v2/NAME/referrers/DIGEST, and the subject's digest beside that.
const (
	// SignatureArtifact is the artifact type of a release's signature.
	SignatureArtifact = "application/vnd.dsas.signature.v1"

	signatureMedia = types.MediaType("application/vnd.dsas.signature.v1.minisig")
	noteSubject    = "dsas.subject" // digest of the image manifest that is signed
	noteKey        = "dsas.key"     // ID of the key

	maxSignature  = 4 << 10 // bytes
	maxSignatures = 16      // of one release
)

// Sign adds a signature of a release's manifest, as it was when r was read, by
// the key with that ID, in the place of one by the same key. Whether it is a good
// one is for those to say who have the keys.
func (s *Store) Sign(ctx context.Context, r *dsas.Release, key, signature string) error {
	fail := func(err error) error { return fmt.Errorf("store signature of release %s: %w", r.Name(), err) }
	if len(signature) > maxSignature {
		return fail(fmt.Errorf("larger than %d bytes: %w", maxSignature, dsas.ErrInvalid))
	}
	subject, err := v1.NewHash(string(r.Manifest.Digest))
	if err != nil {
		return fail(fmt.Errorf("%w: %w", err, dsas.ErrInvalid))
	}
	config, err := s.putJSON(ctx, emptyMedia, []byte("{}"))
	if err != nil {
		return fail(err)
	}
	text, err := s.putJSON(ctx, signatureMedia, []byte(signature))
	if err != nil {
		return fail(err)
	}
	notes := map[string]string{noteSubject: subject.String(), noteKey: key}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: ociSchema, MediaType: types.OCIManifestSchema1, ArtifactType: SignatureArtifact, Config: config,
		Layers: []v1.Descriptor{text}, Annotations: notes,
		Subject: &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: subject, Size: int64(len(r.Signed.Manifest))},
	})
	if err != nil {
		return fail(err)
	}
	d, err := s.putJSON(ctx, types.OCIManifestSchema1, raw)
	if err != nil {
		return fail(err)
	}
	d.ArtifactType, d.Annotations = SignatureArtifact, notes
	err = s.changeIndex(func(raw *v1.IndexManifest, idx *index) error {
		if e, ok := idx.byID[r.ID]; !ok || e.digest != r.Manifest.Digest {
			return fmt.Errorf("it was removed or replaced meanwhile; sign it again: dsas image sign %s: %w", r.Name(), dsas.ErrConflict)
		}
		raw.Manifests = slices.DeleteFunc(raw.Manifests, func(m v1.Descriptor) bool {
			return signs(m) == r.Manifest.Digest && m.Annotations[noteKey] == key
		})
		raw.Manifests = append(raw.Manifests, d)
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// signs gives the digest of the manifest that a line of the index is a signature
// of; "" where it is none.
func signs(d v1.Descriptor) dsas.Digest {
	if d.ArtifactType != SignatureArtifact {
		return ""
	}
	subject, _ := dsas.ParseDigest(d.Annotations[noteSubject])
	return subject
}

// addSignatures tells the releases of an index their signatures.
func addSignatures(idx *index) {
	of := map[dsas.Digest][]string{}
	for _, d := range idx.raw.Manifests {
		if subject := signs(d); subject != "" {
			of[subject] = append(of[subject], d.Digest.String())
		}
	}
	for id, e := range idx.byID {
		list := of[e.digest]
		slices.Sort(list)
		e.signed = strings.Join(list[:min(len(list), maxSignatures)], " ")
		idx.byID[id] = e
	}
}

// readSignatures gives the texts of a release's signatures. One that is damaged
// is left out: another may be good, and who checks them says that one is missing.
func (s *Store) readSignatures(e entry) ([]string, error) {
	var out []string
	for _, d := range strings.Fields(e.signed) {
		text, _, err := s.readSignature(dsas.Digest(d), e.digest)
		if errors.Is(err, dsas.ErrInvalid) || errors.Is(err, dsas.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("signature %s: %w", dsas.Digest(d).Short(), err)
		}
		out = append(out, text)
	}
	return out, nil
}

// readSignature reads one, and gives the digests of what its manifest needs.
func (s *Store) readSignature(d, subject dsas.Digest) (text string, needs []dsas.Digest, err error) {
	var m v1.Manifest
	if err := s.getJSON(d, &m); err != nil {
		return "", nil, err
	}
	if m.Subject == nil || m.Subject.Digest.String() != string(subject) || len(m.Layers) != 1 || m.Layers[0].Size > maxSignature {
		return "", nil, fmt.Errorf("it is no signature of manifest %s: %w", subject.Short(), dsas.ErrInvalid)
	}
	layer := dsas.Digest(m.Layers[0].Digest.String())
	b, err := s.getBytes(layer)
	return string(b), []dsas.Digest{layer, dsas.Digest(m.Config.Digest.String())}, err
}

// signatureContent lists the blobs of a release's signatures.
func (s *Store) signatureContent(id dsas.Digest) ([]dsas.Digest, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	e := idx.byID[id]
	var out []dsas.Digest
	for _, f := range strings.Fields(e.signed) {
		_, needs, err := s.readSignature(dsas.Digest(f), e.digest)
		if errors.Is(err, dsas.ErrInvalid) || errors.Is(err, dsas.ErrNotFound) {
			continue // as in readSignatures
		}
		if err != nil {
			return nil, fmt.Errorf("signature %s: %w", dsas.Digest(f).Short(), err)
		}
		out = append(append(out, dsas.Digest(f)), needs...)
	}
	return out, nil
}

// getBytes reads a small blob.
func (s *Store) getBytes(d dsas.Digest) ([]byte, error) {
	f, n, err := s.Blob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if n > maxJSON {
		return nil, fmt.Errorf("blob %s: larger than %d bytes: %w", d.Short(), maxJSON, dsas.ErrInvalid)
	}
	return io.ReadAll(f)
}

func digestOf(b []byte) dsas.Digest {
	sum := sha256.Sum256(b)
	return dsas.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
