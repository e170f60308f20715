package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"dsas"
	"dsas/server/backup"
	"dsas/server/blobs"
	"dsas/server/store"
)

type restoreRequest struct {
	Config     config
	ConfigPath string
	File       string
	DryRun     bool
	Force      bool
	NoConfig   bool
	Identities backup.Identities
}

// restored is what a restore did, or would do.
type restored struct {
	Backup   backup.Manifest `json:"backup"`
	Nodes    int             `json:"nodes"`
	Places   []string        `json:"places"`            // files that are put in place
	Replaced []string        `json:"replaced"`          // those of them that were there
	Aside    string          `json:"aside,omitempty"`   // where what was there is kept
	Missing  []string        `json:"missing,omitempty"` // roles whose images have to be built
}

func (r restored) print(a *app, dry bool) {
	did := "restored"
	if dry {
		did = "would restore"
	}
	a.printf("%s %s, as %s was at %s\n", did, dsas.Count(r.Nodes, "node"), clean(r.Backup.Host), r.Backup.Created.Local().Format(time.DateTime))
	for _, p := range r.Places {
		note := ""
		if slices.Contains(r.Replaced, p) {
			note = "  (replaced)"
		}
		a.printf("  %s%s\n", clean(p), note)
	}
	if len(r.Replaced) > 0 && !dry {
		a.printf("what was there is in %s\n", r.Aside)
	}
	if len(r.Missing) > 0 {
		a.printf("images are not here; build them: dsas image build %s\n", clean(strings.Join(r.Missing, " ")))
	}
}

// identities gives what the flags name, when an encrypted backup is met.
func (c *restoreCmd) identities(a *app) backup.Identities {
	return func() ([]age.Identity, error) {
		switch {
		case c.Identity != "":
			b, err := a.readFile(c.Identity, maxTokenFile)
			if err != nil {
				return nil, fmt.Errorf("read identity: %w", err)
			}
			ids, err := age.ParseIdentities(strings.NewReader(string(b)))
			if err != nil {
				return nil, usagef("--identity %s: no age identity: %w; it is the file that age-keygen wrote", c.Identity, err)
			}
			return ids, nil
		case c.PassphraseFile != "":
			pass, err := a.passphrase(c.PassphraseFile)
			if err != nil {
				return nil, err
			}
			id, err := age.NewScryptIdentity(pass)
			return []age.Identity{id}, err
		}
		pass, err := a.askSecret("Passphrase of the backup: ")
		if err != nil {
			return nil, err
		}
		if pass == "" {
			return nil, usagef("the backup is encrypted: give --identity FILE or --passphrase-file FILE")
		}
		id, err := age.NewScryptIdentity(pass)
		return []age.Identity{id}, err
	}
}

// noPendingRestore refuses a state folder in which a restore was interrupted.
func noPendingRestore(state string) error {
	pending, err := backup.Pending(filepath.Join(state, backup.StageName))
	if err == nil && pending {
		err = fmt.Errorf("a restore was interrupted, and %s is partly old and partly new; make it whole with: dsas restore --finish: %w", state, dsas.ErrConflict)
	}
	return err
}

// finishRestore carries an interrupted restore to its end.
func finishRestore(cfg config) (aside string, err error) {
	stage := cfg.path(backup.StageName)
	if pending, err := backup.Pending(stage); err != nil {
		return "", err
	} else if !pending {
		return "", fmt.Errorf("no restore was interrupted in %s: %w", cfg.State, dsas.ErrNotFound)
	}
	unlock, err := lockState(cfg.State)
	if err != nil {
		return "", err
	}
	defer unlock()
	p, err := backup.Finish(stage, restoreStep)
	return p.Aside, err
}

// restoreStep is called before each step that changes something in place.
var restoreStep func(string)

// restoreBackup puts a backup in place.
func restoreBackup(ctx context.Context, req restoreRequest) (out restored, err error) {
	cfg := req.Config
	if _, err := os.Stat(req.File); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	owner, err := stateOwner(cfg.State)
	if err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	stage := cfg.path(backup.StageName)
	if req.DryRun {
		// Beside nothing of ours: a dry run leaves no trace.
		if stage, err = os.MkdirTemp("", "dsas-restore-"); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
		defer os.RemoveAll(stage)
	} else {
		if err := makeState(cfg.State, owner); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
		unlock, err := lockState(cfg.State)
		if err != nil {
			return out, err
		}
		defer unlock()
		if err := os.Lchown(cfg.path("serve.lock"), owner.uid, owner.gid); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
		if err := noPendingRestore(cfg.State); err != nil {
			return out, err
		}
		if err := os.RemoveAll(stage); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
		if err := os.Mkdir(stage, 0o700); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
		defer func() {
			if pending, e := backup.Pending(stage); e == nil && !pending {
				os.RemoveAll(stage)
			}
		}()
	}
	r := restorer{req: req, stage: stage, owner: owner}
	if out, err = r.run(ctx); err != nil {
		return out, fmt.Errorf("restore %s: %w", req.File, err)
	}
	return out, nil
}

