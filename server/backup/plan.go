package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dsas"
	"dsas/internal/diskio"
)

// StageName is the folder, below the state folder, in which a restore is
// prepared.
const StageName = "restore.new"

const planName = "plan.json"

// Item is one file or link that a restore puts in its place, or, with neither a
// Staged name nor a Link, takes away from there.
type Item struct {
	Staged string      `json:"staged,omitempty"` // below the stage
	Link   string      `json:"link,omitempty"`   // a symbolic link to there, which is staged nowhere
	To     string      `json:"to"`               // absolute
	Mode   os.FileMode `json:"mode,omitempty"`
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
	Aside  string      `json:"aside"` // below the folder for what was there
}

// Plan says how a restore goes on once everything is there and checked. From
// the moment it is on disk it is only ever carried out to its end: so a
// restore that is killed leaves the old state before that moment, and after it
// one that Finish makes whole.
type Plan struct {
	Aside string `json:"aside"` // absolute; gets what was there before
	Items []Item `json:"items"`
}

// Commit writes the plan into the stage. Everything staged is on disk before.
func Commit(stage string, p Plan) error {
	for _, i := range p.Items {
		if i.Staged == "" {
			continue
		}
		if err := syncFile(filepath.Join(stage, i.Staged)); err != nil {
			return fmt.Errorf("commit restore: %w", err)
		}
	}
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("commit restore: %w", err)
	}
	tmp := filepath.Join(stage, planName+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("commit restore: %w", err)
	}
	if err := errors.Join(syncFile(tmp), os.Rename(tmp, filepath.Join(stage, planName)), diskio.SyncDir(stage)); err != nil {
		return fmt.Errorf("commit restore: %w", err)
	}
	return nil
}

// Pending tells whether the stage holds a committed plan.
func Pending(stage string) (bool, error) {
	_, err := os.Stat(filepath.Join(stage, planName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an interrupted restore: %w", err)
	}
	return true, nil
}

// Finish carries out the stage's plan and removes the stage. It may be killed
// at any moment and called again: each step can be done twice. step, where it
// is not nil, is called before each.
func Finish(stage string, step func(string)) (Plan, error) {
	if step == nil {
		step = func(string) {}
	}
	var p Plan
	b, err := os.ReadFile(filepath.Join(stage, planName))
	if err != nil {
		return p, fmt.Errorf("finish restore: %w", err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("finish restore: %s: %w: %w", planName, err, dsas.ErrInvalid)
	}
	if err := os.MkdirAll(p.Aside, 0o700); err != nil {
		return p, fmt.Errorf("finish restore: %w", err)
	}
	for _, i := range p.Items {
		if err := place(stage, p.Aside, i, step); err != nil {
			return p, fmt.Errorf("finish restore: %s: %w", i.To, err)
		}
	}
	step("forget plan")
	// The plan first: what is left of a stage without one is rubbish.
	if err := errors.Join(os.Remove(filepath.Join(stage, planName)), diskio.SyncDir(stage), os.RemoveAll(stage)); err != nil {
		return p, fmt.Errorf("finish restore: %w", err)
	}
	return p, nil
}

func place(stage, aside string, i Item, step func(string)) error {
	old := filepath.Join(aside, i.Aside)
	if _, err := os.Lstat(old); errors.Is(err, os.ErrNotExist) {
		step("keep " + i.To)
		if err := keep(i.To, old); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	step("place " + i.To)
	if i.Staged == "" && i.Link == "" {
		if err := os.Remove(i.To); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return diskio.SyncDir(filepath.Dir(i.To))
	}
	if err := os.MkdirAll(filepath.Dir(i.To), 0o755); err != nil {
		return err
	}
	tmp := i.To + ".restored"
	if i.Link != "" {
		if err := link(i.Link, tmp); err != nil {
			return err
		}
	} else if err := copyFile(filepath.Join(stage, i.Staged), tmp, i.Mode.Perm(), i.UID, i.GID); err != nil {
		return err
	}
	step("rename " + i.To)
	if err := os.Rename(tmp, i.To); err != nil {
		return err
	}
	return diskio.SyncDir(filepath.Dir(i.To))
}

// keep copies what is at path to old, whole or not at all: the original stays
// until what replaces it is renamed over it.
func keep(path, old string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	isLink := st.Mode().Type() == os.ModeSymlink
	if !st.Mode().IsRegular() && !isLink {
		return fmt.Errorf("it is neither file nor link; move it away first: %w", dsas.ErrConflict)
	}
	if err := os.MkdirAll(filepath.Dir(old), 0o700); err != nil {
		return err
	}
	if isLink {
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := link(to, old+".part"); err != nil {
			return err
		}
	} else if err := copyFile(path, old+".part", st.Mode().Perm(), -1, -1); err != nil {
		return err
	}
	if err := os.Rename(old+".part", old); err != nil {
		return err
	}
	return diskio.SyncDir(filepath.Dir(old))
}

// link makes a symbolic link, in place of what a killed restore left there.
func link(target, at string) error {
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, at)
}

// copyFile leaves the whole file on disk, or an error.
func copyFile(from, to string, mode os.FileMode, uid, gid int) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
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
	if uid >= 0 {
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	return errors.Join(out.Chmod(mode), out.Sync(), out.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
