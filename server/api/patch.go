package api

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"dsas"
)

// decode reads a T strictly: a field that T does not have is refused by name.
func decode[T any](r *http.Request) (T, error) {
	raw, err := readRaw(r)
	if err != nil {
		var none T
		return none, err
	}
	return fromRaw[T](raw)
}

// readRaw reads a request's JSON as it is.
func readRaw(r *http.Request) (any, error) {
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	return decodeRaw(body)
}

func decodeRaw(body []byte) (any, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, fmt.Errorf("request: has no body; send JSON: %w", dsas.ErrInvalid)
	}
	var raw any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("request: not JSON: %s: %w", err, dsas.ErrInvalid)
	}
	if dec.More() {
		return nil, fmt.Errorf("request: something follows the JSON value: %w", dsas.ErrInvalid)
	}
	return raw, nil
}

func fromRaw[T any](raw any) (T, error) {
	var v T
	if err := checkFields(reflect.TypeFor[T](), raw, ""); err != nil {
		return v, err
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return v, fmt.Errorf("request: %w", err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, explainJSON(err)
	}
	return v, nil
}

// explainJSON says it without Go's type names.
func explainJSON(err error) error {
	if errors.Is(err, dsas.ErrInvalid) {
		return err
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("field %s: %s does not fit here: %w", t.Field, t.Value, dsas.ErrInvalid)
	}
	return fmt.Errorf("request: %s: %w", strings.TrimPrefix(err.Error(), "json: "), dsas.ErrInvalid)
}

// mergeInto applies a JSON merge patch (RFC 7396) to v.
func mergeInto[T any](v T, patch any) (T, error) {
	var zero T
	obj, ok := patch.(map[string]any)
	if !ok {
		return zero, fmt.Errorf("request: a merge patch is a JSON object: %w", dsas.ErrInvalid)
	}
	// Names are checked in the patch itself, since a null for an unknown
	// field would vanish in the merge.
	if err := checkFields(reflect.TypeFor[T](), obj, ""); err != nil {
		return zero, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return zero, fmt.Errorf("patch: %w", err)
	}
	old, err := decodeRaw(b)
	if err != nil {
		return zero, err
	}
	return fromRaw[T](mergePatch(old, obj))
}

// mergePatch is the function MergePatch of RFC 7396 section 2.
func mergePatch(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out := map[string]any{}
	if t, ok := target.(map[string]any); ok {
		out = t
	}
	for name, value := range p {
		if value == nil {
			delete(out, name)
		} else {
			out[name] = mergePatch(out[name], value)
		}
	}
	return out
}

// checkFields refuses names that t does not have, spelt exactly: Go's own
// decoder would take "Role" for "role", and the merge would not.
func checkFields(t reflect.Type, raw any, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return nil
	}
	switch raw := raw.(type) {
	case []any:
		if t.Kind() != reflect.Slice {
			return nil // the decoder says so better
		}
		for i, item := range raw {
			if err := checkFields(t.Elem(), item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return nil
		}
		fields := fieldsOf(t)
		for name, item := range raw {
			at := strings.TrimPrefix(path+"."+name, ".")
			ft, ok := fields[name]
			if !ok {
				names := make([]string, 0, len(fields))
				for n := range fields {
					names = append(names, n)
				}
				return fmt.Errorf("field %q: does not exist%s: %w", at, dsas.DidYouMean(name, names), dsas.ErrInvalid)
			}
			if err := checkFields(ft, item, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// fieldsOf maps JSON names to types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}
