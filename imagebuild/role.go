package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"io/fs"

	"dsas"
)

// Definition is what a role's image is built from.
type Definition struct {
	Role dsas.Role
	// FS is the role's folder: files/ goes over the root, services/NAME/{run,
	// log/run,finish,check} to /etc/dsas/services/NAME. The rest (templates/,
	// role.yaml) is the server's.
	FS fs.FS
	// Frozen goes with the release (dsas.Release.Definition).
	Frozen []byte
}

// roleState remembers what a role's image was made of.
type roleState struct {
	Key     string
	Release dsas.Digest
}

// BuildRole builds a release of a role, to boot with what BuildBoot made; where
// nothing changed, it gives the last one built after comparing hashes. Whether
// nodes boot it is for others to say. It needs root
// (chroot, overlayfs, the owners of files) and keeps mounts and processes in
// namespaces of their own, so that however it ends none is left.
func BuildRole(ctx context.Context, opt Options, def Definition, boot dsas.BootSet) (dsas.Release, error) {
	var none dsas.Release
	if err := dsas.CheckName("role", def.Role.Name); err != nil {
		return none, fmt.Errorf("build image: %w", err)
	}
	unlock, err := opt.open(ctx)
	if err != nil {
		return none, err
	}
	defer unlock()
	r, err := buildRole(ctx, &opt, def, boot)
	if err != nil {
		return none, fmt.Errorf("build image of role %s: %w", def.Role.Name, err)
	}
	return r, nil
}

func buildRole(ctx context.Context, opt *Options, def Definition, boot dsas.BootSet) (dsas.Release, error) {
	var none dsas.Release
	files, err := readFiles(def)
	if err != nil {
		return none, err
	}
	memory, err := parseMemory(def.Role.Memory)
	if err != nil {
		return none, err
	}
	if err := checkRemove(def.Role.Remove); err != nil {
		return none, err
	}
	a, err := openApt(ctx, opt)
	if err != nil {
		return none, err
	}
	k, err := findKernel(ctx, opt, a) // fetches the package lists, if that is due
	if err != nil {
		return none, err
	}
	if boot.Release != k.Release {
		return none, fmt.Errorf("its modules would be kernel %s's and it would boot with %s; build both anew: dsas image build %s: %w", k.Release, boot.Release, def.Role.Name, dsas.ErrConflict)
	}
	packages := slices.Clone(def.Role.Packages)
	slices.Sort(packages)
	packages = slices.Compact(packages)
	stateFile := filepath.Join(opt.Cache, "roles", def.Role.Name+".json")
	state := roleState{Key: key("role", def.Frozen, a.sources, a.stamp(), k.id(), bootKey(boot), packages, def.Role.Modules, def.Role.Remove, memory,
		files.sum(), basePackages, dpkgOptions, imageFolders, imageModules, dropped, emptied)}
	var old roleState
	if readJSON(stateFile, &old) && old.Key == state.Key {
		if r, err := opt.Store.Release(old.Release); err == nil && hasParts(opt.Store, r.Manifest.Parts) && hasBoot(opt.Store, r.Boot) {
			opt.say("image of role %s is up to date: release %s", def.Role.Name, r.Name())
			return *r, nil
		}
	}

	if os.Geteuid() != 0 {
		return none, fmt.Errorf("packages are installed into a root of their own, which needs root: run it with sudo: %w", dsas.ErrDenied)
	}
	// Whatever is there, a killed build left: this one holds the lock.
	work := filepath.Join(opt.Cache, "work")
	if err := os.RemoveAll(work); err != nil {
		return none, err
	}
	defer os.RemoveAll(work)
	b, err := findBase(ctx, opt, a)
	if err != nil {
		return none, err
	}
	m := dsas.Manifest{Role: def.Role.Name, Kernel: k.Release, Memory: memory, Parts: []dsas.Part{b.Part}}
	pkgs, err := packagesLayer(ctx, opt, a, b, packages, def.Role.Remove)
	if err != nil {
		return none, err
	}
	if pkgs != nil {
		m.Parts = append(m.Parts, pkgs.Part)
	} else {
		pkgs = &layer{}
	}
	mods, err := modulesLayer(ctx, opt, k, def.Role.Modules)
	if err != nil {
		return none, err
	}
	m.Parts = append(m.Parts, mods.Part)
	if len(files) > 0 {
		l, err := filesLayer(ctx, opt, files, b.Dirs, pkgs.Dirs)
		if err != nil {
			return none, err
		}
		m.Parts = append(m.Parts, l.Part)
	}

	r, err := opt.Store.AddRelease(ctx, dsas.Release{Role: def.Role.Name, Definition: def.Frozen, Boot: boot, Manifest: m})
	if err != nil {
		return none, err
	}
	// Newer package lists that changed nothing make no new release.
	opt.say("release %s: %.1f MiB, %.1f MiB unpacked", r.Name(), mib(r.Manifest.Size()), mib(r.Manifest.Unpacked()))
	state.Release = r.ID
	return r, writeJSON(stateFile, state)
}

// bootKey names a boot set in keys: by its content, however it is compressed.
func bootKey(b dsas.BootSet) (ids []dsas.Digest) {
	for _, p := range b.Parts() {
		ids = append(ids, p.DiffID)
	}
	return ids
}

func hasParts(s Store, parts []dsas.Part) bool {
	for _, p := range parts {
		if !s.Has(p.Digest, p.Size) {
			return false
		}
	}
	return len(parts) > 0
}

// parseMemory reads "512MiB" into bytes; empty is 0.
func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for unit, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			if v, err := strconv.ParseInt(digits, 10, 32); err == nil && v > 0 {
				return v * n, nil
			}
		}
	}
	return 0, fmt.Errorf("memory %q: write it as 512MiB or 2GiB: %w", s, dsas.ErrInvalid)
}

// checkRemove wants folders that can be named without doubt.
func checkRemove(dirs []string) error {
	for _, d := range dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d || d == "/" {
			return fmt.Errorf("remove %q: name a folder below /, as /var/lib/mysql: %w", d, dsas.ErrInvalid)
		}
	}
	return nil
}
