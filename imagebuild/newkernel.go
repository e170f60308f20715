package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"dsas"
)

// KernelID is a kernel as Debian has it.
type KernelID struct {
	Release string `json:"release"` // uname -r
	Version string `json:"version"` // of the package
}

// KernelNews asks the mirrors for the newest kernel: the one that was last built
// with (nil: none yet) and the one there is now. Nothing is built; package lists
// are fetched.
func KernelNews(ctx context.Context, opt Options) (was *KernelID, now KernelID, err error) {
	unlock, err := opt.open(ctx)
	if err != nil {
		return nil, now, err
	}
	defer unlock()
	opt.Refresh = true
	a, err := openApt(ctx, &opt)
	if err != nil {
		return nil, now, fmt.Errorf("look for a kernel: %w", err)
	}
	var cur currentKernel
	if readJSON(filepath.Join(opt.Cache, "kernel", "current.json"), &cur) {
		was = &KernelID{cur.Kernel.Release, cur.Kernel.Version}
	}
	if err := a.update(ctx); err != nil {
		return was, now, fmt.Errorf("look for a kernel: %w", err)
	}
	k, err := resolveKernel(ctx, a)
	if err != nil {
		return was, now, fmt.Errorf("look for a kernel: %w", err)
	}
	return was, KernelID{k.Release, k.Version}, nil
}

// RoleRelease is a release that is to get another kernel.
type RoleRelease struct {
	Release dsas.Release
	Modules []string // of its role's definition
}

// CanUpdate tells why a release cannot get another kernel by UpdateKernel: an
// image from elsewhere has its modules among its other files, or none. The error
// is dsas.ErrInvalid.
func CanUpdate(r dsas.Release) error {
	_, err := withKernel(r, dsas.BootSet{}, dsas.Part{})
	return err
}

// modulesTitle is the title of the layer that modulesLayer makes.
const modulesTitle = "modules"

// UpdateKernel asks the mirrors for the newest kernel, builds it with its
// initramfs, and makes of each release one that has it: its other layers, and
// with them all its packages, stay what they are. A release that has the kernel
// already is given back as it is. It needs no privileges. The list is in the
// order it was given.
func UpdateKernel(ctx context.Context, opt Options, list []RoleRelease) (dsas.BootSet, []dsas.Release, error) {
	unlock, err := opt.open(ctx)
	if err != nil {
		return dsas.BootSet{}, nil, err
	}
	defer unlock()
	opt.Refresh = true
	b, out, err := updateKernel(ctx, &opt, list)
	if err != nil {
		return b, nil, fmt.Errorf("update kernel: %w", err)
	}
	return b, out, nil
}

func updateKernel(ctx context.Context, opt *Options, list []RoleRelease) (dsas.BootSet, []dsas.Release, error) {
	for _, r := range list { // before anything is made
		if err := CanUpdate(r.Release); err != nil {
			return dsas.BootSet{}, nil, err
		}
	}
	boot, err := buildBoot(ctx, opt)
	if err != nil {
		return boot, nil, err
	}
	opt.Refresh = false // once is enough, and the same kernel for all
	a, err := openApt(ctx, opt)
	if err != nil {
		return boot, nil, err
	}
	k, err := findKernel(ctx, opt, a)
	if err != nil {
		return boot, nil, err
	}
	if k.Release != boot.Release {
		return boot, nil, fmt.Errorf("kernel %s came between: try again: %w", k.Release, dsas.ErrConflict)
	}
	// Whatever is there, a killed build left: this one holds the lock.
	work := filepath.Join(opt.Cache, "work")
	if err := os.RemoveAll(work); err != nil {
		return boot, nil, err
	}
	defer os.RemoveAll(work)
	var out []dsas.Release
	for _, r := range list {
		mods, err := modulesLayer(ctx, opt, k, r.Modules)
		if err != nil {
			return boot, nil, fmt.Errorf("release %s: %w", r.Release.Name(), err)
		}
		next, err := withKernel(r.Release, boot, mods.Part)
		if err != nil {
			return boot, nil, err
		}
		if err := os.RemoveAll(work); err != nil {
			return boot, nil, err
		}
		made, err := opt.Store.AddRelease(ctx, next)
		if err != nil {
			return boot, nil, err
		}
		out = append(out, made)
	}
	return boot, out, nil
}

// withKernel is a release with another boot set and modules layer, and all else
// as it was.
func withKernel(r dsas.Release, boot dsas.BootSet, mods dsas.Part) (dsas.Release, error) {
	at := -1
	for i, p := range r.Manifest.Parts {
		if p.Title != modulesTitle {
			continue
		}
		if at >= 0 {
			return r, fmt.Errorf("release %s has two layers of kernel modules: build it anew with: dsas image build %s: %w", r.Name(), r.Role, dsas.ErrInvalid)
		}
		at = i
	}
	if at < 0 {
		return r, fmt.Errorf("release %s has no layer of kernel modules, so it was not built here: build or import it anew: %w", r.Name(), dsas.ErrInvalid)
	}
	m := r.Manifest
	m.Parts = slices.Clone(m.Parts)
	m.Parts[at] = mods
	m.Kernel, m.Digest = boot.Release, ""
	return dsas.Release{Role: r.Role, Definition: r.Definition, Boot: boot, Manifest: m}, nil
}
