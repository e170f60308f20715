package dsas

import (
	"net/netip"
	"time"
)

// What the operator's API (/api/v1) answers, beside the domain types
// themselves: the server's api package writes these and the client reads them.

// NodeView is a node with what its events have told.
type NodeView struct {
	Node   Node       `json:"node"`
	Status NodeStatus `json:"status"`
	Ports  []Port     `json:"ports,omitempty"` // where its NICs hang, as relays and switches said
	// Release is nil where the server keeps no images.
	Release *NodeRelease `json:"release,omitempty"`
}

// RoleView is a role with the release its nodes follow and where its definition
// lies.
type RoleView struct {
	Role    Role     `json:"role"`
	Release *Release `json:"release"` // nil: none
	Source  string   `json:"source"`  // "shipped" or the definition's folder
	// Canary is what some of its nodes try; nil: nothing.
	Canary *CanaryView `json:"canary,omitempty"`
}

// CanaryView is a canary with its release's name.
type CanaryView struct {
	Name string `json:"name"` // "web:8"
	Canary
}

// ReleaseView is a release and who uses it.
type ReleaseView struct {
	Name string `json:"name"` // "web:7"
	Release
	Current  bool     `json:"current"`            // what the role's nodes follow
	Before   int      `json:"before,omitempty"`   // 1: what a roll-back goes back to, 2: the one before
	Canary   []string `json:"canary,omitempty"`   // nodes that try it
	Ready    []string `json:"ready,omitempty"`    // nodes of these that were ready with it
	Pinned   []string `json:"pinned,omitempty"`   // nodes
	Assigned []string `json:"assigned,omitempty"` // nodes that would boot it now
	Running  []string `json:"running,omitempty"`  // nodes whose newest boot began with it
	// Refused says why it cannot be published, "" where it can: its signature.
	Refused string `json:"refused,omitempty"`
}

// NodeRelease is what a node runs and would boot, by the names of the releases.
type NodeRelease struct {
	Running  string `json:"running,omitempty"`  // of the boot that its status shows
	Assigned string `json:"assigned,omitempty"` // that a boot now would be given
	// Changes: a boot now would give the node something other than it runs.
	Changes bool `json:"changes"`
	// Canary: the assigned release is one that this node tries for its role.
	Canary bool `json:"canary,omitempty"`
}

// PublishRequest asks for a release to be what a role's nodes boot.
type PublishRequest struct {
	Release string `json:"release"` // as ParseReleaseRef reads it
	// Canary: only some nodes boot it, until they have shown that it is good.
	Canary *CanaryRequest `json:"canary,omitempty"`
}

// CanaryRequest says which nodes try a release: either Nodes or Percent is set.
type CanaryRequest struct {
	Nodes []string `json:"nodes,omitempty"`
	// Percent of the role's nodes that follow it, 1 to 100, rounded up; taken
	// from those that are ready.
	Percent int `json:"percent,omitempty"`
	// Cycle has the server power-cycle the canary's nodes if it is rolled back.
	// The first boot is the caller's to bring about.
	Cycle bool `json:"cycle,omitempty"`
}

// The power actions.
const (
	PowerOn     = "on"
	PowerOff    = "off"
	PowerCycle  = "cycle"
	PowerStatus = "status"
)

// PowerRequest asks for one action on many nodes.
type PowerRequest struct {
	Nodes  []string `json:"nodes"`
	Action string   `json:"action"`
}

// PowerResult is what became of it on one node: State ("on", "off") or Error.
type PowerResult struct {
	Node  string `json:"node"`
	State string `json:"state,omitempty"`
	Error string `json:"error,omitempty"`
}

// SSHInfo is what an operator needs to reach a node's sshd.
type SSHInfo struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`  // 0: 22
	HostKey string     `json:"hostKey"`         // public, as in authorized_keys: "ssh-ed25519 AAAA..."
	Netns   string     `json:"netns,omitempty"` // network namespace the node lives in, if any (the lab)
}

// Token lets a program or an operator elsewhere use the API over HTTPS. The
// secret itself is shown once, when it is made; only its hash is kept.
type Token struct {
	Name     string    `json:"name"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed,omitzero"` // to the minute
}

// NewToken is a token just made.
type NewToken struct {
	Token
	Secret string `json:"secret"`
}

// ServerStatus is what the server says of itself.
type ServerStatus struct {
	Version   string            `json:"version"`
	Started   time.Time         `json:"started"`
	Listeners map[string]string `json:"listeners,omitempty"` // by purpose: "dhcp": "0.0.0.0:67"
	Discovery bool              `json:"discovery"`           // unknown MACs boot the inventory role
	Subnets   []Subnet          `json:"subnets,omitempty"`
	Nodes     map[Phase]int     `json:"nodes,omitempty"` // how many nodes are in each phase
}

// ItemError is what is wrong with one item of a list that was sent; Index
// counts from 0.
type ItemError struct {
	Index int    `json:"index"`
	Error string `json:"error"`
}

// NodeChange is what the node called Name is to become, and the events that
// tell of it.
type NodeChange struct {
	Name   string
	Node   Node
	Events []Event
}
