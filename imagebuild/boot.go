package imagebuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/initramfs/modindex"
	"dsas/internal/signing"
)

// Media types of the boot set's parts; OCI has none for them.
const (
	mediaKernel   = "application/vnd.dsas.kernel"
	mediaCpioZstd = "application/vnd.dsas.cpio+zstd"
)

// bootState remembers what a boot set was made of.
type bootState struct {
	Key  string
	Boot dsas.BootSet
}

// BuildBoot makes the kernel and initramfs that releases boot with, unless what
// is in the store was made of the same inputs. It needs no privileges. Firmware is
// nil where the machine's apt sources have no firmware packages (Debian's component
// non-free-firmware).
func BuildBoot(ctx context.Context, opt Options) (dsas.BootSet, error) {
	unlock, err := opt.open(ctx)
	if err != nil {
		return dsas.BootSet{}, err
	}
	defer unlock()
	b, err := buildBoot(ctx, &opt)
	if err != nil {
		return dsas.BootSet{}, fmt.Errorf("build kernel and initramfs: %w", err)
	}
	return b, nil
}

func buildBoot(ctx context.Context, opt *Options) (dsas.BootSet, error) {
	var none dsas.BootSet
	sums, err := programSums(opt)
	if err != nil {
		return none, err
	}
	a, err := openApt(ctx, opt)
	if err != nil {
		return none, err
	}
	k, err := findKernel(ctx, opt, a)
	if err != nil {
		return none, err
	}
	k.tellHeld(ctx, opt, a)
	return bootWith(ctx, opt, a, k, sums)
}

// programSums hashes the programs that go into the initramfs: init, and the
// rescue commands.
func programSums(opt *Options) (sums [2]string, err error) {
	for i, p := range []struct{ what, name string }{{"init", opt.InitPath}, {"rescue commands", opt.BBPath}} {
		if p.name == "" {
			return sums, fmt.Errorf("no path of the program with the %s given (make builds both): %w", p.what, dsas.ErrInvalid)
		}
		if sums[i], err = hashFile(p.name); err != nil {
			return sums, fmt.Errorf("%s: %w", p.what, err)
		}
	}
	return sums, nil
}

// bootWith makes the boot set of a kernel that is unpacked in the cache.
func bootWith(ctx context.Context, opt *Options, a *apt, k *kernel, sums [2]string) (dsas.BootSet, error) {
	var none dsas.BootSet
	fw, err := findFirmware(ctx, opt, a)
	if err != nil {
		return none, err
	}
	inputs := key("boot", sums[0], sums[1], k.id(), initramfsFolders, initramfsModules, fw, opt.Keys)
	stateFile := filepath.Join(opt.Cache, "boot-state.json")
	var state bootState
	if readJSON(stateFile, &state) && state.Key == inputs && hasBoot(opt.Store, state.Boot) {
		opt.say("kernel %s and initramfs are up to date", k.Release)
		return state.Boot, nil
	}

	set, err := k.moduleSet()
	if err != nil {
		return none, err
	}
	mods, err := choose(set.Index, initramfsFolders, initramfsModules)
	if err != nil {
		return none, err
	}
	b := dsas.BootSet{Release: k.Release, Keys: slices.Sorted(maps.Values(opt.Keys))}
	if b.Kernel, err = putFile(ctx, opt.Store, k.image(), "kernel", mediaKernel); err != nil {
		return none, err
	}
	programs, err := programsCpio(ctx, opt)
	if err != nil {
		return none, err
	}
	modules, err := modulesCpio(k, set.Index, mods)
	if err != nil {
		return none, err
	}
	opt.say("compressing the initramfs: %d modules", len(mods))
	if b.Initramfs, err = putCpios(ctx, opt, nil, "initramfs", programs, modules); err != nil {
		return none, err
	}
	if b.Firmware, err = buildFirmware(ctx, opt, a, fw, set, mods); err != nil {
		return none, err
	}
	opt.say("kernel %s: %.1f MiB, initramfs %.1f MiB", b.Release, mib(b.Kernel.Size), mib(b.Initramfs.Size))
	if err := writeJSON(stateFile, bootState{inputs, b}); err != nil {
		return none, err
	}
	return b, nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func hasBoot(s Store, b dsas.BootSet) bool { return hasParts(s, b.Parts()) }

// programsCpio is the half of the initramfs that changes with our programs.
func programsCpio(ctx context.Context, opt *Options) (*archive, error) {
	cp := newArchive()
	// The kernel's built-in initramfs has /dev/console.
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "mnt", "sysroot", "etc"} {
		cp.dir(d)
	}
	cp.copy("init", 0o755, opt.InitPath)
	cp.copy("bbin/bb", 0o755, opt.BBPath)
	cmds, err := commandsOf(ctx, opt.BBPath)
	if err != nil {
		return nil, err
	}
	for _, c := range cmds {
		cp.symlink("bbin/"+c, "bb")
	}
	cp.symlink("bin/sh", "/bbin/gosh")
	for id, k := range opt.Keys {
		cp.file(strings.TrimPrefix(signing.InitramfsKeys, "/")+"/"+id+signing.PubExt, 0o644, []byte("untrusted comment: dsas release key "+id+"\n"+k+"\n"))
	}
	return cp, nil
}

