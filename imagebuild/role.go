package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

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
}

// roleState remembers what a role's image was made of.
type roleState struct {
	Key      string
	Manifest dsas.Digest
}

// BuildRole builds the image of a role and makes it current; where nothing
// changed, it gives the current manifest after comparing hashes. It needs root
// (chroot, overlayfs, the owners of files) and keeps mounts and processes in
// namespaces of their own, so that however it ends none is left.
func BuildRole(ctx context.Context, opt Options, def Definition) (dsas.Manifest, error) {
	var none dsas.Manifest
	if err := dsas.CheckName("role", def.Role.Name); err != nil {
		return none, fmt.Errorf("build image: %w", err)
	}
	unlock, err := opt.open(ctx)
	if err != nil {
		return none, err
	}
	defer unlock()
	m, err := buildRole(ctx, &opt, def)
	if err != nil {
		return none, fmt.Errorf("build image of role %s: %w", def.Role.Name, err)
	}
	return m, nil
}

func buildRole(ctx context.Context, opt *Options, def Definition) (dsas.Manifest, error) {
	var none dsas.Manifest
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
	packages := slices.Clone(def.Role.Packages)
	slices.Sort(packages)
	packages = slices.Compact(packages)
	stateFile := filepath.Join(opt.Cache, "roles", def.Role.Name+".json")
	state := roleState{Key: key("role", a.sources, a.stamp(), k.id(), packages, def.Role.Modules, def.Role.Remove, memory,
		files.sum(), basePackages, dpkgOptions, imageFolders, imageModules, dropped, emptied)}
	cur, curErr := opt.Store.Current(def.Role.Name)
	var old roleState
	if curErr == nil && readJSON(stateFile, &old) && old.Key == state.Key && old.Manifest == cur.Digest && hasParts(opt.Store, cur.Parts) {
		opt.say("image of role %s is up to date", def.Role.Name)
		return cur, nil
	}
	if curErr != nil && !errors.Is(curErr, dsas.ErrNotFound) {
		opt.say("replacing what cannot be read: %v", curErr)
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

	// Newer package lists that changed nothing make no new image.
	if curErr == nil && slices.Equal(cur.Parts, m.Parts) && cur.Kernel == m.Kernel && cur.Memory == m.Memory {
		opt.say("image of role %s is up to date", def.Role.Name)
		m = cur
	} else {
		m.Created = time.Now().UTC().Truncate(time.Second)
		if m, err = opt.Store.Publish(m); err != nil {
			return none, err
		}
		var size, unpacked int64
		for _, p := range m.Parts {
			size, unpacked = size+p.Size, unpacked+p.Unpacked
		}
		opt.say("image of role %s: %.1f MiB, %.1f MiB unpacked", m.Role, mib(size), mib(unpacked))
	}
	state.Manifest = m.Digest
	return m, writeJSON(stateFile, state)
}

func hasParts(s Store, parts []dsas.Part) bool {
	for _, p := range parts {
		if !s.Has(p.Digest, p.Size) {
			return false
		}
	}
	return len(parts) > 0
}

// parseMemory is dsas.ParseSize, with empty for 0.
func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := dsas.ParseSize(s)
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	return n, nil
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
