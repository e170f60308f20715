package dsas

import (
	"fmt"
	"net/netip"
	"time"
)

// Subnet is one IPv4 network the server answers on.
type Subnet struct {
	Prefix  netip.Prefix  `json:"prefix"` // masked, e.g. 10.77.0.0/24
	Server  netip.Addr    `json:"server"` // our address there: option 54, siaddr
	Gateway netip.Addr    `json:"gateway,omitzero"`
	DNS     []netip.Addr  `json:"dns,omitempty"`
	Domain  string        `json:"domain,omitempty"`
	Pool    Range         `json:"pool,omitzero"` // for unknown MACs; empty: none
	Lease   time.Duration `json:"lease"`         // of a pool address
}

// Range is an inclusive range of addresses; the zero value is empty.
type Range struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Contains tells whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.IsValid() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Check says what is wrong with s, or nil.
func (s *Subnet) Check() error {
	if !s.Prefix.IsValid() || !s.Prefix.Addr().Is4() {
		return fmt.Errorf("subnet %s: not an IPv4 prefix: %w", s.Prefix, ErrInvalid)
	}
	if !s.Prefix.Contains(s.Server) {
		return fmt.Errorf("subnet %s: the server's address %s is not in it: %w", s.Prefix, s.Server, ErrInvalid)
	}
	if s.Pool.First.IsValid() {
		if !s.Prefix.Contains(s.Pool.First) || !s.Prefix.Contains(s.Pool.Last) || s.Pool.Last.Less(s.Pool.First) {
			return fmt.Errorf("subnet %s: pool %s-%s does not lie in it: %w", s.Prefix, s.Pool.First, s.Pool.Last, ErrInvalid)
		}
	}
	return nil
}

// Lease is a timed hold on a pool address. Reserved addresses have none: they
// are the node's own.
type Lease struct {
	Address  netip.Addr `json:"address"`
	MAC      MAC        `json:"mac"`
	ClientID string     `json:"clientId,omitempty"` // option 61, hex
	Expires  time.Time  `json:"expires"`
	Declined bool       `json:"declined,omitempty"` // DHCPDECLINE: in use by someone else
}
