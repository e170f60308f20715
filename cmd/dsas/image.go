package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
)

type imageCmd struct {
	Build    imageBuildCmd    `cmd:"" help:"Build releases of roles."`
	Ls       imageLsCmd       `cmd:"" help:"List the releases and who runs them."`
	Show     imageShowCmd     `cmd:"" help:"Show one release."`
	Publish  imagePublishCmd  `cmd:"" help:"Have a role's nodes boot a release from now on."`
	Rollback imageRollbackCmd `cmd:"" help:"Have roles' nodes boot what they booted before."`
	Pin      imagePinCmd      `cmd:"" help:"Have nodes boot one release, whatever is published."`
	Unpin    imageUnpinCmd    `cmd:"" help:"Have nodes follow their role again."`
	GC       imageGCCmd       `cmd:"" name:"gc" help:"Remove releases that nobody uses, and what belongs to none."`
	Sign     imageSignCmd     `cmd:"" help:"Sign releases, without which no node takes them."`
	Key      imageKeyCmd      `cmd:"" help:"The keys that releases are signed by."`
	Diff     imageDiffCmd     `cmd:"" help:"Show how two releases differ: packages, files, kernel, sizes."`
	Import   imageImportCmd   `cmd:"" help:"Make a release of an image from elsewhere."`
	Export   imageExportCmd   `cmd:"" help:"Take a release out: to a folder, a file or a registry."`
	Capture  imageCaptureCmd  `cmd:"" help:"Keep what was changed on a running node."`
	Edit     imageEditCmd     `cmd:"" help:"Change a role's tree in a shell, and keep that."`
}

// Help explains the words.
func (*imageCmd) Help() string {
	return `A release is an image of a role with the kernel and initramfs it boots with. It
never changes; what is built anew is another one: web:1, web:2. A node boots the
release that is published for its role, or the one it is pinned to. A node that
runs keeps what it has until it boots again.`
}

type imageLsCmd struct {
	Role string `arg:"" optional:"" help:"Only this role's."`
}

func (*imageLsCmd) Help() string {
	return `The state of a release: current (the role's nodes follow it), before (a
roll-back goes back to it), canary (some nodes try it).

Examples:

    dsas image ls
    dsas image ls web --json`
}

func (cmd *imageLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.Releases(ctx, cmd.Role)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(list)
	}
	t := &table{head: []string{"RELEASE", "STATE", "SIZE", "UNPACKED", "KERNEL", "BUILT", "RUNNING", "ASSIGNED"}}
	now := time.Now()
	for _, v := range list {
		t.cells(cell{text: v.Name}, releaseState(v), cell{text: size(v.Manifest.Size())}, cell{text: size(v.Manifest.Unpacked())},
			cell{text: clean(v.Boot.Release)}, cell{text: ago(v.Created, now) + " ago"}, cell{text: fmt.Sprint(len(v.Running))}, cell{text: fmt.Sprint(len(v.Assigned))})
	}
	return a.table(t, "No releases. Build some with: dsas image build")
}

// releaseState is a release's state in a word or two.
func releaseState(v dsas.ReleaseView) cell {
	var words []string
	colour := plain
	if v.Current {
		words, colour = append(words, "current"), green
	}
	if v.Before == 1 {
		words = append(words, "before")
	}
	if len(v.Canary) > 0 {
		words, colour = append(words, fmt.Sprintf("canary %d/%d ready", len(v.Ready), len(v.Canary))), yellow
	}
	if len(v.Pinned) > 0 {
		words = append(words, "pinned")
	}
	switch {
	case v.Damaged != "":
		words, colour = append(words, "damaged"), red
	case v.Refused != "":
		words, colour = append(words, "refused"), red
	}
	return cell{or(strings.Join(words, ", ")), colour}
}

type imageShowCmd struct {
	Release string `arg:"" help:"As web:7, or web for its newest."`
}

func (cmd *imageShowCmd) Run(ctx context.Context, a *app) error {
	if _, err := releaseRef(cmd.Release); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.Release(ctx, cmd.Release)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(v)
	}
	names := func(list []string) string { return or(clean(strings.Join(list, " "))) }
	a.printf("%s  %s\n\n", v.Name, releaseState(v).text)
	t := &table{}
	t.row("id", string(v.ID))
	t.row("manifest", string(v.Manifest.Digest))
	t.row("built", v.Created.Local().Format(time.DateTime))
	t.row("kernel", fmt.Sprintf("%s, %s; initramfs %s", clean(v.Boot.Release), size(v.Boot.Kernel.Size), size(v.Boot.Initramfs.Size)))
	t.row("size", fmt.Sprintf("%s, %s unpacked", size(v.Manifest.Size()), size(v.Manifest.Unpacked())))
	if v.Manifest.Memory > 0 {
		t.row("memory", size(v.Manifest.Memory)+" beside the image")
	}
	if v.Refused == "" {
		t.row("signed", "by a key that is trusted")
	} else {
		t.row("refused", clean(v.Refused))
	}
	t.row("running", names(v.Running))
	t.row("assigned", names(v.Assigned))
	t.row("pinned", names(v.Pinned))
	if len(v.Canary) > 0 {
		t.row("canary", names(v.Canary))
		t.row("ready with it", names(v.Ready))
	}
	if err := a.table(t, ""); err != nil {
		return err
	}
	a.printf("\n")
	parts := &table{head: []string{"LAYER", "SIZE", "UNPACKED", "DIFFID"}}
	for _, p := range v.Manifest.Parts {
		parts.row(or(clean(p.Title)), size(p.Size), size(p.Unpacked), p.DiffID.Short())
	}
	return a.table(parts, "")
}

