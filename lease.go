package dsas

import (
	"fmt"
	"net/netip"
	"net/url"
	"time"
)

// Subnet is one IPv4 network the server answers on.
type Subnet struct {
	Prefix netip.Prefix `json:"prefix"` // masked, e.g. 10.77.0.0/24
	// Server is our address that its nodes reach: option 54, siaddr, the host
	// in boot URLs. It lies in Prefix unless the subnet is Relayed.
	Server  netip.Addr   `json:"server"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Domain  string       `json:"domain,omitempty"`
	// Pool is for MACs that belong to no node; empty: none. What of it may be
	// given out MayLease says.
	Pool    Range         `json:"pool,omitzero"`
	Exclude []Range       `json:"exclude,omitempty"` // of the pool: never given out
	Lease   time.Duration `json:"lease"`             // of a pool address
	// Relayed: no interface of ours is on this network; its nodes' requests
	// come through relay agents (RFC 3046), or are routed here.
	Relayed bool `json:"relayed,omitempty"`
	// Silent: a client that asks for an address we know nothing of hears
	// nothing instead of a DHCPNAK (`authoritative: false`).
	Silent bool `json:"silent,omitempty"`
	// PortLimit is how many pool addresses MACs behind one port of a relay or
	// switch (its circuit id) may hold; 0: a quarter of the pool.
	PortLimit int `json:"portLimit,omitempty"`
	// Bond is the bond of its nodes, as the kernel command line has it; empty:
	// as for all.
	Bond string `json:"bond,omitempty"`

	NTP           []netip.Addr `json:"ntp,omitempty"`           // option 42
	MTU           int          `json:"mtu,omitempty"`           // option 26, bytes
	Search        []string     `json:"search,omitempty"`        // option 119
	Routes        []Route      `json:"routes,omitempty"`        // option 121
	CaptivePortal string       `json:"captivePortal,omitempty"` // option 114 (RFC 8910): URL
}

// Route is a static route: To by way of Via.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
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

// Size counts the addresses of an IPv4 range.
func (r Range) Size() int {
	if !r.First.Is4() || !r.Last.Is4() || r.Last.Less(r.First) {
		return 0
	}
	return int(number(r.Last)-number(r.First)) + 1
}

// String gives 10.0.3.200-10.0.3.250, or one address alone; "none" when empty.
func (r Range) String() string {
	switch {
	case !r.First.IsValid():
		return "none"
	case r.First == r.Last:
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// MayLease tells whether a may be given to a MAC that belongs to no node, for
// all that s itself says: it lies in the pool, is not excluded, and is neither
// ours, nor the gateway's, nor the network's or broadcast address. Whoever
// gives out addresses asks this, and besides it whether a is a node's or a
// site's.
func (s *Subnet) MayLease(a netip.Addr) bool {
	if !s.Pool.Contains(a) || a == s.Server || a == s.Gateway {
		return false
	}
	for _, x := range s.Exclude {
		if x.Contains(a) {
			return false
		}
	}
	n := s.Prefix
	return n.Bits() > 30 || a != n.Masked().Addr() && n.Contains(a.Next())
}

// PoolSize counts the addresses that MayLease.
func (s *Subnet) PoolSize() int {
	n := 0
	if s.Pool.First.IsValid() {
		for a := s.Pool.First; s.Pool.Contains(a); a = a.Next() {
			if s.MayLease(a) {
				n++
			}
		}
	}
	return n
}

// Check says what is wrong with s, or nil.
func (s *Subnet) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("subnet %s: %s: %w", s.Prefix, fmt.Sprintf(format, args...), ErrInvalid)
	}
	if !s.Prefix.IsValid() || !s.Prefix.Addr().Is4() {
		return bad("not an IPv4 prefix")
	}
	switch {
	case !s.Server.Is4():
		return bad("the server's address %s is not an IPv4 address", s.Server)
	case !s.Relayed && !s.Prefix.Contains(s.Server):
		return bad("the server's address %s is not in it", s.Server)
	}
	inside := func(what string, r Range) error {
		if !s.Prefix.Contains(r.First) || !s.Prefix.Contains(r.Last) || r.Last.Less(r.First) {
			return bad("%s %s-%s does not lie in it", what, r.First, r.Last)
		}
		return nil
	}
	if s.Pool.First.IsValid() {
		if err := inside("pool", s.Pool); err != nil {
			return err
		}
	}
	for _, x := range s.Exclude {
		if err := inside("exclude", x); err != nil {
			return err
		}
	}
	if s.MTU != 0 && (s.MTU < 576 || s.MTU > 65535) {
		return bad("mtu %d: use 576 to 65535 bytes", s.MTU)
	}
	if s.PortLimit < 0 {
		return bad("portLimit %d: use a number of addresses above 0", s.PortLimit)
	}
	for _, r := range s.Routes {
		if !r.To.IsValid() || !r.To.Addr().Is4() || !r.Via.Is4() {
			return bad("route to %s via %s: both must be IPv4, as {to: 10.2.0.0/16, via: 10.0.0.254}", r.To, r.Via)
		}
	}
	for _, name := range append([]string{s.Domain}, s.Search...) {
		if len(name) > 253 {
			return bad("domain %.40s...: longer than a name can be (253)", name)
		}
	}
	if s.CaptivePortal != "" {
		if u, err := url.Parse(s.CaptivePortal); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || len(s.CaptivePortal) > 255 {
			return bad("captivePortal %q: give a URL, as https://portal.example/api", s.CaptivePortal)
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
	// Held: before this answer of the store the address was this MAC's
	// already. One that was not is probed before it is offered.
	Held bool `json:"-"`
	// Proven: somebody was found to use it, and not only to ask for it.
	Proven bool `json:"-"`
}

// Standing is what a pool knows of a MAC that asks for one of its addresses;
// the zero value: nothing.
type Standing struct {
	Offered bool      // it has an offer that it did not take up yet
	Leased  bool      // it has or had a lease, and nobody else got its address since
	Proven  bool      // somebody was found to use that address
	Until   time.Time // when that lease ends or ended
}
