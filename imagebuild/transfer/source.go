package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/diskio"
)

// source is an image as it stands elsewhere.
type source struct {
	kind   string // for people: "OCI layout"
	layers []sourceLayer
	config v1.ConfigFile
	// bootAt is the manifest of what the image boots with, "" where it names none.
	bootAt dsas.Digest
	// blob opens content, manifests included, that stands beside the image. nil:
	// there is none.
	blob  func(ctx context.Context, d dsas.Digest, manifest bool) (io.ReadCloser, error)
	close func()
}

// sourceLayer is one layer; what is not known of it is "".
type sourceLayer struct {
	digest, diffID dsas.Digest
	title          string
	open           func() (io.ReadCloser, error)
}

// openSource finds out what stands at a place, and opens it. tmp is a folder
// for what has to be unpacked first.
func openSource(ctx context.Context, place, tmp string, reg Registry) (*source, error) {
	if ref, ok := isRegistry(place); ok {
		return fromRegistry(ctx, ref, reg)
	}
	for prefix, open := range map[string]func(string, string) (*source, error){
		"oci:":            fromLayout,
		"oci-archive:":    func(p, ref string) (*source, error) { return fromOCIArchive(ctx, p, ref, tmp) },
		"docker-archive:": fromDockerArchive,
		"tar:":            func(p, _ string) (*source, error) { return fromRootTar(p) },
	} {
		if rest, ok := strings.CutPrefix(place, prefix); ok {
			path, ref := splitRef(rest)
			return open(path, ref)
		}
	}
	path, ref := splitRef(place)
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w; give a folder or file, or registry://HOST/NAME:TAG", err)
	}
	if fi.IsDir() {
		return fromLayout(path, ref)
	}
	kind, err := archiveKind(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch kind {
	case "oci":
		return fromOCIArchive(ctx, path, ref, tmp)
	case "docker":
		return fromDockerArchive(path, ref)
	}
	if ref != "" {
		return nil, invalid("%s is a plain tar, which holds no image named %q", path, ref)
	}
	return fromRootTar(path)
}

// splitRef cuts "PATH:NAME" where PATH alone is there and the whole is not.
func splitRef(s string) (path, ref string) {
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	for i := strings.Index(s, ":"); i > 0; {
		if _, err := os.Stat(s[:i]); err == nil {
			return s[:i], s[i+1:]
		}
		next := strings.Index(s[i+1:], ":")
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return s, ""
}

// openPlain opens a file and gives what is in it, decompressed; *os.File itself
// where it is not compressed, so that tar can seek over what it does not want.
func openPlain(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	plain, media, err := layers.Decompress(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if media == layers.MediaTar {
		if _, err := f.Seek(0, io.SeekStart); err == nil {
			return f, nil
		}
	}
	return &both{plain, f}, nil
}

// both closes what it reads from and what that reads from.
type both struct {
	io.ReadCloser
	below io.Closer
}

func (b *both) Close() error { return errors.Join(b.ReadCloser.Close(), b.below.Close()) }

// archiveKind tells what a tar is: "oci", "docker" or "root". Newer docker save
// writes both of the first; the layout, whose layers have digests, is taken then.
func archiveKind(path string) (string, error) {
	f, err := openPlain(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	kind := "root"
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return kind, nil
		}
		if err != nil {
			return "", fmt.Errorf("it is no tar: %w: %w", err, dsas.ErrInvalid)
		}
		n, err := layers.CleanName(h.Name)
		if err != nil {
			return "", err
		}
		top, _, _ := strings.Cut(n, "/")
		switch {
		case n == "oci-layout":
			return "oci", nil
		case n == "manifest.json":
			kind = "docker"
		case n == "." || top == "blobs" || n == "index.json" || n == "repositories" || isHex(strings.TrimSuffix(top, ".json")) ||
			strings.HasSuffix(n, ".tar") || strings.HasSuffix(n, ".tar.gz") || strings.HasPrefix(n, "sha256:"):
		default:
			return kind, nil // no archive of images has such a name: the root of a system
		}
	}
}

func isHex(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// fromLayout opens an image of an OCI layout (image-layout.md).
func fromLayout(dir, ref string) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("OCI layout %s: %w", dir, err) }
	p, err := layout.FromPath(dir)
	if err != nil {
		return fail(fmt.Errorf("%w; want a folder with oci-layout, index.json and blobs", err))
	}
	index, err := p.ImageIndex()
	if err != nil {
		return fail(err)
	}
	img, err := pick(index, ref, 0)
	if err != nil {
		return fail(err)
	}
	s, err := fromImage("OCI layout", img)
	if err != nil {
		return fail(err)
	}
	s.blob = func(_ context.Context, d dsas.Digest, _ bool) (io.ReadCloser, error) {
		h, err := v1.NewHash(string(d))
		if err != nil {
			return nil, err
		}
		return p.Blob(h)
	}
	return s, nil
}

