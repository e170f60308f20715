package roles

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"dsas"
)

const (
	roleFile = "role.yaml"
	// maxText bounds one role.yaml, template or rendered file, in bytes.
	maxText = 4 << 20
)

// readRole parses role.yaml of dir.
func readRole(dir fs.FS) (dsas.Role, error) {
	text, err := readText(dir, roleFile)
	if err != nil {
		return dsas.Role{}, err
	}
	role, err := Parse(text)
	if err != nil {
		return dsas.Role{}, fmt.Errorf("%s: %w", roleFile, err)
	}
	return role, nil
}

// Parse reads the text of a role.yaml. An unknown key, a key given twice and a
// value of the wrong kind are errors that name the line.
func Parse(text []byte) (role dsas.Role, err error) {
	// The library panics on some malformed documents (found by fuzzing, e.g. a
	// tag in the place of a list); a user's typing error must not end the server.
	defer func() {
		if r := recover(); r != nil {
			role, err = dsas.Role{}, fmt.Errorf("cannot be parsed (%v); write plain YAML, without tags: %w", r, dsas.ErrInvalid)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	err = dec.Decode(&role)
	if errors.Is(err, io.EOF) {
		return role, fmt.Errorf("is empty: write at least a name and a description: %w", dsas.ErrInvalid)
	}
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		key, line := "", 0
		if t := unknown.GetToken(); t != nil {
			key, line = t.Value, t.Position.Line
		}
		return role, fmt.Errorf("line %d: unknown key %q: %s: %w", line, key, suggest(key), dsas.ErrInvalid)
	}
	if err != nil {
		return role, fmt.Errorf("%s: %w", cmp.Or(durationError(text), oneLine(err)), dsas.ErrInvalid)
	}
	var more any
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return role, fmt.Errorf("holds more than one document: keep one: %w", dsas.ErrInvalid)
	}
	return role, nil
}

// oneLine gives a parser's error with its line, without the source excerpt
// that the library draws below it.
func oneLine(err error) string {
	var y yaml.Error
	if errors.As(err, &y) {
		if t := y.GetToken(); t != nil && t.Position != nil {
			return fmt.Sprintf("line %d: %s", t.Position.Line, y.GetMessage())
		}
		return y.GetMessage()
	}
	return strings.SplitN(err.Error(), "\n", 2)[0]
}

// durationError finds the first duration that is none: the library gives no
// line for an error of UnmarshalText.
func durationError(text []byte) string {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return ""
	}
	v := &durationVisitor{}
	for _, d := range file.Docs {
		ast.Walk(v, d)
	}
	return v.found
}

type durationVisitor struct{ found string }

// Visit implements ast.Visitor.
func (v *durationVisitor) Visit(n ast.Node) ast.Visitor {
	m, ok := n.(*ast.MappingValueNode)
	if !ok || v.found != "" || !slices.Contains([]string{"interval", "timeout", "stop"}, m.Key.String()) {
		return v
	}
	t := m.Value.GetToken()
	if _, err := time.ParseDuration(t.Value); err != nil {
		v.found = fmt.Sprintf("line %d: %s %q: write a duration as 30s or 2m", t.Position.Line, m.Key.String(), t.Value)
	}
	return v
}

// suggest names the known key nearest to key, or all of them.
func suggest(key string) string {
	known := keys(reflect.TypeFor[dsas.Role]())
	best, dist := "", len(key)/2+1
	for _, k := range known {
		if d := distance(strings.ToLower(key), strings.ToLower(k)); d < dist {
			best, dist = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known keys are " + strings.Join(known, ", ")
}

// keys lists the yaml keys of a struct and of the structs within, sorted.
func keys(t reflect.Type) []string {
	var out []string
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			out = append(out, name)
		}
		out = append(out, keys(f.Type)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// distance counts the letters to insert, remove or replace to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, diag+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// readText reads a regular file of bounded size. A symlink is refused: in a
// user's folder it could lead to any file of the server.
func readText(fsys fs.FS, name string) ([]byte, error) {
	st, err := fs.Lstat(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file: put the file itself there: %w", name, dsas.ErrInvalid)
	}
	if st.Size() > maxText {
		return nil, fmt.Errorf("read %s: %d bytes; at most %d: %w", name, st.Size(), maxText, dsas.ErrInvalid)
	}
	return fs.ReadFile(fsys, name)
}
