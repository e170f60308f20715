package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"dsas"
)

// What images that were not built here are held to, and what they may need.

// SecretSize is the most bytes that a file is searched for secrets.
const SecretSize = maxSecretFile

// CheckFile refuses a file that a build would not let into an image: content
// of up to SecretSize bytes, name without its leading slash.
func CheckFile(name string, content []byte) error { return secretsIn(name, content) }

// Modules gives the layer with the modules of boot's kernel that a build of the
// role would make. It wants the packages of that kernel: Debian's newest.
func Modules(ctx context.Context, opt Options, role dsas.Role, boot dsas.BootSet) (dsas.Part, error) {
	fail := func(err error) (dsas.Part, error) {
		return dsas.Part{}, fmt.Errorf("modules of kernel %s: %w", boot.Release, err)
	}
	unlock, err := opt.open(ctx)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	a, err := openApt(ctx, &opt)
	if err != nil {
		return fail(err)
	}
	k, err := findKernel(ctx, &opt, a)
	if err != nil {
		return fail(err)
	}
	if k.Release != boot.Release {
		return fail(fmt.Errorf("the packages are of kernel %s; build a release with it and import again: dsas image build %s: %w", k.Release, role.Name, dsas.ErrConflict))
	}
	work := filepath.Join(opt.Cache, "work") // of a killed build, if it is there: this holds the lock
	if err := os.RemoveAll(work); err != nil {
		return fail(err)
	}
	defer os.RemoveAll(work)
	l, err := modulesLayer(ctx, &opt, k, role.Modules)
	if err != nil {
		return fail(err)
	}
	return l.Part, nil
}

// Memory gives the bytes that a role needs beside its image.
func Memory(role dsas.Role) (int64, error) { return parseMemory(role.Memory) }
