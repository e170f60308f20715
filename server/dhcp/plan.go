package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"dsas/server/boot"
)

// plan asks package boot.
func (s *Server) plan(ctx context.Context, c *client) (boot.Plan, error) {
	r := c.asks
	r.Node, r.Discovery = c.node, s.Discovery
	if c.node != nil && !c.node.HasMAC(c.mac) && len(c.node.NICs) > 0 {
		r.MAC = c.node.NICs[0].MAC // its boot files are under a MAC of its own
	}
	r.Server = boot.Server{Addr: c.subnet.Server, URL: c.slate.urlOf(netip.AddrPortFrom(c.subnet.Server, uint16(s.HTTPPort)))}
	if role := r.Role(); role != "" {
		var err error
		if r.Release, err = s.Releases.Assigned(c.node, role); err != nil {
			return boot.Plan{}, fmt.Errorf("release of role %s: %w", role, err)
		}
	}
	r.HasLoader = s.HasLoader
	c.vendor = s.vendorOptions(r.Role(), r.VendorClass)
	plan := boot.Decide(r)
	if c.elsewhere && (plan.Action == boot.NBP || plan.Action == boot.Script) {
		// Its cmdline would carry an address that does not work here.
		plan = boot.Plan{Action: boot.Refuse, MAC: c.mac, Node: c.node, Step: r.Step, Role: plan.Role, Server: r.Server,
			Reason: fmt.Sprintf("Node %s has address %s, which is not of subnet %s where it asks.", c.node.Name, c.node.Address, c.subnet.Prefix)}
	}
	return plan, nil
}

// urlOf gives the boot listener's URL: the last one again, most often.
func (m *slate) urlOf(a netip.AddrPort) string {
	if m.urlAt != a {
		m.urlAt, m.url = a, "http://"+a.String()
	}
	return m.url
}

// vendorOptions gives option 43 for a role's node of that vendor class: what a
// vendor's codes mean nobody else would know.
func (s *Server) vendorOptions(role, class string) []byte {
	if s.Vendor == nil || role == "" || class == "" {
		return nil
	}
	for _, v := range s.Vendor(role) {
		if strings.HasPrefix(class, v.Class) {
			if b, err := v.Bytes(); err == nil { // checked with the role
				return b
			}
		}
	}
	return nil
}