type restorer struct {
	req   restoreRequest
	stage string
	owner owner
	blobs *blobs.Store
	m     backup.Manifest
}

func (r *restorer) run(ctx context.Context) (out restored, err error) {
	f, err := os.Open(r.req.File)
	if err != nil {
		return out, err
	}
	defer f.Close()
	if !r.req.DryRun {
		if r.blobs, err = blobs.Open(r.req.Config.path("images")); err != nil {
			return out, err
		}
	}
	if r.m, err = backup.Read(ctx, f, r.req.Identities, func(f backup.File, in io.Reader) error { return r.take(ctx, f, in) }); err != nil {
		return out, err
	}
	out.Backup = r.m
	if out.Nodes, err = store.CheckSnapshot(ctx, filepath.Join(r.stage, "state", "dsas.db"), filepath.Join(r.stage, "state", "key")); err != nil {
		return out, err
	}
	plan, err := r.plan()
	if err != nil {
		return out, err
	}
	for _, i := range plan.Items {
		if i.Staged == "" && i.Link == "" {
			continue
		}
		out.Places = append(out.Places, i.To)
		if d, err := r.compare(i); err != nil {
			return out, err
		} else if d == differs {
			out.Replaced = append(out.Replaced, i.To)
		}
	}
	out.Aside = plan.Aside
	out.Missing = r.missing()
	if r.req.DryRun {
		return out, nil
	}
	if len(out.Replaced) > 0 && !r.req.Force {
		return out, fmt.Errorf("these are there and differ: %s; --force replaces them and keeps them in %s: %w",
			strings.Join(out.Replaced, ", "), filepath.Dir(plan.Aside), dsas.ErrConflict)
	}
	if err := backup.Commit(r.stage, plan); err != nil {
		return out, err
	}
	_, err = backup.Finish(r.stage, restoreStep)
	return out, err
}

// compare says what is at an item's place, and refuses what cannot be replaced:
// now, not half-way through the files.
func (r *restorer) compare(i backup.Item) (sameness, error) {
	there, err := os.Lstat(i.To)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return differs, err
	}
	if i.Link != "" && there.Mode().Type() == os.ModeSymlink {
		if to, err := os.Readlink(i.To); err != nil || to == i.Link {
			return same, err
		}
		return differs, nil
	}
	if !there.Mode().IsRegular() {
		return differs, fmt.Errorf("%s is no regular file, and would be replaced: move it away first, or use --no-config: %w", i.To, dsas.ErrConflict)
	}
	if i.Link != "" {
		return differs, nil
	}
	return sameFile(filepath.Join(r.stage, i.Staged), i.To)
}

