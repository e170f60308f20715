package imagebuild

import (
	"cmp"
	"strings"
)

// compareVersions orders versions of packages as dpkg does (Debian Policy section
// 5.6.12, deb-version(7)): negative where a is older than b.
//
// It is our own since these sixty lines are all there is to it: a library for it
// would be a dependency to follow for one function, with a parser that refuses
// versions which apt has taken already, and dpkg --compare-versions answers by its
// exit status for one pair, which is a process for each comparison of a sort. The
// tests hold it against dpkg.
func compareVersions(a, b string) int {
	epochA, a := cutEpoch(a)
	epochB, b := cutEpoch(b)
	upA, revA := cutRevision(a)
	upB, revB := cutRevision(b)
	return cmp.Or(compareRuns(epochA, epochB), compareRuns(upA, upB), compareRuns(revA, revB))
}

func cutEpoch(v string) (epoch, rest string) {
	if e, rest, ok := strings.Cut(v, ":"); ok {
		return e, rest
	}
	return "", v
}

func cutRevision(v string) (upstream, revision string) {
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return v[:i], v[i+1:]
	}
	return v, ""
}

// compareRuns compares by turns what is no digit, letters before all else, and
// numbers. A tilde is before everything, even the end.
func compareRuns(a, b string) int {
	for a != "" || b != "" {
		for isText(a) || isText(b) {
			if c := cmp.Compare(weight(a), weight(b)); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
		}
		var n, m string
		n, a = cutNumber(a)
		m, b = cutNumber(b)
		if c := cmp.Or(cmp.Compare(len(n), len(m)), strings.Compare(n, m)); c != 0 {
			return c
		}
	}
	return 0
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isText(s string) bool { return s != "" && !isDigit(s[0]) }

func weight(s string) int {
	switch {
	case !isText(s):
		return 0
	case s[0] == '~':
		return -1
	case s[0] >= 'A' && s[0] <= 'Z' || s[0] >= 'a' && s[0] <= 'z':
		return int(s[0])
	}
	return int(s[0]) + 256
}

// cutNumber takes a number off the front, without its leading zeros.
func cutNumber(s string) (number, rest string) {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return strings.TrimLeft(s[:n], "0"), s[n:]
}
