package imagebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A mirror forgets a package when a newer one comes. So that a locked version
// can be installed again, the packages that were downloaded are kept, as a
// repository of our own in CACHE/apt/kept: a file per package, named by its
// SHA-256, and apt's own description of it, from the signed lists it came with.

// maxKept is how many packages are kept; the least used go first.
const maxKept = 1500

var shaRE = regexp.MustCompile(`(?m)^SHA256: ([0-9a-f]{64})$`)

func (a *apt) kept() string       { return filepath.Join(a.dir, "kept") }
func (a *apt) keptList() string   { return filepath.Join(a.kept(), "Packages") }
func (a *apt) keptSource() string { return filepath.Join(a.dir, "sources.list.d", "kept.sources") }

// keep puts the packages of the locks that are among apt's archives into our
// repository. What the lists do not know (any more) is left out.
func (a *apt) keep(ctx context.Context, locks ...lock) error {
	var wanted []string
	for _, l := range locks {
		for _, p := range slices.Sorted(maps.Keys(l)) {
			wanted = append(wanted, p+"="+l[p])
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	debs := filepath.Join(a.kept(), "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return fmt.Errorf("keep packages: %w", err)
	}
	cmd := a.command(ctx, "apt-cache", append([]string{"show", "--no-all-versions"}, wanted...)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	// It ends with 100 when one is not known, and shows the others.
	if err := runCmd(cmd); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	for stanza := range strings.SplitSeq(out.String(), "\n\n") {
		m := shaRE.FindStringSubmatch(stanza)
		if m == nil {
			continue
		}
		f := fields(stanza)
		name := filepath.Join(debs, m[1]+".deb")
		text := filepath.Join(debs, m[1]+".txt")
		now := time.Now()
		if os.Chtimes(name, now, now) == nil && os.Chtimes(text, now, now) == nil {
			continue
		}
		from := filepath.Join(a.dir, "archives", fmt.Sprintf("%s_%s_%s.deb", f["Package"], strings.ReplaceAll(f["Version"], ":", "%3a"), f["Architecture"]))
		// Of the lists' content, or of nobody's.
		if sum, err := hashFile(from); err != nil || sum != m[1] {
			continue
		}
		if err := os.WriteFile(text, []byte(describe(stanza, "debs/"+m[1]+".deb")), 0o644); err != nil {
			return fmt.Errorf("keep packages: %w", err)
		}
		if err := os.Link(from, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("keep packages: %w", err)
		}
		_ = os.Chtimes(name, now, now)
	}
	return a.index(ctx)
}

// fields reads the one-line fields of a stanza.
func fields(stanza string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(stanza) {
		if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok && line[0] != ' ' {
			out[k] = v
		}
	}
	return out
}

// describe gives a stanza with another place of the file.
func describe(stanza, file string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(stanza) + "\n") {
		if strings.HasPrefix(line, "Filename: ") {
			line = "Filename: " + file + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// index writes the repository's list and has apt read it.
func (a *apt) index(ctx context.Context) error {
	debs := filepath.Join(a.kept(), "debs")
	found, _ := filepath.Glob(filepath.Join(debs, "*.deb"))
	if len(found) > maxKept {
		pruneOld(debs, 2*maxKept)
		found, _ = filepath.Glob(filepath.Join(debs, "*.deb"))
	}
	var b bytes.Buffer
	for _, name := range found {
		text, err := os.ReadFile(strings.TrimSuffix(name, ".deb") + ".txt")
		if err != nil {
			continue
		}
		b.Write(text)
		b.WriteString("\n")
	}
	list, source := a.keptList(), a.keptSource()
	if old, err := os.ReadFile(list); err == nil && bytes.Equal(old, b.Bytes()) {
		if _, err := os.Stat(source); err == nil {
			return nil
		}
	}
	// The files are those of the signed lists; see keep.
	text := "Types: deb\nURIs: copy:" + a.kept() + "\nSuites: ./\nTrusted: yes\n"
	if b.Len() == 0 {
		text = ""
	}
	if err := os.WriteFile(list, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("keep packages: %w", err)
	}
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		return fmt.Errorf("keep packages: %w", err)
	}
	if _, err := run(a.command(ctx, "apt-get", "update", "-o", "Dir::Etc::sourcelist="+source, "-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Get::List-Cleanup=false")); err != nil {
		return fmt.Errorf("keep packages: %w", err)
	}
	return nil
}