// pick finds the image that ref names, or the only one; of several platforms,
// ours.
func pick(index v1.ImageIndex, ref string, depth int) (v1.Image, error) {
	if depth > 4 {
		return nil, invalid("indexes in indexes, %d deep", depth)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	var names []string
	for _, d := range m.Manifests {
		if !isImage(d.ArtifactType) || d.Annotations["vnd.docker.reference.type"] != "" || !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue // a boot artifact, an attestation: no image
		}
		if d.Platform != nil && depth > 0 && (d.Platform.OS != "linux" || d.Platform.Architecture != "amd64") {
			continue
		}
		full := d.Annotations[noteRef]
		names = append(names, full)
		if ref != "" && depth == 0 && full != ref && d.Digest.String() != ref && d.Annotations["io.containerd.image.name"] != ref {
			continue
		}
		found = append(found, d)
	}
	switch {
	case len(found) == 0 && depth > 0:
		return nil, fmt.Errorf("no image for linux/amd64 in it: %w", dsas.ErrNotFound)
	case len(found) == 0:
		return nil, fmt.Errorf("no image %s in it; there are %s: %w", ref, strings.Join(names, ", "), dsas.ErrNotFound)
	case len(found) > 1 && !same(found):
		return nil, invalid("%d images in it; name one of %s after a colon", len(found), strings.Join(names, ", "))
	}
	if found[0].MediaType.IsIndex() {
		inner, err := index.ImageIndex(found[0].Digest)
		if err != nil {
			return nil, err
		}
		return pick(inner, "", depth+1)
	}
	return index.Image(found[0].Digest)
}

// isImage tells whether an artifact type is none, or that of an image's config,
// which some libraries write there.
func isImage(artifactType string) bool {
	return artifactType == "" || artifactType == string(types.OCIConfigJSON) || artifactType == string(types.DockerConfigJSON)
}

// same: several names of one image.
func same(list []v1.Descriptor) bool {
	for _, d := range list {
		if d.Digest != list[0].Digest {
			return false
		}
	}
	return true
}

// fromRegistry opens an image of a registry.
func fromRegistry(ctx context.Context, ref string, reg Registry) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("registry image %s: %w", ref, err) }
	r, err := name.ParseReference(ref, reg.nameOptions()...)
	if err != nil {
		return fail(fmt.Errorf("%w; write it as registry://HOST:PORT/NAME:TAG", err))
	}
	img, err := remote.Image(r, reg.options(ctx)...)
	if err != nil {
		return fail(err)
	}
	s, err := fromImage("registry image", img)
	if err != nil {
		return fail(err)
	}
	s.blob = func(ctx context.Context, d dsas.Digest, manifest bool) (io.ReadCloser, error) {
		at := r.Context().Digest(string(d))
		if manifest {
			got, err := remote.Get(at, reg.options(ctx)...)
			if err != nil {
				return nil, err
			}
			return io.NopCloser(strings.NewReader(string(got.Manifest))), nil
		}
		l, err := remote.Layer(at, reg.options(ctx)...)
		if err != nil {
			return nil, err
		}
		return l.Compressed()
	}
	return s, nil
}

// fromOCIArchive unpacks a tar with a layout into tmp, by digest: no name of the
// archive becomes a file's.
func fromOCIArchive(ctx context.Context, path, ref, tmp string) (*source, error) {
	work, err := diskio.NewScratch(tmp, "import")
	if err != nil {
		return nil, err
	}
	dir := work.Dir
	s, err := func() (*source, error) {
		if err := unpackLayout(ctx, path, dir); err != nil {
			return nil, fmt.Errorf("OCI archive %s: %w", path, err)
		}
		return fromLayout(dir, ref)
	}()
	if err != nil {
		work.Remove()
		return nil, err
	}
	s.kind, s.close = "OCI archive", func() { work.Remove() }
	return s, nil
}

