package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
	"dsas/internal/signing"
	"dsas/server/blobs"
)

// testKey is the key that the tests' releases are signed by: made for them, and
// worth nothing elsewhere.
func testKey(t *testing.T) (signing.Keys, signing.Signer) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "release.key")
	if err := os.WriteFile(name, []byte("untrusted comment: minisign encrypted secret key\n"+
		"RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAKMc4ByZtKGBEjB7lJQb1aJxOn04Azqrm4L0s5PHX6ED8yBaiReJeSDKsDPZKmQzPFq8OXzCuYOU6lWQ/OJxSBRdQ3gGSG2X3AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := signing.ReadSigner(name)
	if err != nil {
		t.Fatal(err)
	}
	return signing.Keys{s.Key()}, s
}

// testKeys is what a server trusts that has the test key alone.
func testKeys(t *testing.T) func() (signing.Keys, error) {
	t.Helper()
	keys, _ := testKey(t)
	return func() (signing.Keys, error) { return keys, nil }
}

// signingBox is an image store and a folder of keys, with the commands on them.
type signingBox struct {
	*testing.T
	dir   string
	keys  signing.Folder
	store *blobs.Store
}

func newSigningBox(t *testing.T) *signingBox {
	t.Helper()
	b := &signingBox{T: t, dir: t.TempDir()}
	b.keys = signing.Folder(filepath.Join(b.dir, "keys"))
	var err error
	if b.store, err = blobs.Open(filepath.Join(b.dir, "images")); err != nil {
		t.Fatal(err)
	}
	return b
}

// release stores a release that is not signed, whose initramfs has these keys.
func (b *signingBox) release(content string, keys ...string) *dsas.Release {
	b.Helper()
	part := func(title, content string) dsas.Part {
		d, n, err := b.store.Put(b.Context(), strings.NewReader(content))
		if err != nil {
			b.Fatal(err)
		}
		return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title, MediaType: dsas.MediaTarZstd, Unpacked: 4096}
	}
	r, err := b.store.AddRelease(b.Context(), dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "6.1", Keys: keys, Kernel: part("kernel", "k"), Initramfs: part("initramfs", "i"+strings.Join(keys, ""))},
		Manifest: dsas.Manifest{Kernel: "6.1", Memory: 1 << 20, Parts: []dsas.Part{part("base", content)}}})
	if err != nil {
		b.Fatal(err)
	}
	return b.read(r.ID)
}

