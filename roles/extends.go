package roles

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dsas"
)

// extended gives what a role.yaml with extends: lies over.
func extended(name, what string) (fs.FS, error) {
	if what != SourceShipped {
		return nil, fmt.Errorf("extends %q: write %s, or leave it out for a definition that stands alone: %w", what, SourceShipped, dsas.ErrInvalid)
	}
	if _, err := fs.Stat(shipped, name+"/"+roleFile); err != nil {
		return nil, fmt.Errorf("extends %s: no role %s comes with the program; leave extends out: %w", SourceShipped, name, dsas.ErrInvalid)
	}
	dir, err := fs.Sub(shipped, name)
	return modeFS{dir}, err
}

// extend is merge, where role has only what differs from under.
func extend(under, role dsas.Role) dsas.Role {
	out := merge(under, role)
	out.Description = cmp.Or(role.Description, under.Description)
	out.Memory = cmp.Or(role.Memory, under.Memory)
	out.CarriesSites = role.CarriesSites || under.CarriesSites
	out.Erases = role.Erases || under.Erases
	if role.DHCP == nil {
		out.DHCP = under.DHCP
	}
	return out
}

// Folder gives the folder of a role's definition below userDir, where it can be
// written. Of a shipped role one is made that extends it, so that what is put
// there lies over what is shipped, now and after an upgrade of the program.
func Folder(userDir string, def Definition) (dir string, made bool, err error) {
	if def.Source != SourceShipped {
		return def.Source, false, nil
	}
	if err := dsas.CheckName("role", def.Role.Name); err != nil {
		return "", false, err
	}
	dir = filepath.Join(userDir, def.Role.Name)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("definition of role %s: %s is there, and was not when the definitions were read: try again: %w", def.Role.Name, dir, dsas.ErrConflict)
	}
	if err := os.MkdirAll(userDir, 0o755); err != nil {
		return "", false, fmt.Errorf("definition of role %s: %w", def.Role.Name, err)
	}
	// Whole or not at all: a server that starts now must not find half of it.
	tmp, err := os.MkdirTemp(userDir, ".dsas-new-")
	if err != nil {
		return "", false, fmt.Errorf("definition of role %s: %w", def.Role.Name, err)
	}
	defer os.RemoveAll(tmp) // fails after the rename, as it should
	text := fmt.Sprintf("# What stands in this folder lies over the role that comes with dsas.\nname: %s\nextends: %s\n", def.Role.Name, SourceShipped)
	if err = os.WriteFile(filepath.Join(tmp, roleFile), []byte(text), 0o644); err == nil {
		err = os.Chmod(tmp, 0o755)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return "", false, fmt.Errorf("definition of role %s: %w", def.Role.Name, err)
	}
	return dir, true, nil
}
