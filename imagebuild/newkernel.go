package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
)

// KernelNews asks the mirrors for the kernel that UpdateKernel would take: the one
// that was last built with (nil: none yet) and the one asked for by its uname -r,
// with "" the newest there is now. Nothing is built, and no store
// needed; package lists are fetched.
func KernelNews(ctx context.Context, opt Options, release string) (was *KernelID, now KernelID, err error) {
	unlock, err := opt.openCache(ctx)
	if err != nil {
		return nil, now, err
	}
	defer unlock()
	opt.Refresh = true
	a, err := openApt(ctx, &opt)
	if err != nil {
		return nil, now, fmt.Errorf("look for a kernel: %w", err)
	}
	was = builtKernel(&opt)
	k, err := freshKernel(ctx, a, release)
	if err != nil {
		return was, now, fmt.Errorf("look for a kernel: %w", err)
	}
	return was, KernelID{k.Release, k.Version}, nil
}

// freshKernel is wantedKernel from lists that are fetched now.
func freshKernel(ctx context.Context, a *apt, release string) (*kernel, error) {
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	return wantedKernel(ctx, a, release)
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

// UpdateKernel asks the mirrors for a kernel, by its uname -r, or with "" for the
// newest; builds it with its initramfs, and makes of each release one that has
// it: its other layers, and with them all its packages, stay what they are. A
// release that has the kernel already is given back as it is. It needs no
// privileges. The list is in the order it was given, and may be empty. Later
// builds keep a kernel that was asked for, until the next UpdateKernel.
func UpdateKernel(ctx context.Context, opt Options, list []RoleRelease, release string) (dsas.BootSet, []dsas.Release, error) {
	unlock, err := opt.open(ctx)
	if err != nil {
		return dsas.BootSet{}, nil, err
	}
	defer unlock()
	opt.Refresh = true
	b, out, err := updateKernel(ctx, &opt, list, release)
	if err != nil {
		return b, nil, fmt.Errorf("update kernel: %w", err)
	}
	return b, out, nil
}

func updateKernel(ctx context.Context, opt *Options, list []RoleRelease, release string) (dsas.BootSet, []dsas.Release, error) {
	var none dsas.BootSet
	for _, r := range list { // before anything is made
		if err := CanUpdate(r.Release); err != nil {
			return none, nil, err
		}
	}
	sums, err := programSums(opt)
	if err != nil {
		return none, nil, err
	}
	a, err := openApt(ctx, opt)
	if err != nil {
		return none, nil, err
	}
	k, err := freshKernel(ctx, a, release)
	if err != nil {
		return none, nil, err
	}
	if err := k.unpack(ctx, opt, a); err != nil {
		return none, nil, err
	}
	boot, err := bootWith(ctx, opt, a, k, sums)
	if err != nil {
		return none, nil, err
	}
	out, err := releasesWith(ctx, opt, k, boot, list)
	if err != nil {
		return none, nil, err
	}
	// Not before: what fails leaves builds with the kernel they had.
	if err := k.settle(opt, a); err != nil {
		return none, nil, notSettled(err, list, out)
	}
	return boot, out, nil
}

// releasesWith makes of each release one with the kernel and boot set.
func releasesWith(ctx context.Context, opt *Options, k *kernel, boot dsas.BootSet, list []RoleRelease) ([]dsas.Release, error) {
	// Whatever is there, a killed build left: this one holds the lock.
	work := filepath.Join(opt.Cache, "work")
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	var out []dsas.Release
	for _, r := range list {
		mods, err := modulesLayer(ctx, opt, k, r.Modules)
		if err != nil {
			return nil, fmt.Errorf("release %s: %w", r.Release.Name(), err)
		}
		next, err := withKernel(r.Release, boot, mods.Part)
		if err != nil {
			return nil, err
		}
		if err := os.RemoveAll(work); err != nil {
			return nil, err
		}
		made, err := opt.Store.AddRelease(ctx, next)
		if err != nil {
			return nil, err
		}
		out = append(out, made)
	}
	return out, nil
}

// notSettled is the error of a settle that failed, after releases were made: it
// names them, and the way out.
func notSettled(err error, list []RoleRelease, made []dsas.Release) error {
	var names []string
	for i, r := range made {
		if r.ID != list[i].Release.ID {
			names = append(names, r.Name())
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%w; run it again", err)
	}
	return fmt.Errorf("%w; made, not signed and not published: %s; running it again mends that", err, strings.Join(names, ", "))
}

// settle makes k what later builds take: for good where it was asked for.
func (k *kernel) settle(opt *Options, a *apt) error {
	cur := currentKernel{Kernel: *k}
	if !k.held {
		cur.Lists = a.stamp()
	}
	if err := opt.holdKernel(k); err != nil {
		return err
	}
	return cur.keep(opt)
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
