package xattr

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"dsas"
)

// maxDump bounds a text, in bytes.
const maxDump = 64 << 20

// Plain tells whether a name can stand in a text: it is UTF-8 without control
// characters, backslashes and "=".
func Plain(name string) bool {
	return utf8.ValidString(name) && name != "" && !strings.ContainsAny(name, `=\`) && !strings.ContainsFunc(name, unicode.IsControl)
}

// Dump writes the attributes of files, by path without leading slash, as
// getfattr --dump does:
//
//	# file: usr/bin/ping
//	security.capability=0sAQAAAgAgAAAAAAAAAAAAAAAAAAA=
//	user.note="hello"
//
// Names are Plain. Files without attributes are left out.
func Dump(files map[string]List) []byte {
	var b strings.Builder
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if files[file] == "" {
			continue
		}
		b.WriteString("# file: " + strings.ReplaceAll(file, `\`, `\134`) + "\n")
		for name, value := range files[file].All() {
			b.WriteString(name + "=")
			if text(value) {
				b.WriteString(`"` + value + `"`)
			} else {
				b.WriteString("0s" + base64.StdEncoding.EncodeToString([]byte(value)))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	return []byte(b.String())
}

// text tells whether a value is shown as it is.
func text(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
}

// ParseDump reads what Dump or getfattr --dump wrote, with its values as text in
// quotes, in hex (0x) or in base64 (0s). Other lines that begin with # are
// comments. An attribute that images do not keep is an error with its line's
// number, as is what cannot be read; all are dsas.ErrInvalid.
func ParseDump(b []byte) (map[string]List, error) {
	if len(b) > maxDump {
		return nil, fmt.Errorf("%d bytes; at most %d may be: %w", len(b), maxDump, dsas.ErrInvalid)
	}
	out := map[string]map[string]string{}
	var at map[string]string
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if err := parseLine(strings.TrimRight(line, "\r\n"), out, &at); err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n, err, dsas.ErrInvalid)
		}
	}
	lists := make(map[string]List, len(out))
	for file, values := range out {
		lists[file] = Of(values)
	}
	return lists, nil
}

// parseLine reads one line; at is the file it stands under, in out.
func parseLine(line string, out map[string]map[string]string, at *map[string]string) error {
	if file, ok := strings.CutPrefix(line, "# file: "); ok {
		name, err := unquote(file)
		if err != nil {
			return err
		}
		name = strings.TrimPrefix(name, "/")
		if !fs.ValidPath(name) || name == "." {
			return fmt.Errorf("%.200q is no path of a file in the image", file)
		}
		if out[name] == nil {
			out[name] = map[string]string{}
		}
		*at = out[name]
		return nil
	}
	if line == "" || line[0] == '#' {
		return nil
	}
	name, value, ok := strings.Cut(line, "=")
	switch {
	case !ok:
		return fmt.Errorf("%.80q: write an attribute as NAME=VALUE", line)
	case *at == nil:
		return fmt.Errorf("%.80q stands under no \"# file: PATH\"", name)
	case Class(name) == "" || !Plain(name):
		return fmt.Errorf("attribute %.80q: images keep %s, %s, %s and user.NAME", name, Capability, ACL, DefaultACL)
	}
	if _, twice := (*at)[name]; twice {
		return fmt.Errorf("%s stands twice for one file", name)
	}
	v, err := parseValue(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(v) > MaxValue {
		return fmt.Errorf("%s: %d bytes; Linux holds %d", name, len(v), MaxValue)
	}
	(*at)[name] = v
	return nil
}

func parseValue(s string) (string, error) {
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		b, err := hex.DecodeString(s[2:])
		return string(b), err
	case strings.HasPrefix(s, "0s"), strings.HasPrefix(s, "0S"):
		b, err := base64.StdEncoding.DecodeString(s[2:])
		return string(b), err
	case len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"':
		return unquote(s[1 : len(s)-1])
	}
	return "", errors.New(`its value is to stand in quotes, or to begin with 0x (hex) or 0s (base64)`)
}

// unquote reads getfattr's escapes: \\, \", and \ with three octal digits.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		rest := s[i+1:]
		switch {
		case rest != "" && (rest[0] == '\\' || rest[0] == '"'):
			b.WriteByte(rest[0])
			i++
			continue
		case len(rest) >= 3:
			if n, err := strconv.ParseUint(rest[:3], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		return "", fmt.Errorf(`%.80q: after \ stand \, " or three octal digits`, s)
	}
	return b.String(), nil
}
