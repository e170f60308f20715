package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/internal/zframes"
)

// Import says what to bring in, and as what.
type Import struct {
	Store Store
	// Source is where the image stands: a folder with an OCI layout, a tar with
	// one, an archive of docker save or podman save, a root file system in a tar
	// (plain, gzip, zstd), or registry://HOST/NAME:TAG. PATH:NAME picks one of
	// several images; oci:, oci-archive:, docker-archive: and tar: before it say
	// what it is.
	Source   string
	Registry Registry
	Role     string // it becomes a release of
	// Memory is what the role needs beside its image, in bytes, where the image
	// is no release of ours that says so.
	Memory int64
	// Boot is what the release is to boot with; nil: what the image names, if it
	// is a release of ours, else what the role's last release boots with.
	Boot *dsas.BootSet
	// Modules gives a layer with the modules of a boot set's kernel for the role,
	// in the store, for an image that has none and a role that has no release
	// with them.
	Modules func(ctx context.Context, boot dsas.BootSet) (dsas.Part, error)
	// Files gives a layer with the role's own files, for an image with these
	// folders, in the store; false: there are none. nil: none are put over it.
	Files func(ctx context.Context, below map[string]Folder) (dsas.Part, bool, error)
	// Definition goes with the release (dsas.Release.Definition) of an image that
	// has none for the role, or one that CheckDefinition does not take: what stands
	// in it the server renders. nil: all are taken.
	Definition      []byte
	CheckDefinition func(frozen []byte) (bool, error)
	// Check refuses a file that must be in no image: its clean name and content,
	// of files up to CheckSize bytes.
	Check     func(name string, content []byte) error
	CheckSize int64
	// MaxUnpacked bounds the image's tars in bytes; 0: 32 GiB.
	MaxUnpacked int64
	Tmp         string // folder for what has to be unpacked on the way
	Progress    func(line string)
}

// Folder is the owner and mode of a folder of an image.
type Folder struct {
	Mode     int64
	UID, GID int
}

// Imported is what came of it.
type Imported struct {
	Release dsas.Release `json:"release"`
	Kind    string       `json:"kind"` // "OCI layout", "docker archive", ...
	// Same: the release was in the store already, under this number.
	Same bool `json:"same"`
	// Warnings are what may keep nodes from coming up as the role.
	Warnings []string `json:"warnings,omitempty"`
	// Services are those that the image has a run file for.
	Services []string `json:"services"`
}

// Run brings the image in. Where it fails, no release is there that was not, and
// what is left in the store is layers without a secret in them.
func (im Import) Run(ctx context.Context) (Imported, error) {
	var none Imported
	if err := dsas.CheckName("role", im.Role); err != nil {
		return none, err
	}
	if im.MaxUnpacked <= 0 {
		im.MaxUnpacked = defaultMaxUnpacked
	}
	if im.Progress == nil {
		im.Progress = func(string) {}
	}
	out, err := im.run(ctx)
	if _, remote := isRegistry(im.Source); err != nil && !remote && endsEarly(err) {
		err = cut(fmt.Sprintf("it ends too early (%v)", err))
	}
	if err != nil {
		return none, fmt.Errorf("import %s: %w", im.Source, err)
	}
	return out, nil
}

