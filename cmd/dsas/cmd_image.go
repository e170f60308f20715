package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dsas"
	"dsas/client"
)

type imageBuildCmd struct {
	configFlags
	All       bool     `help:"Build every role there is."`
	Refresh   bool     `help:"Resolve the versions of all packages anew, security updates included, and say what changed."`
	Allow     []string `sep:"none" placeholder:"PATH=REASON" help:"Let what the checks find in this file pass, for a written reason (repeatable)."`
	NoPublish bool     `help:"Leave nodes with what they boot; publish later with dsas image publish."`
	canaryFlags
	Names []string `arg:"" optional:"" name:"role" help:"Roles to build."`
}

// Help gives the examples.
func (*imageBuildCmd) Help() string {
	return `Builds kernel, initramfs and a release of each role into the state folder, and
has the roles' nodes boot them from their next boot on. What did not change is
not built again, and makes no new release; packages and kernel keep their
versions until --refresh. A kernel that dsas kernel update --to took stays then,
too. A release that was rolled back is not published again by a build that
changes nothing. What the checks find (secrets, services that cannot start,
missing modules) is an error; docs/roles.md tells how to let it pass.

  dsas image build web lb
  dsas image build --all --refresh
  dsas image build web --no-publish
  dsas image build web --canary 10%          # see dsas image publish --help`
}

// Run implements the command.
func (c *imageBuildCmd) Run(ctx context.Context, a *app) error {
	if len(c.Names) == 0 && !c.All {
		return usageError{err: fmt.Errorf("name the roles to build, or --all; dsas role ls lists them: %w", dsas.ErrInvalid)}
	}
	if err := c.check(); err != nil {
		return err
	}
	trial := len(c.Canary) > 0
	if trial && c.NoPublish {
		return usagef("--canary has nodes try the release, and --no-publish has none: give one of them")
	}
	if trial && (c.All || len(c.Names) != 1) {
		return usagef("--canary is for one role at a time")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	allow, err := parseAllow(c.Allow)
	if err != nil {
		return err
	}
	if err := a.asRoot(); err != nil {
		return err
	}
	p := newProgress(a.stderr)
	out, err := buildImages(ctx, cfg, buildRequest{
		Roles: c.Names, All: c.All, Refresh: c.Refresh, NoPublish: c.NoPublish || trial, Allow: allow, Progress: p.line, Fraction: p.fraction,
	})
	p.close()
	if err == nil && !c.NoPublish && !trial {
		a.syncReleases(ctx, out.Releases...)
	}
	if a.JSON && (err == nil && !trial || len(out.Findings) > 0) {
		if jsonErr := a.writeJSON(out); jsonErr != nil && err == nil {
			err = jsonErr
		}
	}
	if err != nil || a.JSON && !trial {
		return err
	}
	if a.JSON {
		return c.tryBuilt(ctx, a, out.Releases[0])
	}
	a.printf("kernel     %s  %s, initramfs %s\n", out.Boot.Release, size(out.Boot.Kernel.Size), size(out.Boot.Initramfs.Size))
	for _, rel := range out.Releases {
		a.printf("%-10s %s  %s, %s\n", rel.Name(), rel.ID.Short(), dsas.Count(len(rel.Manifest.Parts), "layer"), size(rel.Manifest.Size()))
		for _, r := range out.Reports {
			if r.Role == rel.Role {
				printReport(a, r)
			}
		}
	}
	if trial {
		return c.tryBuilt(ctx, a, out.Releases[0])
	}
	return nil
}

// tryBuilt publishes what was built as a canary.
func (c *imageBuildCmd) tryBuilt(ctx context.Context, a *app, r dsas.Release) error {
	cl, err := a.client()
	if err == nil {
		err = c.start(ctx, a, cl, r, false)
	}
	if err != nil {
		return fmt.Errorf("release %s is built and not published: %w", r.Name(), err)
	}
	return nil
}

// syncReleases has a server that runs publish what was built, at once. One that
// cannot be reached does so when it looks, or starts.
func (a *app) syncReleases(ctx context.Context, made ...dsas.Release) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return
	}
	var refused *client.Error
	if _, err := c.SyncReleases(ctx); errors.As(err, &refused) {
		fmt.Fprintln(a.stderr, "the server does not publish it:", err)
	}
	a.otherStore(ctx, c, made)
}

// otherStore says so where the server that answers does not know what was made
// here: it serves another state folder.
func (a *app) otherStore(ctx context.Context, c *client.Client, made []dsas.Release) {
	if len(made) == 0 {
		return
	}
	known, err := c.Releases(ctx, "")
	if err != nil {
		return
	}
	for _, r := range made {
		if !slices.ContainsFunc(known, func(v dsas.ReleaseView) bool { return v.ID == r.ID }) {
			fmt.Fprintf(a.stderr, "the server that answers does not have release %s: it serves another state folder; name its own with --state (DSAS_STATE) and --keys-dir (DSAS_KEYS)\n", r.Name())
			return
		}
	}
}
