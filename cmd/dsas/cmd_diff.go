package main

import (
	"context"
	"fmt"
	"strings"

	"dsas"
	"dsas/imagebuild/layers"
	"dsas/server/blobs"
)

type imageDiffCmd struct {
	configFlags
	All bool   `help:"List all files, however many."`
	A   string `arg:"" name:"release" help:"As web:6; alone: how it differs from what the role's nodes boot now."`
	B   string `arg:"" name:"other" optional:"" help:"As web:7."`
}

// Help gives the examples.
func (*imageDiffCmd) Help() string {
	return `Reads both releases from the image store, on the server's machine. Times of files
are not compared.

  dsas image diff web:6 web:7
  dsas image diff web:7            # what a boot would change for the role's nodes
  dsas image diff web:6 web:7 --json`
}

// side is one of the two releases of a diff.
type side struct {
	Release  string      `json:"release"`
	ID       dsas.Digest `json:"id"`
	Kernel   string      `json:"kernel"`
	Size     int64       `json:"size"`     // bytes, compressed
	Unpacked int64       `json:"unpacked"` // bytes
}

func sideOf(r *dsas.Release) side {
	return side{r.Name(), r.ID, r.Boot.Release, r.Manifest.Size(), r.Manifest.Unpacked()}
}

// imageDiff is how one release differs from another.
type imageDiff struct {
	From side `json:"from"`
	To   side `json:"to"`
	// Boot names what of kernel, initramfs and firmware is another.
	Boot []string `json:"boot"`
	layers.Diff
}

// Run implements the command.
func (c *imageDiffCmd) Run(ctx context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	first, err := releaseRef(c.A)
	if err != nil {
		return err
	}
	second := first
	if c.B != "" {
		if second, err = releaseRef(c.B); err != nil {
			return err
		}
	}
	store, letGo, err := holdImages(ctx, cfg, func(line string) { fmt.Fprintln(a.stderr, line) })
	if err != nil {
		return err
	}
	defer letGo()
	now, err := store.Find(second)
	if err != nil {
		return err
	}
	if c.B == "" {
		if first, err = a.currentRelease(ctx, now.Role); err != nil {
			return err
		}
	}
	old, err := store.Find(first)
	if err != nil {
		return err
	}
	d, err := diffReleases(ctx, store, old, now)
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", old.Name(), now.Name(), err)
	}
	if a.JSON {
		return a.writeJSON(d)
	}
	return c.print(a, d)
}

// currentRelease asks the server what the nodes of a role boot now.
func (a *app) currentRelease(ctx context.Context, role string) (dsas.ReleaseRef, error) {
	const way = "name two releases to compare them without a server"
	c, err := a.client()
	if err != nil {
		return dsas.ReleaseRef{}, err
	}
	list, err := c.Published(ctx)
	if err != nil {
		return dsas.ReleaseRef{}, fmt.Errorf("%w; %s", err, way)
	}
	for _, p := range list {
		if p.Role == role && p.Current != "" {
			return dsas.ReleaseRef{ID: p.Current}, nil
		}
	}
	return dsas.ReleaseRef{}, fmt.Errorf("nothing is published for role %s; %s: %w", role, way, dsas.ErrNotFound)
}

// diffReleases reads two releases. A layer that both have is read once.
func diffReleases(ctx context.Context, store *blobs.Store, from, to *dsas.Release) (imageDiff, error) {
	d := imageDiff{From: sideOf(from), To: sideOf(to), Boot: []string{}}
	has := map[string]dsas.Digest{}
	for _, p := range from.Boot.Parts() {
		has[p.Title] = p.DiffID
	}
	for _, p := range to.Boot.Parts() {
		if has[p.Title] != p.DiffID {
			d.Boot = append(d.Boot, p.Title)
		}
		delete(has, p.Title)
	}
	for title := range has { // firmware that is no more
		d.Boot = append(d.Boot, title)
	}
	read := map[dsas.Digest]*layers.Layer{}
	old, err := treeOf(ctx, store, from.Manifest.Parts, read)
	if err != nil {
		return d, fmt.Errorf("%s: %w", from.Name(), err)
	}
	now, err := treeOf(ctx, store, to.Manifest.Parts, read)
	if err != nil {
		return d, fmt.Errorf("%s: %w", to.Name(), err)
	}
	d.Diff = layers.Compare(old, now)
	return d, nil
}

func treeOf(ctx context.Context, store *blobs.Store, parts []dsas.Part, read map[dsas.Digest]*layers.Layer) (*layers.Tree, error) {
	tree := layers.NewTree()
	for _, p := range parts {
		l, ok := read[p.DiffID]
		if !ok {
			f, _, err := store.Blob(p.Digest)
			if err != nil {
				return nil, fmt.Errorf("layer %s: %w", p.Title, err)
			}
			l, err = layers.Read(ctx, f)
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("layer %s: %w", p.Title, err)
			}
			read[p.DiffID] = l
		}
		tree.Apply(l)
	}
	return tree, nil
}

// maxShown is how many files are listed for people, unless all are asked for.
const maxShown = 50

func (c *imageDiffCmd) print(a *app, d imageDiff) error {
	a.printf("%s -> %s\n\n", d.From.Release, d.To.Release)
	t := &table{}
	t.row("kernel", change(clean(d.From.Kernel), clean(d.To.Kernel)))
	t.row("boots with", "the same kernel and initramfs")
	if len(d.Boot) > 0 {
		t.rows = t.rows[:len(t.rows)-1]
		t.row("boots with", "another "+strings.Join(d.Boot, " and "))
	}
	t.row("size", change(size(d.From.Size), size(d.To.Size)))
	t.row("unpacked", change(size(d.From.Unpacked), size(d.To.Unpacked)))
	if err := a.table(t, ""); err != nil {
		return err
	}
	a.printf("\n")
	pkgs := &table{head: []string{"PACKAGE", "OLD", "NEW"}}
	for _, p := range d.Packages {
		pkgs.row(clean(p.Name), or(clean(p.Old)), or(clean(p.New)))
	}
	if err := a.table(pkgs, "The same packages."); err != nil {
		return err
	}
	a.printf("\n")
	count := map[string]int{}
	files := &table{head: []string{"CHANGE", "OLD", "NEW", "WHAT", "FILE"}}
	for _, f := range d.Files {
		count[f.Kind]++
		if len(files.rows) >= maxShown && !c.All {
			continue
		}
		old, now := size(f.Old), size(f.New)
		colour := yellow
		switch f.Kind {
		case "added":
			old, colour = "", green
		case "removed":
			now, colour = "", red
		}
		files.cells(cell{f.Kind, colour}, cell{text: or(old)}, cell{text: or(now)}, cell{text: or(strings.Join(f.What, ", "))}, cell{text: clean(f.Path)})
	}
	if err := a.table(files, "The same files."); err != nil {
		return err
	}
	if len(d.Files) > 0 {
		a.printf("\n%d added, %d removed, %d changed", count["added"], count["removed"], count["changed"])
		if more := len(d.Files) - len(files.rows); more > 0 {
			a.printf("; %d are not shown: --all lists them", more)
		}
		a.printf("\n")
	}
	return nil
}

// change is "old -> new", or what both are.
func change(old, now string) string {
	if old == now {
		return old
	}
	return old + " -> " + now
}
