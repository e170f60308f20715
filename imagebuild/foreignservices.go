package imagebuild

import (
	"archive/tar"
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"dsas"
	"dsas/imagebuild/layers"
)

// maxScript bounds what is read of a service's program, in bytes: what is larger
// is no script. maxScripts bounds all that is read of an image.
const (
	maxScript  = 1 << 20
	maxScripts = 64 << 20
)

// ScriptsTooLarge is the rule that an image breaks whose services have too much to
// be read.
const ScriptsTooLarge = "scripts-too-large"

// servicesFolder is where an image has its role's services.
const servicesFolder = "etc/dsas/services/"

// Blobs opens stored content and gives its length in bytes.
type Blobs interface {
	Blob(d dsas.Digest) (*os.File, int64, error)
}

// CheckServices tells, of an image of these layers that was not built here, what
// would keep the role's services from starting on a node, by the checks of a
// build. Paths are those in the image. What role.yaml allows is left out.
func CheckServices(ctx context.Context, store Blobs, role dsas.Role, parts []dsas.Part) ([]Finding, error) {
	fail := func(err error) ([]Finding, error) {
		return nil, fmt.Errorf("check the services of role %s: %w", role.Name, err)
	}
	allow, err := newAllowance(role.Allow, nil)
	if err != nil {
		return fail(err)
	}
	tree := layers.NewTree()
	room := scriptRoom{left: maxScripts}
	for _, p := range parts {
		l, err := readScripts(ctx, store, p, &room)
		if err != nil {
			return fail(fmt.Errorf("layer %s: %w", p.Title, err))
		}
		tree.Apply(l)
	}
	files, all := foreignTree(tree)
	found, _ := allow.split(append(checkServices(role, files, all), room.findings()...))
	for i := range found {
		found[i].Path = "/etc/dsas/" + found[i].Path
	}
	return found, nil
}

// scriptRoom is how much of an image's services may still be read.
type scriptRoom struct {
	left  int64  // bytes
	first string // file that had no room, "" where all had
}

func (r *scriptRoom) take(name string, size int64) bool {
	if size > maxScript {
		return false
	}
	if size > r.left || r.first != "" {
		r.first = cmp.Or(r.first, name)
		return false
	}
	r.left -= size
	return true
}

// findings tells of what was not read, and so not checked.
func (r *scriptRoom) findings() []Finding {
	if r.first == "" {
		return nil
	}
	return []Finding{{Path: strings.TrimPrefix(r.first, "etc/dsas/"), Rule: ScriptsTooLarge,
		Reason: fmt.Sprintf("the files of the image's services are more than %d MiB together, and from this one on they are not checked", maxScripts>>20),
		Way:    "keep data elsewhere than in /" + servicesFolder}}
}

func readScripts(ctx context.Context, store Blobs, p dsas.Part, room *scriptRoom) (*layers.Layer, error) {
	f, _, err := store.Blob(p.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return layers.ReadKeeping(ctx, f, func(name string, h *tar.Header) bool {
		return strings.HasPrefix(name, servicesFolder) && room.take(name, h.Size)
	})
}

// foreignTree gives a tree as the checks ask of it, and the files of the services
// in it, by path.
func foreignTree(tree *layers.Tree) (roleFiles, *merged) {
	var files roleFiles
	all := merge()
	for name, e := range tree.All() {
		for d := path.Dir(name); d != "." && !all.dirs[d]; d = path.Dir(d) { // not every tar names them
			all.dirs[d] = true
		}
		switch {
		case e.Type == tar.TypeDir:
			all.dirs[name] = true
			continue
		case e.Type == tar.TypeSymlink:
			all.names[name] = "@" + e.Link
		case e.Type == tar.TypeReg && e.Mode&0o111 != 0:
			all.names[name] = "x"
		default:
			all.names[name] = ""
		}
		if !strings.HasPrefix(name, servicesFolder) {
			continue
		}
		f := roleFile{Path: name, Mode: e.Mode, Link: e.Link}
		var known bool
		if f.Data, known = tree.Text(name); !known {
			f.Data = []byte("\x7fELF") // too large for a script, or the other name of a file elsewhere: believed
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b roleFile) int { return strings.Compare(a.Path, b.Path) })
	return files, all
}
