package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"dsas"
	"dsas/imagebuild"
	"dsas/imagebuild/transfer"
	"dsas/roles"
	"dsas/server/blobs"
)

type imageImportCmd struct {
	configFlags
	Kernel    string `help:"Boot it with this kernel and initramfs: a kernel release that a release here has, or a release, as web:7." placeholder:"RELEASE"`
	NoPublish bool   `help:"Leave nodes with what they boot; publish later with dsas image publish."`
	Publish   bool   `help:"Publish it also where the checks find that services of the role cannot start."`
	Files     bool   `help:"Put the role's own files and services over it, as a build does."`
	Trust     bool   `help:"Take the templates and services of the release that it is, which this server renders; else those of the role here." name:"trust-definition"`
	Insecure  bool   `help:"Speak plain HTTP to the registry."`
	Role      string `arg:"" help:"Role that it becomes a release of."`
	Source    string `arg:"" help:"Folder with an OCI layout, archive, root tar, or registry://HOST/NAME:TAG."`
}

// Help gives the examples.
func (*imageImportCmd) Help() string {
	return `Takes an image in as a release of a role, on the server's machine: from a folder
with an OCI layout or a tar with one, what docker save and podman save write, a
registry, or a root file system in a tar (plain, gzip, zstd). PATH:NAME picks one
of several images; oci:, oci-archive:, docker-archive: and tar: before the path
say what it is. Log-ins to registries are taken from where docker and podman keep
theirs.

It boots with the kernel and initramfs of the role's last release, or --kernel's;
modules of that kernel are added if it has none. What dsas image export wrote
comes back as the very same release, with its own, on the machine that wrote it; on
another with --trust-definition. Secrets are refused as in a build.

The role's services need their run files in the image, in /etc/dsas/services, and
the programs that these end in: an image of others gets the run files with
--files. One with which a service could not start is imported and not published,
with exit status 1, unless --publish is given.

  dsas image import web registry://registry.example/web:stable
  dsas image import web nginx.tar --files --no-publish
  docker save web | zstd > web.tar.zst && dsas image import web web.tar.zst`
}

