package dsas

import (
	"net/netip"
	"time"
)

// NodeConfig is what one node fetches at boot, once its token is accepted.
// It holds secrets (the host key, the session key) and is never logged.
type NodeConfig struct {
	Node     string   `json:"node"`
	Boot     string   `json:"boot"`
	Role     Role     `json:"role"`
	Release  string   `json:"release"`  // "web:7", for people; it stands in the signatures too
	Manifest Manifest `json:"manifest"` // for an initramfs that checks no signatures; others take Signed's
	Signed   Signed   `json:"signed"`
	// Registry is the base URL of a registry that has the image's parts, as
	// "http://10.0.0.9:5000": asked first, before the server. "": the server alone.
	Registry string    `json:"registry,omitempty"`
	Conf     string    `json:"conf"`  // text of /etc/dsas.conf
	Files    []File    `json:"files"` // rendered templates, resolv.conf, hosts, host keys, authorized keys
	Time     time.Time `json:"time"`  // the server's clock
	// FilesTag names the state of the rendered files: what the long poll
	// for changes sends as If-None-Match.
	FilesTag   string        `json:"filesTag"`
	SessionKey []byte        `json:"sessionKey"` // signs events
	Heartbeat  time.Duration `json:"heartbeat"`
}

// File is one rendered file.
type File struct {
	Path    string `json:"path"`
	Mode    uint32 `json:"mode"`
	Owner   string `json:"owner,omitempty"` // "user:group" by name; empty: root
	Content []byte `json:"content"`
	Service string `json:"service,omitempty"` // reloaded when the content changes
}

// Boot is one boot of a node, from script to the next one. The server keeps
// it on disk: a restart in the middle must not brick the boot.
type Boot struct {
	ID        string    `json:"id"`
	Node      string    `json:"node"` // empty: the MAC belongs to no node (discovery)
	MAC       MAC       `json:"mac"`
	Role      string    `json:"role"`
	Picked    bool      `json:"picked,omitempty"` // Role was picked at the loader, and is not the assigned one
	Image     Digest    `json:"image"`            // ID of the release
	TokenHash []byte    `json:"-"`                // SHA-256 of the token
	Session   []byte    `json:"-"`                // session key, encrypted at rest
	Created   time.Time `json:"created"`
	// Address is what the box boots with and what its token is bound to.
	Address netip.Addr `json:"address,omitzero"`
	// FirstEvent is when the node first proved that it has the session key:
	// from then on the token is worth nothing.
	FirstEvent time.Time `json:"firstEvent,omitzero"`
}
