package main

import (
	"context"
	"fmt"

	"dsas"
)

type imageBuildCmd struct {
	configFlags
	All     bool     `help:"Build every role there is."`
	Refresh bool     `help:"Resolve the versions of all packages anew, security updates included, and say what changed."`
	Allow   []string `sep:"none" placeholder:"PATH=REASON" help:"Let what the checks find in this file pass, for a written reason (repeatable)."`
	Names   []string `arg:"" optional:"" name:"role" help:"Roles to build."`
}

// Help gives the examples.
func (*imageBuildCmd) Help() string {
	return `Builds kernel, initramfs and the roles' images into the state folder, where a
running server finds them: the next boot of a node gets them. What did not
change is not built again, and packages keep their versions until --refresh.
What the checks find (secrets, services that cannot start, missing modules)
is an error; docs/roles.md tells how to let it pass.

  dsas image build web lb
  dsas image build --all --refresh`
}

// Run implements the command.
func (c *imageBuildCmd) Run(ctx context.Context, a *app) error {
	if len(c.Names) == 0 && !c.All {
		return usageError{err: fmt.Errorf("name the roles to build, or --all; dsas role ls lists them: %w", dsas.ErrInvalid)}
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
		Roles: c.Names, All: c.All, Refresh: c.Refresh, Allow: allow, Progress: p.line, Fraction: p.fraction,
	})
	p.close()
	if a.JSON && (err == nil || len(out.Findings) > 0) {
		if jsonErr := a.writeJSON(out); jsonErr != nil && err == nil {
			err = jsonErr
		}
	}
	if err != nil || a.JSON {
		return err
	}
	fmt.Fprintf(a.stdout, "kernel     %s  %s, initramfs %s\n", out.Boot.Release, size(out.Boot.Kernel.Size), size(out.Boot.Initramfs.Size))
	for _, m := range out.Images {
		var bytes int64
		for _, p := range m.Parts {
			bytes += p.Size
		}
		fmt.Fprintf(a.stdout, "%-10s %s  %d parts, %s\n", m.Role, m.Digest.Short(), len(m.Parts), size(bytes))
		for _, r := range out.Reports {
			if r.Role == m.Role {
				printReport(a, r)
			}
		}
	}
	return nil
}