// modulesCpio is the half that changes with the kernel.
func modulesCpio(k *kernel, ix *modindex.Index, mods []string) (*archive, error) {
	cp := newArchive()
	for _, n := range mods {
		p := ix.Modules[n].Path
		cp.copy("lib/modules/"+k.Release+"/"+p, 0o644, filepath.Join(k.modules(), p))
	}
	var buf bytes.Buffer
	if err := ix.Subset(mods).Write(&buf); err != nil {
		return nil, err
	}
	cp.file("etc/"+modindex.File, 0o644, buf.Bytes())
	return cp, nil
}

// commandsOf asks the program which commands it has: run by a name that is
// none of them, gobusybox lists them on standard error, one " - NAME" a line.
func commandsOf(ctx context.Context, bb string) ([]string, error) {
	cmd := command(ctx, bb)
	cmd.Args[0] = "list-commands"
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("rescue commands: %w", err)
	}
	var names []string
	sh := false
	for line := range strings.Lines(string(out)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok {
			names = append(names, n)
			sh = sh || n == "gosh"
		}
	}
	if !sh {
		return nil, fmt.Errorf("rescue commands: %s has no gosh: build it with imagebuild/bb/build.sh: %w", bb, dsas.ErrInvalid)
	}
	return names, nil
}

func putFile(ctx context.Context, s Store, name, title, media string) (dsas.Part, error) {
	f, err := openRegular(name)
	if err != nil {
		return dsas.Part{}, fmt.Errorf("%s: %w", title, err)
	}
	defer f.Close()
	d, n, err := s.Put(ctx, f)
	if err != nil {
		return dsas.Part{}, fmt.Errorf("%s: %w", title, err)
	}
	return dsas.Part{Digest: d, DiffID: d, Size: n, MediaType: media, Title: title}, nil
}

// putCpios stores the archives one after the other, each compressed, which is
// how the kernel takes several; what is in early stands uncompressed in front.
// Compressed archives are cached: after a change of init, the modules, which
// take long, are not compressed again.
func putCpios(ctx context.Context, opt *Options, early []byte, title string, cps ...*archive) (dsas.Part, error) {
	part := dsas.Part{MediaType: mediaCpioZstd, Title: title}
	plain := sha256.New()
	plain.Write(early)
	readers := []io.Reader{bytes.NewReader(early)}
	for _, cp := range cps {
		own := sha256.New()
		size := counter(part.Unpacked)
		if err := cp.write(io.MultiWriter(plain, own, &size)); err != nil {
			return part, fmt.Errorf("%s: %w", title, err)
		}
		part.Unpacked = int64(size)
		f, err := compressCpio(ctx, opt, cp, key("cpio", own.Sum(nil)))
		if err != nil {
			return part, fmt.Errorf("%s: %w", title, err)
		}
		defer f.Close()
		readers = append(readers, f)
	}
	var err error
	if part.Digest, part.Size, err = opt.Store.Put(ctx, io.MultiReader(readers...)); err != nil {
		return part, fmt.Errorf("%s: %w", title, err)
	}
	part.DiffID = dsas.Digest("sha256:" + hex.EncodeToString(plain.Sum(nil)))
	return part, nil
}

// compressCpio compresses a cpio with the zstd program at level 19, which for
// an initramfs is 12 % smaller than what Go's encoder makes, and gives the
// file, open for reading. The window is 16 MiB, so that the two Go programs
// can share (level 19 alone has 8 MiB: 7 % larger); the kernel takes up to
// 128 MiB. The output does not depend on the number of threads.
func compressCpio(ctx context.Context, opt *Options, cp *archive, id string) (*os.File, error) {
	dir := filepath.Join(opt.Cache, "cpio")
	name := filepath.Join(dir, id+".zst")
	if f, err := os.Open(name); err == nil {
		now := time.Now()
		_ = os.Chtimes(name, now, now) // in use: pruneOld keeps it
		return f, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	cmd := command(ctx, "zstd", "-19", "--long=24", "-T0", "-q", "-f", "-o", name+".new")
	cmd.Stdin = pr
	var g errgroup.Group
	g.Go(func() error {
		err := cp.write(pw)
		pw.CloseWithError(err)
		if errors.Is(err, io.ErrClosedPipe) { // zstd's own error says more
			return nil
		}
		return err
	})
	err := runAll(cmd)
	pr.Close()
	if werr := g.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		os.Remove(name + ".new")
		return nil, err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return nil, err
	}
	pruneOld(dir, 4)
	return os.Open(name)
}

// pruneOld keeps the n newest entries of a cache folder.
func pruneOld(dir string, n int) {
	entries, _ := os.ReadDir(dir)
	age := func(e os.DirEntry) time.Time {
		fi, err := e.Info()
		if err != nil {
			return time.Time{}
		}
		return fi.ModTime()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return age(b).Compare(age(a)) })
	for _, e := range entries[min(n, len(entries)):] {
		os.RemoveAll(filepath.Join(dir, e.Name()))
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
