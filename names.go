package dsas

import (
	"fmt"
	"strconv"
	"strings"
)

// maxExpand bounds what one pattern may name, so that a slip of the finger
// (w[1-100000000]) is an error and not an afternoon.
const maxExpand = 10_000

// ExpandNames turns a range pattern into names: "w[101-103,107]" gives w101,
// w102, w103, w107. Several brackets multiply; a leading zero keeps the width
// (w[08-11] gives w08 w09 w10 w11); commas outside brackets separate patterns.
func ExpandNames(pattern string) ([]string, error) {
	var out []string
	for _, p := range splitOutside(pattern) {
		names, err := expandOne(p)
		if err != nil {
			return nil, err
		}
		if out = append(out, names...); len(out) > maxExpand {
			return nil, fmt.Errorf("range %q: names more than %d: %w", pattern, maxExpand, ErrInvalid)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("range %q: names nothing; write w101, w[101-140] or w101,w102: %w", pattern, ErrInvalid)
	}
	return out, nil
}

// splitOutside splits at the commas that stand outside brackets.
func splitOutside(s string) []string {
	var parts []string
	depth, start := 0, 0
	for i, c := range s {
		switch c {
		case '[':
			depth++
		case ']':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, s[start:i])
				start = i + 1
			}
		}
	}
	parts = append(parts, s[start:])
	kept := parts[:0]
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			kept = append(kept, p)
		}
	}
	return kept
}

func expandOne(p string) ([]string, error) {
	open := strings.IndexByte(p, '[')
	if open < 0 {
		if strings.ContainsRune(p, ']') {
			return nil, fmt.Errorf("range %q: a ] without its [: %w", p, ErrInvalid)
		}
		return []string{p}, nil
	}
	end := strings.IndexByte(p, ']')
	if end < open {
		return nil, fmt.Errorf("range %q: brackets do not match; write w[101-140]: %w", p, ErrInvalid)
	}
	tails, err := expandOne(p[end+1:])
	if err != nil {
		return nil, err
	}
	var out []string
	for _, item := range strings.Split(p[open+1:end], ",") {
		nums, err := expandItem(p, item)
		if err != nil {
			return nil, err
		}
		for _, n := range nums {
			for _, t := range tails {
				if len(out) >= maxExpand {
					return nil, fmt.Errorf("range %q: names more than %d: %w", p, maxExpand, ErrInvalid)
				}
				out = append(out, p[:open]+n+t)
			}
		}
	}
	return out, nil
}

// expandItem reads "107" or "101-103".
func expandItem(p, item string) ([]string, error) {
	lo, hi, isRange := strings.Cut(strings.TrimSpace(item), "-")
	if !isRange {
		hi = lo
	}
	a, err1 := strconv.ParseUint(lo, 10, 32)
	b, err2 := strconv.ParseUint(hi, 10, 32)
	// No more digits than a number has: they are the width of every name.
	if err1 != nil || err2 != nil || len(lo) > 10 || len(hi) > 10 {
		return nil, fmt.Errorf("range %q: %q is not a number or a range such as 101-140: %w", p, item, ErrInvalid)
	}
	if b < a {
		return nil, fmt.Errorf("range %q: %s is after %s: %w", p, lo, hi, ErrInvalid)
	}
	if b-a >= maxExpand {
		return nil, fmt.Errorf("range %q: names more than %d: %w", p, maxExpand, ErrInvalid)
	}
	var out []string
	for n := a; n <= b; n++ {
		out = append(out, fmt.Sprintf("%0*d", len(lo), n))
	}
	return out, nil
}
