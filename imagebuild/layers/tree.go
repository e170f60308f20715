package layers

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"path"
	"strings"

	"dsas"
	"dsas/internal/xattr"
)

// Entry is one file, link or folder of a tree.
type Entry struct {
	Type     byte // archive/tar's
	Size     int64
	Mode     int64
	UID, GID int
	Link     string // of a symbolic link: where it points
	Major    int64  // of a device
	Minor    int64
	Sum      [sha256.Size]byte // of a file's content
	Attrs    xattr.List        // extended attributes
	MTime    int64             // Unix seconds; Compare does not look at it
}

// Layer is what one layer adds and removes.
type Layer struct {
	names   []string // in the tar's order
	entries []Entry
	links   []string // by entry: of a hard link, the name of its other name
	removed []string
	opaque  []string
	keep    func(name string, h *tar.Header) bool
	texts   map[string][]byte // content of the files that are kept
	bytes   int64
}

// maxEntries bounds a layer: what a tree of this many names takes is some
// hundred MB.
const maxEntries = 2_000_000

// maxContent bounds a layer's files, in bytes: a sparse one may claim any length.
const maxContent = 32 << 30

// maxText bounds a package list, in bytes.
const maxText = 64 << 20

// Read reads a layer, compressed or not.
func Read(ctx context.Context, r io.Reader) (*Layer, error) {
	return ReadKeeping(ctx, r, func(name string, h *tar.Header) bool { return isPackageList(name) && h.Size <= maxText })
}

// ReadKeeping is Read that keeps the content of the files that keep names, for
// Tree.Text, in the place of the package lists that Compare wants.
func ReadKeeping(ctx context.Context, r io.Reader, keep func(name string, h *tar.Header) bool) (*Layer, error) {
	plain, _, err := Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	l := &Layer{keep: keep, texts: map[string][]byte{}}
	tr := tar.NewReader(plain)
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		if len(l.names) >= maxEntries {
			return nil, fmt.Errorf("more than %d entries in a layer: %w", maxEntries, dsas.ErrInvalid)
		}
		if err := l.add(h, tr, buf); err != nil {
			return nil, err
		}
	}
}

func (l *Layer) add(h *tar.Header, content io.Reader, buf []byte) error {
	name, err := CleanName(h.Name)
	if err != nil {
		return err
	}
	if removes, opaque, is := Whiteout(name); is {
		switch {
		case opaque:
			l.opaque = append(l.opaque, removes)
		case removes != "":
			l.removed = append(l.removed, removes)
		}
		return nil
	}
	e := Entry{Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid, Major: h.Devmajor, Minor: h.Devminor, Attrs: xattr.OfPAX(h.PAXRecords), MTime: h.ModTime.Unix()}
	link := ""
	if IsFile(h) {
		e.Type = tar.TypeReg
	}
	switch e.Type {
	case tar.TypeReg:
		e.Size = h.Size
		if l.bytes += h.Size; l.bytes > maxContent {
			return fmt.Errorf("more than %d bytes of files in a layer: %w", int64(maxContent), dsas.ErrInvalid)
		}
		sum := sha256.New()
		w := io.Writer(sum)
		var text *strings.Builder
		if l.keep(name, h) {
			text = &strings.Builder{}
			w = io.MultiWriter(sum, text)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, content, buf); err != nil {
			return fmt.Errorf("read tar: %.200q: %w", name, err)
		}
		sum.Sum(e.Sum[:0])
		if text != nil {
			l.texts[name] = []byte(text.String())
		}
	case tar.TypeSymlink:
		e.Link = h.Linkname
	case tar.TypeLink:
		if link, err = CleanName(h.Linkname); err != nil {
			return err
		}
	case tar.TypeDir, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	default:
		return nil // what no unpacker makes: a volume's label, records for all entries
	}
	l.names, l.entries, l.links = append(l.names, name), append(l.entries, e), append(l.links, link)
	return nil
}

// Tree is an image: its layers, one over the other.
type Tree struct {
	entries map[string]Entry
	texts   map[string][]byte
}

// NewTree gives an empty one.
func NewTree() *Tree { return &Tree{entries: map[string]Entry{}, texts: map[string][]byte{}} }

