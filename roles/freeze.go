package roles

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"dsas"
)

// frozenRole is where a frozen definition has its role: role.yaml with what lies
// under it, merged.
const frozenRole = "role.json"

// maxFrozen bounds a frozen definition, in bytes: it stands in an image's config.
const maxFrozen = 256 << 10

// Freeze gives what a server needs of a definition to make a node's
// configuration: the role, its templates and its lines for dsas.conf. It is the
// same for the same definition, and goes with a release, so that a roll-back
// brings it back too.
func Freeze(def Definition) ([]byte, error) {
	b, err := freeze(def)
	if err != nil {
		return nil, fmt.Errorf("definition of role %s: %w", def.Role.Name, err)
	}
	return b, nil
}

func freeze(def Definition) ([]byte, error) {
	role, err := json.Marshal(def.Role)
	if err != nil {
		return nil, err
	}
	names := []string{confFile}
	for _, t := range def.Role.Templates {
		names = append(names, path.Join("templates", t.Source))
	}
	slices.Sort(names)
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	put := func(name string, content []byte) error {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate}) // without a time
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	}
	if err := put(frozenRole, role); err != nil {
		return nil, err
	}
	for _, name := range slices.Compact(names) {
		text, err := readText(def.FS, name)
		if errors.Is(err, fs.ErrNotExist) && name == confFile {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := put(name, text); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if buf.Len() > maxFrozen {
		return nil, fmt.Errorf("role.yaml and templates have %d bytes, compressed; at most %d: put large files into files/: %w", buf.Len(), maxFrozen, dsas.ErrInvalid)
	}
	return buf.Bytes(), nil
}

// Thaw reads what Freeze gave. Of such a definition Role, Render and Conf can be
// had; it has no files and no services' scripts, which are in the image. digest
// is what it is known by.
func Thaw(frozen []byte, digest string) (Definition, error) {
	fail := func(err error) (Definition, error) {
		return Definition{}, fmt.Errorf("a release's role definition: %w: %w", err, dsas.ErrInvalid)
	}
	if len(frozen) > maxFrozen {
		return fail(fmt.Errorf("%d bytes; at most %d", len(frozen), maxFrozen))
	}
	z, err := zip.NewReader(bytes.NewReader(frozen), int64(len(frozen)))
	if err != nil {
		return fail(err)
	}
	def := Definition{FS: z, Source: "release", Digest: digest}
	text, err := readText(z, frozenRole)
	if err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(text, &def.Role); err != nil {
		return fail(err)
	}
	if err := dsas.CheckName("role", def.Role.Name); err != nil {
		return fail(err)
	}
	return def, nil
}
