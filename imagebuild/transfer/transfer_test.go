package transfer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/imagebuild/transfer"
	"dsas/server/blobs"
)

const kernel = "6.1.0-41-amd64"

// ent is one entry of a test's tar: a file, unless told.
type ent struct {
	name, body, link string
	typ              byte
	mode             int64
}

func tarOf(t testing.TB, list ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range list {
		h := &tar.Header{Name: x.name, Typeflag: x.typ, Linkname: x.link, Mode: x.mode}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(x.body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, x.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(b, nil)
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func digest(b []byte) dsas.Digest {
	sum := sha256.Sum256(b)
	return dsas.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

func open(t testing.TB) *blobs.Store {
	t.Helper()
	s, err := blobs.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *blobs.Store, title, media string, packed, plain []byte, unpacked int64) dsas.Part {
	t.Helper()
	d, n, err := s.Put(t.Context(), bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	return dsas.Part{Digest: d, DiffID: digest(plain), Size: n, MediaType: media, Title: title, Unpacked: unpacked}
}

// cpio is a newc archive with one file.
func cpio(name, body string) []byte {
	var b bytes.Buffer
	for _, f := range [][2]string{{name, body}, {"TRAILER!!!", ""}} {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, 0o100755, 0, 0, 1, 0, len(f[1]), 0, 0, 0, 0, len(f[0])+1, 0)
		b.WriteString(f[0] + "\x00")
		b.Write(make([]byte, (4-b.Len()%4)%4))
		b.WriteString(f[1])
		b.Write(make([]byte, (4-b.Len()%4)%4))
	}
	return b.Bytes()
}

var baseTar = []ent{
	{name: "usr/", typ: tar.TypeDir}, {name: "usr/lib/", typ: tar.TypeDir}, {name: "lib", typ: tar.TypeSymlink, link: "usr/lib"},
	{name: "etc/", typ: tar.TypeDir}, {name: "etc/motd", body: "hello"}, {name: "etc/gone", body: "x"},
	{name: "usr/lib/libc.so", body: strings.Repeat("libc", 3000)},
}

// seed puts a release of web into a store, as a build does: kernel, an initramfs
// with a plain archive in front, two layers and one of modules.
func seed(t testing.TB, s *blobs.Store) dsas.Release {
	t.Helper()
	early, main, second := cpio("kernel/x86/microcode/GenuineIntel.bin", "microcode"), cpio("init", strings.Repeat("init", 999)), cpio("lib", "module")
	early = append(early, make([]byte, 512)...)
	plain := append(append(bytes.Clone(early), main...), second...)
	packed := append(append(bytes.Clone(early), zst(t, main)...), zst(t, second)...)
	vmlinuz := []byte(strings.Repeat("vmlinuz", 500))
	boot := dsas.BootSet{Release: kernel,
		Kernel:    put(t, s, "kernel", "application/vnd.dsas.kernel", vmlinuz, vmlinuz, 0),
		Initramfs: put(t, s, "initramfs", "application/x-cpio+zstd", packed, plain, int64(len(main)))}
	layer := func(title string, unpacked int64, list ...ent) dsas.Part {
		b := tarOf(t, list...)
		return put(t, s, title, dsas.MediaTarZstd, zst(t, b), b, unpacked)
	}
	r, err := s.AddRelease(t.Context(), dsas.Release{Role: "web", Definition: []byte("a definition"), Boot: boot, Manifest: dsas.Manifest{Kernel: kernel, Memory: 64 << 20, Parts: []dsas.Part{
		layer("base", 5*4096, baseTar...),
		layer("modules", 4096, ent{name: "usr/lib/modules/" + kernel + "/", typ: tar.TypeDir}, ent{name: "usr/lib/modules/" + kernel + "/dsas-modules.json", body: "x"}),
		layer("files", 4096, ent{name: "etc/.wh.gone"}, ent{name: "etc/dsas/services/nginx/run", body: "#!/bin/sh\n"}),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func importer(s *blobs.Store, source string) transfer.Import {
	return transfer.Import{Store: s, Source: source, Role: "web", CheckSize: 1 << 20, Check: func(name string, b []byte) error {
		if bytes.Contains(b, []byte("SECRET")) {
			return fmt.Errorf("/%s holds a secret: %w", name, dsas.ErrInvalid)
		}
		return nil
	}}
}

func run(t *testing.T, im transfer.Import) transfer.Imported {
	t.Helper()
	out, err := im.Run(t.Context())
	if err != nil {
		t.Fatalf("Import(%s) = %v; want nil", im.Source, err)
	}
	return out
}

func export(t *testing.T, s *blobs.Store, r dsas.Release, dest, format string) {
	t.Helper()
	if _, err := (transfer.Export{Store: s, Release: r, Dest: dest, Format: format}).Run(t.Context()); err != nil {
		t.Fatalf("Export(%s, %s) = %v; want nil", dest, format, err)
	}
}

// What is exported comes back as the very same release, in a store that has
// never seen it, kernel and initramfs included.
func TestRoundTrip(t *testing.T) {
	from := open(t)
	r := seed(t, from)
	dir := t.TempDir()
	for _, dest := range []string{"layout", "layout.tar"} {
		dest := filepath.Join(dir, dest)
		export(t, from, r, dest, "")
		if strings.HasSuffix(dest, ".tar") { // and compressed by somebody on the way
			b, err := os.ReadFile(dest)
			if err != nil {
				t.Fatal(err)
			}
			again := filepath.Join(dir, "again.tar")
			export(t, from, r, again, "")
			if b2, _ := os.ReadFile(again); !bytes.Equal(b, b2) {
				t.Error("two exports of one release differ")
			}
			dest += ".gz"
			if err := os.WriteFile(dest, gz(t, b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		to := open(t)
		out := run(t, importer(to, dest))
		got := out.Release
		if got.ID != r.ID || got.Name() != "web:1" || out.Same || len(out.Warnings) != 0 {
			t.Errorf("%s: imported %s %s, same %v, warnings %v; want web:1 %s", dest, got.Name(), got.ID, out.Same, out.Warnings, r.ID)
		}
		if got.Manifest.Digest != r.Manifest.Digest || got.Boot.Digest != r.Boot.Digest {
			t.Errorf("%s: manifests %s, %s; want the very %s, %s", dest, got.Manifest.Digest, got.Boot.Digest, r.Manifest.Digest, r.Boot.Digest)
		}
		if len(out.Services) != 1 || out.Services[0] != "nginx" {
			t.Errorf("%s: services %v; want nginx", dest, out.Services)
		}
		content, err := to.Content(&got)
		if err != nil || len(content) != 9 {
			t.Errorf("%s: content %v, %v; want 9 blobs", dest, content, err)
		}
		if again := run(t, importer(to, dest)); !again.Same || again.Release.Number != 1 {
			t.Errorf("%s: once more = %+v; want web:1, the same", dest, again)
		}
	}
	// To a folder that has it and another: told apart by name.
	files := r.Manifest
	files.Parts = files.Parts[:2]
	second, err := from.AddRelease(t.Context(), dsas.Release{Role: "web", Definition: r.Definition, Boot: r.Boot, Manifest: files})
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(dir, "layout")
	export(t, from, second, both, "")
	if _, err := importer(open(t), both).Run(t.Context()); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "web:2") {
		t.Errorf("import of one of two, unnamed = %v; want ErrInvalid and their names", err)
	}
	if out := run(t, importer(open(t), both+":web:1")); out.Release.ID != r.ID {
		t.Errorf("import of web:1 = %s; want %s", out.Release.ID, r.ID)
	}
	if _, err := (transfer.Export{Store: from, Release: r, Dest: filepath.Dir(dir)}).Run(t.Context()); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("export into a folder of others = %v; want ErrConflict", err)
	}
}

// A docker archive has no kernel; the store it comes back to has it.
func TestDockerArchive(t *testing.T) {
	s := open(t)
	r := seed(t, s)
	dest := filepath.Join(t.TempDir(), "web.tar")
	export(t, s, r, dest, transfer.FormatDocker)
	out := run(t, importer(s, dest))
	if out.Kind != "docker archive" || out.Release.ID != r.ID || !out.Same {
		t.Errorf("imported %+v; want the same release from a docker archive", out)
	}
	if out := run(t, importer(s, dest+":dsas/web:1")); out.Release.ID != r.ID {
		t.Errorf("by its tag = %s; want %s", out.Release.ID, r.ID)
	}
	// Elsewhere it boots with what that place has, and says so.
	other := open(t)
	vm := []byte("other kernel")
	boot := dsas.BootSet{Release: kernel, Kernel: put(t, other, "kernel", "x/y", vm, vm, 0), Initramfs: put(t, other, "initramfs", "x/y", vm, vm, 0)}
	im := importer(other, dest)
	if _, err := im.Run(t.Context()); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "dsas image build web") {
		t.Errorf("import without any kernel = %v; want ErrNotFound and the way out", err)
	}
	im.Boot = &boot
	if out := run(t, im); out.Release.ID == r.ID || out.Release.Boot.Kernel.DiffID != boot.Kernel.DiffID {
		t.Errorf("imported %+v; want another release, with the kernel that was named", out)
	}
}

// foreign writes a layout with an image of somebody else's tools.
func foreign(t *testing.T, list ...v1.Layer) string {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	img, err := mutate.AppendLayers(img, list...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = "linux", "amd64"
	c.RootFS.DiffIDs = nil
	for _, l := range list { // static layers say their digest for both
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		plain, _, err := layers.Decompress(rc)
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := v1.SHA256(plain)
		if err != nil {
			t.Fatal(err)
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, h)
	}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(filepath.Join(t.TempDir(), "foreign"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// An image that knows nothing of dsas becomes a release: layers stay as they are
// compressed, and modules are added.
func TestForeignImage(t *testing.T) {
	s := open(t)
	own := seed(t, s)
	first, second := tarOf(t, baseTar...), tarOf(t, ent{name: "etc/motd", body: "second"}, ent{name: "usr/lib/modules/" + kernel + "/modules.dep"}) // without our index
	third := tarOf(t, ent{name: "etc/third", body: "3"})
	path := foreign(t,
		static.NewLayer(gz(t, first), types.DockerLayer), static.NewLayer(zst(t, second), types.OCILayerZStd), static.NewLayer(third, types.DockerUncompressedLayer))
	out := run(t, importer(s, path))
	r := out.Release
	if r.Name() != "web:2" || r.Boot.Digest != own.Boot.Digest || r.Manifest.Kernel != kernel || len(r.Manifest.Parts) != 4 {
		t.Fatalf("imported %+v; want web:2 with the kernel of web:1 and four layers", r)
	}
	for i, want := range []dsas.Part{
		{Digest: digest(gz(t, first)), DiffID: digest(first), MediaType: layers.MediaGzip, Unpacked: 5 * 4096, Title: "layer 1"},
		{Digest: digest(zst(t, second)), DiffID: digest(second), MediaType: layers.MediaZstd, Unpacked: 4096, Title: "layer 2"},
		{DiffID: digest(third), MediaType: layers.MediaZstd, Unpacked: 4096, Title: "layer 3"},
		own.Manifest.Parts[1],
	} {
		got := r.Manifest.Parts[i]
		if want.Digest == "" {
			want.Digest = got.Digest
		}
		want.Size = got.Size
		if got != want {
			t.Errorf("layer %d = %+v; want %+v", i+1, got, want)
		}
	}
	// The role's modules come from whoever makes them where it has no release.
	im := importer(s, path)
	im.Role = "db"
	asked := ""
	im.Modules = func(_ context.Context, b dsas.BootSet) (dsas.Part, error) {
		asked = b.Release
		return own.Manifest.Parts[1], nil
	}
	if out := run(t, im); asked != kernel || out.Release.Name() != "db:1" {
		t.Errorf("modules asked for: %q, release %s; want %s, db:1", asked, out.Release.Name(), kernel)
	}
}

func TestRootTar(t *testing.T) {
	plain := tarOf(t, append([]ent{{name: "./", typ: tar.TypeDir}}, baseTar...)...)
	for name, b := range map[string][]byte{"root.tar": plain, "root.tar.gz": gz(t, plain), "root.tar.zst": zst(t, plain)} {
		s := open(t)
		seed(t, s)
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		out := run(t, importer(s, path))
		if p := out.Release.Manifest.Parts; out.Kind != "tar" || len(p) != 2 || p[0].Title != "root" || p[0].DiffID != digest(plain) || p[0].Unpacked != 5*4096 {
			t.Errorf("%s: %s with parts %+v; want the root and modules", name, out.Kind, p)
		}
	}
}

// What must not come in leaves no release, and no blob with it that the boot
// network could read.
func TestRefused(t *testing.T) {
	good := tarOf(t, baseTar...)
	layer := func(list ...ent) v1.Layer { return static.NewLayer(gz(t, tarOf(t, list...)), types.DockerLayer) }
	damaged := func() string {
		path := foreign(t, static.NewLayer(gz(t, good), types.DockerLayer))
		blob := filepath.Join(path, "blobs", "sha256", digest(gz(t, good)).Hex())
		b, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		b[4] ^= 1 // the time in gzip's header: what is inside stays right
		if err := os.WriteFile(blob, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name, source, want string
	}{
		{"secret", foreign(t, layer(ent{name: "etc/ssl/key", body: "a SECRET"})), "/etc/ssl/key holds a secret"},
		{"secret below another layer", foreign(t, layer(ent{name: "key", body: "a SECRET"}), layer(ent{name: ".wh.key"})), "/key holds a secret"},
		{"secret in a plain tar", foreign(t, static.NewLayer(tarOf(t, ent{name: "key", body: "SECRET"}), types.DockerUncompressedLayer)), "/key holds a secret"},
		{"dotdot", foreign(t, layer(ent{name: "../../etc/cron.d/x", body: "x"})), "leaves the image"},
		{"link to dotdot", foreign(t, layer(ent{name: "l", typ: tar.TypeLink, link: "../../etc/shadow"})), "leaves the image"},
		{"no tar", foreign(t, static.NewLayer([]byte(strings.Repeat("not a tar ", 100)), types.DockerLayer)), "read tar"},
		{"damaged", damaged(), "damaged or changed"},
		{"nothing", filepath.Join(t.TempDir(), "none"), "no such file"},
		{"a folder of others", t.TempDir(), "want a folder with oci-layout"},
	} {
		s := open(t)
		own := seed(t, s)
		before := names(t, s)
		_, err := importer(s, tt.source).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Import = %v; want an error with %q", tt.name, err, tt.want)
		}
		if list, err := s.Releases(); err != nil || len(list) != 1 || list[0].ID != own.ID {
			t.Errorf("%s: releases %v, %v; want the one of before", tt.name, list, err)
		}
		if after := names(t, s); after != before {
			t.Errorf("%s: the store holds %s, before it held %s", tt.name, after, before)
		}
	}
	im := importer(open(t), foreign(t, static.NewLayer(gz(t, make([]byte, 1<<20)), types.DockerLayer)))
	seed(t, im.Store.(*blobs.Store))
	im.MaxUnpacked = 1 << 19
	if _, err := im.Run(t.Context()); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "larger than nodes could hold") {
		t.Errorf("an image beyond the limit = %v; want ErrInvalid", err)
	}
}

// names lists a store's blobs.
func names(t *testing.T, s *blobs.Store) string {
	t.Helper()
	list, err := s.Releases()
	if err != nil || len(list) == 0 {
		t.Fatalf("Releases() = %v, %v", list, err)
	}
	f, _, err := s.Blob(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := os.ReadDir(filepath.Dir(f.Name()))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name()[:8])
	}
	return strings.Join(all, " ")
}

// An exported kernel is believed no more than a layer.
func TestBootIsChecked(t *testing.T) {
	from := open(t)
	r := seed(t, from)
	for what, p := range map[string]dsas.Part{"kernel": r.Boot.Kernel, "initramfs": r.Boot.Initramfs} {
		dir := filepath.Join(t.TempDir(), "layout")
		export(t, from, r, dir, "")
		blob := filepath.Join(dir, "blobs", "sha256", p.Digest.Hex())
		b, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 1
		if err := os.WriteFile(blob, b, 0o644); err != nil {
			t.Fatal(err)
		}
		to := open(t)
		if _, err := importer(to, dir).Run(t.Context()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("import with another %s = %v; want an error that names it", what, err)
		}
		if list, err := to.Releases(); err != nil || len(list) != 0 {
			t.Errorf("%s: releases %v, %v; want none", what, list, err)
		}
	}
}