func unpackLayout(ctx context.Context, path, dir string) error {
	f, err := openPlain(path)
	if err != nil {
		return err
	}
	defer f.Close()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	left := int64(defaultMaxUnpacked)
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := layers.CleanName(h.Name)
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		to := ""
		if hex, ok := strings.CutPrefix(n, "blobs/sha256/"); ok && isHex(hex) {
			to = filepath.Join(blobs, hex)
		} else if n == "oci-layout" || n == "index.json" {
			if h.Size > maxJSON {
				return invalid("%s has %d bytes", n, h.Size)
			}
			to = filepath.Join(dir, n)
		} else {
			continue
		}
		if left -= h.Size; left < 0 {
			return invalid("more than %d bytes", int64(defaultMaxUnpacked))
		}
		if err := writeFile(ctx, to, tr); err != nil {
			return err
		}
	}
}

func writeFile(ctx context.Context, to string, r io.Reader) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // twice in the archive; the digest is checked where it is used
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &stopping{ctx, r})
	return errors.Join(err, f.Close())
}

// stopping ends a copy with its context.
type stopping struct {
	ctx context.Context
	r   io.Reader
}

func (s *stopping) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// fromDockerArchive opens what docker save and podman save write.
func fromDockerArchive(path, ref string) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("docker archive %s: %w", path, err) }
	opener := func() (io.ReadCloser, error) { return openPlain(path) }
	var tag *name.Tag
	if ref != "" {
		t, err := name.NewTag(ref)
		if err != nil {
			return fail(fmt.Errorf("%w: %w", err, dsas.ErrInvalid))
		}
		tag = &t
	}
	img, err := tarball.Image(opener, tag)
	if err != nil {
		return fail(fmt.Errorf("%w; of several images, name one after a colon", err))
	}
	s := &source{kind: "docker archive"}
	if err := s.readConfig(img); err != nil {
		return fail(err)
	}
	// Plain tars: asked for a manifest, the library would make gzip of them all.
	list, err := img.Layers()
	if err != nil {
		return fail(err)
	}
	if len(list) != len(s.config.RootFS.DiffIDs) {
		return fail(invalid("%d layers and %d diffIDs", len(list), len(s.config.RootFS.DiffIDs)))
	}
	said := historyTitles(s.config.History, len(list))
	for i, l := range list {
		s.layers = append(s.layers, sourceLayer{diffID: dsas.Digest(s.config.RootFS.DiffIDs[i].String()), title: said[i], open: l.Uncompressed})
	}
	return s, nil
}

// fromRootTar opens a root file system in one tar.
func fromRootTar(path string) (*source, error) {
	return &source{
		kind:   "tar",
		layers: []sourceLayer{{title: "root", open: func() (io.ReadCloser, error) { return os.Open(path) }}},
		config: v1.ConfigFile{OS: "linux", Architecture: "amd64"},
	}, nil
}

// fromImage reads manifest and config.
func fromImage(kind string, img v1.Image) (*source, error) {
	s := &source{kind: kind}
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if !isImage(m.ArtifactType) {
		return nil, invalid("it is no image but a %.80q", m.ArtifactType)
	}
	if err := s.readConfig(img); err != nil {
		return nil, err
	}
	if len(m.Layers) != len(s.config.RootFS.DiffIDs) {
		return nil, invalid("%d layers and %d diffIDs", len(m.Layers), len(s.config.RootFS.DiffIDs))
	}
	if at := m.Annotations[noteBoot]; at != "" {
		if s.bootAt, err = dsas.ParseDigest(at); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", noteBoot, err)
		}
	}
	list, err := img.Layers()
	if err != nil {
		return nil, err
	}
	said := historyTitles(s.config.History, len(list))
	for i, l := range list {
		sl := sourceLayer{diffID: dsas.Digest(s.config.RootFS.DiffIDs[i].String()), title: m.Layers[i].Annotations[noteTitle], open: l.Compressed}
		sl.digest = dsas.Digest(m.Layers[i].Digest.String())
		if sl.title == "" || !isTitle(sl.title) {
			sl.title = said[i]
		}
		for _, d := range []dsas.Digest{sl.digest, sl.diffID} {
			if _, err := dsas.ParseDigest(string(d)); err != nil {
				return nil, fmt.Errorf("layer %d: %w", i+1, err)
			}
		}
		s.layers = append(s.layers, sl)
	}
	return s, nil
}
