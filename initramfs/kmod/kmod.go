// Package kmod loads kernel modules by name and by the hardware that is there,
// after an index made at build time. There is no udev and no modprobe on a
// node.
package kmod

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/modindex"
)

// Loader loads modules from Root/lib/modules/RELEASE. Its methods may be
// called concurrently; a module is loaded once.
type Loader struct {
	Root  string // "/" in the initramfs, "/sysroot/usr" for an image's modules
	Index *modindex.Index
	Log   *slog.Logger // nil: silent

	// insert puts one file into the kernel; nil: the kernel's own way.
	insert func(path, options string) error

	mu      sync.Mutex
	modules map[string]*loading
	buses   *buses
}

// loading is one module's way into the kernel.
type loading struct {
	once    sync.Once
	err     error
	already bool // it was in the kernel before
	options string
}

// Load loads the named module (or alias) with what it needs, and gives it the
// options ("max_bonds=0 mode=1"). One that is loaded already is fine; but where
// options were given and can have no effect any more, that is an error that
// wraps dsas.ErrConflict. What a soft dependency's failure means the module
// decides: when it loads, all is well.
func (l *Loader) Load(name, options string) error {
	name = modindex.Name(name)
	if l.Index.IsBuiltin(name) {
		if options != "" {
			return fmt.Errorf("load module %s: it is part of the kernel, so its options %q are not taken; put %s.OPTION=VALUE on the kernel command line: %w", name, options, name, dsas.ErrConflict)
		}
		return nil
	}
	names, err := l.Index.Closure(name)
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	targets := l.Index.Match(name)
	var before, errs []error
	for _, n := range names {
		opts, target := "", false
		for _, t := range targets {
			if t == n {
				opts, target = options, true
			}
		}
		m := l.load(n, opts)
		switch {
		case m.err != nil && target:
			errs = append(errs, m.err)
		case m.err != nil:
			before = append(before, m.err)
		case target && options != "" && (m.already || m.options != options):
			errs = append(errs, fmt.Errorf("load module %s: it was loaded already, so its options %q are not taken: %w", n, options, dsas.ErrConflict))
		}
	}
	if len(errs) > 0 {
		return errors.Join(append(errs, before...)...)
	}
	for _, err := range before {
		l.log().Debug("soft dependency failed", "module", name, "err", err)
	}
	return nil
}

// load puts one module into the kernel, or waits for who is doing it.
func (l *Loader) load(name, options string) *loading {
	l.mu.Lock()
	if l.modules == nil {
		l.modules = map[string]*loading{}
	}
	m := l.modules[name]
	if m == nil {
		m = &loading{}
		l.modules[name] = m
	}
	l.mu.Unlock()
	m.once.Do(func() {
		m.options = options
		path := filepath.Join(l.Root, "lib/modules", l.Index.Release, l.Index.Modules[name].Path)
		insert := l.insert
		if insert == nil {
			insert = insertFile
		}
		err := insert(path, options)
		switch {
		case errors.Is(err, unix.EEXIST):
			m.already = true
		case err != nil:
			m.err = fmt.Errorf("load module %s: %w", name, explain(err))
		default:
			l.log().Debug("module loaded", "module", name, "options", options)
		}
	})
	return m
}

func (l *Loader) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}

// insertFile loads a .ko, .ko.xz, .ko.zst or .ko.gz; compressed ones are
// decompressed here, since the kernel may not know how.
func insertFile(path, options string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return kmodule.FileInit(f, options, 0)
}

// explain says what the bare errno of finit_module(2) means.
func explain(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return err // the file, not the kernel's opinion of it
	}
	hints := map[unix.Errno]string{
		unix.ENOEXEC:      "it was built for another kernel",
		unix.ENOENT:       "it needs a symbol that no loaded module has",
		unix.EINVAL:       "the kernel refuses it or one of its options (see dmesg)",
		unix.ENODEV:       "its hardware is not here",
		unix.EKEYREJECTED: "its signature is not trusted by this kernel",
		unix.EPERM:        "loading modules is not permitted here",
	}
	for errno, hint := range hints {
		if errors.Is(err, errno) {
			return fmt.Errorf("%s: %w", hint, err)
		}
	}
	return err
}

// busOf gives the part of an alias that says which bus it is for: "pci",
// "virtio", "usb"; "" where a pattern may be for any.
func busOf(alias string) string {
	i := strings.IndexAny(alias, ":*?[")
	if i <= 0 || alias[i] != ':' {
		return ""
	}
	return alias[:i]
}

// buses is the index split by bus, so that a PCI device is not held against
// the aliases of every USB device.
type buses struct {
	of  map[string]*modindex.Index
	all *modindex.Index
}

func (l *Loader) match(modalias string) []string {
	l.mu.Lock()
	if l.buses == nil {
		l.buses = splitBuses(l.Index)
	}
	b := l.buses
	l.mu.Unlock()
	if ix := b.of[busOf(modalias)]; ix != nil {
		return ix.Match(modalias)
	}
	return b.all.Match(modalias)
}

func splitBuses(ix *modindex.Index) *buses {
	sub := func() *modindex.Index { return &modindex.Index{Release: ix.Release, Modules: ix.Modules} }
	b := &buses{of: map[string]*modindex.Index{}, all: sub()}
	for _, a := range ix.Aliases {
		if bus := busOf(a.Pattern); bus != "" && b.of[bus] == nil {
			b.of[bus] = sub()
		}
	}
	for _, a := range ix.Aliases {
		bus := busOf(a.Pattern)
		if bus != "" {
			b.of[bus].Aliases = append(b.of[bus].Aliases, a)
			continue
		}
		b.all.Aliases = append(b.all.Aliases, a)
		for _, one := range b.of {
			one.Aliases = append(one.Aliases, a)
		}
	}
	return b
}
