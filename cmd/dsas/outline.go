package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// outline prints any JSON value for people: a line for each simple field, and
// what is nested below, indented. Fields of an object come in the order that
// reads best: simple ones first, then by name.
func (a *app) outline(v any, indent string) {
	switch v := v.(type) {
	case map[string]any:
		keys := sortedKeys(v)
		for _, simple := range []bool{true, false} {
			for _, k := range keys {
				if isSimple(v[k]) != simple || v[k] == nil || v[k] == "" {
					continue
				}
				if simple {
					a.printf("%s%s: %s\n", indent, clean(k), simpleText(v[k]))
					continue
				}
				a.printf("%s%s:\n", indent, clean(k))
				a.outline(v[k], indent+"  ")
			}
		}
	case []any:
		for _, item := range v {
			if isSimple(item) {
				a.printf("%s- %s\n", indent, simpleText(item))
				continue
			}
			a.printf("%s-\n", indent)
			a.outline(item, indent+"  ")
		}
	default:
		for line := range strings.SplitSeq(fmt.Sprint(v), "\n") {
			a.printf("%s%s\n", indent, clean(line))
		}
	}
}

func isSimple(v any) bool {
	switch v := v.(type) {
	case map[string]any, []any:
		return false
	case string:
		return !strings.Contains(v, "\n")
	}
	return true
}

func simpleText(v any) string { return clean(fmt.Sprint(v)) }

// explained is a step of a boot, as the server's boot.Explain tells it.
type explained struct {
	Step   string `json:"step"`
	Asks   string `json:"asks"`
	Gets   string `json:"gets"`
	Reason string `json:"reason"`
}

// explanation prints steps, or whatever else a server of another version may
// answer.
func (a *app) explanation(raw json.RawMessage) error {
	var steps []explained
	if json.Unmarshal(raw, &steps) != nil || len(steps) == 0 || steps[0].Step == "" {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("explain: %w", err)
		}
		a.outline(v, "")
		return nil
	}
	for i, s := range steps {
		t := &table{}
		t.cells(cell{fmt.Sprintf("%d. %s", i+1, s.Step), bold})
		for _, line := range [][2]string{{"asks", s.Asks}, {"gets", s.Gets}, {"why", s.Reason}} {
			t.cells(cell{text: fmt.Sprintf("   %-4s  %s", line[0], line[1])})
		}
		if err := t.write(a.stdout, 0, a.colours()); err != nil {
			return err
		}
	}
	return nil
}
