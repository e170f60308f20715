package web

import (
	"slices"
	"strings"

	"dsas"
)

// filter chooses nodes by words that must all fit: a part of the name, role,
// phase, address or MAC; name ranges as the CLI takes them (w[101-140]);
// role:web and phase:ready for the whole word; a ! in front for what is not
// so. The script filters by the same rules while one types.
type filter []filterWord

type filterWord struct {
	not         bool
	field, text string
	names       []string // of a range
}

func parseFilter(q string) filter {
	var f filter
	for word := range strings.FieldsSeq(strings.ToLower(q)) {
		var w filterWord
		word, w.not = strings.CutPrefix(word, "!")
		w.text = word
		if field, text, ok := strings.Cut(word, ":"); ok && (field == "role" || field == "phase") {
			w.field, w.text = field, text
		} else if strings.Contains(word, "[") {
			// Half typed, it is no range yet: then it fits nothing.
			w.names, _ = dsas.ExpandNames(word)
			w.field = "range"
		}
		if word != "" {
			f = append(f, w)
		}
	}
	return f
}

func (f filter) fits(v dsas.NodeView) bool {
	for _, w := range f {
		var is bool
		switch w.field {
		case "role":
			is = orNone(v.Node.Role) == w.text
		case "phase":
			is = string(v.Status.Phase) == w.text
		case "range":
			is = slices.Contains(w.names, v.Node.Name)
		default:
			is = strings.Contains(findText(v), w.text)
		}
		if is == w.not {
			return false
		}
	}
	return true
}

// findText is where a word without a field is looked for.
func findText(v dsas.NodeView) string {
	words := []string{v.Node.Name, v.Node.Role, string(v.Status.Phase), v.Node.Address.Addr().String()}
	for _, n := range v.Node.NICs {
		words = append(words, n.MAC.String())
	}
	return strings.Join(words, " ")
}