type imagePublishCmd struct {
	Release string `arg:"" help:"As web:7, or web for its newest."`
	canaryFlags
	DryRun bool `help:"Only say what would be done."`
}

func (*imagePublishCmd) Help() string {
	return `Nodes that run keep what they have; their next boot gives them the release. A
node that is booting goes on with what it began with.

With --canary only some nodes boot it from their next boot on. When all of them
were ready with it, it is published for the role. When one of them fails with
it, or is not ready within the role's bootTime (10 minutes), it is given up:
their next boot is that of the role again. Publish it without --canary to end
the trial with it, or roll the role back to end it without. A percentage is of
the role's nodes, rounded up; those that are pinned or not ready are not chosen.

Examples:

    dsas image build web --no-publish && dsas image publish web
    dsas image publish web:6
    dsas image publish web:8 --canary w[101-103] --cycle
    dsas image publish web:8 --canary 10%`
}

func (cmd *imagePublishCmd) Run(ctx context.Context, a *app) error {
	if _, err := releaseRef(cmd.Release); err != nil {
		return err
	}
	if err := cmd.check(); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.Release(ctx, cmd.Release) // its role, and what "web" stands for
	if err != nil {
		return err
	}
	if len(cmd.Canary) > 0 {
		return cmd.start(ctx, a, c, v.Release, cmd.DryRun)
	}
	p, err := c.Publish(ctx, v.Role, dsas.PublishRequest{Release: string(v.ID)}, cmd.DryRun)
	if err != nil {
		return err
	}
	return a.published(p, v.Name, cmd.DryRun)
}

// published tells what a role's nodes boot now.
func (a *app) published(p dsas.Published, release string, dry bool) error {
	if a.JSON {
		return a.writeJSON(p)
	}
	what := "nodes boot"
	if dry {
		what = "nodes would boot"
	}
	a.printf("role %s: %s release %s from their next boot on\n", p.Role, what, release)
	return nil
}

type imageRollbackCmd struct {
	Roles  []string `arg:"" help:"Roles to roll back."`
	DryRun bool     `help:"Only say what would be done."`
}

func (*imageRollbackCmd) Help() string {
	return `What is gone back from stays in the store, and can be published again. Twice goes
back two releases. While a canary runs, it ends the canary and changes nothing else.

Examples:

    dsas image rollback web
    dsas image rollback web lb --dry-run`
}

func (cmd *imageRollbackCmd) Run(ctx context.Context, a *app) error {
	for i, role := range cmd.Roles {
		if err := dsas.CheckName("role", role); err != nil {
			return usagef("%q is no role's name; name the role alone, as web", role)
		}
		if slices.Contains(cmd.Roles[:i], role) { // a slip, and would go back two releases
			return usagef("role %s is named twice; to go back two releases, run it twice", role)
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if len(cmd.Roles) > 1 && !cmd.DryRun { // what one of them has against it is told before another is changed
		for _, role := range cmd.Roles {
			if _, err := c.RollBack(ctx, role, true); err != nil {
				return err
			}
		}
	}
	var done []dsas.Published
	for _, role := range cmd.Roles {
		was, err := canaryOf(ctx, c, role)
		if err != nil {
			return err
		}
		p, err := c.RollBack(ctx, role, cmd.DryRun)
		if err != nil {
			return err
		}
		done = append(done, p)
		if a.JSON {
			continue
		}
		v, err := c.Release(ctx, string(p.Current))
		if err != nil {
			return err
		}
		if was != nil && !cmd.DryRun {
			a.printf("role %s: the canary on %s is ended\n", role, clean(dsas.NodesText(was.Nodes)))
		}
		if err := a.published(p, v.Name, cmd.DryRun); err != nil {
			return err
		}
	}
	if a.JSON {
		return a.writeJSON(done)
	}
	return nil
}

// releaseRef reads a release's name from the command line.
func releaseRef(name string) (dsas.ReleaseRef, error) {
	ref, err := dsas.ParseReleaseRef(name)
	if err != nil {
		return ref, usageError{err: err}
	}
	return ref, nil
}
