package imagebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
	"dsas/internal/diskio"
)

// firmwarePackages are Debian's packages with firmware that server NICs and
// storage controllers ask for, and microcode. All are in the component
// non-free-firmware.
var firmwarePackages = []string{
	"amd64-microcode", "firmware-bnx2", "firmware-bnx2x", "firmware-cavium", "firmware-intel-misc", "firmware-mellanox-graphics",
	"firmware-misc-nonfree", "firmware-myricom", "firmware-netronome", "firmware-netxen",
	"firmware-qlogic", "firmware-realtek", "intel-microcode",
}

// firmwarePackage is one that the machine's sources have.
type firmwarePackage struct{ Name, Version string }

// currentFirmware is the state file of findFirmware.
type currentFirmware struct {
	Lists    string // apt.stamp it was found with
	Sources  string
	Packages []firmwarePackage
}

// findFirmware tells which firmware packages the machine's sources have.
func findFirmware(ctx context.Context, opt *Options, a *apt) ([]firmwarePackage, error) {
	state := filepath.Join(opt.Cache, "firmware.json")
	var cur currentFirmware
	if readJSON(state, &cur) && (!opt.Refresh && cur.Sources == key(a.sources) || cur.Lists == a.stamp()) {
		return cur.Packages, nil
	}
	if err := a.need(ctx, false); err != nil {
		return nil, fmt.Errorf("find firmware: %w", err)
	}
	cur = currentFirmware{Lists: a.stamp(), Sources: key(a.sources)}
	out, err := run(a.command(ctx, "apt-cache", append([]string{"policy"}, firmwarePackages...)...))
	if err != nil {
		return nil, fmt.Errorf("find firmware: %w", err)
	}
	name := ""
	for line := range strings.Lines(out) {
		if line[0] != ' ' {
			name = strings.TrimSuffix(strings.TrimSpace(line), ":")
		} else if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok && v != "(none)" {
			cur.Packages = append(cur.Packages, firmwarePackage{name, v})
		}
	}
	slices.SortFunc(cur.Packages, func(a, b firmwarePackage) int { return strings.Compare(a.Name, b.Name) })
	return cur.Packages, writeJSON(state, cur)
}

// buildFirmware makes the second cpio: the files that the initramfs's modules
// name in their .modinfo, as far as Debian has them, and in front of it,
// uncompressed as the kernel wants it that early, the processors' microcode
// (Documentation/arch/x86/microcode.rst). The loader must name this part
// before the initramfs. Nil where there is no package.
func buildFirmware(ctx context.Context, opt *Options, a *apt, pkgs []firmwarePackage, set *moduleSet, mods []string) (*dsas.Part, error) {
	if len(pkgs) == 0 {
		opt.say("no firmware: apt's sources lack the component non-free-firmware (some NICs need it)")
		return nil, nil
	}
	work, err := diskio.NewScratch(opt.Cache, "firmware")
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	defer work.Remove()
	tmp := work.Dir
	for _, p := range pkgs {
		opt.say("downloading %s %s", p.Name, p.Version)
		deb, err := a.download(ctx, p.Name, p.Version)
		if err != nil {
			return nil, fmt.Errorf("firmware: %w", err)
		}
		_, err = run(command(ctx, "dpkg-deb", "-x", deb, tmp))
		os.RemoveAll(filepath.Dir(deb))
		if err != nil {
			return nil, fmt.Errorf("firmware: %w", err)
		}
	}
	early, late, err := pickFirmware(tmp, set, mods)
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	var front bytes.Buffer
	if len(early.entries) > 0 {
		if err := early.write(&front); err != nil {
			return nil, fmt.Errorf("firmware: %w", err)
		}
	}
	part, err := putCpios(ctx, opt, front.Bytes(), "firmware", late)
	if err != nil {
		return nil, err
	}
	opt.say("firmware: %d files, %.1f MiB", len(late.list("lib/firmware/")), mib(part.Size))
	return &part, nil
}

// pickFirmware chooses from the unpacked packages in root.
func pickFirmware(root string, set *moduleSet, mods []string) (early, late *archive, err error) {
	early, late = newArchive(), newArchive()
	bases := []string{"lib/firmware", "usr/lib/firmware"}
	for _, m := range mods {
		for _, want := range set.Firmware[m] {
			for _, base := range bases {
				// A name may be a pattern (MODULE_FIRMWARE("qed/*.bin")).
				found, err := filepath.Glob(filepath.Join(root, base, want))
				if err != nil {
					return nil, nil, fmt.Errorf("module %s wants %q: %w", m, want, err)
				}
				for _, f := range found {
					rel, err := filepath.Rel(filepath.Join(root, base), f)
					if err != nil || !filepath.IsLocal(rel) {
						return nil, nil, fmt.Errorf("module %s wants %q, which leads out of the firmware folder: %w", m, want, dsas.ErrInvalid)
					}
					// The content, where it is a link: its target may not be picked.
					r, err := openRegular(f)
					if errors.Is(err, fs.ErrNotExist) {
						continue
					}
					if err != nil {
						return nil, nil, err
					}
					r.Close()
					late.copy("lib/firmware/"+rel, 0o644, f)
				}
			}
		}
	}
	for folder, file := range map[string]string{"intel-ucode": "GenuineIntel.bin", "amd-ucode": "AuthenticAMD.bin"} {
		var all []byte
		for _, base := range bases {
			found, _ := filepath.Glob(filepath.Join(root, base, folder, "*"))
			for _, f := range found {
				// README and signatures are no microcode.
				if strings.HasSuffix(f, ".asc") || strings.Contains(filepath.Base(f), "README") {
					continue
				}
				b, err := os.ReadFile(f)
				if err != nil {
					return nil, nil, err
				}
				all = append(all, b...)
			}
		}
		if len(all) > 0 {
			early.file("kernel/x86/microcode/"+file, 0o644, all)
		}
	}
	return early, late, nil
}

// openRegular opens a file of any kind that reads like one, not a folder.
func openRegular(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", name, dsas.ErrInvalid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