func (im *Import) run(ctx context.Context) (Imported, error) {
	var out Imported
	src, err := openSource(ctx, im.Source, im.Tmp, im.Registry)
	if err != nil {
		return out, err
	}
	if src.close != nil {
		defer src.close()
	}
	out.Kind = src.kind
	im.Progress(fmt.Sprintf("%s with %s", src.kind, dsas.Count(len(src.layers), "layer")))
	boot, err := im.pickBoot(ctx, src, &out)
	if err != nil {
		return out, err
	}
	m := dsas.Manifest{Role: im.Role, Kernel: boot.Release, Memory: im.memory(src)}
	seen := newContents()
	for i, l := range src.layers {
		part, err := im.layer(ctx, l, seen)
		if err != nil {
			return out, fmt.Errorf("layer %d of %d: %w", i+1, len(src.layers), err)
		}
		im.Progress(fmt.Sprintf("layer %d of %d, %s: %.1f MiB, %.1f MiB unpacked", i+1, len(src.layers), part.Title, mib(part.Size), mib(part.Unpacked)))
		m.Parts = append(m.Parts, part)
	}
	if seen.entries == 0 {
		return out, invalid("it holds no files: it is no root file system")
	}
	if !seen.kernels[boot.Release] {
		part, err := im.modules(ctx, boot)
		if err != nil {
			return out, fmt.Errorf("it has no modules of kernel %s, and they could not be added: %w", boot.Release, err)
		}
		im.Progress(fmt.Sprintf("modules of kernel %s added: %.1f MiB", boot.Release, mib(part.Size)))
		m.Parts = append(m.Parts, part)
	}
	if im.Files != nil {
		part, ok, err := im.Files(ctx, seen.folders)
		if err != nil {
			return out, err
		}
		if ok {
			im.Progress(fmt.Sprintf("files and services of role %s put over it: %.1f MiB", im.Role, mib(part.Size)))
			m.Parts = append(m.Parts, part)
		}
	}
	if seen.realLib {
		out.Warnings = append(out.Warnings, "/lib is a folder and no link to usr/lib, as in Debian: the kernel does not find modules that are asked for while it runs")
	}
	before, err := im.Store.Releases()
	if err != nil {
		return out, err
	}
	definition, err := im.definition(src, &out)
	if err != nil {
		return out, err
	}
	if out.Release, err = im.Store.AddRelease(ctx, dsas.Release{Role: im.Role, Definition: definition, Boot: boot, Manifest: m}); err != nil {
		return out, err
	}
	out.Same = slices.ContainsFunc(before, func(r dsas.Release) bool { return r.ID == out.Release.ID })
	out.Services = slices.Sorted(maps.Keys(seen.services))
	return out, nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// memory is what a release of this role says, else the role.
func (im *Import) memory(src *source) int64 {
	labels := src.config.Config.Labels
	if labels[labelRole] != im.Role {
		return im.Memory
	}
	n, _ := strconv.ParseInt(labels[labelMemory], 10, 64) // none is 0
	return max(n, 0)
}

// definition is what a release of this role has, none included, since it comes
// back as the same; for all others the role's own.
func (im *Import) definition(src *source, out *Imported) ([]byte, error) {
	labels := src.config.Config.Labels
	if labels[labelRole] != im.Role || im.Files != nil { // whose files, his definition
		return im.Definition, nil
	}
	text, ok := labels[labelDefine]
	if !ok || text == "" {
		return nil, nil
	}
	frozen, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, invalid("its role definition: %v", err)
	}
	if im.CheckDefinition == nil || bytes.Equal(frozen, im.Definition) {
		return frozen, nil
	}
	ok, err = im.CheckDefinition(frozen)
	if err == nil && !ok {
		out.Warnings = append(out.Warnings, "the templates and services that it came with are not taken, but those of the role here: it is another release (--trust-definition takes them)")
		frozen = im.Definition
	}
	return frozen, err
}

// contents is what an import notices of the tree.
type contents struct {
	kernels  map[string]bool // releases whose modules are there
	services map[string]bool
	realLib  bool // "lib" is a folder
	entries  int
	folders  map[string]Folder
}

func newContents() *contents {
	return &contents{kernels: map[string]bool{}, services: map[string]bool{}, folders: map[string]Folder{}}
}

// layer stores one layer. It is in the store under its digest only once all of
// it has been looked at.
func (im *Import) layer(ctx context.Context, l sourceLayer, seen *contents) (dsas.Part, error) {
	part := dsas.Part{Title: l.title}
	raw, err := l.open()
	if err != nil {
		return part, err
	}
	defer raw.Close()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := im.read(&stopping{ctx, raw}, pw, l, &part, seen)
		pw.CloseWithError(err) // nil: the end
		done <- err
	}()
	digest, size, putErr := im.Store.Put(ctx, pr)
	pr.CloseWithError(putErr)
	if err := <-done; err != nil && (putErr == nil || !errors.Is(err, putErr)) {
		return part, err // why the store saw an error
	}
	if putErr != nil {
		return part, putErr
	}
	part.Digest, part.Size = digest, size
	return part, nil
}

