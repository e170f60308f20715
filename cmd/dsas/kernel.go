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
	Update kernelUpdateCmd `cmd:"" help:"Give all roles the newest kernel, or a certain one, and nothing else."`
	Ls     kernelLsCmd     `cmd:"" help:"List the kernels that releases boot with, or that the mirrors have."`
}

type kernelUpdateCmd struct {
	configFlags
	To        *string `help:"Take this kernel, by its uname -r or its package, instead of the newest; builds keep it until the next update." placeholder:"KERNEL"`
	DryRun    bool    `help:"Only ask the mirrors, and say what would be done."`
	NoPublish bool    `help:"Leave nodes with what they boot; publish later with dsas image publish."`
}

// Help tells what changes.
func (*kernelUpdateCmd) Help() string {
	return `Asks the mirrors for a newer kernel, builds it with its initramfs, and makes of
the release that each role's nodes boot one with that kernel. All other layers,
and so all packages, stay what they are. Nodes get it at their next boot; back
goes it with dsas image rollback.

--to takes a certain kernel, older or newer, of whatever flavour, of those that
dsas kernel ls --available lists. It holds: dsas image build keeps it, with
--refresh too, until dsas kernel update takes another (--to), or the newest
ordinary one (without). A roll-back alone holds nothing: builds go on with the
kernel of the last update.

Examples:

    dsas kernel update --dry-run
    dsas kernel update --no-publish && dsas image publish web
    dsas kernel update --to 6.1.0-50-amd64`
}

// kernelUpdate is what an update tells programs.
type kernelUpdate struct {
	Built    *imagebuild.KernelID `json:"built,omitempty"` // that the last build had
	Kernel   imagebuild.KernelID  `json:"kernel"`          // there is now
	Held     bool                 `json:"held"`            // builds keep it: it was asked for
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
	want := ""
	if cmd.To != nil { // an empty one, of a script's empty variable, is not the newest
		var err error
		if want, err = imagebuild.ParseKernel(*cmd.To); err != nil {
			return usageError{err: fmt.Errorf("--to: %w", err)}
		}
	}
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	say := func(line string) { fmt.Fprintln(a.stderr, line) }
	// A kernel that is asked for is also for what is built next, and letting go of
	// one is too: both need no release, and no store yet.
	held := imagebuild.KernelHeld(buildOptions(cfg, nil, say))
	alone := want != "" || held
	if alone && !cmd.DryRun {
		if err := makeImages(cfg); err != nil {
			return err
		}
	}
	store, letGo, err := holdImages(ctx, cfg, say)
	switch {
	case alone && errors.Is(err, dsas.ErrNotFound): // a rehearsal makes none
	case err != nil:
		return err
	default:
		defer letGo()
	}
	var list []dsas.Release
	if store != nil {
		if list, err = a.followed(ctx, store); err != nil {
			return err
		}
	}
	if len(list) == 0 && !alone {
		return fmt.Errorf("no role has a release, so none needs another kernel: build some with: dsas image build: %w", dsas.ErrNotFound)
	}
	opt := buildOptions(cfg, store, say)
	out := kernelUpdate{Held: want != ""}
	list, steps, at := kernelSteps(list)
	out.Releases = steps
	for _, s := range steps {
		if s.Skipped != "" {
			say("left as it is: " + s.Skipped)
		}
	}
	if len(list) == 0 && !alone {
		return fmt.Errorf("no role has a release that can get another kernel: %w", dsas.ErrNotFound)
	}
	if out.Built, out.Kernel, err = imagebuild.KernelNews(ctx, opt, want); err != nil {
		return err
	}
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
	boot, made, err := imagebuild.UpdateKernel(ctx, opt, in, want)
	if err != nil {
		return err
	}
	if err := signBuilt(ctx, store, keys, signers, made, say); err != nil {
		return err
	}
	if held && want == "" {
		say("builds keep no kernel any more: the one that was asked for is let go")
	}
	out.Kernel.Release = boot.Release
	for i, r := range made {
		out.Releases[at[i]].New = r.Name()
	}
	if !cmd.NoPublish {
		if err := a.proposeAll(ctx, store, list, made); err != nil {
			return err
		}
	}
	return a.kernelUpdated(out, false)
}

// proposeAll has nodes follow what was made, once all is, instead of old, and
// says of which release they do not.
func (a *app) proposeAll(ctx context.Context, store *blobs.Store, old, made []dsas.Release) error {
	var news []dsas.Release
	for i, r := range made {
		if r.ID == old[i].ID {
			continue
		}
		if err := store.Propose(r.ID); err != nil {
			return err
		}
		news = append(news, r)
	}
	a.syncReleases(ctx, news...)
	c, err := a.client()
	if err != nil || len(news) == 0 {
		return nil
	}
	views, err := c.Releases(ctx, "")
	if err != nil {
		return nil // it was not there for syncReleases either
	}
	for _, v := range views {
		asked := slices.ContainsFunc(news, func(r dsas.Release) bool { return r.ID == v.ID })
		if asked && !v.Current && v.Refused == "" {
			fmt.Fprintf(a.stderr, "nodes do not get release %s, since they were rolled back from it before; if they should all the same: dsas image publish %s\n", v.Name, v.Name)
		}
	}
	return nil
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
	kind := ""
	switch {
	case u.Held && dry:
		kind = ", which builds would keep"
	case u.Held:
		kind = ", which builds keep until the next dsas kernel update"
	}
	same := u.Built != nil && *u.Built == u.Kernel
	now := clean(u.Kernel.Release) + " (" + clean(u.Kernel.Version) + ")"
	switch {
	case u.Built != nil && !same:
		a.printf("kernel %s (%s) -> %s%s\n", clean(u.Built.Release), clean(u.Built.Version), now, kind)
	case u.Held:
		a.printf("kernel %s%s\n", now, kind)
	default:
		a.printf("kernel %s, the newest\n", now)
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
		case dry && s.OldKernel == u.Kernel.Release && (u.Built == nil || u.Built.Release != s.OldKernel):
			next, kernel = "as it is, unless its package or dsas's initramfs is newer", ""
		case dry:
			next = "would be made"
		}
		t.row(s.Role, s.Old, clean(s.OldKernel), next, clean(kernel))
	}
	return a.table(t, "No role has a release yet; dsas image build makes them with it.")
}