// read reads a release as it is now: an open store looks at the index's file ten
// times a second, and the commands have one of their own.
func (b *signingBox) read(id dsas.Digest) *dsas.Release {
	b.Helper()
	s, err := blobs.Open(filepath.Join(b.dir, "images"))
	if err != nil {
		b.Fatal(err)
	}
	r, err := s.Release(id)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func (b *signingBox) run(args ...string) result {
	b.Helper()
	var out, errs strings.Builder
	args = append(args, "--state", b.dir, "--keys-dir", string(b.keys), "--config", filepath.Join(b.dir, "dsas.yaml"), "--server", filepath.Join(b.dir, "no-server"))
	err := run(b.Context(), args, strings.NewReader(""), &out, &errs)
	return result{report(err, &errs), out.String(), errs.String()}
}

func (b *signingBox) bootable(r *dsas.Release) error {
	b.Helper()
	trusted, err := signing.ReadKeys(string(b.keys))
	if err != nil {
		b.Fatal(err)
	}
	return bootable(b.read(r.ID), trusted)
}

// TestRotation walks the steps that dsas image key --help names.
func TestRotation(t *testing.T) {
	b := newSigningBox(t)
	if err := os.WriteFile(filepath.Join(b.dir, "dsas.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before := b.release("before there were keys")
	if err := b.bootable(before); !errors.Is(err, dsas.ErrConflict) || errors.Is(err, dsas.ErrDenied) {
		t.Errorf("bootable without any key = %v; want ErrConflict", err)
	}
	var said []string
	list, signers, err := releaseKeys(b.keys, func(s string) { said = append(said, s) })
	if err != nil || len(list) != 1 || len(signers) != 1 || len(said) != 1 {
		t.Fatalf("releaseKeys of an empty folder = %v, %v, said %q; want a key made, and told", list, err, said)
	}
	old := list[0]
	if again, _, err := releaseKeys(b.keys, func(s string) { t.Errorf("said %q", s) }); err != nil || len(again) != 1 {
		t.Fatalf("releaseKeys again = %v, %v; want the same", again, err)
	}

	first := b.release("first", old.String())
	if err := b.bootable(first); err == nil || !strings.Contains(err.Error(), "release web:2 is not signed") || !strings.Contains(err.Error(), "dsas image sign web:2") {
		t.Errorf("bootable of web:2 = %v; want that it is not signed, and the way out", err)
	}
	if r := b.run("image", "sign", "--all"); r.code != 0 || !strings.Contains(r.out, "web:1: signed by key "+old.KeyID()) || !strings.Contains(r.out, "web:2") {
		t.Errorf("image sign --all = %+v; want both signed", r)
	}
	for _, r := range []*dsas.Release{before, first} {
		if err := b.bootable(r); err != nil {
			t.Errorf("bootable of %s once it is signed = %v", r.Name(), err)
		}
	}
	if r := b.run("image", "sign", "web:2"); r.code != 0 || !strings.Contains(r.out, "signed already") || len(b.read(first.ID).Signed.Signatures) != 1 {
		t.Errorf("image sign again = %+v; want nothing done", r)
	}

	// 1. and 2. of the rotation.
	if r := b.run("image", "key", "new"); r.code != 0 {
		t.Fatalf("image key new = %+v", r)
	}
	list, signers, err = releaseKeys(b.keys, func(string) {})
	if err != nil || len(list) != 2 || len(signers) != 2 {
		t.Fatalf("releaseKeys = %v, %v; want both", list, err)
	}
	young := list[1]
	if young.KeyID() == old.KeyID() {
		young = list[0]
	}
	second := b.release("second", old.String(), young.String())
	rels := []dsas.Release{*second}
	if err := signBuilt(t.Context(), b.store, b.keys, signers, rels, func(string) {}); err != nil || len(rels[0].Signed.Signatures) != 2 {
		t.Errorf("signBuilt = %v, signatures %q; want one of each key", err, rels[0].Signed.Signatures)
	}
	// 4.: what only the old one signed is named first.
	if r := b.run("image", "key", "rm", old.KeyID()); r.code == 0 || !strings.Contains(r.errors, "web:2") || strings.Contains(r.errors, "web:3") || !strings.Contains(r.errors, "--force") {
		t.Errorf("image key rm = %+v; want it refused for web:2, not for web:3", r)
	}
	if r := b.run("image", "key", "rm", "--force", old.KeyID()); r.code != 0 {
		t.Errorf("image key rm --force = %+v", r)
	}
	if err := b.bootable(second); err != nil {
		t.Errorf("bootable of what both signed = %v", err)
	}
	if err := b.bootable(first); err == nil || !strings.Contains(err.Error(), old.KeyID()) || !strings.Contains(err.Error(), "dsas image build web") {
		t.Errorf("bootable of what the old one signed = %v; want the key named, and the way out", err)
	}
	// Its initramfs would not take the young key's signature either.
	if r := b.run("image", "sign", "web:2"); r.code == 0 || !strings.Contains(r.errors, "dsas image build web") {
		t.Errorf("image sign web:2 = %+v; want it refused: its initramfs has another key", r)
	}
	if r := b.run("image", "key", "ls", "--json"); r.code != 0 || !strings.Contains(r.out, young.KeyID()) || strings.Contains(r.out, old.KeyID()) || !strings.Contains(r.out, `"web:3"`) {
		t.Errorf("image key ls = %+v; want the young one with web:3", r)
	}

	// A private key that is kept elsewhere.
	key := filepath.Join(string(b.keys), young.KeyID()+signing.KeyExt)
	away := filepath.Join(b.dir, "stick.key")
	if err := os.Rename(key, away); err != nil {
		t.Fatal(err)
	}
	list, signers, err = releaseKeys(b.keys, func(s string) { t.Errorf("said %q: a key is there, and no other is to be made", s) })
	if err != nil || len(list) != 1 || len(signers) != 0 {
		t.Errorf("releaseKeys with the private key away = %v, %v, %v; want the public one alone", list, signers, err)
	}
	third := b.release("third", young.String())
	if r := b.run("image", "sign", "web:latest", "--key", away); r.code != 0 || b.bootable(third) != nil {
		t.Errorf("image sign --key = %+v, bootable = %v; want it signed", r, b.bootable(third))
	}
}

// TestSyncUnsigned: a proposal that is not signed is told, and published once it is.
func TestSyncUnsigned(t *testing.T) {
	r := openReleases(t)
	one := addRelease(t, r.Store, "web", "one")
	none := signing.Keys{}
	trusted := r.keys
	r.keys = func() (signing.Keys, error) { return none, nil }
	if err := r.Propose(one.ID); err != nil {
		t.Fatal(err)
	}
	if changed, err := r.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "web:1") || len(changed) != 0 || r.state.Published("web").Current != "" {
		t.Errorf("Sync of a release by a key that is not trusted = %v, %v; want it refused", changed, err)
	}
	r.keys = trusted
	if changed, err := r.Sync(t.Context()); err != nil || len(changed) != 1 {
		t.Errorf("Sync once the key is trusted = %v, %v; want it published", changed, err)
	}
}

// TestUnsignedToldApart: proposals of two roles are refused on a line each, once.
func TestUnsignedToldApart(t *testing.T) {
	r := openReleases(t)
	var said bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&said, nil))
	r.keys = func() (signing.Keys, error) { return signing.Keys{}, nil }
	for _, role := range []string{"lb", "web"} {
		if err := r.Propose(addRelease(t, r.Store, role, role).ID); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		r.syncAndTell(t.Context())
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "lb:1") || strings.Contains(lines[0], "web:1") || !strings.Contains(lines[1], "web:1") {
		t.Errorf("the log has %q; want a line for lb:1 and one for web:1", lines)
	}
	// What was mended and comes again is told again.
	untrusting := r.keys
	for _, keys := range []func() (signing.Keys, error){func() (signing.Keys, error) { return nil, errors.New("no keys to read") }, untrusting} {
		r.keys = keys
		r.syncAndTell(t.Context())
	}
	if n := strings.Count(said.String(), "web:1"); n != 2 {
		t.Errorf("the log has %q; want web:1 told again", said.String())
	}
}

