package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dsas"
	"dsas/imagebuild"
	"dsas/server/blobs"
)

type kernelLsCmd struct {
	configFlags
	Available bool `help:"Ask the mirrors, and list the kernels they have, the newest first."`
}

// Help tells the two lists apart.
func (*kernelLsCmd) Help() string {
	return `Lists the kernels of the releases, as the server knows them. With --available,
where the server runs: those that dsas kernel update --to can take, and which of
them are in use.`
}

// Run implements the command.
func (cmd *kernelLsCmd) Run(ctx context.Context, a *app) error {
	if cmd.Available {
		return cmd.available(ctx, a)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.Releases(ctx, "")
	if err != nil {
		return err
	}
	kernels := kernelsOf(list)
	if a.JSON {
		return a.writeJSON(kernels)
	}
	t := &table{head: []string{"KERNEL", "CURRENT IN", "RELEASES", "RUNNING", "SIZE"}}
	for _, k := range kernels {
		t.row(clean(k.Kernel), or(strings.Join(k.Current, " ")), or(strings.Join(k.Releases, " ")), fmt.Sprint(len(k.Running)), size(k.Size))
	}
	return a.table(t, "No releases. Build some with: dsas image build")
}

// availableKernel is a kernel that the mirrors have, and who uses it.
type availableKernel struct {
	Kernel   string   `json:"kernel"`            // uname -r
	Version  string   `json:"version"`           // of the package
	Newest   bool     `json:"newest,omitempty"`  // dsas kernel update takes it
	Built    bool     `json:"built,omitempty"`   // the last build had it
	Held     bool     `json:"held,omitempty"`    // it was asked for: builds keep it
	Current  []string `json:"current,omitempty"` // roles whose nodes boot this uname -r
	Releases []string `json:"releases,omitempty"`
	Running  []string `json:"running,omitempty"` // nodes
}

func (cmd *kernelLsCmd) available(ctx context.Context, a *app) error {
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	say := func(line string) { fmt.Fprintln(a.stderr, line) }
	store, letGo, err := holdImages(ctx, cfg, say)
	switch {
	case errors.Is(err, dsas.ErrNotFound): // nothing is built yet, which a kernel may be picked for
		say(message(err))
	case err != nil:
		return err
	default:
		defer letGo()
	}
	used, err := a.releaseViews(ctx, store)
	if err != nil {
		return err
	}
	list, err := imagebuild.Kernels(ctx, buildOptions(cfg, store, say))
	if err != nil {
		return err
	}
	kernels := availableKernels(list, kernelsOf(used))
	if list.Held != nil && !slices.ContainsFunc(kernels, func(k availableKernel) bool { return k.Held }) {
		say("the mirrors no longer have kernel " + list.Held.Release + ", which was asked for; builds keep it as long as it is in the cache")
	}
	if a.JSON {
		return a.writeJSON(kernels)
	}
	t := &table{head: []string{"KERNEL", "VERSION", "CURRENT IN", "RUNNING", "NOTE"}}
	for _, k := range kernels {
		var notes []string
		if k.Newest {
			notes = append(notes, "dsas kernel update takes it")
		}
		switch {
		case k.Held:
			notes = append(notes, "was asked for, and builds keep it")
		case k.Built:
			notes = append(notes, "builds take it")
		}
		running := ""
		if len(k.Releases) > 0 {
			running = fmt.Sprint(len(k.Running))
		}
		t.row(clean(k.Kernel), clean(k.Version), strings.Join(k.Current, " "), running, strings.Join(notes, "; "))
	}
	return a.table(t, "The mirrors have no kernel; look at apt's sources.")
}

// releaseViews gives the releases as a server that runs knows them; without one,
// those of the store (nil: none), of which nobody can say who uses them.
func (a *app) releaseViews(ctx context.Context, store *blobs.Store) ([]dsas.ReleaseView, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	views, err := c.Releases(ctx, "")
	if err == nil || isRefused(err) || ctx.Err() != nil {
		return views, err
	}
	fmt.Fprintln(a.stderr, "the server cannot be asked who uses them")
	if store == nil {
		return nil, nil
	}
	all, err := store.Releases()
	for _, r := range all {
		views = append(views, dsas.ReleaseView{Name: r.Name(), Release: r})
	}
	return views, err
}

// availableKernels marks what of the mirrors' kernels is in use. A release knows
// its kernel's uname -r, and not the package's version.
func availableKernels(l imagebuild.KernelList, used []kernelView) []availableKernel {
	out := []availableKernel{}
	for _, id := range l.All {
		k := availableKernel{Kernel: id.Release, Version: id.Version, Newest: id == l.Newest,
			Built: l.Built != nil && id.Release == l.Built.Release, Held: l.Held != nil && id.Release == l.Held.Release}
		for _, u := range used {
			if u.Kernel == id.Release {
				k.Current = append(k.Current, u.Current...)
				k.Releases = append(k.Releases, u.Releases...)
				k.Running = append(k.Running, u.Running...)
			}
		}
		out = append(out, k)
	}
	return out
}

// kernelView is a kernel with its initramfs, and who uses it.
type kernelView struct {
	Kernel   string      `json:"kernel"` // uname -r
	Boot     dsas.Digest `json:"boot"`   // of the boot set
	Size     int64       `json:"size"`   // bytes, compressed, with initramfs and firmware
	Current  []string    `json:"current,omitempty"`
	Releases []string    `json:"releases"`
	Running  []string    `json:"running,omitempty"` // nodes
}

// kernelsOf groups releases by what they boot with, in the order they come.
func kernelsOf(list []dsas.ReleaseView) []kernelView {
	out := []kernelView{}
	for _, v := range list {
		i := slices.IndexFunc(out, func(k kernelView) bool { return k.Boot == v.Boot.Digest })
		if i < 0 {
			k := kernelView{Kernel: v.Boot.Release, Boot: v.Boot.Digest}
			for _, p := range v.Boot.Parts() {
				k.Size += p.Size
			}
			out, i = append(out, k), len(out)
		}
		k := &out[i]
		k.Releases = append(k.Releases, v.Name)
		k.Running = append(k.Running, v.Running...)
		if v.Current {
			k.Current = append(k.Current, v.Role)
		}
	}
	return out
}
