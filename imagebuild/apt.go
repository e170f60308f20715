package imagebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"dsas"
)

// apt runs Debian's apt with lists, archives and configuration of our own, so
// that building changes nothing of the machine's. The mirrors, keyrings,
// proxies and credentials are the machine's.
type apt struct {
	dir     string // CACHE/apt
	suite   string // "bookworm"
	sources string // text of the sources used
	etc     string // /etc/apt
	opt     *Options
	conf    string // path of the configuration, for APT_CONFIG
	reach   string // of the machine's configuration, how to reach the mirrors
}

func openApt(ctx context.Context, opt *Options) (*apt, error) {
	a := &apt{dir: filepath.Join(opt.Cache, "apt"), etc: cmp.Or(opt.Etc, "/etc/apt"), opt: opt}
	a.conf = filepath.Join(a.dir, "apt.conf")
	var err error
	if a.suite, err = hostSuite("/etc/os-release"); err != nil {
		return nil, err
	}
	if a.sources, err = hostSources(a.etc, a.suite); err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "archives/partial", "empty", "state"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("apt folder: %w", err)
		}
	}
	dump, err := run(command(ctx, "apt-config", "dump"))
	if err != nil {
		return nil, fmt.Errorf("read the machine's apt configuration: %w", err)
	}
	a.reach = reachText(dump)
	if err := a.pin(nil); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"apt.conf": a.confText(), "sources.list.d/dsas.sources": a.sources} {
		name = filepath.Join(a.dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, fmt.Errorf("apt folder: %w", err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("apt configuration: %w", err)
		}
	}
	// Whoever removed our repository is not told by apt that it is gone.
	if _, err := os.Stat(a.keptList()); errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(a.keptSource()); err != nil {
			return nil, fmt.Errorf("apt configuration: %w", err)
		}
	}
	return a, nil
}

// reachText keeps from the machine's configuration how to reach the mirrors
// (proxies, certificates, checks) and none of its hooks: those would run in
// the role's root, or empty our archives.
func reachText(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if !strings.HasPrefix(line, "Acquire::") || strings.HasPrefix(line, "Acquire::IndexTargets") || strings.HasPrefix(line, "Acquire::Languages") {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}

func (a *apt) confText() string {
	var b strings.Builder
	b.WriteString(a.reach)
	for k, v := range map[string]string{
		"Dir::Etc::main": "/dev/null", "Dir::Etc::parts": a.dir + "/empty",
		"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": a.dir + "/sources.list.d",
		"Dir::Etc::preferences": a.dir + "/preferences",
		"Dir::State":            a.dir + "/state", "Dir::State::lists": a.dir + "/lists", "Dir::State::status": "/dev/null",
		"Dir::Cache": a.dir, "Dir::Cache::archives": a.dir + "/archives",
		// What apt makes of the lists: a second each time, where it is not kept.
		"Dir::Cache::pkgcache": a.dir + "/pkgcache.bin", "Dir::Cache::srcpkgcache": a.dir + "/srcpkgcache.bin",
		"Dir::Log": a.dir, "Dir::Log::Terminal": "", "Dir::Log::History": "", "Dir::Log::Planner": "/dev/null",
		"APT::Install-Recommends": "false", "APT::Install-Suggests": "false",
		"Acquire::Languages": "none", "Acquire::Retries": "3",
		"APT::Get::Assume-Yes": "true", "Dpkg::Use-Pty": "false", "quiet": "2",
		"Binary::apt-get::APT::Keep-Downloaded-Packages": "true",
	} {
		fmt.Fprintf(&b, "%s %q;\n", k, v)
	}
	return b.String()
}

// command prepares one of apt's programs.
func (a *apt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := command(ctx, name, args...)
	cmd.Env = append(cmd.Env, "APT_CONFIG="+a.conf)
	return cmd
}

// fresh tells whether the lists are young enough and of today's sources.
func (a *apt) fresh() bool {
	stamp := filepath.Join(a.dir, "updated")
	fi, err := os.Stat(stamp)
	if err != nil || time.Since(fi.ModTime()) > a.opt.maxAge() || time.Until(fi.ModTime()) > time.Minute {
		return false
	}
	b, err := os.ReadFile(stamp)
	return err == nil && string(b) == key(a.sources)
}

// stamp names the state of the lists.
func (a *apt) stamp() string {
	fi, err := os.Stat(filepath.Join(a.dir, "updated"))
	if err != nil {
		return ""
	}
	return fi.ModTime().UTC().Format(time.RFC3339Nano)
}

// update fetches the package lists unless they are fresh. Where the mirrors
// cannot be reached, older lists of the same sources will do.
func (a *apt) update(ctx context.Context) error {
	if a.fresh() {
		return nil
	}
	a.opt.say("fetching Debian's package lists")
	_, err := run(a.command(ctx, "apt-get", "update", "--error-on=any"))
	stamp := filepath.Join(a.dir, "updated")
	if err != nil {
		b, rerr := os.ReadFile(stamp)
		if ctx.Err() != nil || rerr != nil || string(b) != key(a.sources) {
			return fmt.Errorf("fetch package lists: %w", err)
		}
		a.opt.say("going on with older package lists: %v", err)
		return nil
	}
	if err := os.WriteFile(stamp, []byte(key(a.sources)), 0o644); err != nil {
		return fmt.Errorf("fetch package lists: %w", err)
	}
	return nil
}

// need sees to it that there are package lists of today's sources, and, to
// resolve something anew, that they are not old.
func (a *apt) need(ctx context.Context, anew bool) error {
	b, err := os.ReadFile(filepath.Join(a.dir, "updated"))
	if !anew && err == nil && string(b) == key(a.sources) {
		return nil
	}
	return a.update(ctx)
}

// show gives the named fields of a package's candidate version. A package
// that no source has is dsas.ErrNotFound.
func (a *apt) show(ctx context.Context, pkg string, fields ...string) ([]string, error) {
	out, err := run(a.command(ctx, "apt-cache", "show", "--no-all-versions", pkg))
	if err != nil {
		return nil, fmt.Errorf("package %s: %w: %w", pkg, dsas.ErrNotFound, err)
	}
	values := make([]string, len(fields))
	for i, f := range fields {
		for line := range strings.Lines(out) {
			if v, ok := strings.CutPrefix(line, f+": "); ok {
				values[i] = strings.TrimSpace(v)
				break
			}
		}
	}
	return values, nil
}

// download fetches one package file and gives its path.
func (a *apt) download(ctx context.Context, pkg, version string) (string, error) {
	dir, err := os.MkdirTemp(a.dir, "deb-")
	if err != nil {
		return "", fmt.Errorf("download %s: %w", pkg, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("download %s: %w", pkg, err)
	}
	cmd := a.command(ctx, "apt-get", "download", pkg+"="+version)
	cmd.Dir = dir
	if _, err := run(cmd); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("download %s: %w", pkg, err)
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(debs) != 1 {
		os.RemoveAll(dir)
		return "", fmt.Errorf("download %s: apt-get left %d files, want one .deb", pkg, len(debs))
	}
	return debs[0], nil
}

// hostSuite reads the release's code name from os-release(5).
func hostSuite(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("which Debian is this: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			if v = strings.Trim(v, `"'`); v != "" {
				return v, nil
			}
		}
	}
	return "", fmt.Errorf("which Debian is this: %s has no VERSION_CODENAME: images are built from Debian releases: %w", name, dsas.ErrInvalid)
}