// read passes a layer on to out: as it is where it is compressed, else with
// zstd, as builds do. Digests and content are checked on the way.
func (im *Import) read(raw io.Reader, out io.Writer, l sourceLayer, part *dsas.Part, seen *contents) error {
	travelled, inside := sha256.New(), sha256.New()
	src := bufio.NewReaderSize(io.TeeReader(raw, travelled), 256<<10)
	head, err := src.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// What is compressed goes on as it is; a plain tar as what zw makes of it.
	var passed io.Reader = src
	if layers.Media(head) != layers.MediaTar {
		passed = io.TeeReader(src, out)
	}
	dec, media, err := layers.Decompress(passed)
	if err != nil {
		return err
	}
	defer dec.Close()
	plain := io.TeeReader(&limited{dec, &im.MaxUnpacked}, inside)
	var zw *zframes.Writer
	if media == layers.MediaTar {
		if zw, err = zframes.NewWriter(out); err != nil {
			return err
		}
		defer zw.Close()
		plain, media = io.TeeReader(plain, zw), layers.MediaZstd
	}
	if err := im.scan(plain, part, seen); err != nil {
		return err
	}
	// What follows the ends of the tar and of the compressed stream belongs to
	// the digests.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, passed); err != nil {
		return err
	}
	if got := sum(travelled.Sum(nil)); l.digest != "" && got != l.digest {
		return invalid("its digest is %s, the image says %s: it was damaged or changed", got, l.digest)
	}
	part.DiffID, part.MediaType = sum(inside.Sum(nil)), media
	if l.diffID != "" && part.DiffID != l.diffID {
		return invalid("the digest of its tar is %s, the image says %s: it was damaged or changed", part.DiffID, l.diffID)
	}
	if zw != nil {
		return zw.Close()
	}
	return nil
}

func sum(b []byte) dsas.Digest { return dsas.Digest("sha256:" + hex.EncodeToString(b)) }

// limited takes what it gives off a budget, and fails where that is used up.
type limited struct {
	r    io.Reader
	left *int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if *l.left -= int64(n); *l.left < 0 {
		return 0, invalid("the image is larger than nodes could hold")
	}
	return n, err
}

// counter counts what is written through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// plainCpios writes what is in an initramfs: cpio archives as they are, with
// zeros between them, and then what is compressed (kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
func plainCpios(r io.Reader, w io.Writer, left *int64) error {
	br := bufio.NewReaderSize(r, 256<<10)
	for {
		head, err := br.Peek(110)
		switch {
		case len(head) == 0 && errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case layers.Media(head) != layers.MediaTar:
			dec, _, err := layers.Decompress(br)
			if err != nil {
				return err
			}
			defer dec.Close()
			_, err = io.Copy(w, &limited{dec, left})
			return err
		case len(head) >= 4 && string(head[:4]) == "\x00\x00\x00\x00":
			if _, err := io.CopyN(w, br, 4); err != nil {
				return err
			}
		case len(head) == 110 && string(head[:6]) == "070701":
			size, err := strconv.ParseInt(string(head[54:62]), 16, 64)
			name, err2 := strconv.ParseInt(string(head[94:102]), 16, 64)
			if err := errors.Join(err, err2); err != nil {
				return invalid("cpio: %v", err)
			}
			// Header with name, and content, are each padded to 4 bytes.
			if _, err := io.CopyN(w, br, (110+name+3)/4*4+(size+3)/4*4); err != nil {
				return invalid("cpio: %v", err)
			}
		default:
			return invalid("it is neither a cpio archive nor compressed")
		}
	}
}

// modules gives a layer with a kernel's modules: that of the role's own release,
// else one that is made.
func (im *Import) modules(ctx context.Context, boot dsas.BootSet) (dsas.Part, error) {
	known, err := im.Store.Releases()
	if err != nil {
		return dsas.Part{}, err
	}
	for _, r := range slices.Backward(known) { // by number: the newest first
		if r.Role != im.Role || r.Manifest.Kernel != boot.Release {
			continue
		}
		for _, p := range r.Manifest.Parts {
			if p.Title == "modules" && im.Store.Has(p.Digest, p.Size) {
				return p, nil
			}
		}
	}
	if im.Modules == nil {
		return dsas.Part{}, fmt.Errorf("role %s has no release with them: %w", im.Role, dsas.ErrNotFound)
	}
	return im.Modules(ctx, boot)
}
