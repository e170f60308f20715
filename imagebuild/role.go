package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"io/fs"

	"dsas"
	"dsas/imagebuild/leaks"
)

// Definition is what a role's image is built from.
type Definition struct {
	Role dsas.Role
	// FS is the role's folder: files/ goes over the root, services/NAME/{run,
	// log/run,finish,check} to /etc/dsas/services/NAME. The rest (templates/,
	// role.yaml) is the server's.
	FS fs.FS
	// Lock is the path of the role's lock; empty: in Options.Locks.
	Lock string
}

// roleState remembers what a role's image was made of.
type roleState struct {
	Key      string
	Lists    string // apt.stamp it was last compared with
	Manifest dsas.Digest
	Report   Report
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
	sources, err := readSources(def)
	if err != nil {
		return none, err
	}
	if opt.allow, err = newAllowance(def.Role.Allow, opt.Allow); err != nil {
		return none, err
	}
	a, err := openApt(ctx, opt)
	if err != nil {
		return none, err
	}
	k, err := findKernel(ctx, opt, a) // with Refresh, fetches the package lists
	if err != nil {
		return none, err
	}
	packages := slices.Clone(def.Role.Packages)
	slices.Sort(packages)
	packages = slices.Compact(packages)
	place := opt.lockPlace(def.Role.Name, def.Lock)
	locked, err := readLock(place)
	if err != nil && !opt.Refresh {
		return none, err
	}
	baseLock, err := readLock(opt.lockPlace("base", ""))
	if err != nil && !opt.Refresh {
		return none, err
	}
	stateKey := func(base, role lock) string {
		return key("role", a.suite, base, role, k.id(), packages, def.Role, memory, files.sum(), sources, opt.allow.list, leaks.Sum(),
			basePackages, dpkgOptions, imageFolders, imageModules, dropped, emptied)
	}
	stateFile := filepath.Join(opt.Cache, "roles", def.Role.Name+".json")
	cur, curErr := opt.Store.Current(def.Role.Name)
	var old roleState
	if curErr == nil && locked != nil && baseLock != nil && readJSON(stateFile, &old) && old.Key == stateKey(baseLock, locked) &&
		(!opt.Refresh || old.Lists == a.stamp()) && old.Manifest == cur.Digest && hasParts(opt.Store, cur.Parts) {
		opt.say("image of role %s is up to date", def.Role.Name)
		old.Report.Changed, old.Report.Base, old.Report.Packages = false, nil, nil
		opt.report(old.Report)
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
	checks := &checks{opt: opt, role: def.Role, sources: sources, files: files}
	if err := checks.definition(k); err != nil {
		return none, err
	}
	b, err := findBase(ctx, opt, a)
	if err != nil {
		return none, err
	}
	m := dsas.Manifest{Role: def.Role.Name, Kernel: k.Release, Memory: memory, Parts: []dsas.Part{b.Part}}
	pins := locked
	if opt.Refresh {
		pins = nil
	}
	resolved, err := resolvePackages(ctx, opt, a, b, packages, pins, place)
	if err != nil {
		return none, err
	}
	pkgs, err := packagesLayer(ctx, opt, a, b, packages, def.Role.Remove, resolved)
	if err := checks.tree(err, &b.layer, pkgs); err != nil {
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
	report := checks.report
	report.Base, report.Packages = b.changes, changes(locked, resolved.lock)
	if err := writeLock(place, "role "+def.Role.Name, resolved.lock); err != nil {
		return none, err
	}

	// Other inputs that changed nothing make no new image.
	if curErr == nil && slices.Equal(cur.Parts, m.Parts) && cur.Kernel == m.Kernel && cur.Memory == m.Memory {
		opt.say("image of role %s is up to date", def.Role.Name)
		m = cur
	} else {
		report.Changed = true
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
	opt.report(report)
	return m, writeJSON(stateFile, roleState{stateKey(b.lock, resolved.lock), a.stamp(), m.Digest, report})
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
