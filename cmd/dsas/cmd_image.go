package main

import (
	"context"
	"encoding/json"
	"fmt"

	"dsas"
)

type imageBuildCmd struct {
	configFlags
	All     bool     `help:"Build every role there is."`
	Refresh bool     `help:"Ask the mirrors for newer packages now."`
	Names   []string `arg:"" optional:"" name:"role" help:"Roles to build."`
}

// Help gives the examples.
func (*imageBuildCmd) Help() string {
	return `Builds kernel, initramfs and the roles' images into the state folder, where a
running server finds them: the next boot of a node gets them. What did not
change is not built again.

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
	out, err := buildImages(ctx, cfg, buildRequest{
		Roles: c.Names, All: c.All, Refresh: c.Refresh,
		Progress: func(line string) { fmt.Fprintln(a.stderr, line) },
	})
	if err != nil {
		return err
	}
	if a.JSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(out)
	}
	fmt.Fprintf(a.stdout, "kernel     %s  %s, initramfs %s\n", out.Boot.Release, size(out.Boot.Kernel.Size), size(out.Boot.Initramfs.Size))
	for _, m := range out.Images {
		var bytes int64
		for _, p := range m.Parts {
			bytes += p.Size
		}
		fmt.Fprintf(a.stdout, "%-10s %s  %d parts, %s\n", m.Role, m.Digest.Short(), len(m.Parts), size(bytes))
	}
	return nil
}
