package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
	"dsas/imagebuild/layers"
)

// Formats of an export to a file or folder.
const (
	FormatOCI    = "oci"    // an OCI layout, in a tar where the name ends in .tar
	FormatDocker = "docker" // what docker load and podman load take; without the kernel
)

// Export says what to take out, and where to.
type Export struct {
	Store   Store
	Release dsas.Release
	// Dest is a folder, a file, or registry://HOST/NAME[:TAG] (the tag is the
	// release's number, if none is named).
	Dest     string
	Format   string // "": FormatOCI
	Force    bool   // a file that is there is replaced; else it is dsas.ErrConflict
	Registry Registry
	Progress func(line string)
}

// Run takes the release out and gives where it is. A file is there whole or not
// at all; a folder gets its index last.
func (ex Export) Run(ctx context.Context) (string, error) {
	if ex.Progress == nil {
		ex.Progress = func(string) {}
	}
	var err error
	dest := ex.Dest
	ref, isReg := isRegistry(ex.Dest)
	switch {
	case isReg && ex.Format == FormatDocker:
		err = invalid("a registry takes what is there as it is: leave --format out")
	case isReg:
		dest, err = ex.push(ctx, ref)
	case ex.Dest == "":
		err = invalid("name a folder, a file or a registry")
	case ex.Format == FormatDocker:
		err = ex.file(ex.Dest, func(w io.Writer) error { return ex.docker(ctx, w) })
	case ex.Format != "" && ex.Format != FormatOCI:
		err = invalid("format %q: want oci or docker", ex.Format)
	case strings.HasSuffix(ex.Dest, ".tar"):
		err = ex.file(ex.Dest, func(w io.Writer) error { return ex.ociTar(ctx, w) })
	case isCompressed(ex.Dest):
		err = invalid("a file's name ends in .tar: its layers are compressed, and it is not once more")
	default:
		err = ex.folder(ctx, ex.Dest)
	}
	if err != nil {
		return "", fmt.Errorf("export %s to %s: %w", ex.Release.Name(), ex.Dest, err)
	}
	return dest, nil
}

// piece is one blob of a layout.
type piece struct {
	digest dsas.Digest
	size   int64
}

// pieces lists all that a release is made of, and the two descriptors by which
// a layout's index names it.
func (ex Export) pieces() (list []piece, index []v1.Descriptor, err error) {
	r := ex.Release
	add := func(d dsas.Digest, size int64) {
		if !slices.ContainsFunc(list, func(p piece) bool { return p.digest == d }) {
			list = append(list, piece{d, size})
		}
	}
	for _, at := range []struct {
		digest dsas.Digest
		ref    string
		kind   string
	}{{r.Manifest.Digest, r.Name(), ""}, {r.Boot.Digest, r.Name() + bootTag, bootArtifact}} {
		raw, err := ex.read(at.digest)
		if err != nil {
			return nil, nil, err
		}
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, nil, fmt.Errorf("manifest %s: %w", at.digest.Short(), err)
		}
		h, err := v1.NewHash(string(at.digest))
		if err != nil {
			return nil, nil, err
		}
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: int64(len(raw)), ArtifactType: at.kind, Annotations: map[string]string{noteRef: at.ref}}
		if at.kind == "" {
			d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
		}
		index = append(index, d)
		add(at.digest, int64(len(raw)))
		for _, l := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			add(dsas.Digest(l.Digest.String()), l.Size)
		}
	}
	return list, index, nil
}

func (ex Export) read(d dsas.Digest) ([]byte, error) {
	f, size, err := ex.Store.Blob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxJSON {
		return nil, invalid("manifest %s has %d bytes", d.Short(), size)
	}
	return io.ReadAll(f)
}

