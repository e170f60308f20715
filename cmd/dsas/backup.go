package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/internal/signing"
	"dsas/server/backup"
	"dsas/server/blobs"
	"dsas/server/store"
)

// Names within a backup.
const (
	inConfig  = "etc/dsas.yaml"
	inKeys    = "etc/authorized_keys"
	inConsole = "etc/console-password"
	inRoles   = "roles"
	inRelKeys = "keys"
	inImages  = "images"
	inBlobs   = "images/blobs/sha256"
)

// heldKernel names, in the state folder, the kernel that builds keep, since the
// newest did harm: a machine that takes over must not go back to that.
const heldKernel = "locks/kernel.lock"

// stateFiles are what a backup holds of the state folder beside dsas.db.
var stateFiles = []string{"key", "tls.crt", "tls.key", heldKernel}

type backupRequest struct {
	Config     config
	ConfigPath string
	File       string
	Images     bool
	Recipients []age.Recipient
	Warn       func(line string)
}

// makeBackup writes a backup of the state, of a server that may be running.
func makeBackup(ctx context.Context, req backupRequest) (backup.Manifest, error) {
	cfg := req.Config
	host, err := os.Hostname()
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("back up: %w", err)
	}
	m := backup.Manifest{Version: versionText(), Created: time.Now().UTC().Truncate(time.Second), Host: host, Config: req.ConfigPath, WithImages: req.Images}
	fail := func(err error) (backup.Manifest, error) { return m, fmt.Errorf("back up: %w", err) }
	if err := noPendingRestore(cfg.State); err != nil {
		return fail(err)
	}
	if _, err := os.Stat(cfg.path("dsas.db")); err != nil {
		return fail(fmt.Errorf("%w; --state says where the state is", err))
	}
	tmp, done, err := backupFolder(cfg.path("backup.tmp"))
	if err != nil {
		return fail(err)
	}
	defer done()
	// The key before the database: a key is made once, and never after the
	// secrets that it seals.
	for _, name := range stateFiles {
		if err := m.Add("state/"+name, cfg.path(name)); err != nil {
			return fail(err)
		}
	}
	if _, ok := m.File("state/key"); !ok {
		return fail(fmt.Errorf("key %s is missing: %w", cfg.path("key"), dsas.ErrNotFound))
	}
	copied := filepath.Join(tmp, "dsas.db")
	if m.Schema, err = store.Snapshot(ctx, cfg.path("dsas.db"), copied); err != nil {
		return fail(err)
	}
	if err := m.Add("state/dsas.db", copied); err != nil {
		return fail(err)
	}
	if err := addConfig(&m, req); err != nil {
		return fail(err)
	}
	if req.Images {
		_, letGo, err := holdImages(ctx, cfg, func(string) {})
		if err != nil {
			return fail(err)
		}
		defer letGo()
	}
	if err := addImages(&m, cfg.path("images"), req.Images); err != nil {
		return fail(err)
	}
	if err := backup.WriteFile(ctx, req.File, m, req.Recipients); err != nil {
		return fail(err)
	}
	return m, nil
}

// backupFolder makes an empty folder for the copy of the database, for one
// backup at a time; what a killed one left there goes.
func backupFolder(dir string) (path string, done func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, err
	}
	// What is around it is the server's, and this may be root: nothing is written
	// through what the server's user put there.
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", nil, err
	} else if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return "", nil, fmt.Errorf("%s is no folder that user %s made for a backup; remove it: %w", dir, userName(os.Geteuid()), dsas.ErrConflict)
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return "", nil, fmt.Errorf("another backup is being made (%s is locked): %w", dir, dsas.ErrConflict)
	}
	for _, name := range []string{"dsas.db", "dsas.db-journal"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.Close()
			return "", nil, err
		}
	}
	return dir, func() {
		os.RemoveAll(dir)
		d.Close()
	}, nil
}

func addConfig(m *backup.Manifest, req backupRequest) error {
	keys := req.Config.AuthorizedKeys
	if keys == "" {
		keys = defaultConfigDir + "/authorized_keys"
	}
	for name, path := range map[string]string{inConfig: req.ConfigPath, inKeys: keys, inConsole: req.Config.ConsolePasswordFile} {
		if path == "" {
			continue
		}
		if err := m.Add(name, path); err != nil {
			return err
		}
	}
	if err := addReleaseKeys(m, req); err != nil {
		return err
	}
	return m.AddTree(inRoles, req.Config.Roles, func(path string) {
		req.Warn(path + " is neither file, link nor folder, and not in the backup")
	})
}

// addReleaseKeys puts in the keys of releases. Who is not root gets the public
// ones: the server must not be able to sign.
func addReleaseKeys(m *backup.Manifest, req backupRequest) error {
	entries, err := os.ReadDir(req.Config.Keys)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != signing.PubExt && ext != signing.KeyExt {
			continue
		}
		path := filepath.Join(req.Config.Keys, e.Name())
		err := m.Add(inRelKeys+"/"+e.Name(), path)
		if errors.Is(err, fs.ErrPermission) {
			req.Warn(path + " is root's, and not in the backup: make it as root, or releases cannot be signed after a restore")
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addImages lists the releases, and with content adds all of them.
func addImages(m *backup.Manifest, dir string, content bool) error {
	have, err := blobs.Open(dir)
	if err != nil {
		return err
	}
	if m.Releases, err = have.Releases(); err != nil || !content {
		return err
	}
	// The index as it is now: what a build adds meanwhile is not in it.
	for _, name := range []string{"oci-layout", "index.json"} {
		if err := m.Add(inImages+"/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	seen := map[dsas.Digest]bool{}
	for i := range m.Releases {
		if r := m.Releases[i]; r.Damaged != "" {
			return fmt.Errorf("%s; dsas image gc removes a damaged one that nobody uses, and a backup without images leaves all out: %w", r.Damaged, dsas.ErrConflict)
		}
		list, err := have.Content(&m.Releases[i])
		if err != nil {
			return err
		}
		for _, d := range list {
			if seen[d] {
				continue
			}
			seen[d] = true
			path := filepath.Join(dir, "blobs", "sha256", d.Hex())
			fi, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("release %s: %w", m.Releases[i].Name(), err)
			}
			m.AddBlob(inBlobs+"/"+d.Hex(), path, d, fi.Size())
		}
	}
	return nil
}
