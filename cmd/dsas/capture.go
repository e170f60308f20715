package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/capture"
	"dsas/imagebuild"
	"dsas/imagebuild/layers"
	"dsas/roles"
	"dsas/server/blobs"
)

type imageCaptureCmd struct {
	configFlags
	Node      string   `arg:"" help:"Node whose changes are to be kept."`
	Path      []string `short:"p" sep:"none" help:"Take what differs there: a file, a folder with all below, or a pattern (repeatable)." placeholder:"/etc/..."`
	Yes       bool     `short:"y" help:"Take all that can be carried."`
	DryRun    bool     `help:"Only show what differs."`
	NoBuild   bool     `help:"Write to the definition, and build later with dsas image build."`
	NoPublish bool     `help:"Leave nodes with what they boot; publish later with dsas image publish."`
	Force     bool     `help:"Overwrite files of the definition that were changed since the node's release was built."`
	Identity  string   `short:"i" help:"Private key to log in with." placeholder:"FILE"`
}

// Help tells what is shown.
func (*imageCaptureCmd) Help() string {
	return `Compares a running node with the release it runs, lets you choose what to keep,
writes that into the role's definition folder and builds a release of it. What
nodes boot now stays as a release (dsas image rollback). Secrets, logs, caches,
what the server renders and mounted disks are left out. A role that comes with
dsas gets a folder that lies over it. To be run where the server runs, as root.

Examples:

    dsas image capture w101 --dry-run
    dsas image capture w101
    dsas image capture w101 --path /etc/nginx --identity id_fleet`
}

// Run implements the command.
func (cmd *imageCaptureCmd) Run(ctx context.Context, a *app) error {
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := a.oneNode(ctx, c, cmd.Node)
	if err != nil {
		return err
	}
	if v.Release == nil || v.Release.Running == "" {
		return fmt.Errorf("capture %s: no boot of it is known, so there is nothing to compare with: boot it first: %w", v.Node.Name, dsas.ErrNotFound)
	}
	ref, err := dsas.ParseReleaseRef(v.Release.Running)
	if err != nil {
		return fmt.Errorf("capture %s: the release it runs, %s, is no longer in the store: boot it, and change it again: %w", v.Node.Name, v.Release.Running, dsas.ErrNotFound)
	}
	info, err := c.SSH(ctx, v.Node.Name)
	if err != nil {
		return err
	}
	shell, err := newNodeShell(v.Node.Name, info, cmd.Identity)
	if err != nil {
		return err
	}
	defer shell.close()
	car, err := newCarrier(ctx, a, cfg, ref)
	if err != nil {
		return err
	}
	defer car.letGo()
	car.of, car.patterns, car.all, car.dry, car.force, car.noBuild, car.noPublish = v.Node.Name, cmd.Path, cmd.Yes, cmd.DryRun, cmd.Force, cmd.NoBuild, cmd.NoPublish
	if v.Release.Assigned != "" && v.Release.Assigned != v.Release.Running {
		fmt.Fprintf(a.stderr, "%s runs %s and would boot %s: it is compared with what it runs\n", v.Node.Name, v.Release.Running, v.Release.Assigned)
	}

	var want, got capture.Tree
	var g errgroup.Group // the list comes over the network while the layers are read here
	g.Go(func() (err error) {
		want, err = car.tree(ctx)
		car.letGo() // the node may take its time
		return err
	})
	g.Go(func() error {
		return shell.run(ctx, capture.ListCommand, nil, func(r io.Reader) (err error) {
			got, err = capture.ReadListing(r)
			return err
		})
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("capture %s: %w", v.Node.Name, err)
	}
	if names := capture.Doubtful(want, got, car.rules); len(names) > 0 {
		err := shell.run(ctx, capture.SumCommand, capture.Names(names), func(r io.Reader) error { return got.ReadSums(r, names) })
		if err != nil {
			return fmt.Errorf("capture %s: %w", v.Node.Name, err)
		}
	}
	told := false
	err = shell.run(ctx, capture.AttrsCommand, nil, func(r io.Reader) (err error) {
		car.rules.Unheld, told, err = got.ReadAttrs(r)
		return err
	})
	if err != nil {
		return fmt.Errorf("capture %s: %w", v.Node.Name, err)
	}
	if !told {
		fmt.Fprintf(a.stderr, "%s has no Perl (perl-base) to list extended attributes with: capabilities and ACLs are not compared, and taken to be the release's\n", v.Node.Name)
	}
	return car.carry(ctx, want, got, func(chosen []capture.Change) (contents map[string]capture.Content, err error) {
		err = shell.run(ctx, capture.PackCommand, capture.Names(capture.Paths(chosen)), func(r io.Reader) error {
			contents, err = capture.ReadContents(r, chosen)
			return err
		})
		return contents, err
	})
}

// nodeShell runs commands on a node.
type nodeShell struct {
	name string
	dir  string
	argv func(command string) ([]string, error)
}

// newNodeShell prepares log-ins by the host key that the server tells.
func newNodeShell(name string, info dsas.SSHInfo, identity string) (*nodeShell, error) {
	dir, err := os.MkdirTemp("", "dsas-ssh-")
	if err != nil {
		return nil, fmt.Errorf("ssh %s: %w", name, err)
	}
	s := &nodeShell{name: name, dir: dir}
	known := filepath.Join(dir, "known_hosts")
	line, err := knownHost(name, info)
	if err == nil {
		err = os.WriteFile(known, line, 0o600)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("ssh %s: %w", name, err)
	}
	s.argv = func(command string) ([]string, error) {
		cmd := sshCmd{User: "root", Identity: identity, Command: []string{command}}
		return cmd.argv(name, info, known, os.Geteuid() == 0)
	}
	return s, nil
}

func (s *nodeShell) close() { os.RemoveAll(s.dir) }

// run runs a command on the node with stdin (nil: none), and has read take what
// it writes.
func (s *nodeShell) run(ctx context.Context, command string, stdin io.Reader, read func(io.Reader) error) error {
	argv, err := s.argv(command)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var said bytes.Buffer
	p.Stdin, p.Stderr = stdin, &limitedBuffer{b: &said, left: 4 << 10}
	p.WaitDelay = 5 * time.Second
	out, err := p.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("run %s: not installed; on Debian: apt install openssh-client iproute2", argv[0])
		}
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	readErr := read(out)
	if readErr == nil {
		_, readErr = io.Copy(io.Discard, out) // a tar's padding
	}
	if readErr != nil {
		cancel()
	}
	waitErr := p.Wait()
	// ssh says why there is nothing to read; but where we ended it, we know why.
	if exit, ok := errors.AsType[*exec.ExitError](waitErr); ok && exit.ExitCode() > 0 {
		return fmt.Errorf("on %s: %w: %s", s.name, waitErr, clean(strings.TrimSpace(said.String())))
	}
	if readErr != nil {
		return readErr
	}
	return waitErr
}