// Apply puts a layer over the tree. A whiteout removes what lower layers have,
// wherever it stands in the tar.
func (t *Tree) Apply(l *Layer) {
	t.remove(l)
	for i, name := range l.names {
		if name == "." {
			continue
		}
		name, e := t.through(name), l.entries[i]
		text, kept := l.texts[l.names[i]]
		if l.links[i] != "" {
			target, ok := t.entries[t.through(l.links[i])]
			if !ok {
				continue // the node refuses such a layer; here it shows as missing
			}
			e = target
			text, kept = t.texts[t.through(l.links[i])]
		}
		old, was := t.entries[name]
		switch {
		case was && old.Type == tar.TypeSymlink && e.Type == tar.TypeDir && t.isDir(name):
			continue // a link to a folder is kept, as on the node: usr-merged "lib"
		case was && old.Type == tar.TypeDir && e.Type != tar.TypeDir:
			t.cut(map[string]bool{name: true}, nil)
		}
		if was && old.Type == tar.TypeDir && e.Type == tar.TypeDir {
			e.Attrs = e.Attrs.Over(old.Attrs) // as on the node: the folder stays, and gets what the layer says
		}
		t.entries[name] = e
		delete(t.texts, name)
		if kept {
			t.texts[name] = text
		}
	}
}

func (t *Tree) remove(l *Layer) {
	if len(l.removed) == 0 && len(l.opaque) == 0 || len(t.entries) == 0 {
		return
	}
	gone, emptied := map[string]bool{}, map[string]bool{}
	for _, name := range l.removed {
		gone[t.through(name)] = true
	}
	for _, name := range l.opaque {
		emptied[t.at(name)] = true
	}
	t.cut(gone, emptied)
}

// cut removes what is named gone, with all below, and all below what is emptied:
// one pass, however many there are.
func (t *Tree) cut(gone, emptied map[string]bool) {
	for name := range t.entries {
		hit := gone[name]
		for dir := path.Dir(name); !hit; dir = path.Dir(dir) {
			hit = gone[dir] || emptied[dir]
			if dir == "." {
				break
			}
		}
		if hit {
			delete(t.entries, name)
			delete(t.texts, name)
		}
	}
}

// maxHops is the kernel's bound of symbolic links in one name (path_resolution(7)).
const maxHops = 40

// through gives a name with the links in its folders followed, the last part
// as it is: where the node would put it.
func (t *Tree) through(name string) string {
	dir, base := path.Split(name)
	if dir == "" {
		return name
	}
	return path.Join(t.at(path.Clean(dir)), base)
}

// at is through with the last part followed too.
func (t *Tree) at(name string) string {
	if e, ok := t.entries[name]; ok && e.Type == tar.TypeDir || name == "." {
		return name // the common case
	}
	todo, done := strings.Split(name, "/"), ""
	for hops := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if done = path.Dir(done); done == "." {
				done = ""
			}
			continue
		}
		next := path.Join(done, part)
		e, ok := t.entries[next]
		if !ok || e.Type != tar.TypeSymlink || hops >= maxHops {
			done = next
			continue
		}
		hops++
		if path.IsAbs(e.Link) {
			done = ""
		}
		todo = append(strings.Split(e.Link, "/"), todo...)
	}
	if done == "" {
		return "."
	}
	return done
}

// isDir tells whether a link leads to a folder.
func (t *Tree) isDir(name string) bool {
	e, ok := t.entries[t.at(name)]
	return ok && e.Type == tar.TypeDir
}

// Entry gives what stands at a clean name.
func (t *Tree) Entry(name string) (Entry, bool) {
	e, ok := t.entries[name]
	return e, ok
}

// Text gives the content of a file that was kept; false where it was not.
func (t *Tree) Text(name string) ([]byte, bool) {
	b, ok := t.texts[name]
	return b, ok
}

// All gives the entries by name, in no order.
func (t *Tree) All() iter.Seq2[string, Entry] { return maps.All(t.entries) }

// Len gives the number of entries.
func (t *Tree) Len() int { return len(t.entries) }