// folder writes an OCI layout, or adds to the one that is there.
func (ex Export) folder(ctx context.Context, dir string) error {
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		return fmt.Errorf("it is no folder; a file's name ends in .tar, or give --format docker: %w", dsas.ErrConflict)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p, err := layout.FromPath(dir)
	switch {
	case err != nil && len(entries) > 0:
		return fmt.Errorf("the folder is not empty and no OCI layout; name another: %w", dsas.ErrConflict)
	case err != nil:
		if p, err = layout.Write(dir, empty.Index); err != nil {
			return err
		}
	}
	list, index, err := ex.pieces()
	if err != nil {
		return err
	}
	for _, b := range list {
		h, err := v1.NewHash(string(b.digest))
		if err != nil {
			return err
		}
		f, size, err := ex.Store.Blob(b.digest)
		if err != nil {
			return err
		}
		err = p.WriteBlob(h, &withContext{&stopping{ctx, f}, f})
		f.Close()
		if err != nil {
			return err
		}
		ex.Progress(fmt.Sprintf("%s: %.1f MiB", b.digest.Short(), mib(size)))
	}
	for _, d := range index {
		ref := d.Annotations[noteRef]
		if err := p.RemoveDescriptors(func(have v1.Descriptor) bool { return have.Annotations[noteRef] == ref }); err != nil {
			return err
		}
		if err := p.AppendDescriptor(d); err != nil {
			return err
		}
	}
	return nil
}

type withContext struct {
	io.Reader
	io.Closer
}

