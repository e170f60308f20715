package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"dsas"
)

// KernelID is a kernel as Debian has it.
type KernelID struct {
	Release string `json:"release"` // uname -r
	Version string `json:"version"` // of the package
}

// kernelPrefix is what stands before uname -r in the name of a kernel's package.
const kernelPrefix = "linux-image-"

// kernelRE is strict, since what it lets pass becomes an argument of apt and the
// name of a folder: lower-case words behind a version of three numbers, without
// which it is a metapackage (6.12-amd64).
var kernelRE = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+([-.+][a-z0-9]+)*-amd64$`)

// maxRelease is how long uname -r can be, in bytes (__NEW_UTS_LEN).
const maxRelease = 64

// ParseKernel reads a kernel's name, as uname -r gives it or as its package has
// it, and gives the former. The error is dsas.ErrInvalid.
func ParseKernel(name string) (release string, err error) {
	release = strings.TrimPrefix(name, kernelPrefix)
	if len(release) > maxRelease || !kernelRE.MatchString(release) {
		return "", fmt.Errorf("kernel %.80q: write it as uname -r gives it, with its flavour (6.1.0-50-amd64, 6.1.0-50-rt-amd64), or as its package (linux-image-6.1.0-50-amd64); dsas kernel ls --available lists those there are: %w", name, dsas.ErrInvalid)
	}
	return release, nil
}

// KernelList is what the mirrors have, and what of it builds take.
type KernelList struct {
	Newest KernelID   // that UpdateKernel takes when none is asked for
	Built  *KernelID  // that was last built with; nil: none
	Held   *KernelID  // that was asked for, and that builds keep; nil: none
	All    []KernelID // by version, the newest first, of all flavours
}

// Kernels asks the mirrors which kernels they have. Nothing is built, and
// no store needed; package lists are fetched.
func Kernels(ctx context.Context, opt Options) (KernelList, error) {
	var l KernelList
	unlock, err := opt.openCache(ctx)
	if err != nil {
		return l, err
	}
	defer unlock()
	opt.Refresh = true
	if l, err = listKernels(ctx, &opt); err != nil {
		return l, fmt.Errorf("list the mirrors' kernels: %w", err)
	}
	return l, nil
}

func listKernels(ctx context.Context, opt *Options) (l KernelList, err error) {
	held, err := opt.heldKernel()
	if err != nil {
		return l, err
	}
	if held != nil {
		l.Held = &KernelID{held.Release, held.Version}
	}
	l.Built = builtKernel(opt)
	a, err := openApt(ctx, opt)
	if err != nil {
		return l, err
	}
	if err := a.update(ctx); err != nil {
		return l, err
	}
	newest, err := resolveKernel(ctx, a)
	if err != nil {
		return l, err
	}
	l.Newest = KernelID{newest.Release, newest.Version}
	l.All, err = a.kernels(ctx)
	return l, err
}

// kernels gives the kernels that the lists have, each in its newest version,
// the newest first.
func (a *apt) kernels(ctx context.Context) ([]KernelID, error) {
	out, err := run(a.command(ctx, "apt-cache", "pkgnames", kernelPrefix))
	if err != nil {
		return nil, err
	}
	args := []string{"show", "--no-all-versions"}
	for _, name := range strings.Fields(out) {
		if _, err := ParseKernel(name); err == nil { // no metapackage, -dbg, -unsigned
			args = append(args, name)
		}
	}
	if len(args) == 2 {
		return nil, nil
	}
	if out, err = run(a.command(ctx, "apt-cache", args...)); err != nil {
		return nil, err
	}
	var list []KernelID
	for stanza := range strings.SplitSeq(out, "\n\n") {
		f := fields(stanza)
		// Both become the name of a folder and a line of a lock.
		if release, err := ParseKernel(f["Package"]); err == nil && lockLineRE.MatchString(f["Package"]+" "+f["Version"]) {
			list = append(list, KernelID{release, f["Version"]})
		}
	}
	slices.SortFunc(list, func(a, b KernelID) int {
		if c := compareVersions(b.Version, a.Version); c != 0 {
			return c
		}
		return strings.Compare(a.Release, b.Release) // the plain flavour first
	})
	return list, nil
}

// heldHead is the top of the file that names the kernel that was asked for.
const heldHead = `# Written by dsas kernel update --to: the kernel that builds keep, also with
# --refresh. dsas kernel update without --to lets go of it.
`

// heldPlace is beside the locks, and not in the cache, which may be emptied.
func (o *Options) heldPlace() string { return o.lockPlace("kernel", "") }

// heldKernel gives the kernel that was asked for, nil where none was.
func (o *Options) heldKernel() (*kernel, error) {
	place := o.heldPlace()
	l, err := readLock(place)
	if l == nil && err == nil {
		return nil, nil
	}
	if err == nil && len(l) == 1 {
		for pkg, version := range l {
			if release, bad := ParseKernel(pkg); bad == nil && pkg == kernelPrefix+release {
				return &kernel{Package: pkg, Release: release, Version: version, held: true}, nil
			}
		}
	}
	if err != nil && !errors.Is(err, dsas.ErrInvalid) {
		return nil, err
	}
	return nil, fmt.Errorf("%s: want one kernel's package and its version; dsas kernel update --to writes it anew, and without --to removes it: %w", place, dsas.ErrInvalid)
}

// KernelHeld tells whether a kernel was asked for, also by a file that is damaged:
// UpdateKernel lets go of either.
func KernelHeld(opt Options) bool {
	_, err := os.Stat(opt.heldPlace())
	return err == nil
}

// holdKernel has builds keep k if it was asked for, and else none.
func (o *Options) holdKernel(k *kernel) error {
	if k.held {
		return writeLockFile(o.heldPlace(), heldHead, lock{k.Package: k.Version})
	}
	if err := os.Remove(o.heldPlace()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("let go of the kernel that was asked for: %w", err)
	}
	return nil
}

// tellHeld says in a refresh that the kernel stays, and what it stays behind.
func (k *kernel) tellHeld(ctx context.Context, opt *Options, a *apt) {
	if !k.held || !opt.Refresh {
		return
	}
	newest, err := resolveKernel(ctx, a)
	switch {
	case err != nil:
		opt.say("keeping kernel %s, which was asked for", k.Release)
	case newest.id() == k.id():
		opt.say("keeping kernel %s, which was asked for and is the newest", k.Release)
	default:
		opt.say("keeping kernel %s, which was asked for; the newest is %s: dsas kernel update takes it", k.Release, newest.Release)
	}
}

// wantedKernel looks up the kernel that was asked for by its uname -r, or the
// newest one for "". One that the mirrors do not have is dsas.ErrNotFound.
func wantedKernel(ctx context.Context, a *apt, release string) (*kernel, error) {
	if release == "" {
		return resolveKernel(ctx, a)
	}
	if _, err := ParseKernel(release); err != nil {
		return nil, err
	}
	all, err := a.kernels(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range all {
		if k.Release == release {
			return &kernel{Package: kernelPrefix + release, Release: release, Version: k.Version, held: true}, nil
		}
	}
	return nil, noSuchKernel(release, all)
}

// maxNamed is how many kernels an error names.
const maxNamed = 10

// noSuchKernel is the error for a kernel that is not among all. It names the
// newest of those that are most like it.
func noSuchKernel(release string, all []KernelID) error {
	none := fmt.Sprintf("kernel %s: the mirrors have no package %s%s", release, kernelPrefix, release)
	if len(all) == 0 {
		return fmt.Errorf("%s, nor any other kernel: look at apt's sources: %w", none, dsas.ErrNotFound)
	}
	var names []string
	for _, like := range []func(string) bool{
		func(r string) bool { return flavour(r) == flavour(release) && series(r) == series(release) },
		func(r string) bool { return flavour(r) == flavour(release) },
		func(string) bool { return true },
	} {
		for _, k := range all {
			if len(names) < maxNamed && like(k.Release) {
				names = append(names, k.Release)
			}
		}
		if len(names) > 0 {
			break
		}
	}
	return fmt.Errorf("%s%s; there are, the newest first: %s; all: dsas kernel ls --available: %w",
		none, dsas.DidYouMean(release, slips(release, all)), strings.Join(names, ", "), dsas.ErrNotFound)
}

// slips gives the kernels that have the digits of what was written, in whatever
// order. Another number is another kernel, however close: who asks for -50, which
// the mirrors forgot, does not mean -49.
func slips(release string, all []KernelID) []string {
	digits := func(s string) string {
		d := []byte(strings.Map(func(r rune) rune {
			if r < '0' || r > '9' {
				return -1
			}
			return r
		}, s))
		slices.Sort(d)
		return string(d)
	}
	var out []string
	for _, k := range all {
		if digits(k.Release) == digits(release) {
			out = append(out, k.Release)
		}
	}
	return out
}

var (
	flavourRE = regexp.MustCompile(`-(?:[a-z]+[0-9]*-)?amd64$`)
	seriesRE  = regexp.MustCompile(`^[0-9]+\.[0-9]+\.`)
)

// flavour gives "-amd64", "-rt-amd64".
func flavour(release string) string { return flavourRE.FindString(release) }

// series gives "6.1.".
func series(release string) string { return seriesRE.FindString(release) }
