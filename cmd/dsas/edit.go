package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"dsas"
	"dsas/capture"
	"dsas/imagebuild"
	"dsas/initramfs/rootfs"
	"dsas/internal/diskio"
	"dsas/internal/xattr"
	"dsas/server/blobs"
)

type imageEditCmd struct {
	configFlags
	Network   bool     `help:"With this machine's network; else there is none."`
	Path      []string `short:"p" sep:"none" help:"Take what changed there: a file, a folder with all below, or a pattern (repeatable)." placeholder:"/etc/..."`
	Yes       bool     `short:"y" help:"Take all that can be carried."`
	DryRun    bool     `help:"Only show what was changed."`
	NoBuild   bool     `help:"Write to the definition, and build later with dsas image build."`
	NoPublish bool     `help:"Leave nodes with what they boot; publish later with dsas image publish."`
	Force     bool     `help:"Overwrite files of the definition that were changed since the release was built."`
	Release   string   `arg:"" name:"role" help:"Role, for its newest release, or a release as web:7."`
	Command   []string `arg:"" optional:"" passthrough:"" help:"Command to run there, after --; none: a shell."`
}

// Help tells what becomes of it.
func (*imageEditCmd) Help() string {
	return `Opens a shell as root in a copy of the role's tree. When it ends with status 0,
what changed is shown, what you choose is written into the role's definition
folder, and a release is built, as with dsas image capture. With any other status
(exit 1) nothing is changed. Packages belong into role.yaml.

Examples:

    dsas image edit web
    dsas image edit web --yes -- sed -i 's/worker_connections .*/worker_connections 4096;/' /etc/nginx/nginx.conf
    dsas image edit web:6 --network`
}

// Run implements the command.
func (cmd *imageEditCmd) Run(ctx context.Context, a *app) error {
	if len(cmd.Command) > 0 && cmd.Command[0] == "--" {
		cmd.Command = cmd.Command[1:]
	}
	ref, err := releaseRef(cmd.Release)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("edit %s: a role's tree has files of many owners: run it with sudo: %w", cmd.Release, dsas.ErrDenied)
	}
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	car, err := newCarrier(ctx, a, cfg, ref)
	if err != nil {
		return err
	}
	defer car.letGo()
	car.of, car.patterns, car.all, car.dry, car.force, car.noBuild, car.noPublish = "the tree of "+car.rel.Name(), cmd.Path, cmd.Yes, cmd.DryRun, cmd.Force, cmd.NoBuild, cmd.NoPublish
	cache, err := filepath.Abs(cfg.path("cache")) // mounts are made from within another folder
	if err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	imagebuild.SweepCache(cache, func(line string) { fmt.Fprintln(a.stderr, clean(line)) })
	work, err := diskio.NewScratch(cache, "edit")
	if err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	// Its mounts were in a namespace that is gone: what is below is our copy.
	defer work.Remove()
	root := filepath.Join(work.Dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	fmt.Fprintf(a.stderr, "unpacking %s\n", car.rel.Name())
	if _, err := rootfs.Fetch(ctx, rootfs.Options{Client: &http.Client{Transport: storeTransport{car.store}}, BaseURL: "http://store", Manifest: car.rel.Manifest, Dest: root}); err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	// As it was unpacked, before somebody's hands: a file system may keep less
	// than a layer says.
	want, err := car.tree(ctx)
	if err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	car.letGo() // from here on all is here; what is done by hand may take hours
	argv := cmd.Command
	if len(argv) == 0 {
		argv = []string{editShell(root)}
		fmt.Fprintf(a.stderr, "exit keeps what you change, exit 1 throws it away\n")
	}
	err = imagebuild.Shell(ctx, imagebuild.Options{Cache: cache}, imagebuild.ShellOptions{
		Root: root, Lock: work.Lock, Command: argv, Network: cmd.Network, Stdin: a.stdin, Stdout: a.stderr, Stderr: a.stderr,
	})
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("edit %s: %s ended with %w: nothing is changed", car.rel.Name(), argv[0], exit)
	}
	if err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	got, err := capture.ReadFolder(root)
	if err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	car.rules.Unheld = xattr.Unheld(root)
	if err := got.SumLocal(root, capture.Doubtful(want, got, car.rules)); err != nil {
		return fmt.Errorf("edit %s: %w", car.rel.Name(), err)
	}
	return car.carry(ctx, want, got, func(chosen []capture.Change) (map[string]capture.Content, error) {
		return capture.ReadLocal(root, chosen)
	})
}

// editShell is the user's shell where the tree has it, else what every Debian has.
func editShell(root string) string {
	if s := os.Getenv("SHELL"); path.IsAbs(s) && isProgram(filepath.Join(root, s)) {
		return s
	}
	return "/bin/bash"
}

// storeTransport answers requests for blobs out of the store on this machine.
type storeTransport struct{ store *blobs.Store }

// RoundTrip implements http.RoundTripper.
func (t storeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	f, n, err := t.store.Blob(dsas.Digest(path.Base(r.URL.Path)))
	if err != nil {
		return nil, err
	}
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: n, Body: f, Request: r, Header: http.Header{}}, nil
}