// TestBackupKeys: what signs releases comes back with a restore, for root alone,
// and what was signed by it is still good.
func TestBackupKeys(t *testing.T) {
	from, to := newServedBox(t), newOpsBox(t)
	s := from.store()
	defer s.Close()
	keys := signing.Folder(filepath.Join(from.etc, "keys"))
	list, signers, err := releaseKeys(keys, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	images, err := blobs.Open(filepath.Join(from.state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	b := &signingBox{T: t, dir: from.state, store: images}
	rel := b.release("one", list[0].String())
	if _, _, err := signRelease(t.Context(), images, signers, rel.ID); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", "--images", file)
	to.must("restore", file)
	again := signing.Folder(filepath.Join(to.etc, "keys"))
	if s, err := again.Signers(); err != nil || len(s) != 1 || !s[0].Key().Equal(list[0].PublicKey) {
		t.Errorf("keys after a restore = %v, %v; want the one that was backed up", s, err)
	}
	for ext, mode := range map[string]os.FileMode{signing.KeyExt: 0o600, signing.PubExt: 0o644} {
		if fi, err := os.Stat(filepath.Join(string(again), list[0].KeyID()+ext)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("restored *%s: %v, %v; want mode %o", ext, fi, err, mode)
		}
	}
	restored, err := blobs.Open(filepath.Join(to.state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := restored.Release(rel.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := bootable(r, signing.Keys{list[0].Key}); err != nil {
		t.Errorf("the restored release: %v; want its signature with it", err)
	}
}
