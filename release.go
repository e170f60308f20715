package dsas

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Release is an image of a role with the kernel and initramfs it boots with. It
// never changes: what is new is another release.
type Release struct {
	// ID is the digest of the OCI image config: it fixes what is in the image
	// and what it boots with, and not how its layers are compressed.
	ID       Digest    `json:"id"`
	Role     string    `json:"role"`
	Number   int       `json:"number"`  // among the role's releases, from 1 on; never given twice
	Created  time.Time `json:"created"` // when it came into this store
	Boot     BootSet   `json:"boot"`
	Manifest Manifest  `json:"manifest"`
	// Definition is what of its role's definition makes a node's configuration,
	// as package roles freezes it. Empty: an image that was not built here, for
	// which the server's own is taken.
	Definition []byte `json:"-"`
	Signed     Signed `json:"-"` // Manifest as it is signed
	// Damaged says why what describes it in the store cannot be read, in a list of
	// releases; "" as a rule. ID, Role, Number, Created and Manifest's digest are
	// all that is known of it then.
	Damaged string `json:"damaged,omitempty"`
}

// Name is what people call a release: "web:7".
func (r Release) Name() string { return ReleaseName(r.Role, r.Number) }

// ReleaseName gives the name of a role's release.
func ReleaseName(role string, number int) string { return role + ":" + strconv.Itoa(number) }

// ReleaseRef is how a release is asked for.
type ReleaseRef struct {
	Role   string // "" with ID alone
	Number int    // 0: the newest proposed one, "web:latest"
	ID     Digest // whole; the others are empty then
}

// ParseReleaseRef reads "web:7", "web:latest", "web" (its latest) and
// "sha256:" with 64 hex digits.
func ParseReleaseRef(s string) (ReleaseRef, error) {
	if strings.HasPrefix(s, "sha256:") {
		d, err := ParseDigest(s)
		return ReleaseRef{ID: d}, err
	}
	role, number, _ := strings.Cut(s, ":")
	if err := CheckName("role", role); err != nil {
		return ReleaseRef{}, fmt.Errorf("release %.80q: write it as web:7 or web:latest: %w", s, err)
	}
	if number == "" || number == "latest" {
		return ReleaseRef{Role: role}, nil
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || strconv.Itoa(n) != number {
		return ReleaseRef{}, fmt.Errorf("release %.80q: write it as %s:7 or %s:latest; dsas image ls %s lists them: %w", s, role, role, role, ErrInvalid)
	}
	return ReleaseRef{Role: role, Number: n}, nil
}

// String is what ParseReleaseRef reads.
func (r ReleaseRef) String() string {
	switch {
	case r.ID != "":
		return string(r.ID)
	case r.Number == 0:
		return r.Role + ":latest"
	}
	return ReleaseName(r.Role, r.Number)
}

// Published is what the nodes of one role boot: the releases meant are named by
// their IDs, "" where there is none.
type Published struct {
	Role    string    `json:"role"`
	Current Digest    `json:"current"`          // what nodes follow that are not pinned
	Before  []Digest  `json:"before,omitempty"` // what was current before, the newest last: where roll-backs go
	Since   time.Time `json:"since,omitzero"`
	By      string    `json:"by,omitempty"` // who published Current
	// Proposed is the last release that an image build asked to be published:
	// asked once, it is not asked again after a roll-back.
	Proposed Digest  `json:"proposed,omitempty"`
	Canary   *Canary `json:"canary,omitempty"` // a release that is being tried
	// GivenUp is the release of the last canary that was rolled back: a build
	// that changes nothing does not publish it.
	GivenUp Digest `json:"givenUp,omitempty"`
	// Cycle lists nodes that the server has yet to power-cycle, since the canary
	// that they tried was rolled back.
	Cycle []string `json:"cycle,omitempty"`
}

// maxBefore bounds how far back roll-backs can go.
const maxBefore = 20

// Publish makes a release current. A canary ends with it.
func (p *Published) Publish(id Digest, by string, at time.Time) {
	if p.Current != "" && p.Current != id {
		p.Before = append(slices.DeleteFunc(slices.Clone(p.Before), func(d Digest) bool { return d == p.Current || d == id }), p.Current)
		p.Before = p.Before[max(0, len(p.Before)-maxBefore):]
	}
	p.Current, p.Since, p.By, p.Canary = id, at, by, nil
}

// RollBack ends a canary, where one runs, and changes nothing else; else it
// makes current what was so before. What it goes back from is not come back to
// by the next one.
func (p *Published) RollBack(by string, at time.Time) error {
	if p.Canary != nil {
		p.GivenUp, p.Canary = p.Canary.Release, nil
		return nil
	}
	if p.Current == "" {
		return fmt.Errorf("role %s: nothing is published, so there is nothing to roll back; dsas image ls %s lists its releases: %w", p.Role, p.Role, ErrConflict)
	}
	if len(p.Before) == 0 {
		return fmt.Errorf("role %s: no release was published before the current one, so there is none to go back to; dsas image ls %s lists those that dsas image publish can take: %w", p.Role, p.Role, ErrConflict)
	}
	last := len(p.Before) - 1
	p.Current, p.Since, p.By, p.Canary = p.Before[last], at, by, nil
	p.Before = slices.Clone(p.Before[:last])
	return nil
}

// PublishedText is what the event of a publishing says; was is the name of the
// release before, "" for none.
func PublishedText(role, now, was, by string) string {
	text := fmt.Sprintf("role %s: nodes boot release %s", role, now)
	if was != "" {
		text += ", before " + was
	}
	return text + ", by " + by
}

// Uses tells whether release id is current, was so before or is a canary.
func (p Published) Uses(id Digest) bool {
	return p.Current == id || slices.Contains(p.Before, id) || p.Canary != nil && p.Canary.Release == id
}

// Assigned gives the release that node n, nil for a box that is none, boots as
// this role; "" for none. A pin goes before a canary, and both before what is
// current. A pin is of a release of the node's own role: a role picked at the
// loader follows what is current.
func (p Published) Assigned(n *Node) Digest {
	switch {
	case n == nil:
	case n.Release != "" && n.Role == p.Role:
		return n.Release
	case p.Canary != nil && n.Role == p.Role && slices.Contains(p.Canary.Nodes, n.Name):
		return p.Canary.Release
	}
	return p.Current
}
