package imagebuild

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

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
	// Frozen goes with the release (dsas.Release.Definition).
	Frozen []byte
	// Lock is the path of the role's lock; empty: in Options.Locks.
	Lock string
}

// roleState remembers what a role's image was made of.
type roleState struct {
	Key     string
	Lists   string // apt.stamp it was last compared with
	Release dsas.Digest
	Report  Report
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
	if boot.Release != k.Release {
		return none, fmt.Errorf("its modules would be kernel %s's and it would boot with %s; build both anew: dsas image build %s: %w", k.Release, boot.Release, def.Role.Name, dsas.ErrConflict)
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
		return key("role", a.suite, base, role, k.id(), bootKey(boot), packages, def.Role, def.Frozen, memory, files.sum(), sources, opt.allow.list, leaks.Sum(),
			basePackages, dpkgOptions, imageFolders, imageModules, dropped, emptied)
	}
	stateFile := filepath.Join(opt.Cache, "roles", def.Role.Name+".json")
	var old roleState
	if locked != nil && baseLock != nil && readJSON(stateFile, &old) && old.Key == stateKey(baseLock, locked) && (!opt.Refresh || old.Lists == a.stamp()) {
		if r, err := opt.Store.Release(old.Release); err == nil && hasParts(opt.Store, r.Manifest.Parts) && hasBoot(opt.Store, r.Boot) {
			opt.say("image of role %s is up to date: release %s", def.Role.Name, r.Name())
			old.Report.Changed, old.Report.Base, old.Report.Packages = false, nil, nil
			opt.report(old.Report)
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
	checks := &checks{opt: opt, role: def.Role, sources: sources, files: files}
	if err := checks.definition(k); err != nil {
		return none, err
	}
	// What one step makes is compressed while the next ones wait for the network and
	// for dpkg, which keep one processor busy at most.
	ctx, cancel := context.WithCancel(ctx)
	var mods *layer
	modsMade := beside(ctx, opt, func(ctx context.Context, opt *Options) (err error) {
		mods, err = modulesLayer(ctx, opt, k, def.Role.Modules)
		return err
	})
	defer modsMade()
	defer cancel()
	b, err := findBase(ctx, opt, a)
	if err != nil {
		return none, err
	}
	packed := beside(ctx, opt, b.pack)
	defer packed()
	defer cancel()
	m := dsas.Manifest{Role: def.Role.Name, Kernel: k.Release, Memory: memory}
	pins := locked
	if opt.Refresh {
		pins = nil
	}
	resolved, err := resolvePackages(ctx, opt, a, b, packages, pins, place)
	if err != nil {
		return none, err
	}
	fetched, err := downloadPackages(ctx, opt, a, b, packages, def.Role.Remove, resolved)
	if err != nil {
		return none, err
	}
	pkgs, pkgsErr := packagesLayer(ctx, opt, a, b, packed, packages, def.Role.Remove, resolved)
	if err := packed(); err != nil {
		return none, err
	}
	m.Parts = append(m.Parts, b.Part)
	if err := a.keepNew(ctx, b, resolved, fetched); err != nil {
		return none, err
	}
	pruneOld(filepath.Join(a.dir, "archives"), 400)
	if err := checks.tree(pkgsErr, &b.layer, pkgs); err != nil {
		return none, err
	}
	if pkgs != nil {
		m.Parts = append(m.Parts, pkgs.Part)
	} else {
		pkgs = &layer{}
	}
	if err := modsMade(); err != nil {
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

	r, err := opt.Store.AddRelease(ctx, dsas.Release{Role: def.Role.Name, Definition: def.Frozen, Boot: boot, Manifest: m})
	if err != nil {
		return none, err
	}
	// Other inputs that changed nothing make no new release.
	report.Changed = r.ID != old.Release
	opt.say("release %s: %.1f MiB, %.1f MiB unpacked", r.Name(), mib(r.Manifest.Size()), mib(r.Manifest.Unpacked()))
	opt.report(report)
	return r, writeJSON(stateFile, roleState{stateKey(b.lock, resolved.lock), a.stamp(), r.ID, report})
}

// beside begins do, and gives what waits for its end, as often as that is called.
// It tells of its progress only then: what goes on meanwhile tells of its own.
func beside(ctx context.Context, opt *Options, do func(context.Context, *Options) error) (wait func() error) {
	var lines []string
	quiet := *opt
	quiet.Progress, quiet.Fraction = func(line string) { lines = append(lines, line) }, nil
	done := make(chan error, 1)
	go func() { done <- do(ctx, &quiet) }()
	return sync.OnceValue(func() error {
		err := <-done
		if err == nil && ctx.Err() == nil {
			for _, line := range lines {
				opt.say("%s", line)
			}
		}
		return err
	})
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
