package capture

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
)

// The kinds of Change.
const (
	Added   = "added"
	Changed = "changed"
	Removed = "removed"
)

// Change is one path that is not as the release has it.
type Change struct {
	Path string   `json:"path"` // absolute
	Kind string   `json:"kind"` // Added, Changed, Removed
	What []string `json:"what,omitempty"`
	Size int64    `json:"size,omitempty"` // bytes, of a file as it is now
	// To is where it would go, below the definition's folder; empty: it cannot
	// be carried, and Note says why.
	To   string `json:"to,omitempty"`
	Note string `json:"note,omitempty"` // also what of it would be lost
	// Private: others may not read it where it is, but everyone can fetch an
	// image. It is only carried when it is named by its whole path.
	Private bool `json:"private,omitempty"`

	now, was Entry
}

// name is the path without its leading slash.
func (c Change) name() string { return c.Path[1:] }

// Doubtful gives the files whose content has to be compared by digest: of the
// same size and changed at another time.
func Doubtful(want, got Tree, rules Rules) []string {
	var out []string
	for name, g := range got {
		w, ok := want[name]
		if ok && g.Type == 'f' && w.Type == 'f' && g.Size == w.Size && g.MTime != w.MTime && g.Sum == "" && !rules.ignores(name, false) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Compare gives what of got differs from want, by path. Services are the names of
// the role's services: files of another one would never be started.
func Compare(want, got Tree, rules Rules, services []string) []Change {
	var out []Change
	removed := map[string]bool{}
	for name, w := range want {
		if _, ok := got[name]; !ok && !rules.ignores(name, w.Type == 'd') && !got.hidden(name) {
			removed[name] = true
		}
	}
	for name := range removed {
		if removed[path.Dir(name)] {
			continue // with its folder
		}
		out = append(out, Change{Path: "/" + name, Kind: Removed, was: want[name],
			Note: "a definition's files/ cannot remove what a package brings; remove: in role.yaml empties folders; a file of the definition's own: remove it there"})
	}
	for name, g := range got {
		if g.Type == mounted || rules.ignores(name, g.Type == 'd') {
			continue
		}
		w, was := want[name]
		g.Attrs = rules.attrs(w, g)
		c := Change{Path: "/" + name, Kind: Changed, Size: g.Size, now: g, was: w}
		if !was {
			c.Kind = Added
			if g.Type == 'd' && g.Attrs == "" && !emptyFolder(got, name) {
				continue // its files tell
			}
			c.What = attrsDiffer("", g.Attrs)
		} else if c.What = differs(w, g); len(c.What) == 0 {
			continue
		}
		c.place(was, services)
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// hidden tells whether a mounted disk hides a path.
func (t Tree) hidden(name string) bool {
	for ; name != "."; name = path.Dir(name) {
		if t[name].Type == mounted {
			return true
		}
	}
	return false
}

func emptyFolder(t Tree, dir string) bool {
	for name := range t {
		if strings.HasPrefix(name, dir+"/") {
			return false
		}
	}
	return true
}

// differs says in what g is not w.
func differs(w, g Entry) (what []string) {
	if w.Type != g.Type {
		return []string{fmt.Sprintf("type %c -> %c", w.Type, g.Type)}
	}
	switch {
	case g.Type == 'f' && (g.Size != w.Size || g.Sum != "" && g.Sum != w.Sum || g.Sum == "" && g.MTime != w.MTime):
		what = append(what, "content")
	case g.Type == 'l' && g.Link != w.Link:
		what = append(what, fmt.Sprintf("target %s -> %s", w.Link, g.Link))
	}
	if g.Type != 'l' && g.Mode != w.Mode {
		what = append(what, fmt.Sprintf("mode %04o -> %04o", w.Mode, g.Mode))
	}
	if g.UID != w.UID || g.GID != w.GID {
		what = append(what, fmt.Sprintf("owner %d:%d -> %d:%d", w.UID, w.GID, g.UID, g.GID))
	}
	return append(what, attrsDiffer(w.Attrs, g.Attrs)...)
}

func attrsDiffer(w, g xattr.List) (what []string) {
	if w == g {
		return nil
	}
	old, now := w.Map(), g.Map()
	for name, value := range now {
		if was, ok := old[name]; !ok {
			what = append(what, attrWord+name+" added")
		} else if was != value {
			what = append(what, attrWord+name+" changed")
		}
	}
	for name := range old {
		if _, ok := now[name]; !ok {
			what = append(what, attrWord+name+" removed")
		}
	}
	slices.Sort(what)
	return what
}

// attrWord begins what differs says of an attribute.
const attrWord = "attribute "

func isAttr(what string) bool { return strings.HasPrefix(what, attrWord) }

// usrmerge are links to the folders of the same name below usr.
var usrmerge = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// servicesDir is where an image has a role's services.
const servicesDir = "etc/dsas/services/"

// place says where a change would go, or why it cannot.
func (c *Change) place(was bool, services []string) {
	name := c.name()
	first, _, _ := strings.Cut(name, "/")
	onlyOwner := was && c.now.Type == c.was.Type && !slices.ContainsFunc(c.What, func(s string) bool {
		return s == "content" || strings.HasPrefix(s, "target ") || strings.HasPrefix(s, "mode ") || isAttr(s)
	})
	switch {
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
		c.Note = "its name has control characters or is no UTF-8"
	case slices.ContainsFunc(strings.Split(name, "/"), func(s string) bool { return strings.HasPrefix(s, layers.WhiteoutPrefix) }):
		c.Note = "a name that begins with .wh. means removal in an image"
	case slices.Contains(usrmerge, first):
		c.Note = "/" + first + " is a link to /usr/" + first + " in the image"
	case c.now.Type == 'd' && slices.ContainsFunc(c.What, isAttr):
		c.Note = "a definition cannot hold a folder's owner, mode and extended attributes; set them in the service's run"
	case c.now.Type == 'd' && !was:
		c.Note = "a definition cannot hold an empty folder; make it in the service's run"
	case c.now.Type == 'd':
		c.Note = "a definition cannot hold a folder's owner and mode; set them in the service's run"
	case was && c.was.Type == 'd':
		c.Note = "it was a folder, and takes the place of all that was in it"
	case c.now.Type != 'f' && c.now.Type != 'l':
		c.Note = "neither a file nor a symlink"
	case name == "etc/passwd" || name == "etc/group" || strings.HasPrefix(name, "etc/sub") && len(name) == len("etc/subuid"):
		c.Note = "users and groups come from packages; a copy would hide those that later packages make"
	case c.now.Size > MaxFile:
		c.Note = fmt.Sprintf("larger than %d MiB; put it into a package", MaxFile>>20)
	case c.now.Type == 'l' && slices.ContainsFunc(c.What, isAttr):
		c.Note = "a definition cannot hold a symlink's extended attributes"
	case slices.ContainsFunc(slices.Collect(maps.Keys(c.now.Attrs.Map())), func(s string) bool { return !xattr.Plain(s) }):
		c.Note = "an extended attribute's name has control characters, a backslash or = in it, or is no UTF-8"
	case onlyOwner:
		c.Note = "a definition's files are root's; set the owner in the service's run"
	default:
		c.to(name, services)
	}
}

func (c *Change) to(name string, services []string) {
	c.To = "files/" + name
	if rest, ok := strings.CutPrefix(name, servicesDir); ok {
		service, file, _ := strings.Cut(rest, "/")
		switch {
		case !slices.Contains(services, service):
			c.To, c.Note = "", "role.yaml has no service "+service+"; list it there first"
			return
		case c.now.Type != 'f':
			c.To, c.Note = "", "a service's files must be regular"
			return
		case !slices.Contains([]string{"run", "finish", "check", "log/run"}, file):
			c.To, c.Note = "", "a service has run, finish, check and log/run"
			return
		}
		c.To = "services/" + rest
	}
	if c.now.Type != 'f' {
		return
	}
	var lost []string
	if c.now.Attrs != "" {
		lost = append(lost, "its extended attributes go to "+attrsFile)
	}
	if c.Kind == Changed && slices.ContainsFunc(c.What, isAttr) && !slices.Contains(c.What, "content") && !strings.HasPrefix(c.name(), servicesDir) {
		lost = append(lost, "the file goes with its attributes: where it is a package's, later versions of the package no longer bring it")
	}
	m := c.now.Attrs.Mode(keptMode(c.To, c.now.Mode, nil))
	if m != c.now.Mode {
		lost = append(lost, fmt.Sprintf("its mode %04o becomes %04o", c.now.Mode, m))
	}
	if c.now.UID != 0 || c.now.GID != 0 {
		lost = append(lost, fmt.Sprintf("its owner %d:%d becomes root", c.now.UID, c.now.GID))
	}
	if c.now.Mode&0o004 == 0 {
		c.Private = true
		lost = append(lost, "others may not read it, but everyone can fetch an image: taken only by its whole path")
	}
	c.Note = strings.Join(lost, "; ")
	// Nothing but a mode that is lost again is no change.
	if c.Kind == Changed && !slices.ContainsFunc(c.What, func(s string) bool { return s == "content" || strings.HasPrefix(s, "type ") || isAttr(s) }) && m != c.now.Mode {
		c.To, c.Private, c.Note = "", false, "a definition's files have mode 0755 or 0644; set another in the service's run"
	}
}

// keptMode is the mode a file of a definition gets in the image (docs/roles.md),
// where no ACL says another. content is its beginning, if that is known.
func keptMode(to string, mode uint32, content []byte) uint32 {
	executed := strings.HasPrefix(to, "services/") || strings.HasPrefix(string(content), "#!")
	for _, dir := range []string{"files/usr/bin/", "files/usr/sbin/", "files/usr/local/bin/", "files/usr/local/sbin/"} {
		executed = executed || strings.HasPrefix(to, dir)
	}
	if executed || mode&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

// Choose picks of what can be carried that which the patterns name: a path, a
// folder with all below, or a pattern of path.Match. Without patterns all, but
// not what is private. A pattern that names nothing is an error.
func Choose(changes []Change, patterns []string) ([]Change, error) {
	var out []Change
	used := make([]bool, len(patterns))
	for _, c := range changes {
		take := len(patterns) == 0 && !c.Private
		for i, p := range patterns {
			p = path.Clean(p)
			glob, err := path.Match(p, c.Path)
			if err != nil {
				return nil, fmt.Errorf("pattern %q: %w", patterns[i], err)
			}
			exact := p == c.Path
			if exact || !c.Private && (glob || p == "/" || strings.HasPrefix(c.Path, p+"/")) {
				used[i] = true
				take = true
				if exact && c.To == "" {
					return nil, fmt.Errorf("%s cannot be carried: %s", c.Path, c.Note)
				}
			}
		}
		if take && c.To != "" {
			out = append(out, c)
		}
	}
	for i, p := range patterns {
		if !used[i] {
			return nil, fmt.Errorf("%s: nothing there differs from the release, or it is private and wants its whole path", p)
		}
	}
	return out, nil
}
