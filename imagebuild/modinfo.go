package imagebuild

import (
	"cmp"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"dsas/initramfs/modindex"
)

// maxModinfo bounds a .modinfo section, in bytes; the largest in Debian's
// kernel has some 60 KB.
const maxModinfo = 4 << 20

// modinfo is what a module says of itself.
type modinfo struct {
	depends, softPre, softPost, aliases, firmware []string
}

// readModinfo reads the .modinfo section of an ELF object: strings KEY=VALUE,
// each ended by NUL (the kernel's include/linux/moduleparam.h, __MODULE_INFO).
func readModinfo(r io.ReaderAt) (modinfo, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return modinfo{}, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return modinfo{}, fmt.Errorf("no .modinfo section: not a kernel module")
	}
	if s.Size > maxModinfo {
		return modinfo{}, fmt.Errorf(".modinfo has %d bytes, more than %d", s.Size, maxModinfo)
	}
	b, err := s.Data()
	if err != nil {
		return modinfo{}, err
	}
	return parseModinfo(string(b)), nil
}

func parseModinfo(b string) modinfo {
	var m modinfo
	for entry := range strings.SplitSeq(b, "\x00") {
		k, v, ok := strings.Cut(entry, "=")
		if !ok {
			continue
		}
		switch k {
		case "depends":
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					m.depends = append(m.depends, modindex.Name(d))
				}
			}
		case "alias":
			m.aliases = append(m.aliases, v)
		case "firmware":
			m.firmware = append(m.firmware, v)
		case "softdep":
			// "pre: a b post: c" (modprobe.d(5))
			var to *[]string
			for _, w := range strings.Fields(v) {
				switch w {
				case "pre:":
					to = &m.softPre
				case "post:":
					to = &m.softPost
				default:
					if to != nil {
						*to = append(*to, w)
					}
				}
			}
		}
	}
	return m
}

// scanModules reads every .ko below dir, which is /lib/modules/RELEASE.
func scanModules(release, dir string) (*moduleSet, error) {
	var paths []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasSuffix(p, ".ko") {
			paths = append(paths, p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("scan modules: %w", err)
	}
	set := &moduleSet{Index: &modindex.Index{Release: release, Modules: map[string]modindex.Module{}}, Firmware: map[string][]string{}}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(4)
	for _, p := range paths {
		g.Go(func() error {
			f, err := os.Open(p)
			if err != nil {
				return fmt.Errorf("scan modules: %w", err)
			}
			defer f.Close()
			m, err := readModinfo(f)
			if err != nil {
				return fmt.Errorf("scan module %s: %w", p, err)
			}
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return fmt.Errorf("scan module %s: %w", p, err)
			}
			name := modindex.Name(strings.TrimSuffix(filepath.Base(p), ".ko"))
			mu.Lock()
			defer mu.Unlock()
			set.Index.Modules[name] = modindex.Module{Path: rel, Depends: m.depends, SoftPre: m.softPre, SoftPost: m.softPost}
			for _, a := range m.aliases {
				set.Index.Aliases = append(set.Index.Aliases, modindex.Alias{Pattern: a, Module: name})
			}
			if len(m.firmware) > 0 {
				set.Firmware[name] = m.firmware
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(set.Index.Aliases, func(a, b modindex.Alias) int {
		return cmp.Or(cmp.Compare(a.Pattern, b.Pattern), cmp.Compare(a.Module, b.Module))
	})
	set.Index.Aliases = slices.Compact(set.Index.Aliases)
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("scan modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if name := strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"); name != "" && name != "." {
			set.Index.Builtin = append(set.Index.Builtin, modindex.Name(name))
		}
	}
	slices.Sort(set.Index.Builtin)
	set.Index.Builtin = slices.Compact(set.Index.Builtin)
	return set, nil
}

// choose gives the modules below the folders (of /lib/modules/RELEASE/kernel)
// and the named ones that this kernel has, with all they need, sorted. Kernels
// differ in what is built in or gone, so a name that is missing is no error.
func choose(ix *modindex.Index, folders, names []string) ([]string, error) {
	var want []string
	for name, m := range ix.Modules {
		for _, f := range folders {
			if strings.HasPrefix(m.Path, "kernel/"+f) {
				want = append(want, name)
			}
		}
	}
	for _, n := range names {
		if len(ix.Match(n)) > 0 {
			want = append(want, n)
		}
	}
	got, err := ix.Closure(want...)
	slices.Sort(got)
	return got, err
}
