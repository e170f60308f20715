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
func CheckFile(name string, content []byte) error {
	if found := secretsIn(name, content); len(found) > 0 {
		return &CheckError{found}
	}
	return nil
}

// Modules gives the layer with the modules of boot's kernel that a build of the
// role would make. That kernel must be the one that builds take.
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
	cur, err := pickKernel(ctx, &opt, a)
	if err != nil {
		return fail(fmt.Errorf("find kernel: %w", err))
	}
	// Before it is unpacked and kept: what is refused leaves builds with the kernel
	// they had, and the cache with its files.
	if cur.Kernel.Release != boot.Release {
		return fail(fmt.Errorf("the packages are of kernel %s; build a release with it and import again: dsas image build %s: %w", cur.Kernel.Release, role.Name, dsas.ErrConflict))
	}
	k, err := cur.take(ctx, &opt, a)
	if err != nil {
		return fail(err)
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

// Folder is the owner and mode of a folder.
type Folder struct {
	Mode     int64
	UID, GID int
}

// RoleFiles gives the layer with a role's own files and services that a build of
// it would make, over an image with these folders; false where the role has none.
func RoleFiles(ctx context.Context, opt Options, def Definition, below map[string]Folder) (dsas.Part, bool, error) {
	fail := func(err error) (dsas.Part, bool, error) {
		return dsas.Part{}, false, fmt.Errorf("files of role %s: %w", def.Role.Name, err)
	}
	files, err := readFiles(def)
	if err != nil || len(files) == 0 {
		return dsas.Part{}, false, err
	}
	unlock, err := opt.open(ctx)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	dirs := make(map[string]dirAttr, len(below))
	for name, f := range below {
		dirs[name] = dirAttr(f)
	}
	l, err := filesLayer(ctx, &opt, files, dirs)
	if err != nil {
		return fail(err)
	}
	return l.Part, true, nil
}

// Memory gives the bytes that a role needs beside its image.
func Memory(role dsas.Role) (int64, error) { return parseMemory(role.Memory) }
