package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
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
	Lists   string // apt.stamp it was last compared with
	root    string
	lock    lock
	made    bool // just now
	changes []PackageChange
}

// findBase gives the tree of the base with the packages of its lock; without a
// lock, or with opt.Refresh, with those that the mirrors have today. Its layer is
// pack's.
func findBase(ctx context.Context, opt *Options, a *apt) (*base, error) {
	place := opt.lockPlace("base", "")
	old, err := readLock(place)
	if err != nil && !opt.Refresh {
		return nil, fmt.Errorf("base system: %w", err)
	}
	b := &base{lock: old}
	if old != nil {
		if err := b.load(ctx, opt, a); err != nil {
			return nil, fmt.Errorf("base system: %w", err)
		}
	}
	if b.lock == nil || b.root == "" {
		if err := b.make(ctx, opt, a, place); err != nil {
			return nil, fmt.Errorf("base system: %w", err)
		}
	}
	b.Lists = a.stamp()
	b.changes = changes(old, b.lock)
	return b, nil
}

// pack makes the base's layer, where the store does not have it, and remembers
// the base.
func (b *base) pack(ctx context.Context, opt *Options) error {
	if b.Part.Digest == "" || !opt.Store.Has(b.Part.Digest, b.Part.Size) {
		l, err := makeLayer(ctx, opt, "base", "", func(w *layerWriter) error { return w.tree(b.root, imageRule) })
		if err != nil {
			return fmt.Errorf("base system: %w", err)
		}
		b.layer = *l
	}
	if err := writeJSON(filepath.Join(filepath.Dir(b.root), "base.json"), b); err != nil {
		return fmt.Errorf("base system: %w", err)
	}
	if err := writeLock(opt.lockPlace("base", ""), "the base of all roles", b.lock); err != nil {
		return fmt.Errorf("base system: %w", err)
	}
	pruneOld(filepath.Dir(filepath.Dir(b.root)), 2)
	return nil
}

func (b *base) dir(opt *Options, a *apt) string {
	return filepath.Join(opt.Cache, "base", key("base", a.suite, basePackages, dpkgOptions, b.lock))
}

// load finds the tree of b.lock in the cache, and leaves b.root empty where
// there is none. With opt.Refresh a tree for which there is anything newer
// does not count, and neither does its lock.
func (b *base) load(ctx context.Context, opt *Options, a *apt) error {
	dir := b.dir(opt, a)
	root := filepath.Join(dir, "root")
	known := readJSON(filepath.Join(dir, "base.json"), b)
	if _, err := os.Stat(root); err != nil {
		known = false
	}
	if opt.Refresh {
		if known && b.Lists != a.stamp() {
			news, err := simulate(ctx, a, root, "dist-upgrade")
			if err != nil {
				return err
			}
			known = len(news) == 0
		}
		if !known {
			b.lock = nil
		}
	}
	if known {
		b.root = root
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // in use: pruneOld keeps it
	} else {
		b.layer = layer{}
	}
	return nil
}

// make installs the tree, with the versions of b.lock if there is one.
func (b *base) make(ctx context.Context, opt *Options, a *apt, place string) error {
	if err := a.need(ctx, b.lock == nil); err != nil {
		return err
	}
	tmp := filepath.Join(opt.Cache, "work", "base")
	if err := bootstrap(ctx, opt, a, b.lock, tmp); err != nil {
		return err
	}
	got, err := installed(tmp)
	if err != nil {
		return err
	}
	if err := b.lock.missed(got, place); err != nil {
		return err
	}
	b.lock, b.made = got, true
	dir := b.dir(opt, a)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b.root = filepath.Join(dir, "root")
	return os.Rename(tmp, b.root)
}

// Hooks of mmdebstrap: apt's preferences are a lock's while it installs, and
// the packages go to our archives and come from there. The lists are ours, which
// are fetched and verified: it fetches none (--skip=update).
const (
	setupHook     = `mkdir -p "$1/etc/apt/preferences.d" "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"; cp "$DSAS_APT/preferences" "$1/etc/apt/preferences.d/00dsas"; find "$DSAS_APT/lists" -maxdepth 1 -type f -exec cp -t "$1/var/lib/apt/lists" {} +`
	customizeHook = `rm "$1/etc/apt/preferences.d/00dsas"; cp -ln "$DSAS_TREE"/var/cache/apt/archives/*.deb "$DSAS_APT/archives/"`
)

// bootstrapScript runs mmdebstrap on an overlay over nothing: its upper folder is
// the tree, and what dpkg asks for each of its files to be brought to disk is left
// undone ("volatile", overlayfs.rst): after a crash the build begins anew. /proc is
// one of its own process numbers, which mmdebstrap looks things up in.
const bootstrapScript = `
lower=$1 upper=$2 work=$3 root=$4 overlay=$5; shift 5
mount -t proc proc /proc
mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work,$overlay" overlay "$root"
exec mmdebstrap "$@"
`

// bootstrap makes the tree in tmp, with the versions of l; nil: today's.
func bootstrap(ctx context.Context, opt *Options, a *apt, l lock, tmp string) error {
	opt.say("installing Debian %s's base system", a.suite)
	if err := a.pin(l); err != nil {
		return err
	}
	defer a.pin(nil)
	dirs, err := overlayFolders(opt, "base-none", filepath.Base(tmp), "base-overlay", "base-root")
	if err != nil {
		return err
	}
	aptopts := filepath.Join(opt.Cache, "work", "apt.conf")
	if err := os.WriteFile(aptopts, []byte(a.reach), 0o644); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--format=directory", "--quiet", "--hook-dir=" + mergedHook, "--include=" + strings.Join(basePackages, ","), "--aptopt=" + aptopts,
		"--skip=essential/unlink,update", "--setup-hook=" + setupHook, "--customize-hook=" + customizeHook,
	}
	for _, o := range dpkgOptions {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, a.suite, dirs[3], filepath.Join(a.dir, "sources.list.d", "dsas.sources"))
	if kept := a.keptSource(); l != nil && !isEmpty(kept) {
		args = append(args, kept)
	}
	cmd := command(ctx, "sh", slices.Concat([]string{"-ec", bootstrapScript, "mmdebstrap"}, dirs, []string{overlayOptions()}, args)...)
	cmd.Env = append(cmd.Env, "DSAS_APT="+a.dir, "DSAS_TREE="+tmp) // no hard link leads out of an overlay
	isolate(opt, cmd, true)
	if err := runAll(cmd); err != nil {
		return err
	}
	// Empty means: an identity is made at boot. Missing, programs complain.
	return os.WriteFile(filepath.Join(tmp, "etc/machine-id"), nil, 0o444)
	// The file with the dpkg options stays in the tree for the packages layer.
}

func isEmpty(name string) bool {
	fi, err := os.Stat(name)
	return err != nil || fi.Size() == 0
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