// take puts one file of the backup into the stage, and content by digest into
// the image store, where it harms nobody.
func (r *restorer) take(ctx context.Context, f backup.File, in io.Reader) error {
	if strings.HasPrefix(f.Name, inBlobs+"/") {
		if r.blobs == nil {
			return nil
		}
		d, _, err := r.blobs.Put(ctx, in)
		if err == nil && d != f.Digest {
			err = fmt.Errorf("digest %s, want %s: the backup is damaged: %w", d.Short(), f.Digest.Short(), dsas.ErrInvalid)
		}
		return err
	}
	if f.Link != "" {
		return nil // it is made in its place: nothing may be staged through it
	}
	to := filepath.Join(r.stage, filepath.FromSlash(f.Name))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// plan says what goes where.
func (r *restorer) plan() (backup.Plan, error) {
	cfg := r.req.Config
	p := backup.Plan{Aside: cfg.path("before-restore-" + time.Now().UTC().Format("20060102T150405Z"))}
	// What belongs to the old database goes before the new one comes.
	for _, name := range []string{"dsas.db-wal", "dsas.db-shm"} {
		p.Items = append(p.Items, backup.Item{To: cfg.path(name), Aside: "state/" + name})
	}
	restoredCfg, err := r.restoredConfig()
	if err != nil {
		return p, err
	}
	for _, f := range r.m.Files {
		i := backup.Item{Staged: f.Name, Aside: f.Name, Mode: f.Mode}
		if f.Link != "" {
			i.Staged, i.Link = "", f.Link
		}
		if os.Geteuid() != 0 {
			i.UID, i.GID = r.owner.uid, r.owner.gid // nobody else's can be made
		}
		top, rest, _ := strings.Cut(f.Name, "/")
		switch {
		case top == "state":
			i.To, i.UID, i.GID = cfg.path(rest), r.owner.uid, r.owner.gid
			if rest != "tls.crt" && rest != heldKernel { // who builds may be another user
				i.Mode = 0o600
			}
		case strings.HasPrefix(f.Name, inBlobs+"/"):
			continue
		case top == "images":
			i.To = cfg.path("images", rest)
		case r.req.NoConfig:
			continue
		case top == inRelKeys:
			// The private ones stay root's alone: the server must not be able to sign.
			i.To = filepath.Join(cmp.Or(restoredCfg.Keys, defaultConfigDir+"/keys"), filepath.Base(rest))
			if i.To, err = filepath.Abs(i.To); err != nil {
				return p, err
			}
			p.Items = append(p.Items, i)
			continue
		case f.Name == inConfig:
			i.To = r.req.ConfigPath
		case f.Name == inKeys:
			i.To = cmp.Or(restoredCfg.AuthorizedKeys, defaultConfigDir+"/authorized_keys")
		case f.Name == inConsole:
			i.To = restoredCfg.ConsolePasswordFile
		case top == inRoles:
			i.To = filepath.Join(restoredCfg.Roles, filepath.FromSlash(rest))
		}
		if i.To == "" {
			continue
		}
		if i.To, err = filepath.Abs(i.To); err != nil {
			return p, err
		}
		if there, ok := ownerAndMode(i.To); ok && top == "etc" {
			// Whose it is here was somebody's decision here: of root's own
			// authorized_keys, say.
			i.Mode, i.UID, i.GID = os.FileMode(there.Mode&0o777), int(there.Uid), int(there.Gid)
			if os.Geteuid() != 0 {
				i.UID, i.GID = r.owner.uid, r.owner.gid
			}
			p.Items = append(p.Items, i)
			continue
		}
		if i.Mode&0o077 != 0 || top == "state" {
			p.Items = append(p.Items, i)
			continue
		}
		// Only its owner could read it where it came from: so may the server here.
		i.Mode, i.GID = 0o640, r.owner.gid
		p.Items = append(p.Items, i)
	}
	return p, nil
}

// restoredConfig is the configuration in the backup, which says where further
// files belong; the present one where it has none.
func (r *restorer) restoredConfig() (config, error) {
	if _, ok := r.m.File(inConfig); !ok || r.req.NoConfig {
		return r.req.Config, nil
	}
	c, err := loadConfig(filepath.Join(r.stage, filepath.FromSlash(inConfig)))
	if err != nil {
		return c, err
	}
	if to, err := filepath.Abs(r.req.Config.State); err != nil {
		return c, err
	} else if c.State != "" && filepath.Clean(c.State) != to {
		return c, fmt.Errorf("the configuration in the backup has its state in %s, and this restores to %s, where that server would not look: give --state %s, or --no-config: %w",
			c.State, to, c.State, dsas.ErrConflict)
	}
	c.setDefaults()
	if r.req.Config.Roles != defaultConfigDir+"/roles" {
		c.Roles = r.req.Config.Roles // as the flag says
	}
	if r.req.Config.Keys != defaultConfigDir+"/keys" {
		c.Keys = r.req.Config.Keys
	}
	return c, nil
}

// missing names the roles whose images are not here.
func (r *restorer) missing() (names []string) {
	if r.m.WithImages {
		return nil
	}
	here := r.blobs
	if dir := r.req.Config.path("images"); here == nil { // a dry run makes no folder
		if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
			here, _ = blobs.Open(dir)
		}
	}
	newest := map[string]dsas.Digest{} // they are in the order of their numbers
	for _, rel := range r.m.Releases {
		newest[rel.Role] = rel.ID
	}
	for _, role := range slices.Sorted(maps.Keys(newest)) {
		if here != nil {
			if _, err := here.Release(newest[role]); err == nil {
				continue
			}
		}
		names = append(names, role)
	}
	return names
}

// sameness says how a file that would be put in place compares.
type sameness int

const (
	absent sameness = iota
	same
	differs
)

func sameFile(staged, to string) (sameness, error) {
	there, err := os.Stat(to)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return differs, err
	}
	if st, err := os.Stat(staged); err != nil || st.Size() != there.Size() {
		return differs, err
	}
	b, err := os.ReadFile(to)
	if err != nil {
		return differs, err
	}
	a, err := os.ReadFile(staged)
	if err != nil {
		return differs, err
	}
	if string(a) == string(b) {
		return same, nil
	}
	return differs, nil
}