// hostSources gives the machine's sources of this release, as deb822 text. Others
// (a vendor's repository with suites of its own) are left out: a node's image
// is of one release, and a vendor's mirror that is down must not stop a build.
// A repository of the operator's whose suite carries the code name is taken.
func hostSources(etc, suite string) (string, error) {
	var names []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		found, _ := filepath.Glob(filepath.Join(etc, pattern))
		names = append(names, found...)
	}
	var out []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read apt's sources: %w", err)
		}
		if strings.HasSuffix(name, ".sources") {
			out = append(out, deb822Sources(string(b), suite)...)
		} else {
			out = append(out, oneLineSources(string(b), suite)...)
		}
	}
	if len(out) == 0 {
		return "", fmt.Errorf("apt's sources in %s: none for Debian %s: add one, as deb822 in sources.list.d/debian.sources: %w", etc, suite, dsas.ErrInvalid)
	}
	return strings.Join(out, "\n"), nil
}

// wanted tells whether a suite is of the release: "bookworm",
// "bookworm-updates", "bookworm/updates", or what stands for it.
func wanted(suite, release string) bool {
	for _, r := range []string{release, "stable", "oldstable"} {
		if rest, ok := strings.CutPrefix(suite, r); ok && (rest == "" || rest[0] == '-' || rest[0] == '/') {
			return true
		}
	}
	return false
}

// deb822Sources gives the stanzas (sources.list(5)) that have a wanted suite.
func deb822Sources(text, release string) []string {
	var out []string
	for _, stanza := range regexp.MustCompile(`\n[ \t\r]*\n`).Split(text, -1) {
		fields := map[string]string{}
		var lines []string
		last := ""
		for line := range strings.Lines(stanza) {
			line = strings.TrimRight(line, " \t\r\n")
			if line == "" || line[0] == '#' {
				continue
			}
			lines = append(lines, line)
			if line[0] == ' ' || line[0] == '\t' {
				fields[last] += " " + strings.TrimSpace(line)
			} else if k, v, ok := strings.Cut(line, ":"); ok {
				last = strings.ToLower(k)
				fields[last] = strings.TrimSpace(v)
			}
		}
		if e := strings.ToLower(fields["enabled"]); e == "no" || e == "false" || e == "0" {
			continue
		}
		isDeb, isWanted := false, false
		for _, t := range strings.Fields(fields["types"]) {
			isDeb = isDeb || t == "deb"
		}
		for _, s := range strings.Fields(fields["suites"]) {
			isWanted = isWanted || wanted(s, release)
		}
		if isDeb && isWanted {
			out = append(out, strings.Join(lines, "\n")+"\n")
		}
	}
	return out
}

var oneLineRE = regexp.MustCompile(`^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)\s*(?:#.*)?$`)

// oneLineSources turns the wanted lines of a sources.list into stanzas. Options
// become fields by the same rule as in sources.list(5): signed-by, Signed-By.
func oneLineSources(text, release string) []string {
	var out []string
	for line := range strings.Lines(text) {
		m := oneLineRE.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || !wanted(m[3], release) {
			continue
		}
		stanza := "Types: deb\nURIs: " + m[2] + "\nSuites: " + m[3] + "\n"
		if c := strings.Join(strings.Fields(m[4]), " "); c != "" {
			stanza += "Components: " + c + "\n"
		}
		for _, o := range strings.Fields(m[1]) {
			if k, v, ok := strings.Cut(o, "="); ok {
				if k == "arch" {
					k = "architectures"
				}
				stanza += k + ": " + strings.ReplaceAll(v, ",", " ") + "\n"
			}
		}
		out = append(out, stanza)
	}
	return out
}
