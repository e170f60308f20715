package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/internal/signing"
)

type imageSignCmd struct {
	configFlags
	All      bool     `help:"Sign every release there is."`
	Key      string   `help:"Sign with the private key in this file, and not with those in the folder of keys." placeholder:"FILE"`
	Releases []string `arg:"" optional:"" name:"release" help:"As web:7, or web for its newest."`
}

// Help gives the examples.
func (*imageSignCmd) Help() string {
	return `A node takes a release only if a key has signed it whose public half is in the
initramfs, and the server publishes no other. A build signs what it gives; this
is for releases of before there were keys, for those whose signature was lost,
and for a private key that is kept elsewhere. As root, on the server itself.

  dsas image sign web:7
  dsas image sign --all
  dsas image sign web --key /media/stick/3F2A....key`
}

// signed is what image sign prints.
type signed struct {
	Release string   `json:"release"`
	Keys    []string `json:"keys"` // those that signed it now
}

// Run implements the command.
func (c *imageSignCmd) Run(ctx context.Context, a *app) error {
	if len(c.Releases) == 0 && !c.All {
		return usageError{err: fmt.Errorf("name the releases to sign, or --all; dsas image ls lists them: %w", dsas.ErrInvalid)}
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	// What of a signature is there already may have been of no release until now.
	store, letGo, err := holdImages(ctx, cfg, func(line string) { fmt.Fprintln(a.stderr, line) })
	if err != nil {
		return err
	}
	defer letGo()
	var ids []dsas.Digest
	for _, name := range c.Releases {
		ref, err := releaseRef(name)
		if err != nil {
			return err
		}
		r, err := store.Find(ref)
		if err != nil {
			return err
		}
		ids = append(ids, r.ID)
	}
	if c.All {
		list, err := store.Releases()
		if err != nil {
			return err
		}
		for _, r := range list {
			ids = append(ids, r.ID)
		}
	}
	var signers []signing.Signer
	if c.Key != "" {
		s, err := signing.ReadSigner(c.Key)
		if err != nil {
			return err
		}
		signers = append(signers, s)
	} else if signers, err = cfg.signingFolder().Signers(); err != nil {
		return err
	}
	if len(signers) == 0 {
		return fmt.Errorf("no private key is in %s: name one with --key FILE, or make one: dsas image key new: %w", cfg.Keys, dsas.ErrNotFound)
	}
	out := []signed{}
	for _, id := range ids {
		r, by, err := signRelease(ctx, store, signers, id)
		if err != nil && c.All {
			fmt.Fprintln(a.stderr, err)
			continue
		}
		if err != nil {
			return err
		}
		out = append(out, signed{r.Name(), by})
		if a.JSON {
			continue
		}
		if len(by) == 0 {
			a.printf("release %s is signed already\n", r.Name())
		} else {
			a.printf("release %s: signed by key %s\n", r.Name(), strings.Join(by, ", "))
		}
	}
	a.syncReleases(ctx) // one may have waited for it
	if a.JSON {
		return a.writeJSON(out)
	}
	return nil
}

type imageKeyCmd struct {
	Ls  imageKeyLsCmd  `cmd:"" help:"List the keys that releases may be signed by."`
	New imageKeyNewCmd `cmd:"" help:"Make another key, beside those there are."`
	Rm  imageKeyRmCmd  `cmd:"" help:"Trust a key no more, and remove it."`
}

// Help gives the order of a rotation.
func (*imageKeyCmd) Help() string {
	return `The keys are files: ID.pub, by which releases may be signed, and ID.key, with
which builds sign, and which only root can read. The first build makes a pair.
As root, on the server itself. A key is changed for another so:

  1. dsas image key new           # both are trusted, builds sign with both
  2. dsas image build --all       # an initramfs with both, new releases
  3. reboot all nodes             # dsas node ls shows what they run
  4. dsas image key rm OLD        # says what can then not be published any more
  5. dsas image build --all       # an initramfs without the old one
  6. reboot all nodes again

Where the old one is in wrong hands, leave out 3, and give --force in 4.`
}

// keyView is a key as it is shown.
type keyView struct {
	ID      string    `json:"id"`
	Public  string    `json:"public"`
	Created time.Time `json:"created"`
	Signs   bool      `json:"signs"` // its private half is here
	// Releases are those that are signed by it and whose initramfs takes it.
	Releases []string `json:"releases"`
}

func keyViews(cfg config) ([]keyView, error) {
	list, err := cfg.signingFolder().List()
	if err != nil {
		return nil, err
	}
	var rels []dsas.Release
	store, err := openImages(cfg)
	if err == nil {
		rels, err = store.Releases()
	}
	if err != nil && !errors.Is(err, dsas.ErrNotFound) { // before the first build there is none
		return nil, err
	}
	out := []keyView{}
	for _, p := range list {
		v := keyView{ID: p.KeyID(), Public: p.String(), Created: p.Created, Signs: p.Private, Releases: []string{}}
		for i := range rels {
			if bootable(&rels[i], signing.Keys{p.Key}) == nil {
				v.Releases = append(v.Releases, rels[i].Name())
			}
		}
		out = append(out, v)
	}
	return out, nil
}

type imageKeyLsCmd struct{ configFlags }

// Run implements the command.
func (c *imageKeyLsCmd) Run(_ context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	views, err := keyViews(cfg)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(views)
	}
	t := &table{head: []string{"KEY", "MADE", "SIGNS", "RELEASES"}}
	for _, v := range views {
		signs := "yes"
		if !v.Signs {
			signs = "kept elsewhere"
		}
		t.row(v.ID, ago(v.Created, time.Now())+" ago", signs, fmt.Sprint(len(v.Releases)))
	}
	return a.table(t, "No keys. The first dsas image build makes one.")
}

type imageKeyNewCmd struct{ configFlags }

// Run implements the command.
func (c *imageKeyNewCmd) Run(_ context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	p, err := cfg.signingFolder().New()
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(keyView{ID: p.KeyID(), Public: p.String(), Created: p.Created, Signs: true, Releases: []string{}})
	}
	a.printf("made release key %s in %s; nodes take it from the next build on: dsas image build --all\n", p.KeyID(), cfg.Keys)
	return nil
}

type imageKeyRmCmd struct {
	configFlags
	ID    string `arg:"" name:"key" help:"Its ID, as dsas image key ls shows it."`
	Force bool   `help:"Also where releases can then not be published or rolled back to."`
}

// Run implements the command.
func (c *imageKeyRmCmd) Run(_ context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	views, err := keyViews(cfg)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(views, func(v keyView) bool { return strings.EqualFold(v.ID, c.ID) }); i >= 0 && !c.Force {
		lost := slices.Clone(views[i].Releases)
		for j, v := range views {
			if j != i {
				lost = slices.DeleteFunc(lost, func(r string) bool { return slices.Contains(v.Releases, r) })
			}
		}
		if len(lost) > 0 {
			return fmt.Errorf("release key %s: by no other key is signed %s, which could then not be published, pinned or rolled back to; --force removes the key nevertheless: %w",
				views[i].ID, strings.Join(lost, " "), dsas.ErrConflict)
		}
	}
	if err := cfg.signingFolder().Remove(c.ID); err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(map[string]string{"removed": strings.ToUpper(c.ID)})
	}
	a.printf("key %s is removed. An initramfs that was built before still takes it; make another: dsas image build --all\n", strings.ToUpper(c.ID))
	return nil
}
