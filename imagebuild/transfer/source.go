package transfer

import (
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
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
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
	switch {
	case place == "":
		return nil, invalid("the place of the image is empty; give a folder or file, or registry://HOST/NAME:TAG")
	case err != nil:
		return nil, fmt.Errorf("%w; give a folder or file, or registry://HOST/NAME:TAG", err)
	case fi.IsDir():
		return fromLayout(path, ref)
	case !fi.Mode().IsRegular():
		return nil, invalid("it is neither a file nor a folder; it is read more than once: write it to a file first")
	case fi.Size() == 0:
		return nil, cut("the file is empty")
	}
	kind, err := archiveKind(path)
	if err != nil {
		return nil, err
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

// CheckPlace tells of a place on this machine whether anything is there, before
// anything is made for it. What is there is looked at later.
func CheckPlace(place string) error {
	if _, ok := isRegistry(place); ok {
		return nil
	}
	rest := place
	for _, prefix := range []string{"oci:", "oci-archive:", "docker-archive:", "tar:"} {
		if r, ok := strings.CutPrefix(place, prefix); ok {
			rest = r
			break
		}
	}
	path, _ := splitRef(rest)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("import %s: %w; give a folder or file, or registry://HOST/NAME:TAG", place, err)
	}
	return nil
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

// fromLayout opens an image of an OCI layout (image-layout.md).
func fromLayout(dir, ref string) (*source, error) { return openLayout("OCI layout", dir, ref) }

func openLayout(kind, dir, ref string) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("%s: %w", kind, err) }
	p, err := layout.FromPath(dir)
	if errors.Is(err, fs.ErrNotExist) && kind == "OCI layout" {
		return fail(invalid("want a folder with oci-layout, index.json and blobs, and index.json is not there"))
	}
	if err != nil {
		return fail(whole(err, "index.json"))
	}
	index, err := p.ImageIndex()
	if err != nil {
		return fail(err)
	}
	img, err := pick(index, ref, 0)
	if err != nil {
		return fail(whole(err, "its manifest"))
	}
	s, err := fromImage(kind, img)
	if err != nil {
		return fail(whole(err, "its manifest or config"))
	}
	// Now, and not when half of it is read.
	for i, l := range s.layers {
		if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", l.digest.Hex())); err != nil {
			return fail(whole(err, fmt.Sprintf("layer %d of %d", i+1, len(s.layers))))
		}
	}
	s.blob = func(_ context.Context, d dsas.Digest, _ bool) (io.ReadCloser, error) {
		h, err := v1.NewHash(string(d))
		if err != nil {
			return nil, err
		}
		rc, err := p.Blob(h)
		return rc, whole(err, d.Short())
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
	if ref == "" {
		return nil, invalid("it names no image; write it as registry://HOST:PORT/NAME:TAG")
	}
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
