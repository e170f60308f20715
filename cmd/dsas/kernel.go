package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"dsas"
	"dsas/client"
	"dsas/imagebuild"
	"dsas/roles"
	"dsas/server/blobs"
)

type kernelCmd struct {
	Update kernelUpdateCmd `cmd:"" help:"Give all roles the newest kernel, and nothing else."`
	Ls     kernelLsCmd     `cmd:"" help:"List the kernels that releases boot with."`
}

type kernelUpdateCmd struct {
	configFlags
	DryRun    bool `help:"Only ask the mirrors, and say what would be done."`
	NoPublish bool `help:"Leave nodes with what they boot; publish later with dsas image publish."`
}

// Help tells what changes.
func (*kernelUpdateCmd) Help() string {
	return `Asks the mirrors for a newer kernel, builds it with its initramfs, and makes of
the release that each role's nodes boot one with that kernel. All other layers,
and so all packages, stay what they are. Nodes get it at their next boot; back
goes it with dsas image rollback.

Examples:

    dsas kernel update --dry-run
    dsas kernel update --no-publish && dsas image publish web`
}

// kernelUpdate is what an update tells programs.
type kernelUpdate struct {
	Built    *imagebuild.KernelID `json:"built,omitempty"` // that the last build had
	Kernel   imagebuild.KernelID  `json:"kernel"`          // there is now
	Releases []kernelStep         `json:"releases"`        // by role
}

// kernelStep is one role's part of it. New is empty in a rehearsal, and the same
// as Old where nothing changes. Also empty where it is Skipped.
type kernelStep struct {
	Role      string `json:"role"`
	Old       string `json:"old"`       // release
	OldKernel string `json:"oldKernel"` // uname -r
	New       string `json:"new,omitempty"`
	// Skipped says why it stays as it is, whatever the kernel.
	Skipped string `json:"skipped,omitempty"`
}

// Run implements the command.
func (cmd *kernelUpdateCmd) Run(ctx context.Context, a *app) error {
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	say := func(line string) { fmt.Fprintln(a.stderr, line) }
	store, letGo, err := holdImages(ctx, cfg, say)
	if err != nil {
		return err
	}
	defer letGo()
	list, err := a.followed(ctx, store)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("no role has a release, so none needs another kernel: build some with: dsas image build: %w", dsas.ErrNotFound)
	}
	opt := imagebuild.Options{Store: store, Cache: cfg.path("cache"), Locks: cfg.path("locks"), Progress: say}
	var out kernelUpdate
	list, steps, at := kernelSteps(list)
	out.Releases = steps
	for _, s := range steps {
		if s.Skipped != "" {
			say("left as it is: " + s.Skipped)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("no role has a release that can get another kernel: %w", dsas.ErrNotFound)
	}
	was, now, err := imagebuild.KernelNews(ctx, opt)
	if err != nil {
		return err
	}
	out.Built, out.Kernel = was, now
	if cmd.DryRun {
		return a.kernelUpdated(out, true)
	}
	if opt.InitPath, err = nodeProgram("dsas-init"); err != nil {
		return err
	}
	if opt.BBPath, err = nodeProgram("bb"); err != nil {
		return err
	}
	keys := cfg.signingFolder()
	trusted, signers, err := releaseKeys(keys, say)
	if err != nil {
		return err
	}
	opt.Keys = initramfsKeys(trusted)
	in, err := roleReleases(list, cfg.Roles)
	if err != nil {
		return err
	}
	boot, made, err := imagebuild.UpdateKernel(ctx, opt, in)
	if err != nil {
		return err
	}
	if err := signBuilt(ctx, store, keys, signers, made, say); err != nil {
		return err
	}
	out.Kernel.Release = boot.Release
	for i, r := range made {
		out.Releases[at[i]].New = r.Name()
	}
	if !cmd.NoPublish {
		for i, r := range made { // once all are made
			if r.ID == list[i].ID {
				continue
			}
			if err := store.Propose(r.ID); err != nil {
				return err
			}
		}
		a.syncReleases(ctx)
	}
	return a.kernelUpdated(out, false)
}

