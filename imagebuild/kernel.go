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
	Lists  string // apt.stamp it was found with
	Kernel kernel
}

// findKernel gives the newest kernel of the machine's release, unpacked in the
// cache. Asked again, it gives the same one, and reads one small file for it,
// until opt.Refresh.
func findKernel(ctx context.Context, opt *Options, a *apt) (*kernel, error) {
	state := filepath.Join(opt.Cache, "kernel", "current.json")
	var cur currentKernel
	known := readJSON(state, &cur)
	if known && !opt.Refresh {
		// Kept, as the packages' versions are.
	} else if err := a.update(ctx); err != nil {
		if !known || ctx.Err() != nil {
			return nil, fmt.Errorf("find kernel: %w", err)
		}
		opt.say("keeping kernel %s: %v", cur.Kernel.Release, err)
	} else if !known || cur.Lists != a.stamp() {
		k, err := resolveKernel(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("find kernel: %w", err)
		}
		cur = currentKernel{a.stamp(), *k}
	}
	k := &cur.Kernel
	k.Dir = filepath.Join(opt.Cache, "kernel", k.id())
	if _, err := os.Stat(filepath.Join(k.Dir, "modules.json")); err != nil {
		if err := unpackKernel(ctx, opt, a, k); err != nil {
			return nil, fmt.Errorf("kernel %s: %w", k.Package, err)
		}
	}
	if err := writeJSON(state, cur); err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	return k, nil
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
	if err := os.Rename(tmp, k.Dir); err != nil {
		return err
	}
	// One kernel is kept: each takes 400 MB.
	entries, _ := os.ReadDir(filepath.Dir(k.Dir))
	for _, e := range entries {
		if e.IsDir() && e.Name() != filepath.Base(k.Dir) {
			os.RemoveAll(filepath.Join(filepath.Dir(k.Dir), e.Name()))
		}
	}
	return nil
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
