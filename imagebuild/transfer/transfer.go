// Package transfer brings images in from elsewhere and takes releases out: OCI
// layouts, archives of docker and podman, registries, plain root file systems.
//
// What comes in is believed nothing: digests are checked, names are read and
// never used, sizes are counted, and what a build would refuse is refused before
// any of it is in the store, where anybody on the boot network could read it.
package transfer

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"dsas"
)

// Store is the image store.
type Store interface {
	// Put stores what r gives under its digest; nothing is left where r fails.
	Put(ctx context.Context, r io.Reader) (dsas.Digest, int64, error)
	// Blob opens content and gives its length in bytes.
	Blob(d dsas.Digest) (*os.File, int64, error)
	Has(d dsas.Digest, size int64) bool
	Releases() ([]dsas.Release, error)
	AddRelease(ctx context.Context, r dsas.Release) (dsas.Release, error)
}

// How server/blobs writes a release in OCI's terms: the tests hold the two
// together, since an exported release comes back as the very same.
const (
	labelRole    = dsas.AnnotationRole
	labelMemory  = dsas.AnnotationMemory
	labelBoot    = dsas.LabelBoot
	labelKernel  = dsas.AnnotationKernel
	labelDefine  = dsas.LabelDefinition
	noteBoot     = dsas.AnnotationBoot
	noteTitle    = dsas.AnnotationTitle
	historyWords = "dsas image build: "
	noteRef      = "org.opencontainers.image.ref.name"

	bootArtifact = dsas.BootArtifact
	// bootTag is added to the tag of an image in a registry, for the artifact it
	// boots with: what no tag names, registries remove.
	bootTag = "-boot"
)

const (
	// maxJSON bounds manifests and configs, in bytes.
	maxJSON = 4 << 20
	// maxLayers is about where overlayfs and Docker stop.
	maxLayers = 127
	// defaultMaxUnpacked bounds an image's tars, in bytes: nodes hold it in memory.
	defaultMaxUnpacked = 32 << 30
)

// Registry says how one is spoken to.
type Registry struct {
	Insecure bool // plain HTTP
}

// isRegistry gives what follows "registry://" or "docker://".
func isRegistry(place string) (ref string, ok bool) {
	for _, prefix := range []string{"registry://", "docker://"} {
		if ref, ok := strings.CutPrefix(place, prefix); ok {
			return ref, true
		}
	}
	return "", false
}

func (r Registry) nameOptions() []name.Option {
	if r.Insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

// options are those of all requests: log-in as docker and podman keep it.
func (r Registry) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("dsas"),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}),
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, dsas.ErrInvalid)...)
}
