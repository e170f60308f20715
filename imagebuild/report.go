package imagebuild

import (
	"slices"
	"strings"
)

// Report is what is to be told of a role's image.
type Report struct {
	Role    string `json:"role"`
	Changed bool   `json:"changed"` // another image than before
	// Base and Packages tell which versions changed against the locks; the
	// base is shared, so its changes are told of the first role that got them.
	Base     []PackageChange `json:"base,omitempty"`
	Packages []PackageChange `json:"packages,omitempty"`
	// Allowed are findings that may pass, each with the reason somebody wrote.
	Allowed []Finding `json:"allowed,omitempty"`
	// UnusedAllow are allowed paths in which nothing was found.
	UnusedAllow []string `json:"unusedAllow,omitempty"`
	// Privileged are the programs that give their user more rights.
	Privileged []Privileged `json:"privileged,omitempty"`
}

func (m *merged) listPrivileged() []Privileged {
	var out []Privileged
	for _, p := range m.privileged {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Privileged) int { return strings.Compare(a.Path, b.Path) })
	return out
}
