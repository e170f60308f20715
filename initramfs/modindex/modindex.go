// Package modindex says which kernel modules there are, what each needs and
// which hardware each is for. The image builder makes an Index from the
// modules themselves (Debian's kernel packages ship no modules.dep); the node
// reads it as JSON and loads by it.
package modindex

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"dsas"
)

// File is the index's name: /etc/dsas-modules.json in the initramfs,
// /usr/lib/modules/RELEASE/dsas-modules.json in a role's image.
const File = "dsas-modules.json"

// maxIndex bounds what Read takes, in bytes; all of Debian's 4,022 modules
// need about 3 MB.
const maxIndex = 32 << 20

// Index describes one set of modules of one kernel release.
type Index struct {
	Release string            `json:"release"` // uname -r
	Modules map[string]Module `json:"modules"` // by Name
	Aliases []Alias           `json:"aliases"` // in order of Pattern
	Builtin []string          `json:"builtin"` // Names of what is in the kernel itself
}

// Module is one loadable module. The names in it are as Name gives them.
type Module struct {
	Path     string   `json:"path"`               // below /lib/modules/RELEASE
	Depends  []string `json:"depends,omitempty"`  // direct ones only
	SoftPre  []string `json:"softPre,omitempty"`  // wanted before it (module names or aliases)
	SoftPost []string `json:"softPost,omitempty"` // wanted after it
}

// Alias tells that Module drives what Pattern matches (fnmatch(3), no flags),
// e.g. "pci:v00008086d00001533sv*sd*bc*sc*i*" or "fs-ext4".
type Alias struct {
	Pattern string `json:"pattern"`
	Module  string `json:"module"`
}

// Name gives the kernel's spelling of a module's name, in which '-' and '_'
// are the same: the file nf-conntrack.ko is the module nf_conntrack.
func Name(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Read reads an index from its JSON.
func Read(r io.Reader) (*Index, error) {
	ix := &Index{}
	if err := json.NewDecoder(io.LimitReader(r, maxIndex)).Decode(ix); err != nil {
		return nil, fmt.Errorf("read module index: %w", err)
	}
	return ix, nil
}

// ReadFile reads the index in the named file.
func ReadFile(name string) (*Index, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open module index: %w", err)
	}
	defer f.Close()
	return Read(f)
}

// Write writes ix as JSON, the same bytes for the same content: map keys are
// sorted, aliases and builtins are kept in the order they have.
func (ix *Index) Write(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(ix); err != nil {
		return fmt.Errorf("write module index: %w", err)
	}
	return nil
}

// IsBuiltin tells whether the module is part of the kernel image.
func (ix *Index) IsBuiltin(name string) bool {
	return slices.Contains(ix.Builtin, Name(name))
}

// Match gives the names of the modules for a modalias (or another alias as
// "fs-ext4"), each once, in the index's order; nil where there is none. A
// module's own name matches that module, as with modprobe.
func (ix *Index) Match(modalias string) []string {
	if n := Name(modalias); ix.has(n) {
		return []string{n}
	}
	var out []string
	for _, a := range ix.Aliases {
		if ix.has(a.Module) && Fnmatch(a.Pattern, modalias) && !slices.Contains(out, a.Module) {
			out = append(out, a.Module)
		}
	}
	return out
}

func (ix *Index) has(name string) bool {
	_, ok := ix.Modules[name]
	return ok
}

// Closure gives the named modules and all they need, hard and soft, in the
// order to load them: soft "pre", dependencies, the module, soft "post". A name may
// be an alias. What is built in needs no loading and is left out; so is a soft
// dependency that the index does not have. A name that is not known at all, or
// a hard dependency that is missing, is an error that wraps dsas.ErrNotFound.
func (ix *Index) Closure(names ...string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var visit func(name, by string, soft bool) error
	visit = func(name, by string, soft bool) error {
		mods := ix.Match(name)
		if len(mods) == 0 {
			if soft || ix.IsBuiltin(name) {
				return nil
			}
			if by != "" {
				return fmt.Errorf("module %s (needed by %s): not among the modules of kernel %s: %w", name, by, ix.Release, dsas.ErrNotFound)
			}
			return fmt.Errorf("module %s: not among the modules of kernel %s: %w", name, ix.Release, dsas.ErrNotFound)
		}
		for _, n := range mods {
			// Marked before its needs are visited: soft dependencies may form a cycle.
			if seen[n] {
				continue
			}
			seen[n] = true
			m := ix.Modules[n]
			for _, d := range m.SoftPre {
				if err := visit(d, n, true); err != nil {
					return err
				}
			}
			for _, d := range m.Depends {
				if err := visit(d, n, false); err != nil {
					return err
				}
			}
			out = append(out, n)
			for _, d := range m.SoftPost {
				if err := visit(d, n, true); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, n := range names {
		if err := visit(n, "", false); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Subset gives an index of the named modules only, with their aliases; it does
// not add what they need (see Closure).
func (ix *Index) Subset(names []string) *Index {
	out := &Index{Release: ix.Release, Modules: make(map[string]Module, len(names)), Builtin: ix.Builtin}
	for _, n := range names {
		if m, ok := ix.Modules[Name(n)]; ok {
			out.Modules[Name(n)] = m
		}
	}
	for _, a := range ix.Aliases {
		if out.has(a.Module) {
			out.Aliases = append(out.Aliases, a)
		}
	}
	return out
}
