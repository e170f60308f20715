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
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/diskio"
)

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
	of := false // it has files of an archive of images
	tr := tar.NewReader(f)
	for first := true; ; first = false {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && of && kind == "root" {
			return "", cut("it has the files of an image, but neither oci-layout nor manifest.json, which says what they are")
		}
		if errors.Is(err, io.EOF) {
			return kind, nil
		}
		_, plain := f.(*os.File)
		if err != nil && first && (plain || !endsEarly(err)) {
			return "", invalid("it is no tar, nor a compressed one (%v)", err)
		}
		if err != nil {
			return "", fmt.Errorf("read tar: %w", err)
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
		case n == ".":
		case top == "blobs" || n == "index.json" || n == "repositories" || isHex(strings.TrimSuffix(top, ".json")) ||
			strings.HasSuffix(n, ".tar") || strings.HasSuffix(n, ".tar.gz") || strings.HasPrefix(n, "sha256:"):
			of = true
		default:
			return kind, nil // no archive of images has such a name: the root of a system
		}
	}
}

func isHex(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
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
			return nil, fmt.Errorf("OCI archive: %w", err)
		}
		return openLayout("OCI archive", dir, ref)
	}()
	if err != nil {
		work.Remove()
		return nil, err
	}
	s.close = func() { work.Remove() }
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
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("docker archive: %w", err) }
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
	if err != nil && endsEarly(err) {
		return fail(err)
	}
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
