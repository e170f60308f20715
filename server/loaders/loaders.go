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
	// Set names the optional loaders that are fetched together; "": the server
	// does not run without it.
	Set  string
	arch string // Debian's name of the architecture, of a package of a set
}

// The sets of optional loaders.
const (
	SecureBoot = "secureboot" // shim and GRUB for x64, as Debian signs them
	ARM64      = "arm64"      // the same for arm64
)

// Sets lists them.
func Sets() []string { return []string{SecureBoot, ARM64} }

// All lists the loaders.
func All() []Loader {
	return []Loader{
		{Name: boot.FileUndionly, Source: "/usr/lib/ipxe/undionly.kpxe", Package: "ipxe"},
		{Name: boot.FileSNPOnly, Source: "/usr/lib/ipxe/snponly.efi", Package: "ipxe"},
		{Name: boot.FileLPXELINUX, Source: "/usr/lib/PXELINUX/lpxelinux.0", Package: "pxelinux"},
		{Name: boot.FileLdlinux, Source: "/usr/lib/syslinux/modules/bios/ldlinux.c32", Package: "syslinux-common"},
		{boot.FileShimX64, "/usr/lib/shim/shimx64.efi.signed", "shim-signed", SecureBoot, "amd64"},
		{boot.FileGRUBX64, "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "grub-efi-amd64-signed", SecureBoot, "amd64"},
		{boot.FileShimARM64, "/usr/lib/shim/shimaa64.efi.signed", "shim-signed", ARM64, "arm64"},
		{boot.FileGRUBARM64, "/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed", "grub-efi-arm64-signed", ARM64, "arm64"},
	}
}

// Install copies every loader into dir, which it makes. A file that is the
// same already is left alone; one that changed is replaced by rename, so that
// a transfer that runs keeps reading the old one. All that is missing is named
// in the error. An optional one that this machine has not installed is left as
// Fetch put it there.
func Install(dir string) error { return install(dir, All()) }

func install(dir string, list []Loader) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install loaders: %w", err)
	}
	var all error
	for _, l := range list {
		err := installOne(dir, l)
		if l.Set != "" && errors.Is(err, dsas.ErrNotFound) {
			continue
		}
		if err != nil {
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
	if err := put(to, b); err != nil {
		return fmt.Errorf("install loader %s: %w", l.Name, err)
	}
	return nil
}

// put replaces a loader's file by one that everybody may read, whatever the
// umask and the mode of the old one: root fetches what the server's user serves.
func put(path string, b []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup() // nothing after the rename
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func installed(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// State is what there is of a loader.
type State struct {
	Loader
	Size   int64  // bytes; 0: it is not there
	Remedy string // the command that brings it, where it is not there
}

// List tells of every loader whether dir has it.
func List(dir string) ([]State, error) {
	var out []State
	for _, l := range All() {
		st := State{Loader: l}
		fi, err := os.Stat(filepath.Join(dir, l.Name))
		switch {
		case err == nil:
			st.Size = fi.Size()
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("list loaders: %w", err)
		case l.Set != "":
			st.Remedy = "dsas loader fetch " + l.Set
		case installed(l.Source):
			st.Remedy = "start the server, which copies it"
		default:
			st.Remedy = "apt-get install " + l.Package + ", and start the server anew"
		}
		out = append(out, st)
	}
	return out, nil
}
