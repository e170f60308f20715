package layers

import (
	"archive/tar"
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"
)

// Package is a Debian package whose state changed.
type Package struct {
	Name string `json:"name"`          // "nginx", with ":i386" where it is not the image's own architecture
	Old  string `json:"old,omitempty"` // version; "" where it was not installed
	New  string `json:"new,omitempty"` // "" where it is not any more
}

// File is a path that differs.
type File struct {
	Path string `json:"path"`   // "/etc/motd"
	Kind string `json:"change"` // "added", "removed", "changed"
	// What of a changed one: "content", "type", "mode", "owner", "link", "device", "attributes".
	What []string `json:"what,omitempty"`
	Old  int64    `json:"oldSize"` // bytes
	New  int64    `json:"newSize"`
}

// Diff is how one tree differs from another. Times of files are not looked at.
type Diff struct {
	Packages []Package `json:"packages"`
	Files    []File    `json:"files"`
}

// Compare tells what makes to out of from, by name.
func Compare(from, to *Tree) Diff {
	d := Diff{Packages: comparePackages(from.packages(), to.packages()), Files: []File{}}
	for name, old := range from.entries {
		now, ok := to.entries[name]
		if !ok {
			d.Files = append(d.Files, File{Path: "/" + name, Kind: "removed", Old: old.Size})
			continue
		}
		if what := differ(old, now); len(what) > 0 {
			d.Files = append(d.Files, File{Path: "/" + name, Kind: "changed", What: what, Old: old.Size, New: now.Size})
		}
	}
	for name, now := range to.entries {
		if _, ok := from.entries[name]; !ok {
			d.Files = append(d.Files, File{Path: "/" + name, Kind: "added", New: now.Size})
		}
	}
	slices.SortFunc(d.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return d
}

func differ(a, b Entry) (what []string) {
	if a.MTime = b.MTime; a == b {
		return nil
	}
	note := func(is bool, word string) {
		if is {
			what = append(what, word)
		}
	}
	note(a.Type != b.Type, "type")
	note(a.Type == b.Type && (a.Size != b.Size || a.Sum != b.Sum), "content")
	note(a.Mode != b.Mode && a.Type != tar.TypeSymlink, "mode")
	note(a.UID != b.UID || a.GID != b.GID, "owner")
	note(a.Link != b.Link && a.Type == b.Type, "link")
	note(a.Major != b.Major || a.Minor != b.Minor, "device")
	note(a.Attrs != b.Attrs, "attributes")
	return what
}

// Where Debian notes what is installed; the folder is that of images without dpkg.
const (
	dpkgStatus = "var/lib/dpkg/status"
	dpkgFolder = "var/lib/dpkg/status.d"
)

func isPackageList(name string) bool {
	return name == dpkgStatus || path.Dir(name) == dpkgFolder && !strings.HasSuffix(name, ".md5sums")
}

// packages gives the installed packages' versions.
func (t *Tree) packages() map[string]string {
	out := map[string]string{}
	arch := map[string]string{}
	for name, text := range t.texts {
		for _, p := range parsePackages(string(text), name != dpkgStatus) {
			key := p["Package"] + ":" + p["Architecture"]
			out[key] = p["Version"]
			arch[key] = p["Architecture"]
		}
	}
	// "nginx", but "libc6:i386" beside an image of amd64.
	count := map[string]int{}
	for _, a := range arch {
		if a != "all" {
			count[a]++
		}
	}
	own := ""
	for _, a := range slices.Sorted(maps.Keys(count)) {
		if own == "" || count[a] > count[own] {
			own = a
		}
	}
	short := make(map[string]string, len(out))
	for key, version := range out {
		name, a, _ := strings.Cut(key, ":")
		if a != own && a != "all" {
			name = key
		}
		short[name] = version
	}
	return short
}

// parsePackages reads deb822 paragraphs (deb-control(5), dpkg's status file);
// always: those without a Status are installed.
func parsePackages(text string, always bool) (list []map[string]string) {
	for para := range strings.SplitSeq(text, "\n\n") {
		p := map[string]string{}
		for line := range strings.Lines(para) {
			if line[0] == ' ' || line[0] == '\t' {
				continue // goes on with what is not asked for here
			}
			key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
			if ok && (key == "Package" || key == "Version" || key == "Architecture" || key == "Status") {
				p[key] = strings.TrimSpace(value)
			}
		}
		status := strings.Fields(p["Status"])
		installed := len(status) == 3 && (status[2] == "installed" || strings.HasPrefix(status[2], "triggers-"))
		if p["Package"] != "" && (installed || always && p["Status"] == "") {
			list = append(list, p)
		}
	}
	return list
}

func comparePackages(from, to map[string]string) []Package {
	out := []Package{}
	for name, old := range from {
		if now := to[name]; now != old {
			out = append(out, Package{name, old, now})
		}
	}
	for name, now := range to {
		if _, ok := from[name]; !ok {
			out = append(out, Package{Name: name, New: now})
		}
	}
	slices.SortFunc(out, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