// kernelSteps gives the releases that can get another kernel, the steps of all,
// and for each of the former the place of its step.
func kernelSteps(all []dsas.Release) (list []dsas.Release, steps []kernelStep, at []int) {
	for i, r := range all {
		s := kernelStep{Role: r.Role, Old: r.Name(), OldKernel: r.Boot.Release}
		if err := imagebuild.CanUpdate(r); err != nil {
			s.Skipped = message(err)
		} else {
			list, at = append(list, r), append(at, i)
		}
		steps = append(steps, s)
	}
	return list, steps, at
}

// roleReleases finds the kernel modules that each release's role names.
func roleReleases(list []dsas.Release, folder string) ([]imagebuild.RoleRelease, error) {
	var out []imagebuild.RoleRelease
	var set *roles.Set
	for _, r := range list {
		var def roles.Definition
		var err error
		if len(r.Definition) > 0 {
			def, err = roles.Thaw(r.Definition, string(r.ID))
		} else {
			if set == nil {
				if set, err = roles.Load(folder); set == nil {
					return nil, err
				}
			}
			def, err = set.Get(r.Role)
		}
		if err != nil {
			return nil, fmt.Errorf("release %s: %w", r.Name(), err)
		}
		out = append(out, imagebuild.RoleRelease{Release: r, Modules: def.Role.Modules})
	}
	return out, nil
}

// followed gives, by role, the release its nodes follow, as a server that runs
// says; without one, what was proposed last, or built where nothing was.
func (a *app) followed(ctx context.Context, store *blobs.Store) ([]dsas.Release, error) {
	all, err := store.Releases()
	if err != nil {
		return nil, err
	}
	byRole, byID := map[string]dsas.Release{}, map[dsas.Digest]dsas.Release{}
	for _, r := range all { // by number: the last one stays
		byRole[r.Role], byID[r.ID] = r, r
	}
	proposed, err := store.Proposals()
	if err != nil {
		return nil, err
	}
	for role, id := range proposed {
		if r, ok := byID[id]; ok {
			byRole[role] = r
		}
	}
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	views, err := c.Releases(ctx, "")
	switch {
	case err == nil:
		for _, v := range views {
			// The store's own: what the server says has no definition.
			if r, ok := byID[v.ID]; ok && v.Current {
				byRole[r.Role] = r
			}
		}
	case isRefused(err) || ctx.Err() != nil:
		return nil, err
	default:
		fmt.Fprintln(a.stderr, "the server cannot be asked which releases nodes follow; taking those that were proposed last")
	}
	var out []dsas.Release
	for _, r := range byRole {
		if r.Damaged != "" {
			return nil, fmt.Errorf("%s: %w", r.Damaged, dsas.ErrConflict)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b dsas.Release) int { return strings.Compare(a.Role, b.Role) })
	return out, nil
}

// isRefused tells a server that answers from one that is not there.
func isRefused(err error) bool {
	var refused *client.Error
	var dial *net.OpError
	return errors.As(err, &refused) && !errors.As(err, &dial)
}

func (a *app) kernelUpdated(u kernelUpdate, dry bool) error {
	if a.JSON {
		return a.writeJSON(u)
	}
	same := u.Built != nil && *u.Built == u.Kernel
	if u.Built != nil && !same {
		a.printf("kernel %s (%s) -> %s (%s)\n", clean(u.Built.Release), clean(u.Built.Version), clean(u.Kernel.Release), clean(u.Kernel.Version))
	} else {
		a.printf("kernel %s (%s), the newest\n", clean(u.Kernel.Release), clean(u.Kernel.Version))
	}
	t := &table{head: []string{"ROLE", "RELEASE", "KERNEL", "NEW RELEASE", "NEW KERNEL"}}
	for _, s := range u.Releases {
		next, kernel := s.New, u.Kernel.Release
		switch {
		case s.Skipped != "":
			next, kernel = "left as it is", ""
		case s.New == s.Old:
			next, kernel = "as it is", ""
		case dry && s.OldKernel == u.Kernel.Release && same:
			next, kernel = "as it is, unless dsas has a newer initramfs", ""
		case dry:
			next = "would be made"
		}
		t.row(s.Role, s.Old, clean(s.OldKernel), next, clean(kernel))
	}
	return a.table(t, "")
}

type kernelLsCmd struct{}

// Run implements the command.
func (cmd *kernelLsCmd) Run(ctx context.Context, a *app) error {
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