// Run implements the command.
func (c *imageImportCmd) Run(ctx context.Context, a *app) error {
	if c.Source == "" {
		return usagef("the image's place is empty; give a folder or file, or registry://HOST/NAME:TAG")
	}
	if c.Publish && c.NoPublish {
		return usagef("--publish and --no-publish exclude each other")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	set, err := roles.Load(cfg.Roles)
	if set == nil {
		return err
	}
	def, getErr := set.Get(c.Role)
	if getErr != nil {
		return errors.Join(getErr, err)
	}
	memory, err := imagebuild.Memory(def.Role)
	if err != nil {
		return err
	}
	say := func(line string) { fmt.Fprintln(a.stderr, clean(line)) }
	if err := transfer.CheckPlace(c.Source); err != nil { // of a slip in it nothing is made
		return err
	}
	if err := makeImages(cfg); err != nil {
		return err
	}
	store, letGo, err := holdImages(ctx, cfg, say)
	if err != nil {
		return err
	}
	defer letGo()
	if err := os.MkdirAll(cfg.path("cache"), 0o755); err != nil {
		return fmt.Errorf("cache folder: %w", err)
	}
	imagebuild.SweepCache(cfg.path("cache"), say)
	frozen, err := roles.Freeze(def)
	if err != nil {
		return err
	}
	keys := cfg.signingFolder()
	_, signers, err := releaseKeys(keys, say)
	if err != nil {
		return err
	}
	im := transfer.Import{
		Definition: frozen, CheckDefinition: func(b []byte) (bool, error) { return c.takes(store, b) },
		Store: store, Source: c.Source, Registry: transfer.Registry{Insecure: c.Insecure}, Role: c.Role, Memory: memory,
		Check: imagebuild.CheckFile, CheckSize: imagebuild.SecretSize, Tmp: cfg.path("cache"), Progress: say,
		Modules: func(ctx context.Context, boot dsas.BootSet) (dsas.Part, error) {
			return imagebuild.Modules(ctx, buildOptions(cfg, store, say), def.Role, boot)
		},
	}
	if c.Files {
		im.Files = func(ctx context.Context, below map[string]transfer.Folder) (dsas.Part, bool, error) {
			folders := make(map[string]imagebuild.Folder, len(below))
			for name, f := range below {
				folders[name] = imagebuild.Folder(f)
			}
			return imagebuild.RoleFiles(ctx, buildOptions(cfg, store, say), imagebuild.Definition{Role: def.Role, FS: def.FS}, folders)
		}
	}
	if c.Kernel != "" {
		if im.Boot, err = findBoot(store, c.Kernel); err != nil {
			return err
		}
	}
	made, err := im.Run(ctx)
	if err != nil {
		return err
	}
	out := imported{Imported: made}
	// First of all, and whatever else comes: a release that is there and not signed
	// is one that nodes refuse.
	signed := []dsas.Release{out.Release}
	if err := signBuilt(context.WithoutCancel(ctx), store, keys, signers, signed, say); err != nil {
		return err
	}
	out.Release = signed[0]
	role := roleOf(def, out.Release)
	found, err := imagebuild.CheckServices(ctx, store, role, out.Release.Manifest.Parts)
	if err != nil {
		return err
	}
	out.note(role, found)
	publish := !c.NoPublish && (len(found) == 0 || c.Publish)
	out.Published = publish
	if out.Same && !publish {
		if out.Published, err = a.nodesBoot(ctx, store, out.Release); err != nil {
			return err
		}
	}
	if publish {
		if err := store.Propose(out.Release.ID); err != nil {
			return err
		}
		a.syncReleases(ctx)
	}
	if err := out.print(a); err != nil {
		return err
	}
	if out.Published || c.NoPublish {
		return nil
	}
	return c.unpublished(out.Release)
}

// nodesBoot tells whether a role's nodes follow a release already, as a server that
// runs says; without one that has the release, whether it was proposed last.
func (a *app) nodesBoot(ctx context.Context, store *blobs.Store, r dsas.Release) (bool, error) {
	c, err := a.client()
	if err != nil {
		return false, err
	}
	if views, err := c.Releases(ctx, r.Role); err == nil {
		for _, v := range views {
			if v.ID == r.ID {
				return v.Current, nil
			}
		}
	}
	proposed, err := store.Proposals()
	return err == nil && proposed[r.Role] == r.ID, err
}

// imported is what image import tells programs.
type imported struct {
	transfer.Imported
	Published bool `json:"published"` // nodes are to boot it from now on, or do so already
}

// note adds what the checks found in it, and which of the role's services have a
// run file, the role's own put over it included.
func (out *imported) note(role dsas.Role, found []imagebuild.Finding) {
	missing := map[string]bool{}
	for _, f := range found {
		then := "nodes would report failed"
		if f.Rule == imagebuild.ScriptsTooLarge {
			then = "nodes may report failed"
		}
		out.Warnings = append(out.Warnings, fmt.Sprintf("%s: %s: %s", f.Path, f.Reason, then))
		missing[f.Path] = missing[f.Path] || f.Rule == imagebuild.RunMissing
	}
	services := append([]string{}, out.Services...)
	for _, s := range role.Services {
		if !missing["/etc/dsas/services/"+s.Name+"/run"] && !slices.Contains(services, s.Name) {
			services = append(services, s.Name)
		}
	}
	out.Services = services
}

func (out *imported) print(a *app) error {
	if a.JSON {
		return a.writeJSON(out)
	}
	for _, w := range out.Warnings {
		fmt.Fprintln(a.stderr, "warning:", clean(w))
	}
	r := out.Release
	what := "from " + out.Kind
	if out.Same {
		what = "was here already"
		if out.Published {
			what += "; nodes boot it"
		}
	}
	a.printf("%-10s %s  %s, %s, kernel %s, %s\n", r.Name(), r.ID.Short(), dsas.Count(len(r.Manifest.Parts), "layer"), size(r.Manifest.Size()), clean(r.Boot.Release), what)
	return nil
}

// unpublished is the error of a release whose services could not start.
func (c *imageImportCmd) unpublished(r dsas.Release) error {
	files := "; import it with --files to put the role's own services over it"
	if c.Files {
		files = ""
	}
	return fmt.Errorf("release %s is imported and not published: services of role %s could not start with it (see the warnings)%s; to try it on a node: dsas image publish %s --canary NODE; to publish it all the same: dsas image publish %s: %w",
		r.Name(), r.Role, files, r.Name(), r.Name(), dsas.ErrConflict)
}

// roleOf is the role as a release's nodes have it: of the definition that goes
// with the release, else the one here.
func roleOf(def roles.Definition, r dsas.Release) dsas.Role {
	if len(r.Definition) > 0 {
		if own, err := roles.Thaw(r.Definition, string(r.ID)); err == nil {
			return own.Role
		}
	}
	return def.Role
}

// takes tells whether the definition that a release comes with may be rendered
// here: it is one that is here already, or is trusted.
func (c *imageImportCmd) takes(store *blobs.Store, frozen []byte) (bool, error) {
	known, err := store.Releases()
	if err != nil {
		return false, err
	}
	for _, r := range known {
		if r.Role == c.Role && r.Damaged == "" && bytes.Equal(r.Definition, frozen) {
			return true, nil
		}
	}
	if !c.Trust {
		return false, nil
	}
	def, err := roles.Thaw(frozen, "")
	if err == nil && def.Role.Name != c.Role {
		err = fmt.Errorf("a release's role definition is of role %q, not of %s: %w", def.Role.Name, c.Role, dsas.ErrInvalid)
	}
	return err == nil, err
}

// findBoot gives what a release boots with: the release is named, or the kernel.
func findBoot(store *blobs.Store, name string) (*dsas.BootSet, error) {
	all, err := store.Releases()
	if err != nil {
		return nil, err
	}
	var found *dsas.Release
	var kernels []string
	for i, r := range all {
		if r.Damaged != "" {
			continue
		}
		if r.Boot.Release == name && (found == nil || r.Created.After(found.Created)) {
			found = &all[i]
		}
		if !slices.Contains(kernels, r.Boot.Release) {
			kernels = append(kernels, r.Boot.Release)
		}
	}
	if found != nil {
		return &found.Boot, nil
	}
	if ref, err := dsas.ParseReleaseRef(name); err == nil && (ref.ID != "" || strings.Contains(name, ":")) {
		r, err := store.Find(ref)
		if err != nil {
			return nil, err
		}
		return &r.Boot, nil
	}
	return nil, fmt.Errorf("kernel %q: no release here boots with it; there are %s: %w", name, or(strings.Join(kernels, ", ")), dsas.ErrNotFound)
}

type imageExportCmd struct {
	configFlags
	Format   string `help:"Of a file: oci, or docker for docker load and podman load." enum:"oci,docker" default:"oci"`
	Force    bool   `help:"Replace the file if it is there."`
	Insecure bool   `help:"Speak plain HTTP to the registry."`
	Release  string `arg:"" help:"As web:7, or web for its newest."`
	Dest     string `arg:"" help:"Folder, FILE.tar, registry://HOST/NAME[:TAG], or registry for the one that nodes fetch from."`
}

// Help gives the examples.
func (*imageExportCmd) Help() string {
	return `Writes a release with its kernel and initramfs as an OCI layout, into a folder
(one that has a layout already is added to) or a file whose name ends in .tar, or
pushes it to a registry; the kernel stands there under the tag TAG-boot. A file
is there whole or not at all, and replaces one that is there only with --force. dsas
image import takes it back as the same release. --format docker writes the image
alone, for docker load and podman load.

With registry: in dsas.yaml, or dsas serve --registry, nodes fetch image parts
from there; DEST registry is how a release gets there.

  dsas image export web:7 /srv/web
  dsas image export web:7 web.tar --format docker
  dsas image export web:7 registry
  dsas image export web:7 registry://registry.example/dsas/web:stable`
}

// Run implements the command.
func (c *imageExportCmd) Run(ctx context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if c.Dest == "" {
		return usagef("the place to export to is empty; give a folder, FILE.tar or a registry")
	}
	say := func(line string) { fmt.Fprintln(a.stderr, clean(line)) }
	ref, err := releaseRef(c.Release)
	if err != nil {
		return err
	}
	store, letGo, err := holdImages(ctx, cfg, say)
	if err != nil {
		return err
	}
	defer letGo()
	r, err := store.Find(ref)
	if err != nil {
		return err
	}
	ex := transfer.Export{
		Store: store, Release: *r, Dest: c.Dest, Format: c.Format, Force: c.Force, Registry: transfer.Registry{Insecure: c.Insecure},
		Progress: say,
	}
	if c.Dest == "registry" {
		if cfg.Registry == "" {
			return usageError{err: fmt.Errorf("no registry is set that nodes fetch from: name it in %s as registry: http://10.0.0.9:5000: %w", c.Config, dsas.ErrInvalid)}
		}
		if err := checkRegistry(cfg.Registry); err != nil {
			return configError{err}
		}
		repo, plain := registryRepository(cfg.Registry, r.Role)
		ex.Dest, ex.Registry.Insecure = "registry://"+repo, plain
	}
	at, err := ex.Run(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(map[string]string{"release": r.Name(), "id": string(r.ID), "manifest": string(r.Manifest.Digest), "dest": at})
	}
	a.printf("%s  %s  in %s\n", r.Name(), r.ID.Short(), clean(at))
	return nil
}
