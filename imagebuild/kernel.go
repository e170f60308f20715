package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"dsas"
	"dsas/initramfs/modindex"
)

// kernelMeta is Debian's metapackage of the ordinary kernel for amd64.
const kernelMeta = "linux-image-amd64"

// kernel is one unpacked kernel package in the cache.
type kernel struct {
	Package string `json:"package"` // linux-image-6.1.0-41-amd64
	Version string `json:"version"` // of the package
	Release string `json:"release"` // uname -r
	Dir     string `json:"-"`       // holds vmlinuz and modules/ (what is /lib/modules/RELEASE)
	held    bool   // it was asked for
}

// id names the kernel in keys: the same release can come in several versions.
func (k *kernel) id() string { return k.Package + "_" + k.Version }

func (k *kernel) image() string   { return filepath.Join(k.Dir, "vmlinuz") }
func (k *kernel) modules() string { return filepath.Join(k.Dir, "modules") }

// moduleSet is what is known of a kernel's modules.
type moduleSet struct {
	Index    *modindex.Index     `json:"index"`
	Firmware map[string][]string `json:"firmware"` // files a module may ask for, below /lib/firmware
}

// currentKernel is the state file of findKernel.
type currentKernel struct {
	Lists  string // apt.stamp it was found with; empty: it was asked for
	Kernel kernel
}

func (o *Options) currentKernel() string { return filepath.Join(o.Cache, "kernel", "current.json") }

// builtKernel tells which kernel was last built with, nil where none was.
func builtKernel(opt *Options) *KernelID {
	var cur currentKernel
	if !readJSON(opt.currentKernel(), &cur) {
		return nil
	}
	return &KernelID{cur.Kernel.Release, cur.Kernel.Version}
}

// findKernel gives the kernel that was asked for (holdKernel), else the newest of
// the machine's release, unpacked in the cache. Asked again, it gives the same
// one, and reads two small files for it: the former until another is asked for,
// the latter until opt.Refresh, with which it fetches the package lists.
func findKernel(ctx context.Context, opt *Options, a *apt) (*kernel, error) {
	cur, err := pickKernel(ctx, opt, a)
	if err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	return cur.take(ctx, opt, a)
}

// take unpacks the kernel and keeps it.
func (cur *currentKernel) take(ctx context.Context, opt *Options, a *apt) (*kernel, error) {
	if err := cur.Kernel.unpack(ctx, opt, a); err != nil {
		return nil, err
	}
	if err := cur.keep(opt); err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	return &cur.Kernel, nil
}

func pickKernel(ctx context.Context, opt *Options, a *apt) (*currentKernel, error) {
	held, err := opt.heldKernel()
	if err != nil {
		return nil, err
	}
	var cur currentKernel
	known := readJSON(opt.currentKernel(), &cur)
	if held != nil {
		cur, known = currentKernel{Kernel: *held}, true
	}
	if known && !opt.Refresh {
		return &cur, nil // kept, as the packages' versions are
	}
	if err := a.update(ctx); err != nil {
		if !known || ctx.Err() != nil {
			return nil, err
		}
		opt.say("keeping kernel %s: %v", cur.Kernel.Release, err)
		return &cur, nil
	}
	if held != nil || known && cur.Lists == a.stamp() {
		return &cur, nil
	}
	k, err := resolveKernel(ctx, a)
	if err != nil {
		return nil, err
	}
	return &currentKernel{a.stamp(), *k}, nil
}

// unpack sees to it that the kernel is unpacked in the cache.
func (k *kernel) unpack(ctx context.Context, opt *Options, a *apt) error {
	k.Dir = filepath.Join(opt.Cache, "kernel", k.id())
	if _, err := os.Stat(filepath.Join(k.Dir, "modules.json")); err == nil {
		return nil
	}
	err := a.update(ctx) // of an emptied cache there are no lists
	if err == nil {
		err = unpackKernel(ctx, opt, a, k)
	}
	switch {
	case err == nil:
		return nil
	case k.held && ctx.Err() == nil:
		return fmt.Errorf("kernel %s %s, which was asked for: %w\n\tthe mirrors may have forgotten it: dsas kernel ls --available lists what they have, dsas kernel update --to takes another, and without --to the newest", k.Package, k.Version, err)
	}
	return fmt.Errorf("kernel %s: %w", k.Package, err)
}

