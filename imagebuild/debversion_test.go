package imagebuild

import (
	"os/exec"
	"testing"
)

// TestCompareVersions asks dpkg, too.
func TestCompareVersions(t *testing.T) {
	need(t, "dpkg")
	// Each older than the next.
	order := []string{"1.0~~", "1.0~rc1-1", "1.0", "1.0-0", "1.0-1~deb12u1", "1.0-1", "1.0-1a", "1.0-1+b1", "1.0-9", "1.0-10", "1.0a", "1.0+x", "1.0.1",
		"6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.27-1", "6.1.176-1", "6.1.192-2", "6.12.117-1~deb12u1", "6.12.117-1", "1:0.1", "2:0"}
	for i, a := range order {
		for j, b := range order {
			want, op := 0, "eq"
			switch {
			case i < j:
				want, op = -1, "lt"
			case i > j:
				want, op = 1, "gt"
			}
			if a == "1.0" && b == "1.0-0" || a == "1.0-0" && b == "1.0" { // the same, by the policy
				want, op = 0, "eq"
			}
			if got := compareVersions(a, b); got != want && !(got < 0 && want < 0 || got > 0 && want > 0) {
				t.Errorf("compareVersions(%s, %s) = %d; want %d", a, b, got, want)
			}
			if j != i+1 {
				continue // dpkg's order of neighbours says it all
			}
			if err := exec.Command("dpkg", "--compare-versions", a, op, b).Run(); err != nil {
				t.Errorf("dpkg does not find that %s is %s %s: the test is wrong", a, op, b)
			}
		}
	}
}
