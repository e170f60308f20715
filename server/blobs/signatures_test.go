package blobs

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"dsas"
)

func mustRead(t *testing.T, s *Store, id dsas.Digest) *dsas.Release {
	t.Helper()
	r, err := s.Release(id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSign: signatures are found with the release, one of each key, at once and by
// another who opens the store; and a new rendition has none.
func TestSign(t *testing.T) {
	s := open(t)
	rel := release(t, s, "web", "one")
	rel.Boot.Keys = []string{"RWQA", "RWQB"}
	r := add(t, s, rel)
	if got := mustRead(t, s, r.ID); len(got.Signed.Signatures) != 0 || string(got.Signed.Manifest) != string(r.Signed.Manifest) || !slices.Equal(got.Boot.Keys, rel.Boot.Keys) {
		t.Errorf("Release = %+v; want its manifest's bytes, no signature, and the keys of its initramfs", got)
	}
	for _, sig := range []struct{ key, text string }{{"A", "by A"}, {"B", "by B"}, {"A", "by A again"}} {
		if err := s.Sign(t.Context(), &r, sig.key, sig.text); err != nil {
			t.Fatal(err)
		}
	}
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range []*Store{s, other} {
		got := mustRead(t, st, r.ID).Signed.Signatures
		slices.Sort(got)
		if !slices.Equal(got, []string{"by A again", "by B"}) {
			t.Errorf("signatures = %q; want the newest of each key", got)
		}
	}
	// What a release is made of has them, and nothing that is missing.
	content, err := s.Content(mustRead(t, s, r.ID))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, d := range content {
		b, err := s.getBytes(d)
		if err != nil {
			t.Errorf("content %s: %v", d.Short(), err)
		}
		if string(b) == "by B" || string(b) == "by A again" {
			found++
		}
	}
	if found != 2 {
		t.Errorf("Content has %d of the signatures' texts; want 2", found)
	}
	// The manifest fixes the node's memory too, which it does not read in the config.
	if m, err := dsas.ParseImageManifest(r.Signed.Manifest); err != nil || m.Memory != 1<<20 || m.Role != "web" || m.Kernel != "6.1" || m.Parts[0].Unpacked != 4096 ||
		m.Parts[0].Digest != r.Manifest.Parts[0].Digest || m.Parts[0].Size != r.Manifest.Parts[0].Size || m.Parts[0].MediaType != dsas.MediaTarZstd || m.Parts[0].Title != "base" {
		t.Errorf("ParseImageManifest of what the store wrote = %+v, %v; want what it was made of", m, err)
	}

	// Another rendition: what was signed is not what nodes get now.
	recompressed := put(t, s, "one, compressed otherwise", "base")
	recompressed.DiffID, recompressed.MediaType = rel.Manifest.Parts[0].DiffID, dsas.MediaTarZstd
	if err := os.Remove(s.blobPath(rel.Manifest.Parts[0].Digest)); err != nil { // else the first one stays
		t.Fatal(err)
	}
	rel.Manifest.Parts = []dsas.Part{recompressed}
	second := add(t, s, rel)
	if got := mustRead(t, s, second.ID); second.ID != r.ID || len(got.Signed.Signatures) != 0 {
		t.Errorf("signatures of a new rendition = %q; want none", got.Signed.Signatures)
	}
	if err := s.Sign(t.Context(), &r, "A", "late"); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "dsas image sign web:1") {
		t.Errorf("Sign of a manifest that was replaced = %v; want ErrConflict and the way out", err)
	}
	if err := s.Sign(t.Context(), &second, "A", strings.Repeat("x", maxSignature+1)); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Sign with a text that is too long = %v; want ErrInvalid", err)
	}
}

// TestSignatureIsReferrer reads one with go-containerregistry, as programs would
// that copy an image with what refers to it.
func TestSignatureIsReferrer(t *testing.T) {
	s := open(t)
	r := add(t, s, release(t, s, "web", "one"))
	if err := s.Sign(t.Context(), &r, "A", "by A"); err != nil {
		t.Fatal(err)
	}
	path, err := layout.FromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	ix, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	im, err := ix.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(im.Manifests, func(d v1.Descriptor) bool { return d.ArtifactType == SignatureArtifact })
	if i < 0 {
		t.Fatalf("index = %+v; want a signature in it", im.Manifests)
	}
	img, err := ix.Image(im.Manifests[i].Digest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.Subject == nil || m.Subject.Digest.String() != string(r.Manifest.Digest) || m.Subject.Size != int64(len(r.Signed.Manifest)) {
		t.Errorf("its manifest = %s, %v; want the image's as its subject", raw, err)
	}
}

// TestDamagedSignature: one that is lost takes nothing with it but itself.
func TestDamagedSignature(t *testing.T) {
	s := open(t)
	r := add(t, s, release(t, s, "web", "one"))
	for _, key := range []string{"A", "B"} {
		if err := s.Sign(t.Context(), &r, key, "by "+key); err != nil {
			t.Fatal(err)
		}
	}
	a := put(t, s, "by A", "")
	if err := os.Remove(s.blobPath(a.Digest)); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, s, r.ID).Signed.Signatures; !slices.Equal(got, []string{"by B"}) {
		t.Errorf("signatures = %q; want the other one", got)
	}
}
