package imagebuild

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
)

// installScript runs as the first process of its own mounts, processes and
// network (none): everything it mounts or starts ends with it. apt runs
// outside the role's root, with our lists, and dpkg inside.
const installScript = `
root=$1 lower=$2 upper=$3 work=$4 archives=$5 remove=$6 overlay=$7; shift 7
mount -t proc proc /proc
mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work,$overlay" overlay "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755,size=64m tmpfs "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/run/lock" "$root/var/cache/apt/archives"
# In a user namespace, where no device can be made, the machine's own.
device() {
	mknod -m 666 "$root/dev/$1" c "$2" "$3" 2>/dev/null || { touch "$root/dev/$1"; mount --bind "/dev/$1" "$root/dev/$1"; }
}
device null 1 3
device zero 1 5
device full 1 7
device random 1 8
device urandom 1 9
device tty 5 0
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount --bind "$archives" "$root/var/cache/apt/archives"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
if [ $# -gt 0 ]; then
	apt-get install --no-download --no-install-recommends -o "` + statusFD + `" \
		-o "DPkg::Chroot-Directory=$root" -o "Dir::State=$root/var/lib/apt" \
		-o "Dir::State::status=$root/var/lib/dpkg/status" \
		-o "Dir::Cache::archives=$root/var/cache/apt/archives" "$@" </dev/null
fi
# In the root, so that a link there cannot lead out of it.
printf '%s' "$remove" | while read -r dir; do
	if [ -d "$root$dir" ]; then
		chroot "$root" find "$dir" -xdev -mindepth 1 -delete
	fi
done
rm "$root/usr/sbin/policy-rc.d"
`

// rolePackages is what a role's packages come down to over a base.
type rolePackages struct {
	lock lock     // what is installed beyond the base, or newer than there
	news []string // the same as apt names it, "NAME=VERSION", sorted
}

// resolvePackages tells what installing the packages over the base brings: the
// versions of old, a lock; what is not in it, or all without a lock, as the
// mirrors have it today.
func resolvePackages(ctx context.Context, opt *Options, a *apt, b *base, packages []string, old lock, place string) (*rolePackages, error) {
	r := &rolePackages{lock: lock{}}
	if len(packages) == 0 {
		return r, nil
	}
	anew := old == nil || slices.ContainsFunc(packages, func(p string) bool { return old[p] == "" && b.lock[p] == "" })
	if err := a.need(ctx, anew); err != nil {
		return nil, err
	}
	// What the base has is the base's lock's to say, unless another package
	// needs a newer one.
	pins := maps.Clone(old)
	maps.DeleteFunc(pins, func(p, _ string) bool { return b.lock[p] != "" })
	if err := a.pin(pins); err != nil {
		return nil, err
	}
	var err error
	if r.news, err = simulate(ctx, a, b.root, append([]string{"install", "--no-install-recommends"}, packages...)...); err != nil {
		if old != nil {
			err = fmt.Errorf("%w\n\twith the versions of %s; to resolve them anew: dsas image build --refresh", err, place)
		}
		return nil, fmt.Errorf("packages %s: %w", strings.Join(packages, " "), err)
	}
	r.lock = lockOf(r.news)
	return r, pins.missed(r.lock, place)
}

// packagesID names the layer of a role's packages.
func packagesID(b *base, packages, remove []string, r *rolePackages) string {
	// The base by what is installed in it: that is known before its layer is made.
	return key("packages", filepath.Base(filepath.Dir(b.root)), packages, r.news, remove, installScript, dropped, emptied)
}

// downloadPackages fetches what packagesLayer installs, unless that was built
// already, and tells whether it did.
func downloadPackages(ctx context.Context, opt *Options, a *apt, b *base, packages, remove []string, r *rolePackages) (fetched bool, err error) {
	if len(r.news) == 0 {
		return false, nil
	}
	if _, ok := cachedLayer(opt, "packages", packagesID(b, packages, remove, r)); ok {
		return false, nil
	}
	opt.say("downloading %s", dsas.Count(len(r.news), "package"))
	args := append([]string{"install", "--download-only", "--no-install-recommends",
		"-o", "Dir::State::status=" + filepath.Join(b.root, "var/lib/dpkg/status"), "-o", "Debug::NoLocking=true", "-o", statusFD}, packages...)
	run, err := runApt(opt, a.command(ctx, "apt-get", args...))
	if err != nil {
		return false, err
	}
	if err := run(); err != nil {
		return false, fmt.Errorf("download packages (a mirror forgets a version when a newer one comes; dsas image build --refresh takes today's): %w", err)
	}
	return true, nil
}

// keepNew keeps the packages that were fetched just now, those of the base and
// those of the role in one go.
func (a *apt) keepNew(ctx context.Context, b *base, r *rolePackages, fetched bool) error {
	var locks []lock
	if b.made {
		locks = append(locks, b.lock)
	}
	if fetched {
		locks = append(locks, r.lock)
	}
	return a.keep(ctx, locks...)
}

// packagesLayer installs a role's packages, which were downloaded, over the base,
// whose own layer is there after packed. Nil where the base has them all and nothing
// is removed.
func packagesLayer(ctx context.Context, opt *Options, a *apt, b *base, packed func() error, packages, remove []string, r *rolePackages) (*layer, error) {
	news := r.news
	if len(news) == 0 && len(remove) == 0 {
		return nil, nil
	}
	id := packagesID(b, packages, remove, r)
	if l, ok := cachedLayer(opt, "packages", id); ok {
		return l, nil
	}
	opt.say("installing %s", dsas.Count(len(news), "package"))
	dirs, err := overlayFolders(opt, "root", "upper", "overlay")
	if err != nil {
		return nil, err
	}
	root, upper, work := dirs[0], dirs[1], dirs[2]
	args := []string{"-ec", installScript, "install", root, b.root, upper, work,
		filepath.Join(a.dir, "archives"), lines(remove), overlayOptions()}
	if len(news) > 0 {
		args = append(args, packages...)
	}
	cmd := a.command(ctx, "sh", args...)
	run, err := runApt(opt, cmd)
	if err != nil {
		return nil, err
	}
	isolate(opt, cmd, false)
	if err := run(); err != nil {
		return nil, fmt.Errorf("install packages: %w", err)
	}
	if err := packed(); err != nil {
		return nil, err
	}
	return makeLayer(ctx, opt, "packages", id, func(w *layerWriter) error {
		w.below = b.Dirs
		return w.tree(upper, imageRule)
	})
}

// lines writes one item per line, each ended, as the script reads them.
func lines(items []string) string {
	if len(items) == 0 {
		return ""
	}
	return strings.Join(items, "\n") + "\n"
}
