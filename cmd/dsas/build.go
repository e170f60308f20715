package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dsas"
	"dsas/imagebuild"
	"dsas/roles"
	"dsas/server/blobs"
)

// buildRequest is what dsas image build was asked for.
type buildRequest struct {
	Roles   []string
	All     bool
	Refresh bool
	Allow   []dsas.Allow
	// NoPublish leaves nodes with what they boot: somebody publishes later.
	NoPublish bool
	Progress  func(string)
	Fraction  func(done, total int64)
}

func (r *buildRequest) say(line string) {
	if r.Progress != nil {
		r.Progress(line)
	}
}

// built is what it made.
type built struct {
	Boot     dsas.BootSet   `json:"boot"`
	Releases []dsas.Release `json:"releases"`
	// Reports tell what else is to be known of the images; Findings why one
	// was not made.
	Reports  []imagebuild.Report  `json:"reports,omitempty"`
	Findings []imagebuild.Finding `json:"findings,omitempty"`
}

// buildImages builds the kernel and initramfs and a release of each role into
// the state folder's store, and proposes these: a server publishes them when it
// looks, or starts.
func buildImages(ctx context.Context, cfg config, req buildRequest) (built, error) {
	var out built
	cfg.setDefaults()
	set, err := roles.Load(cfg.Roles)
	if set == nil {
		return out, err
	}
	names := req.Roles
	if req.All {
		if err != nil {
			return out, err
		}
		for _, r := range set.Roles() {
			names = append(names, r.Name)
		}
	}
	defs := make([]roles.Definition, 0, len(names))
	for _, n := range names { // all are checked before the first is built
		def, getErr := set.Get(n)
		if getErr != nil {
			return out, errors.Join(getErr, err)
		}
		defs = append(defs, def)
	}
	if err := makeImages(cfg); err != nil {
		return out, err
	}
	store, letGo, err := holdImages(ctx, cfg, req.say)
	if err != nil {
		return out, err
	}
	defer letGo()
	initPath, err := nodeProgram("dsas-init")
	if err != nil {
		return out, err
	}
	bbPath, err := nodeProgram("bb")
	if err != nil {
		return out, err
	}
	keys := cfg.signingFolder()
	trusted, signers, err := releaseKeys(keys, req.say)
	if err != nil {
		return out, err
	}
	opt := buildOptions(cfg, store, req.Progress)
	opt.InitPath, opt.BBPath, opt.Keys = initPath, bbPath, initramfsKeys(trusted)
	opt.Refresh, opt.Fraction, opt.Allow = req.Refresh, req.Fraction, req.Allow
	opt.Report = func(r imagebuild.Report) { out.Reports = append(out.Reports, r) }
	if out.Boot, err = imagebuild.BuildBoot(ctx, opt); err != nil {
		return out, err
	}
	var failed []error
	for _, def := range defs {
		frozen, err := roles.Freeze(def)
		if err != nil {
			return out, errors.Join(append(failed, err)...)
		}
		r, err := imagebuild.BuildRole(ctx, opt, imagebuild.Definition{Role: def.Role, FS: def.FS, Frozen: frozen, Lock: lockOf(def)}, out.Boot)
		// What the checks find in one role does not hide what they find in the next.
		if found := (*imagebuild.CheckError)(nil); errors.As(err, &found) {
			out.Findings = append(out.Findings, found.Findings...)
			failed = append(failed, err)
			continue
		}
		if err != nil {
			return out, errors.Join(append(failed, err)...)
		}
		out.Releases = append(out.Releases, r)
	}
	if err := signBuilt(ctx, store, keys, signers, out.Releases, req.say); err != nil {
		return out, errors.Join(append(failed, err)...)
	}
	if len(failed) > 0 || req.NoPublish {
		return out, errors.Join(failed...)
	}
	for _, r := range out.Releases { // once all are built
		if err := store.Propose(r.ID); err != nil {
			return out, err
		}
	}
	return out, nil
}

// buildOptions are those of whatever builds into the state folder: all of them
// keep to the same locks, and so to the kernel that was asked for.
func buildOptions(cfg config, store *blobs.Store, say func(string)) imagebuild.Options {
	opt := imagebuild.Options{Cache: cfg.path("cache"), Locks: cfg.path("locks"), Etc: cfg.Apt, Progress: say}
	if store != nil { // else it would be a Store that is not nil
		opt.Store = store
	}
	return opt
}

// makeImages makes the image store where there is none yet: for who puts the first
// release into it.
func makeImages(cfg config) error {
	_, err := blobs.Open(cfg.path("images"))
	return err
}

// openImages opens an image store that is there. Of a slip in --state nothing is
// made.
func openImages(cfg config) (*blobs.Store, error) {
	dir := cfg.path("images")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no image store %s: name the server's state folder with --state (DSAS_STATE); the first dsas image build makes one: %w", dir, dsas.ErrNotFound)
	}
	return blobs.Open(dir)
}

// holdImages opens the image store, and keeps dsas image gc from removing anything
// until letGo is called: for who puts releases into it, of which what is there
// already, or comes first, may belong to no release now; and for who reads a
// release that nobody may be using. It needs no right to write there.
func holdImages(ctx context.Context, cfg config, say func(string)) (store *blobs.Store, letGo func(), err error) {
	if store, err = openImages(cfg); err != nil {
		return nil, nil, err
	}
	letGo, err = store.Hold(ctx, func(users []string) {
		say(clean(strings.TrimSuffix("waiting for dsas image gc: "+strings.Join(users, ", "), ": ")))
	})
	return store, letGo, err
}

// lockOf is where the lock of a role's packages is: beside the definition of a
// user's own, so that it goes with it; "" for a shipped one's, in the state folder.
func lockOf(def roles.Definition) string {
	if def.Source == roles.SourceShipped {
		return ""
	}
	return filepath.Join(def.Source, roles.LockFile)
}

// nodeProgram finds a program that goes into the initramfs: installed in
// lib/dsas beside our own bin folder or below /usr, or as make built it beside
// a checkout's bin folder.
func nodeProgram(name string) (string, error) {
	places := []string{"/usr/lib/dsas"}
	if lib := os.Getenv("DSAS_LIB"); lib != "" {
		places = []string{lib}
	} else if exe, err := os.Executable(); err == nil {
		bin := filepath.Dir(exe)
		places = append([]string{filepath.Join(bin, "..", "build"), filepath.Join(bin, "..", "lib", "dsas")}, places...)
	}
	for _, dir := range places {
		if p := filepath.Join(dir, name); isProgram(p) {
			return filepath.Abs(p)
		}
	}
	return "", fmt.Errorf("%s, which goes into the initramfs, is in none of %v; build it with: make build, install it with: make install: %w", name, places, dsas.ErrNotFound)
}

func isProgram(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
