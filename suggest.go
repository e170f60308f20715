package dsas

import (
	"fmt"
	"slices"
	"strings"
)

// DidYouMean gives ` (did you mean "web"?)` when one of the known names is
// close to what was written, else "": the end of an error about a name.
func DidYouMean(written string, known []string) string {
	best, bestDist := "", 1+max(1, len(written)/3)
	// Sorted, so that of equally close names the same one is named each time.
	for _, k := range slices.Sorted(slices.Values(known)) {
		if d := editDistance(strings.ToLower(written), strings.ToLower(k), bestDist); d < bestDist {
			best, bestDist = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance counts the insertions, deletions and replacements of bytes and
// swaps of neighbours (optimal string alignment) that lead from a to b. From
// limit on, and for names longer than any of ours, it may give limit.
func editDistance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var rows [3][65]int // before the previous one, previous, current
	for j := range len(b) + 1 {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[1][j]+1, rows[2][j-1]+1, rows[1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[0][j-2]+1)
			}
			rows[2][j] = d
		}
		rows[0], rows[1] = rows[1], rows[2]
	}
	return rows[1][len(b)]
}