// ociTar writes a layout as a tar, in an order and with times that are always
// the same.
func (ex Export) ociTar(ctx context.Context, w io.Writer) error {
	list, descriptors, err := ex.pieces()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: descriptors})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(tw, &stopping{ctx, r})
		return err
	}
	if err := put("oci-layout", 30, strings.NewReader(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := put("index.json", int64(len(index)), bytes.NewReader(index)); err != nil {
		return err
	}
	for _, b := range list {
		f, size, err := ex.Store.Blob(b.digest)
		if err != nil {
			return err
		}
		err = put("blobs/sha256/"+b.digest.Hex(), size, f)
		f.Close()
		if err != nil {
			return err
		}
		ex.Progress(fmt.Sprintf("%s: %.1f MiB", b.digest.Short(), mib(size)))
	}
	return tw.Close()
}

// docker writes an archive for docker load and podman load. They know no zstd
// there in all their versions: its layers are plain tars.
func (ex Export) docker(ctx context.Context, w io.Writer) error {
	raw, err := ex.read(ex.Release.ID)
	if err != nil {
		return err
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	img := empty.Image
	for _, p := range ex.Release.Manifest.Parts {
		l, err := newPlainLayer(ctx, ex.Store, p)
		if err != nil {
			return fmt.Errorf("layer %s: %w", p.Title, err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return err
		}
		ex.Progress(fmt.Sprintf("layer %s: %.1f MiB unpacked", p.Title, mib(l.size)))
	}
	if img, err = mutate.ConfigFile(img, &c); err != nil {
		return err
	}
	tag, err := name.NewTag("dsas/" + ex.Release.Role + ":" + strconv.Itoa(ex.Release.Number))
	if err != nil {
		return err
	}
	return tarball.Write(tag, img, w)
}

// plainLayer is a layer of the store as a tar that is not compressed.
type plainLayer struct {
	ctx   context.Context
	store Store
	part  dsas.Part
	diff  v1.Hash
	size  int64
}

func newPlainLayer(ctx context.Context, s Store, p dsas.Part) (*plainLayer, error) {
	h, err := v1.NewHash(string(p.DiffID))
	if err != nil {
		return nil, err
	}
	l := &plainLayer{ctx: ctx, store: s, part: p, diff: h}
	rc, err := l.Uncompressed() // once to know how long it is: a tar says that first
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	l.size, err = io.Copy(io.Discard, rc)
	return l, err
}

// Digest implements v1.Layer.
func (l *plainLayer) Digest() (v1.Hash, error) { return l.diff, nil }

// DiffID implements v1.Layer.
func (l *plainLayer) DiffID() (v1.Hash, error) { return l.diff, nil }

// Size implements v1.Layer.
func (l *plainLayer) Size() (int64, error) { return l.size, nil }

// MediaType implements v1.Layer.
func (l *plainLayer) MediaType() (types.MediaType, error) { return types.DockerUncompressedLayer, nil }

// Compressed implements v1.Layer: it is not.
func (l *plainLayer) Compressed() (io.ReadCloser, error) { return l.Uncompressed() }

// Uncompressed implements v1.Layer.
func (l *plainLayer) Uncompressed() (io.ReadCloser, error) {
	f, _, err := l.store.Blob(l.part.Digest)
	if err != nil {
		return nil, err
	}
	plain, _, err := layers.Decompress(&stopping{l.ctx, f})
	if err != nil {
		f.Close()
		return nil, err
	}
	return &both{plain, f}, nil
}

// push sends image and boot artifact to a registry, as they are: nodes fetch
// the very parts from there that this server would give them.
func (ex Export) push(ctx context.Context, ref string) (string, error) {
	if ref == "" {
		return "", invalid("it names no image; write it as registry://HOST:PORT/NAME:TAG")
	}
	r, err := name.ParseReference(ref, append(ex.Registry.nameOptions(), name.WithDefaultTag(strconv.Itoa(ex.Release.Number)))...)
	if err != nil {
		return "", fmt.Errorf("%w; write it as registry://HOST:PORT/NAME:TAG: %w", err, dsas.ErrInvalid)
	}
	tag, ok := r.(name.Tag)
	if !ok {
		return "", invalid("%s names a digest; want a tag", ref)
	}
	for _, at := range []struct {
		what   string
		digest dsas.Digest
		tag    name.Tag
	}{
		// What the image names is there before it.
		{"kernel and initramfs", ex.Release.Boot.Digest, tag.Context().Tag(tag.TagStr() + bootTag)},
		{"image", ex.Release.Manifest.Digest, tag},
	} {
		raw, err := ex.read(at.digest)
		if err != nil {
			return "", err
		}
		img, err := partial.CompressedToImage(&stored{store: ex.Store, raw: raw})
		if err != nil {
			return "", err
		}
		if err := ex.write(ctx, at.what, at.tag, img); err != nil {
			return "", fmt.Errorf("%s: %w", at.what, err)
		}
	}
	return "registry://" + tag.Context().Tag(tag.TagStr()).Name(), nil
}

// write pushes one manifest with its blobs, and tells how far it is.
func (ex Export) write(ctx context.Context, what string, to name.Tag, img v1.Image) error {
	updates := make(chan v1.Update, 16)
	told := make(chan struct{})
	go func() {
		defer close(told)
		step := int64(-1)
		for u := range updates { // remote.Write closes it
			if u.Total > 0 && u.Complete*4/u.Total > step {
				step = u.Complete * 4 / u.Total
				ex.Progress(fmt.Sprintf("%s: %.1f of %.1f MiB", what, mib(u.Complete), mib(u.Total)))
			}
		}
	}()
	err := remote.Write(to, img, append(ex.Registry.options(ctx), remote.WithProgress(updates))...)
	<-told
	return err
}

// stored is an image of the store, as it is (partial.CompressedImageCore).
type stored struct {
	store Store
	raw   []byte
}

// MediaType implements partial.CompressedImageCore.
func (s *stored) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// RawManifest implements partial.CompressedImageCore.
func (s *stored) RawManifest() ([]byte, error) { return s.raw, nil }

// RawConfigFile implements partial.CompressedImageCore.
func (s *stored) RawConfigFile() ([]byte, error) {
	m, err := partial.Manifest(s)
	if err != nil {
		return nil, err
	}
	return Export{Store: s.store}.read(dsas.Digest(m.Config.Digest.String()))
}

// LayerByDigest implements partial.CompressedImageCore.
func (s *stored) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	m, err := partial.Manifest(s)
	if err != nil {
		return nil, err
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Digest == h {
			return &storedLayer{s.store, d}, nil
		}
	}
	return nil, fmt.Errorf("no blob %s in the image: %w", h, dsas.ErrNotFound)
}

// storedLayer is a blob of the store.
type storedLayer struct {
	store Store
	desc  v1.Descriptor
}

// Digest implements partial.CompressedLayer.
func (l *storedLayer) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

// Size implements partial.CompressedLayer.
func (l *storedLayer) Size() (int64, error) { return l.desc.Size, nil }

// MediaType implements partial.CompressedLayer.
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// Compressed implements partial.CompressedLayer.
func (l *storedLayer) Compressed() (io.ReadCloser, error) {
	f, _, err := l.store.Blob(dsas.Digest(l.desc.Digest.String()))
	if err != nil {
		return nil, err
	}
	return f, nil
}
