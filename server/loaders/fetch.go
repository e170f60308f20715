package loaders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
)

// Fetch gets the packages of the named sets by the machine's own apt (its
// sources, its keys), unpacks them and puts their loaders into dir. Nothing is
// installed: shim-signed's maintainer scripts run grub-install on a machine
// that boots by UEFI, and arm64's packages are another architecture's. apt keeps
// what it needs for that in a temporary folder, so neither its lists nor the
// machine's architectures change. It needs no root.
func Fetch(ctx context.Context, dir string, sets []string) error {
	for _, s := range sets {
		if !slices.Contains(Sets(), s) {
			return fmt.Errorf("no loaders are called %q; there are %s: %w", s, strings.Join(Sets(), " and "), dsas.ErrInvalid)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("fetch loaders: %w", err)
	}
	for _, set := range Sets() {
		if !slices.Contains(sets, set) {
			continue
		}
		if err := fetch(ctx, dir, set); err != nil {
			return fmt.Errorf("fetch loaders for %s: %w", set, err)
		}
	}
	return nil
}

func fetch(ctx context.Context, dir, set string) (err error) {
	tmp, err := os.MkdirTemp("", "dsas-loaders-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	var want []Loader
	var packages []string
	for _, l := range All() {
		if l.Set == set {
			want, packages = append(want, l), append(packages, l.Package)
		}
	}
	apt := newApt(tmp, want[0].arch)
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "debs", "root"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "state/status"), nil, 0o644); err != nil {
		return err
	}
	if err := run(ctx, tmp, "apt-get", append(apt, "update")...); err != nil {
		return err
	}
	if err := run(ctx, filepath.Join(tmp, "debs"), "apt-get", append(append(apt, "download"), packages...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "debs", "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := run(ctx, tmp, "dpkg-deb", "--extract", deb, filepath.Join(tmp, "root")); err != nil {
			return err
		}
	}
	for _, l := range want {
		b, err := os.ReadFile(filepath.Join(tmp, "root", l.Source))
		if err != nil {
			return fmt.Errorf("package %s: %w", l.Package, err)
		}
		if err := put(filepath.Join(dir, l.Name), b); err != nil {
			return err
		}
	}
	return nil
}

// newApt gives apt-get's options (apt.conf(5)) to work in tmp alone, for an
// architecture that may not be the machine's.
func newApt(tmp, arch string) []string {
	return []string{"-q",
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch,
		"-o", "Dir::State=" + filepath.Join(tmp, "state"), "-o", "Dir::State::status=" + filepath.Join(tmp, "state/status"),
		"-o", "Dir::Cache=" + filepath.Join(tmp, "cache"),
		"-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		// The folder is ours alone, and the user that apt would drop to cannot
		// enter it.
		"-o", "APT::Sandbox::User=",
		// A source that cannot be read must not look like a package that is not
		// there (apt-get(8), update).
		"-o", "APT::Update::Error-Mode=any",
	}
}

// run runs a command in dir; what it says is in the error alone.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s is missing; loaders are fetched on a Debian machine, and can be copied from there: %w", name, err)
		}
		text := strings.TrimSpace(said.String())
		return fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-600):])
	}
	return nil
}
