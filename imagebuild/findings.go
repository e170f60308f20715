package imagebuild

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"dsas"
)

// Finding is something that a role's image must not be published with.
type Finding struct {
	// Path of the file: below the role's definition ("files/etc/x",
	// "role.yaml"), or absolute for a file that a package put into the tree.
	Path   string `json:"path"`
	Line   int    `json:"line,omitempty"` // from 1; 0: the file as a whole
	Rule   string `json:"rule"`           // "private-key", "command-missing"
	Reason string `json:"reason"`
	Way    string `json:"way"` // out of it
	// Allowed is the reason that somebody wrote for letting it pass.
	Allowed string `json:"allowed,omitempty"`
}

// String gives "PATH:LINE: RULE: reason: way out".
func (f Finding) String() string {
	at := f.Path
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", f.Path, f.Line)
	}
	if f.Allowed != "" {
		return fmt.Sprintf("%s: %s: allowed: %s", at, f.Rule, f.Allowed)
	}
	return fmt.Sprintf("%s: %s: %s; %s", at, f.Rule, f.Reason, f.Way)
}

// CheckError is the error of a build whose checks found something. It is
// dsas.ErrInvalid.
type CheckError struct{ Findings []Finding }

// Error lists all findings, one a line.
func (e *CheckError) Error() string {
	var b strings.Builder
	what := "the checks found something"
	if n := len(e.Findings); n > 1 {
		what = fmt.Sprintf("the checks found %d things", n)
	}
	fmt.Fprintf(&b, "%s; nothing was published", what)
	for _, f := range e.Findings {
		fmt.Fprintf(&b, "\n\t%s", f)
	}
	b.WriteString("\n\tWhat is right all the same: allow: in role.yaml, or --allow PATH=REASON")
	return b.String()
}

// Unwrap makes it dsas.ErrInvalid.
func (e *CheckError) Unwrap() error { return dsas.ErrInvalid }

// allowance is what may pass, and what of it was needed.
type allowance struct {
	list []dsas.Allow
	used []bool
	role int // how many of list are the role's, in front
}

// newAllowance joins what a role allows and what a build does.
func newAllowance(role, build []dsas.Allow) (*allowance, error) {
	a := &allowance{role: len(role)}
	for _, l := range [][]dsas.Allow{role, build} {
		for _, e := range l {
			if _, err := path.Match(e.Path, ""); err != nil || e.Path == "" {
				return nil, fmt.Errorf("allow %q: name a file as a finding does (* and ? stand for letters): %w", e.Path, dsas.ErrInvalid)
			}
			if strings.TrimSpace(e.Reason) == "" {
				return nil, fmt.Errorf("allow %s: has no reason; write why it may pass: %w", e.Path, dsas.ErrInvalid)
			}
			a.list = append(a.list, e)
		}
	}
	a.used = make([]bool, len(a.list))
	return a, nil
}

// split tells the findings that may pass, with the reason, from the others.
func (a *allowance) split(all []Finding) (refused, passed []Finding) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(x, y Finding) int {
		return cmp.Or(strings.Compare(x.Path, y.Path), x.Line-y.Line, strings.Compare(x.Rule, y.Rule))
	})
	for _, f := range slices.Compact(all) {
		if a != nil {
			for i, e := range a.list {
				if ok, _ := path.Match(e.Path, f.Path); ok {
					f.Allowed, a.used[i] = e.Reason, true
					break
				}
			}
		}
		if f.Allowed != "" {
			passed = append(passed, f)
		} else {
			refused = append(refused, f)
		}
	}
	return refused, passed
}

// unused gives the paths in role.yaml that let nothing pass.
func (a *allowance) unused() []string {
	var out []string
	for i, e := range a.list[:a.role] {
		if !a.used[i] {
			out = append(out, e.Path)
		}
	}
	return out
}
