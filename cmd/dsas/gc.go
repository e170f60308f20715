package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/client"
	"dsas/imagebuild"
	"dsas/server/blobs"
)

type imageGCCmd struct {
	configFlags
	Keep   int           `help:"How many of each role's newest releases, and of those that roll-backs go to, stay in any case." default:"3"`
	Wait   time.Duration `help:"How long to wait for commands that read or fill the store; nothing is removed if they take longer." default:"10m"`
	DryRun bool          `help:"Only say what would be done."`
}

// Help tells what stays.
func (*imageGCCmd) Help() string {
	return `Removes releases from the image store, and everything in it that belongs to no
release and is older than an hour; also what killed commands left in the cache
folder. On the server, as root, while dsas serve runs. It waits for commands that
read or fill the store, and names them; what is not free within --wait ends it with
nothing removed.

A release stays if a node runs it, is booting with it or is pinned to it, if it
is current, a canary or what a build proposed last, if one of the last N
roll-backs would go to it, or if it is among the last N of its role.

Examples:

    dsas image gc --dry-run
    dsas image gc --keep 10 --wait 1h`
}

// Run implements the command.
func (cmd *imageGCCmd) Run(ctx context.Context, a *app) error {
	if cmd.Keep < 1 {
		return usagef("--keep %d: at least one release of each role stays", cmd.Keep)
	}
	if cmd.Wait < time.Second {
		return usagef("--wait %s: give 1s or more, as 10m", cmd.Wait)
	}
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	cfg.setDefaults()
	store, err := openImages(cfg)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	asked := false
	done, err := store.GC(ctx, blobs.GC{
		DryRun:  cmd.DryRun,
		Wait:    cmd.Wait,
		Waiting: func(users []string) { fmt.Fprintln(a.stderr, gcWaits(users)) },
		Unused: func(ctx context.Context, all []dsas.Release) ([]dsas.Digest, error) {
			if !asked {
				if err := sameStore(ctx, c, all, cfg.path("images")); err != nil {
					return nil, err
				}
				asked = true
			}
			proposed, err := store.Proposals()
			if err != nil {
				return nil, err
			}
			use, err := askUse(ctx, c)
			if err != nil {
				return nil, err
			}
			for _, id := range proposed {
				use.booted = append(use.booted, id)
			}
			return use.unused(all, cmd.Keep), nil
		},
	})
	if err != nil {
		return err
	}
	if !cmd.DryRun {
		imagebuild.SweepCache(cfg.path("cache"), func(line string) { fmt.Fprintln(a.stderr, clean(line)) })
	}
	if a.JSON {
		return a.writeJSON(done)
	}
	removed, freed := "removed", "freed"
	if cmd.DryRun {
		removed, freed = "would remove", "would free"
	}
	if len(done.Releases) > 0 {
		a.printf("%s %s\n", removed, strings.Join(done.Releases, " "))
	}
	a.printf("%s %s in %s", freed, size(done.Bytes), dsas.Count(done.Blobs, "file"))
	if n := done.Young; n > 0 {
		a.printf("; %d that %s to no release %s newer than an hour and %s", n, dsas.Agree(n, "belongs", "belong"), dsas.Agree(n, "is", "are"), dsas.Agree(n, "stays", "stay"))
	}
	a.printf("\n")
	return nil
}

// gcWaits says who has to end first.
func gcWaits(users []string) string {
	who := "a build, import, export, comparison, edit or backup"
	if len(users) > 0 {
		who = clean(strings.Join(users, ", "))
	}
	return fmt.Sprintf("waiting for who uses the image store: %s; nothing is removed before (Ctrl-C gives up)", who)
}

// sameStore makes sure that who tells what is in use speaks of this image store.
func sameStore(ctx context.Context, c *client.Client, all []dsas.Release, dir string) error {
	views, err := c.Releases(ctx, "")
	var answered *client.Error
	if err != nil && !errors.As(err, &answered) && ctx.Err() == nil {
		return fmt.Errorf("only a server that runs knows what its nodes run; start it first (systemctl start dsas): %w", err)
	}
	if err != nil {
		return err
	}
	same := len(views) == len(all)
	for i := 0; same && i < len(all); i++ {
		same = views[i].ID == all[i].ID
	}
	if !same {
		return fmt.Errorf("the server lists other releases than there are in %s: run it where the server runs, with the server's --state, and not while something is added there: %w", dir, dsas.ErrConflict)
	}
	return nil
}

// use is who uses releases, as the server says.
type use struct {
	published []dsas.Published
	nodes     []dsas.NodeView
	booted    []dsas.Digest
}

func askUse(ctx context.Context, c *client.Client) (u use, err error) {
	if u.published, err = c.Published(ctx); err != nil {
		return u, err
	}
	if u.nodes, err = c.Nodes(ctx); err != nil {
		return u, err
	}
	// Last: a boot that begins now has a release that the two above name.
	u.booted, err = c.BootReleases(ctx)
	return u, err
}

// unused gives the releases of all, by role and number, that nothing holds.
func (u use) unused(all []dsas.Release, keep int) []dsas.Digest {
	held := map[dsas.Digest]bool{}
	hold := func(ids ...dsas.Digest) {
		for _, id := range ids {
			held[id] = true
		}
	}
	for _, p := range u.published {
		hold(p.Current, p.Proposed)
		hold(p.Before[max(0, len(p.Before)-keep):]...)
		if p.Canary != nil {
			hold(p.Canary.Release)
		}
	}
	for _, v := range u.nodes {
		hold(v.Node.Release, v.Status.Image)
	}
	hold(u.booted...)
	newest := map[string]int{}
	var out []dsas.Digest
	for _, r := range slices.Backward(all) {
		// One that is damaged does not take the place of one that boots.
		if r.Damaged == "" {
			newest[r.Role]++
		}
		if (r.Damaged != "" || newest[r.Role] > keep) && !held[r.ID] {
			out = append(out, r.ID)
		}
	}
	slices.Reverse(out)
	return out
}