// limitedBuffer keeps the beginning of what is written.
type limitedBuffer struct {
	b    *bytes.Buffer
	left int
}

// Write implements io.Writer.
func (l *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.b.Write(p[:n])
	l.left -= n
	return len(p), nil
}

// carrier carries changes of a tree that was made of a release into the
// definition of the release's role.
type carrier struct {
	a     *app
	cfg   config
	store *blobs.Store
	rel   dsas.Release
	def   roles.Definition // as it is now
	rules capture.Rules
	names []string // of the role's services
	// letGo lets dsas image gc remove the release: what is needed of it has been
	// read. It may be called again.
	letGo func()

	of        string // what was changed, for people
	patterns  []string
	all       bool
	dry       bool
	force     bool
	noBuild   bool
	noPublish bool
}

// newCarrier looks a release up, and holds it until letGo is called.
func newCarrier(ctx context.Context, a *app, cfg config, ref dsas.ReleaseRef) (c *carrier, err error) {
	store, letGo, err := holdImages(ctx, cfg, func(line string) { fmt.Fprintln(a.stderr, line) })
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			letGo()
		}
	}()
	rel, err := store.Find(ref)
	if err != nil {
		return nil, fmt.Errorf("in this machine's %s: %w", cfg.path("images"), err)
	}
	set, err := roles.Load(cfg.Roles)
	if set == nil {
		return nil, err
	}
	c = &carrier{a: a, cfg: cfg, store: store, rel: *rel, letGo: letGo}
	var getErr error
	if c.def, getErr = set.Get(rel.Role); getErr != nil {
		return nil, errors.Join(getErr, err)
	}
	role := c.def.Role
	if len(rel.Definition) > 0 {
		frozen, err := roles.Thaw(rel.Definition, string(rel.ID))
		if err != nil {
			return nil, fmt.Errorf("release %s: %w", rel.Name(), err)
		}
		role = frozen.Role
	}
	c.rules.LeftOut = imagebuild.LeftOut
	for _, t := range role.Templates {
		c.rules.Rendered = append(c.rules.Rendered, t.Path)
	}
	for _, t := range c.def.Role.Templates {
		c.rules.Rendered = append(c.rules.Rendered, t.Path)
	}
	for _, s := range c.def.Role.Services {
		c.names = append(c.names, s.Name)
	}
	return c, nil
}

