package roles

import (
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dsas"
)

// shipped holds the definitions that come with the program. "all:" because
// embed leaves out names that begin with a dot or an underscore; what it cannot
// keep is the mode, which modeFS gives back by name.
//
//go:embed all:_common all:lb all:web all:db all:inventory all:rescue
var shipped embed.FS

// SourceShipped is the Source of a definition that is part of the program.
const SourceShipped = "shipped"

// commonDir lies under every role; its name can be no role's (dsas.CheckName).
const commonDir = "_common"

// Definition is one role, parsed and checked.
type Definition struct {
	Role dsas.Role
	// FS is the definition's folder over _common. Modes are 0755 for what is
	// executed and for folders, else 0644; a symlink in files/ stays one.
	FS     fs.FS
	Source string // SourceShipped, or the user's folder
	Digest string // "sha256:..." of all paths, modes and contents below FS
}

// Set is all definitions there are; it does not change once loaded.
type Set struct{ defs map[string]Definition }

// Load reads the shipped definitions and those below userDir, which may be ""
// or not exist. One bad definition does not hide the good ones: the Set holds
// every role that is right, and the error, if any, names what is wrong with
// each of the others (a user's broken definition does not fall back to the
// shipped one of the same name: that would run something else than was asked).
func Load(userDir string) (*Set, error) {
	shippedCommon, err := fs.Sub(shipped, commonDir)
	if err != nil {
		return nil, fmt.Errorf("load shipped roles: %w", err)
	}
	common := []fs.FS{modeFS{shippedCommon}}
	var user []string
	var errs []error
	if userDir != "" {
		if user, err = roleFolders(os.DirFS(userDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("load roles from %s: %w", userDir, err))
		}
		own := filepath.Join(userDir, commonDir)
		if st, err := os.Stat(own); err == nil && st.IsDir() {
			common = append([]fs.FS{modeFS{os.DirFS(own)}}, common...)
		}
	}
	names, err := roleFolders(shipped)
	if err != nil {
		return nil, fmt.Errorf("load shipped roles: %w", err)
	}
	set := &Set{defs: map[string]Definition{}}
	add := func(name, source string, dir fs.FS) {
		def, err := load(name, source, modeFS{dir}, common)
		if err != nil {
			errs = append(errs, err)
			return
		}
		set.defs[name] = def
	}
	for _, name := range names {
		if slices.Contains(user, name) {
			continue
		}
		dir, err := fs.Sub(shipped, name)
		if err != nil {
			return nil, fmt.Errorf("load shipped role %s: %w", name, err)
		}
		add(name, SourceShipped, dir)
	}
	for _, name := range user {
		dir := filepath.Join(userDir, name)
		add(name, dir, os.DirFS(dir))
	}
	return set, errors.Join(errs...)
}

// roleFolders lists the folders of fsys that may be roles: those with a
// role.yaml, and those without one whose name could be a role's (so that a
// missing role.yaml is reported and not passed over).
func roleFolders(fsys fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		// A dot or an underscore marks what is no role (.git, _common).
		if strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(e.Name(), "_") {
			continue
		}
		if st, err := fs.Stat(fsys, e.Name()); err == nil && st.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// load reads one definition over the common layers, the first of which wins.
func load(name, source string, dir fs.FS, common []fs.FS) (Definition, error) {
	fail := func(err error) (Definition, error) {
		return Definition{}, fmt.Errorf("load role %s (%s): %w", name, source, err)
	}
	role, err := readRole(dir)
	if err != nil {
		return fail(err)
	}
	if role.Name != name {
		return fail(fmt.Errorf("%s: name %q differs from the folder's, %q; make them the same: %w", roleFile, role.Name, name, dsas.ErrInvalid))
	}
	layers := []fs.FS{dir}
	if role.Extends != "" {
		below, err := extended(name, role.Extends)
		if err != nil {
			return fail(err)
		}
		under, err := readRole(below)
		if err != nil {
			return fail(fmt.Errorf("shipped %s: %w", name, err))
		}
		role = extend(under, role)
		layers = append(layers, below)
	}
	for _, c := range common {
		under, err := readRole(c)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fail(fmt.Errorf("%s: %w", commonDir, err))
		}
		role = merge(under, role)
	}
	def := Definition{Role: role, FS: overlayFS(append(layers, common...)), Source: source}
	if err := Check(def); err != nil {
		return fail(err)
	}
	if def.Digest, err = digest(def.FS); err != nil {
		return fail(err)
	}
	return def, nil
}

// merge puts role over under: lists come one after the other, and what role
// names itself (a service, a template's path, a device's key) replaces.
func merge(under, role dsas.Role) dsas.Role {
	out := role
	out.Packages = union(under.Packages, role.Packages)
	out.Modules = union(under.Modules, role.Modules)
	out.Remove = union(under.Remove, role.Remove)
	out.Devices = override(under.Devices, role.Devices, func(d dsas.Device) string { return d.Key })
	out.Services = override(under.Services, role.Services, func(s dsas.Service) string { return s.Name })
	out.Allow = override(under.Allow, role.Allow, func(a dsas.Allow) string { return a.Path })
	out.Templates = override(under.Templates, role.Templates, func(t dsas.Template) string { return t.Path })
	return out
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		// Twice in one list is an error of its own, for Check to find.
		if !slices.Contains(a, s) {
			out = append(out, s)
		}
	}
	return out
}

func override[T any](under, over []T, key func(T) string) []T {
	var out []T
	for _, u := range under {
		if !slices.ContainsFunc(over, func(o T) bool { return key(o) == key(u) }) {
			out = append(out, u)
		}
	}
	return append(out, over...)
}

// Roles gives every role, by name.
func (s *Set) Roles() []dsas.Role {
	var out []dsas.Role
	for _, d := range s.Definitions() {
		out = append(out, d.Role)
	}
	return out
}

// Definitions gives every definition, by name.
func (s *Set) Definitions() []Definition {
	var out []Definition
	for _, n := range s.names() {
		out = append(out, s.defs[n])
	}
	return out
}

func (s *Set) names() []string {
	var out []string
	for n := range s.defs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Get gives the definition of role name, or an error that is dsas.ErrNotFound
// and lists the roles there are.
func (s *Set) Get(name string) (Definition, error) {
	d, ok := s.defs[name]
	if !ok {
		known := s.names()
		return Definition{}, fmt.Errorf("role %q: does not exist%s; there are: %s: %w", name, dsas.DidYouMean(name, known), strings.Join(known, ", "), dsas.ErrNotFound)
	}
	return d, nil
}

// digest hashes every path, mode, link target and content, each with its
// length before it, so that no two trees give the same bytes.
func digest(fsys fs.FS) (string, error) {
	h := sha256.New()
	put := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		put([]byte(p))
		put([]byte(info.Mode().String()))
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, p)
			if err != nil {
				return err
			}
			put([]byte(target))
		case d.Type().IsRegular():
			f, err := fsys.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			inner := sha256.New()
			if _, err := io.Copy(inner, f); err != nil {
				return err
			}
			put(inner.Sum(nil))
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("digest definition: %w", err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