// keep makes it the kernel that is built with, and the only one in the cache:
// each takes 400 MB.
func (cur *currentKernel) keep(opt *Options) error {
	if err := writeJSON(opt.currentKernel(), cur); err != nil {
		return err
	}
	dir := filepath.Dir(cur.Kernel.Dir)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() && e.Name() != filepath.Base(cur.Kernel.Dir) {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

var dependsRE = regexp.MustCompile(`^(linux-image-([0-9][^\s(]*))(?:\s*\(= ([^)]+)\))?`)

// resolveKernel looks up which package the metapackage stands for.
func resolveKernel(ctx context.Context, a *apt) (*kernel, error) {
	v, err := a.show(ctx, kernelMeta, "Depends")
	if err != nil {
		return nil, err
	}
	m := dependsRE.FindStringSubmatch(v[0])
	if m == nil {
		return nil, fmt.Errorf("package %s depends on %q: no linux-image-VERSION: %w", kernelMeta, v[0], dsas.ErrInvalid)
	}
	k := &kernel{Package: m[1], Release: m[2], Version: m[3]}
	if k.Version == "" {
		if v, err = a.show(ctx, k.Package, "Version"); err != nil {
			return nil, err
		}
		k.Version = v[0]
	}
	return k, nil
}

func unpackKernel(ctx context.Context, opt *Options, a *apt, k *kernel) error {
	opt.say("downloading %s %s", k.Package, k.Version)
	deb, err := a.download(ctx, k.Package, k.Version)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(deb))
	opt.say("unpacking %s", k.Package)
	tmp := k.Dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.MkdirAll(filepath.Join(tmp, "deb"), 0o755); err != nil {
		return err
	}
	if _, err := run(command(ctx, "dpkg-deb", "-x", deb, filepath.Join(tmp, "deb"))); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "deb/boot/vmlinuz-"+k.Release), filepath.Join(tmp, "vmlinuz")); err != nil {
		return err
	}
	// Debian 13 moved the modules below /usr.
	err = os.Rename(filepath.Join(tmp, "deb/lib/modules", k.Release), filepath.Join(tmp, "modules"))
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(filepath.Join(tmp, "deb/usr/lib/modules", k.Release), filepath.Join(tmp, "modules"))
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(tmp, "deb")); err != nil {
		return err
	}
	if err := decompressModules(ctx, filepath.Join(tmp, "modules")); err != nil {
		return err
	}
	set, err := scanModules(k.Release, filepath.Join(tmp, "modules"))
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(tmp, "modules.json"), set); err != nil {
		return err
	}
	if err := os.RemoveAll(k.Dir); err != nil {
		return err
	}
	return os.Rename(tmp, k.Dir)
}

// decompressModules makes plain .ko files of .ko.xz and .ko.zst: the node's
// loader then needs no decompressor, and the initramfs, which is compressed as
// a whole, gets smaller.
func decompressModules(ctx context.Context, dir string) error {
	for suffix, program := range map[string]string{".ko.xz": "xz", ".ko.zst": "zstd"} {
		var names []string
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(p, suffix) {
				names = append(names, p)
			}
			return err
		})
		if err != nil {
			return err
		}
		for len(names) > 0 {
			n := min(len(names), 500)
			args := []string{"-d", "-q"}
			if program == "zstd" {
				args = append(args, "--rm")
			}
			if _, err := run(command(ctx, program, append(args, names[:n]...)...)); err != nil {
				return err
			}
			names = names[n:]
		}
	}
	return nil
}

func (k *kernel) moduleSet() (*moduleSet, error) {
	var set moduleSet
	if !readJSON(filepath.Join(k.Dir, "modules.json"), &set) || set.Index == nil {
		return nil, fmt.Errorf("modules of kernel %s: %s is damaged; remove the folder", k.Release, k.Dir)
	}
	return &set, nil
}
