// Package loaders brings the boot loaders of Debian's packages to where TFTP
// serves them.
package loaders

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"dsas"
	"dsas/server/boot"
)

// Loader is one file and where it comes from.
type Loader struct {
	Name    string // as TFTP serves it
	Source  string // where the package puts it
	Package string // Debian package
}

// All lists the loaders.
func All() []Loader {
	return []Loader{
		{boot.FileUndionly, "/usr/lib/ipxe/undionly.kpxe", "ipxe"},
		{boot.FileSNPOnly, "/usr/lib/ipxe/snponly.efi", "ipxe"},
		{boot.FileLPXELINUX, "/usr/lib/PXELINUX/lpxelinux.0", "pxelinux"},
		{boot.FileLdlinux, "/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"},
	}
}

// Install copies every loader into dir, which it makes. A file that is the
// same already is left alone; one that changed is replaced by rename, so that
// a transfer that runs keeps reading the old one. All that is missing is named
// in the error.
func Install(dir string) error { return install(dir, All()) }

func install(dir string, list []Loader) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install loaders: %w", err)
	}
	var all error
	for _, l := range list {
		if err := installOne(dir, l); err != nil {
			all = errors.Join(all, err)
		}
	}
	return all
}

func installOne(dir string, l Loader) error {
	b, err := os.ReadFile(l.Source)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("boot loader %s: %s is missing; install it with: apt-get install %s: %w", l.Name, l.Source, l.Package, dsas.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("install loader %s: %w", l.Name, err)
	}
	to := filepath.Join(dir, l.Name)
	if old, err := os.ReadFile(to); err == nil && bytes.Equal(old, b) {
		return nil
	}
	if err := renameio.WriteFile(to, b, 0o644); err != nil {
		return fmt.Errorf("install loader %s: %w", l.Name, err)
	}
	return nil
}
