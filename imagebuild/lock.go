package imagebuild

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"dsas"
)

// lock is the versions of packages, by name.
type lock map[string]string

// PackageChange is one package whose version changed. Old is empty for one
// that came, New for one that went.
type PackageChange struct {
	Package string `json:"package"`
	Old     string `json:"old,omitempty"`
	New     string `json:"new,omitempty"`
}

// String gives "NAME OLD -> NEW".
func (c PackageChange) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("%s %s (new)", c.Package, c.New)
	case c.New == "":
		return fmt.Sprintf("%s %s (gone)", c.Package, c.Old)
	}
	return fmt.Sprintf("%s %s -> %s", c.Package, c.Old, c.New)
}

// changes tells what became of old, by name. Of no lock at all it tells
// nothing: a first build changes nothing.
func changes(old, now lock) []PackageChange {
	if old == nil {
		return nil
	}
	var out []PackageChange
	for _, p := range slices.Sorted(maps.Keys(now)) {
		if old[p] != now[p] {
			out = append(out, PackageChange{p, old[p], now[p]})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(old)) {
		if _, ok := now[p]; !ok {
			out = append(out, PackageChange{p, old[p], ""})
		}
	}
	return out
}

// lockPlace is where a role's lock is.
func (o *Options) lockPlace(name, own string) string {
	switch {
	case own != "":
		return own
	case o.Locks != "":
		return filepath.Join(o.Locks, name+".lock")
	}
	return filepath.Join(o.Cache, "locks", name+".lock")
}

// lockLineRE: a package's name and version (Debian Policy sections 5.6.1 and
// 5.6.12), as they go into apt's preferences.
var lockLineRE = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]+) ([0-9A-Za-z.+:~-]+)$`)

// readLock gives nil where there is no lock.
func readLock(name string) (lock, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	l := lock{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		m := lockLineRE.FindStringSubmatch(line)
		if m == nil || l[m[1]] != "" {
			return nil, fmt.Errorf("%s:%d: %.60q: want a package and its version, each package once; remove the file, or build with --refresh, to have it written anew: %w", name, n, line, dsas.ErrInvalid)
		}
		l[m[1]] = m[2]
	}
	return l, nil
}

// writeLock replaces a lock, unless it says the same.
func writeLock(name, of string, l lock) error {
	return writeLockFile(name, fmt.Sprintf("# Written by dsas image build: the versions of the packages of %s.\n# Builds keep to them; with --refresh they are resolved anew. Keep it with the definition.\n", of), l)
}

// writeLockFile is writeLock with another text at the top.
func writeLockFile(name, head string, l lock) error {
	var b bytes.Buffer
	b.WriteString(head)
	for _, p := range slices.Sorted(maps.Keys(l)) {
		fmt.Fprintf(&b, "%s %s\n", p, l[p])
	}
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, b.Bytes()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if err := renameio.WriteFile(name, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// lockOf makes a lock of apt's "NAME=VERSION".
func lockOf(news []string) lock {
	l := lock{}
	for _, n := range news {
		if p, v, ok := strings.Cut(n, "="); ok {
			l[p] = v
		}
	}
	return l
}

// installed reads the versions of the installed packages from dpkg's status.
func installed(root string) (lock, error) {
	b, err := os.ReadFile(filepath.Join(root, "var/lib/dpkg/status"))
	if err != nil {
		return nil, err
	}
	l := lock{}
	for stanza := range strings.SplitSeq(string(b), "\n\n") {
		var name, version string
		ok := false
		for line := range strings.Lines(stanza) {
			switch k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); k {
			case "Package":
				name = v
			case "Version":
				version = v
			case "Status":
				ok = v == "install ok installed"
			}
		}
		if ok {
			l[name] = version
		}
	}
	if len(l) == 0 {
		return nil, fmt.Errorf("%s: dpkg knows no package", root)
	}
	return l, nil
}

// missed tells which locked packages did not come in the locked version, as an
// error that names the way out; nil where all did.
func (l lock) missed(got lock, where string) error {
	var lines []string
	for _, p := range slices.Sorted(maps.Keys(l)) {
		if v, ok := got[p]; ok && v != l[p] {
			lines = append(lines, fmt.Sprintf("%s %s (there is %s)", p, l[p], v))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("the lock %s names versions that the mirrors no longer have, and the cache neither:\n\t%s\n\tto take today's: dsas image build --refresh: %w",
		where, strings.Join(lines, "\n\t"), dsas.ErrNotFound)
}

// preferences pins the packages (apt_preferences(5)): 1001 takes the version
// even where a newer one is installed. What is only in our own archive counts
// for nothing else.
func (l lock) preferences() string {
	var b strings.Builder
	b.WriteString("Package: *\nPin: origin \"\"\nPin-Priority: 1\n")
	for _, p := range slices.Sorted(maps.Keys(l)) {
		fmt.Fprintf(&b, "\nPackage: %s\nPin: version %s\nPin-Priority: 1001\n", p, l[p])
	}
	return b.String()
}

// pin makes apt keep to a lock; nil: to none.
func (a *apt) pin(l lock) error {
	if err := os.WriteFile(filepath.Join(a.dir, "preferences"), []byte(l.preferences()), 0o644); err != nil {
		return fmt.Errorf("apt preferences: %w", err)
	}
	return nil
}