// carried is what a capture tells programs.
type carried struct {
	Of      string            `json:"of"`
	Release string            `json:"release"`
	Changes []capture.Change  `json:"changes"`
	Folder  string            `json:"folder,omitempty"`
	Written []capture.Written `json:"written,omitempty"`
	Built   []dsas.Release    `json:"built,omitempty"`
}

// carry shows what differs, has somebody choose, and carries that. read gives
// the contents of what was chosen.
func (c *carrier) carry(ctx context.Context, want, got capture.Tree, read func([]capture.Change) (map[string]capture.Content, error)) error {
	out := carried{Of: c.of, Release: c.rel.Name(), Changes: capture.Compare(want, got, c.rules, c.names)}
	if want["var/lib/dpkg/status"].Size != got["var/lib/dpkg/status"].Size {
		fmt.Fprintf(c.a.stderr, "packages were installed or removed on %s: name them under packages: in role.yaml rather than taking their files\n", c.of)
	}
	if c.dry || len(out.Changes) == 0 {
		if c.a.JSON {
			return c.a.writeJSON(out)
		}
		return c.show(out.Changes)
	}
	chosen, err := c.choose(out.Changes)
	if err != nil {
		return err
	}
	if len(chosen) == 0 {
		if c.a.JSON {
			return c.a.writeJSON(out)
		}
		c.a.printf("nothing chosen, nothing changed\n")
		return nil
	}
	contents, err := read(chosen)
	if err != nil {
		return fmt.Errorf("read what was chosen: %w", err)
	}
	for _, ch := range chosen {
		if err := imagebuild.CheckFile(strings.TrimPrefix(ch.Path, "/"), contents[strings.TrimPrefix(ch.Path, "/")].Data); err != nil {
			return fmt.Errorf("nothing was written: %w", err)
		}
	}
	clash, err := capture.Conflicts(c.def.FS, chosen, contents)
	if err != nil {
		return fmt.Errorf("definition of role %s: %w", c.rel.Role, err)
	}
	if len(clash) > 0 && !c.force {
		var names []string
		for _, ch := range clash {
			names = append(names, ch.To)
		}
		return fmt.Errorf("the definition of role %s is no longer what %s was built of, in %s: merge by hand, or give --force to overwrite: %w", c.rel.Role, c.rel.Name(), strings.Join(names, ", "), dsas.ErrConflict)
	}
	var made bool
	if out.Folder, made, err = roles.Folder(c.cfg.Roles, c.def); err != nil {
		return err
	}
	if made && !c.a.JSON {
		c.a.printf("made %s, which lies over the role that comes with dsas\n", clean(out.Folder))
	}
	if out.Written, err = capture.Write(out.Folder, c.def.FS, chosen, contents); err != nil {
		return err
	}
	if !c.a.JSON {
		for _, w := range out.Written {
			note := ""
			if w.Note != "" {
				note = "  (" + w.Note + ")"
			}
			c.a.printf("wrote %s%s\n", clean(filepath.Join(out.Folder, w.Path)), clean(note))
		}
	}
	if !c.noBuild {
		built, err := buildImages(ctx, c.cfg, buildRequest{Roles: []string{c.rel.Role}, NoPublish: c.noPublish, Progress: func(line string) { fmt.Fprintln(c.a.stderr, line) }})
		if err != nil {
			return fmt.Errorf("the change is in %s, but no release could be built of it: %w", out.Folder, err)
		}
		out.Built = built.Releases
		if !c.noPublish {
			c.a.syncReleases(ctx)
		}
	}
	if c.a.JSON {
		return c.a.writeJSON(out)
	}
	if c.noBuild {
		c.a.printf("the next build has it: dsas image build %s\n", c.rel.Role)
	}
	for _, r := range out.Built {
		how := "the role's nodes get it at their next boot"
		if c.noPublish {
			how = "publish it with: dsas image publish " + r.Name()
		}
		c.a.printf("release %s, after %s; %s\n", r.Name(), c.rel.Name(), how)
	}
	return nil
}

// tree is the root file system as the release has it.
func (c *carrier) tree(ctx context.Context) (capture.Tree, error) {
	t, err := treeOf(ctx, c.store, c.rel.Manifest.Parts, map[dsas.Digest]*layers.Layer{})
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", c.rel.Name(), err)
	}
	return capture.OfLayers(t), nil
}
