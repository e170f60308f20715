package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// basePackages are what every role has beyond Debian's minimal system.
var basePackages = []string{
	"ca-certificates", "curl", "e2fsprogs", "iproute2", "iputils-ping", "kmod", "less", "mount", "netbase",
	"openssh-server", "openssh-sftp-server", "procps", "tzdata",
	// With the hook below in place of usrmerge, which would bring all of perl (54 MB).
	"usr-is-merged",
}

// mergedHook makes /bin and its kin links before the first package is unpacked.
const mergedHook = "/usr/share/mmdebstrap/hooks/merged-usr"

// dpkgOptions leave out of the tree, for good, what no server reads. The
// licences (copyright files) stay: an image is a copy of those programs.
var dpkgOptions = []string{
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/groff/*",
	"path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
	"path-exclude=/usr/share/lintian/*", "path-exclude=/usr/share/linda/*", "path-exclude=/usr/share/bug/*",
	"path-exclude=/usr/share/doc-base/*", "path-exclude=/usr/lib/*/perl/*/CORE/*.h",
	"force-unsafe-io",
}

// base is the tree all roles begin with, unpacked in the cache.
type base struct {
	layer
	Lists string // apt.stamp it was last compared with
	root  string
}

// findBase gives the base, built anew where a package of it has a newer version.
func findBase(ctx context.Context, opt *Options, a *apt) (*base, error) {
	dir := filepath.Join(opt.Cache, "base", key("base", a.suite, a.sources, basePackages, dpkgOptions))
	meta := filepath.Join(dir, "base.json")
	b := &base{root: filepath.Join(dir, "root")}
	known := readJSON(meta, b)
	if known && b.Lists != a.stamp() {
		news, err := simulate(ctx, a, b.root, "dist-upgrade")
		if err != nil {
			return nil, fmt.Errorf("base system: %w", err)
		}
		if known = len(news) == 0; known {
			b.Lists = a.stamp()
			if err := writeJSON(meta, b); err != nil {
				return nil, fmt.Errorf("base system: %w", err)
			}
		}
	}
	if known && opt.Store.Has(b.Part.Digest, b.Part.Size) {
		return b, nil
	}
	if !known {
		if err := bootstrap(ctx, opt, a, dir, b.root); err != nil {
			return nil, fmt.Errorf("base system: %w", err)
		}
	}
	l, err := makeLayer(ctx, opt, "base", "", func(w *layerWriter) error { return w.tree(b.root, imageRule) })
	if err != nil {
		return nil, fmt.Errorf("base system: %w", err)
	}
	b.layer, b.Lists = *l, a.stamp()
	if err := writeJSON(meta, b); err != nil {
		return nil, fmt.Errorf("base system: %w", err)
	}
	pruneOld(filepath.Dir(dir), 2)
	return b, nil
}

// bootstrap makes the tree in dir/root, whole or not at all.
func bootstrap(ctx context.Context, opt *Options, a *apt, dir, root string) error {
	opt.say("installing Debian %s's base system", a.suite)
	tmp := filepath.Join(opt.Cache, "work", "base")
	if err := os.MkdirAll(filepath.Dir(tmp), 0o755); err != nil {
		return err
	}
	aptopts := filepath.Join(opt.Cache, "work", "apt.conf")
	if err := os.WriteFile(aptopts, []byte(a.reach), 0o644); err != nil {
		return err
	}
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--quiet", "--hook-dir=" + mergedHook, "--include=" + strings.Join(basePackages, ","), "--aptopt=" + aptopts}
	for _, o := range dpkgOptions {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, a.suite, tmp, filepath.Join(a.dir, "sources.list.d", "dsas.sources"))
	// A /proc of its own process numbers, which mmdebstrap looks things up in.
	cmd := command(ctx, "sh", append([]string{"-ec", `mount -t proc proc /proc; mmdebstrap "$@"`, "mmdebstrap"}, args...)...)
	isolate(opt, cmd, true)
	if err := runAll(cmd); err != nil {
		return err
	}
	// Empty means: an identity is made at boot. Missing, programs complain.
	if err := os.WriteFile(filepath.Join(tmp, "etc/machine-id"), nil, 0o444); err != nil {
		return err
	}
	// What apt in the build must not see again is left out of the layer only;
	// the file with the dpkg options stays in the tree for the packages layer.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, root)
}

var instRE = regexp.MustCompile(`^Inst (\S+) .*?\((\S+) `)

// simulate asks what apt would install into root: "NAME=VERSION", sorted.
func simulate(ctx context.Context, a *apt, root string, args ...string) ([]string, error) {
	args = append([]string{"-s", "-q=0",
		"-o", "Dir::State::status=" + filepath.Join(root, "var/lib/dpkg/status"),
		"-o", "Debug::NoLocking=true"}, args...)
	out, err := run(a.command(ctx, "apt-get", args...))
	if err != nil {
		return nil, err
	}
	var news []string
	for line := range strings.Lines(out) {
		if m := instRE.FindStringSubmatch(line); m != nil {
			news = append(news, m[1]+"="+m[2])
		}
	}
	slices.Sort(news)
	return news, nil
}
