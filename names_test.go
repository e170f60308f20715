package dsas

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestExpandNames(t *testing.T) {
	for pattern, want := range map[string]string{
		"w101":             "w101",
		"w[101-103,107]":   "w101 w102 w103 w107",
		"w[08-11]":         "w08 w09 w10 w11",
		"w[8-11]":          "w8 w9 w10 w11",
		"w[099-101]":       "w099 w100 w101",
		"w[5]":             "w5",
		"r[1-2]n[1-2]":     "r1n1 r1n2 r2n1 r2n2",
		"r[1-2]-w[01-02]x": "r1-w01x r1-w02x r2-w01x r2-w02x",
		"w101, w103":       "w101 w103",
		"w[1-2],db[1,3]":   "w1 w2 db1 db3",
		"w[ 1 , 3-4 ]":     "w1 w3 w4",
		",w1,,w2,":         "w1 w2",
		"[1-3]":            "1 2 3",
		"w[1,1]":           "w1 w1", // said twice, named twice
	} {
		got, err := ExpandNames(pattern)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("ExpandNames(%q) = %v, %v; want %s", pattern, got, err, want)
		}
	}
	for pattern, why := range map[string]string{
		"":                          "names nothing",
		" , ,":                      "names nothing",
		"w[1-":                      "brackets do not match",
		"w1]":                       "without its [",
		"w]1[":                      "brackets do not match",
		"w[[1]]":                    "without its [",
		"w[00000000001-2]":          "not a number",
		"w[1-00000000002]":          "not a number",
		"w[]":                       "not a number",
		"w[a-b]":                    "not a number",
		"w[1-2-3]":                  "not a number",
		"w[-1]":                     "not a number",
		"w[+1-2]":                   "not a number",
		"w[3-1]":                    "3 is after 1",
		"w[1-10001]":                "more than 10000",
		"w[0-4294967295]":           "more than 10000",
		"w[1-99999999999999999999]": "not a number",
		"w[1-100]x[1-101]":          "more than 10000",
		"w[1-10000],x":              "more than 10000",
		"w[1-10]x[1-10]y[1-10]z[1-10]a[1-10]b[1-10]c[1-10]": "more than 10000",
	} {
		got, err := ExpandNames(pattern)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), why) || got != nil {
			t.Errorf("ExpandNames(%q) = %d names, %v; want ErrInvalid that says %q", pattern, len(got), err, why)
		}
	}
	if got, err := ExpandNames("w[1-10000]"); err != nil || len(got) != 10_000 || got[9_999] != "w10000" {
		t.Errorf("ExpandNames(w[1-10000]) = %d names, %v; want 10000", len(got), err)
	}
}

func FuzzExpandNames(f *testing.F) {
	for _, s := range []string{"w[101-103,107]", "w[08-11]", "r[1-2]n[1-2]", "w101, w103", "w[1-", "]", "[[", "w[1-9999]x[1-9999]", "ü[1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := ExpandNames(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || names != nil {
				t.Errorf("ExpandNames(%q) = %d names, %v; want ErrInvalid and none", s, len(names), err)
			}
			return
		}
		if len(names) == 0 || len(names) > maxExpand {
			t.Errorf("ExpandNames(%q) = %d names; want 1 to %d", s, len(names), maxExpand)
		}
		for _, n := range names[:min(len(names), 100)] {
			// What was named is a plain name, and names itself.
			again, err := ExpandNames(n)
			if n == "" || strings.ContainsAny(n, "[],") || strings.TrimSpace(n) == n && (err != nil || !slices.Equal(again, []string{n})) {
				t.Errorf("ExpandNames(%q) has %q, which expands to %v, %v", s, n, again, err)
			}
		}
	})
}
