package dhcp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// client is what one request says of who asks.
type client struct {
	slate  *slate
	req    *dhcpv4.DHCPv4
	mac    dsas.MAC
	id     string       // option 61, hex; "" when none
	asks   boot.Request // what req says of the box: all that Classify reads
	node   *dsas.Node   // nobody changes it
	link   *link
	relay  relayed
	subnet dsas.Subnet
	// address is the node's reserved address, when it lies in subnet.
	address netip.Addr
	// elsewhere: it is a node, and its address is of another subnet.
	elsewhere bool
	vendor    []byte // option 43 for this client's role and vendor class
	second    bool   // a lease was looked for that can be taken back for it
}

// unanswered is an error that says which Drop* reason a packet falls under.
type unanswered struct {
	why string
	error
}

// Error implements error; the reason alone is one that is no news.
func (u unanswered) Error() string {
	if u.error == nil {
		return u.why
	}
	return u.error.Error()
}

func (u unanswered) Unwrap() error { return u.error }

// begin makes the client of a request that came over l.
func (m *slate) begin(l *link, mac dsas.MAC, req *dhcpv4.DHCPv4) *client {
	m.used = 0
	m.client = client{slate: m, req: req, mac: mac, id: hex.EncodeToString(req.Options.Get(dhcpv4.OptionClientIdentifier)),
		asks: Classify(req), node: m.node, link: l, relay: relayOf(req)}
	return &m.client
}

// answer gives the reply to req, made in m; nil for none. unicast: the packet
// was sent to our own address, and not to everyone on the segment. It waits for
// the disk where an address is given back or declined, and else for nothing.
func (s *Server) answer(ctx context.Context, m *slate, l *link, req *dhcpv4.DHCPv4, unicast bool) (*reply, error) {
	mac, ok := dsas.MACFrom(req.ClientHWAddr)
	if !ok || mac[0]&1 != 0 || req.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, unanswered{DropMalformed, errors.New("not from an Ethernet address")}
	}
	c := m.begin(l, mac, req)
	if err := s.findNode(ctx, c); err != nil {
		return nil, err
	}
	if c.node == nil && s.probing() {
		return nil, unanswered{DropOther, nil} // it asks again; by then it is known whose it is
	}
	if c.subnet, ok = s.subnetFor(l, c, unicast); !ok {
		return nil, unanswered{DropNoSubnet, fmt.Errorf("no subnet for %s", c.relay.via(l.name))}
	}
	if c.node != nil {
		if a := c.node.Address.Addr(); c.subnet.Prefix.Contains(a) {
			c.address = a
		} else {
			c.elsewhere = true
		}
	}
	switch typeOf(req) {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, c)
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, c)
	case dhcpv4.MessageTypeInform:
		return s.inform(ctx, c)
	case dhcpv4.MessageTypeDecline:
		return nil, s.decline(ctx, c)
	case dhcpv4.MessageTypeRelease:
		return nil, s.release(ctx, c)
	}
	return nil, unanswered{DropOther, nil}
}

// findNode looks the client up by its MAC, then by its client identifier,
// which stays when a NIC is changed.
func (s *Server) findNode(ctx context.Context, c *client) error {
	if c.node == nil {
		c.node = s.Store.SharedNode(c.mac)
	}
	if c.node != nil || c.id == "" {
		return nil
	}
	switch node, err := s.Store.NodeByClientID(ctx, c.id); {
	case err == nil:
		c.node = &node
		if s.news("id "+c.mac.String(), time.Hour) {
			s.Log.Warn("a node asks from a MAC that is not on its list, known by its client id; if a NIC was changed, name the new one with: dsas node set "+node.Name+" --mac MAC", "node", node.Name, "mac", c.mac)
		}
	case !errors.Is(err, dsas.ErrNotFound):
		return fmt.Errorf("look up client id of %s: %w", c.mac, err)
	}
	return nil
}

// subnetFor finds the subnet the client is on: by the relay agent (giaddr, or
// the link it names, RFC 3527); by the client's own address where it renews
// over routers, which it does without a relay (RFC 2131 section 4.3.2); else
// one of the segment's own, preferably the one that holds the node's reserved
// address, then one with a pool.
func (s *Server) subnetFor(l *link, c *client, unicast bool) (dsas.Subnet, bool) {
	at, ok := c.relay.agent, c.relay.agent.IsValid()
	if c.relay.link.IsValid() {
		at = c.relay.link
	}
	if !ok && unicast {
		at, ok = addrOf(c.req.ClientIPAddr)
	}
	if ok {
		for _, sub := range s.Subnets {
			if sub.Prefix.Contains(at) {
				return sub, true
			}
		}
		if c.relay.agent.IsValid() {
			return dsas.Subnet{}, false
		}
	}
	local := l.subnets()
	if len(local) == 0 {
		return dsas.Subnet{}, false
	}
	if c.node != nil {
		for _, sub := range local {
			if sub.Prefix.Contains(c.node.Address.Addr()) {
				return sub, true
			}
		}
	}
	for _, sub := range local {
		if sub.Pool.First.IsValid() {
			return sub, true
		}
	}
	return local[0], true
}

// discover answers DHCPDISCOVER with an OFFER (RFC 2131 section 4.3.1).
func (s *Server) discover(ctx context.Context, c *client) (*reply, error) {
	addr, probe := c.address, netip.Addr{}
	var heldBy dsas.MAC
	if !addr.IsValid() {
		want, _ := addrIn(c.req, dhcpv4.OptionRequestedIPAddress)
		if !c.subnet.Pool.First.IsValid() {
			s.unknown(ctx, c, netip.Addr{})
			return nil, unanswered{DropNoAddress, nil} // a stranger, and nothing for strangers: another server may have
		}
		now := s.Now()
		if err := s.admit(ctx, c, false, now); err != nil {
			return nil, err
		}
		s.unknown(ctx, c, netip.Addr{})
		lease, err := s.Store.Offer(ctx, c.subnet, c.mac, c.id, want, now)
		if errors.Is(err, dsas.ErrNotFound) {
			s.limits.release(c)
			if l := s.unused(ctx, c, now); l != nil {
				return &reply{probe: l.Address, back: l, seen: c}, nil
			}
			return nil, unanswered{DropNoAddress, fmt.Errorf("address for %s: %w", c.mac, err)}
		} else if err != nil {
			return nil, fmt.Errorf("address for %s: %w", c.mac, err)
		}
		s.scarce.given(c.subnet.Prefix, lease)
		if lease.MAC != c.mac {
			heldBy = lease.MAC
		}
		if addr = lease.Address; !lease.Held && !s.NoProbe && (s.pings(c) || !c.relay.agent.IsValid() && c.link.state.Load().raw != nil) {
			probe = addr
		}
	}
	plan, err := s.plan(ctx, c)
	if err != nil || plan.Action == boot.Ignore {
		return nil, err
	}
	s.refused(ctx, c, plan)
	r := c.reply(dhcpv4.MessageTypeOffer, addr, plan)
	r.probe, r.heldBy = probe, heldBy
	return r, nil
}

// sizeOf gives how many addresses a subnet's pool has.
func (s *Server) sizeOf(sub dsas.Subnet) int {
	for i := range s.Subnets {
		if s.Subnets[i].Prefix == sub.Prefix {
			return s.poolSize[i]
		}
	}
	return 0
}

// limited records that a port or interface wants too much.
func (s *Server) limited(ctx context.Context, c *client, err error) {
	if s.seen.first("limit "+c.relay.via(c.link.name)+c.relay.port(c.link.name), s.Now(), 5*time.Minute) {
		s.event(ctx, dsas.Event{MAC: c.mac, Kind: dsas.KindRefused, Message: err.Error()})
	}
}

// request answers DHCPREQUEST in the client's four states (RFC 2131 section
// 4.3.2), told apart by option 54, option 50 and ciaddr.
func (s *Server) request(ctx context.Context, c *client) (*reply, error) {
	server, selecting := addrIn(c.req, dhcpv4.OptionServerIdentifier)
	want, wanted := addrIn(c.req, dhcpv4.OptionRequestedIPAddress)
	if have, ok := addrOf(c.req.ClientIPAddr); ok {
		// RENEWING or REBINDING; some clients repeat the address in option 50.
		want, wanted = have, true
	}
	if selecting && !s.isServer(c, server) {
		return nil, unanswered{DropOther, nil} // it took another server's offer
	}
	if !wanted {
		return nil, fmt.Errorf("REQUEST of %s names no address (option 50 and ciaddr are empty)", c.mac)
	}
	if !c.address.IsValid() && !c.subnet.Pool.First.IsValid() {
		// Without a pool we know nothing of a stranger's address: a NAK would
		// take away what another server gave (RFC 2131 section 4.3.2).
		s.unknown(ctx, c, netip.Addr{})
		return nil, unanswered{DropNoAddress, nil}
	}
	if s.probing() && want != c.address {
		return nil, unanswered{DropOther, nil} // no NAK before it is known who else may have given it
	}
	// Told not to be the authority, we contradict a client only where it
	// chose us, or where it is a node.
	mayNAK := !c.subnet.Silent || selecting || c.address.IsValid()
	if !c.subnet.Prefix.Contains(want) {
		if !mayNAK {
			return nil, unanswered{DropOther, nil}
		}
		return c.nak(fmt.Sprintf("%s is not an address of %s", want, c.subnet.Prefix)), nil
	}
	var onDisk func(context.Context) error
	if c.address.IsValid() {
		if want != c.address {
			return c.nak(fmt.Sprintf("%s has address %s", c.node.Name, c.address)), nil
		}
	} else {
		lease, wait, err := s.lease(ctx, c, want)
		if err != nil {
			return nil, err
		}
		if lease.Address != want {
			if !mayNAK {
				return nil, unanswered{DropOther, nil}
			}
			return c.nak(fmt.Sprintf("%s is not free", want)), nil
		}
		s.unknown(ctx, c, want)
		onDisk = wait
	}
	plan, err := s.plan(ctx, c)
	if err != nil || plan.Action == boot.Ignore {
		return nil, err
	}
	s.refused(ctx, c, plan)
	r := c.reply(dhcpv4.MessageTypeAck, want, plan)
	r.onDisk, r.gave = onDisk, s.gave(c, want, plan)
	return r, nil
}

// lease gives want to the client; onDisk waits until that is durable, nil where
// it is already. A client that may not have want gets no lease, and takes nothing
// of the pool.
func (s *Server) lease(ctx context.Context, c *client, want netip.Addr) (lease dsas.Lease, onDisk func(context.Context) error, err error) {
	now := s.Now()
	may, _, err := s.Store.MayHave(ctx, c.subnet, c.mac, c.id, want, now)
	if err == nil && !may {
		return dsas.Lease{}, nil, nil // a NAK, since want is not its own
	}
	if err == nil {
		if err := s.admit(ctx, c, true, now); err != nil {
			return dsas.Lease{}, nil, err
		}
		lease, onDisk, err = s.Store.Bind(ctx, c.subnet, c.mac, c.id, want, now)
	}
	if err != nil {
		return lease, nil, leaseError(want, c.mac, err)
	}
	s.scarce.given(c.subnet.Prefix, lease)
	if _, has := addrOf(c.req.ClientIPAddr); has && lease.Address == want {
		s.renewed(ctx, c, lease)
	}
	return lease, onDisk, nil
}

func leaseError(a netip.Addr, mac dsas.MAC, err error) error {
	return fmt.Errorf("lease %s to %s: %w", a, mac, err)
}

// inform answers DHCPINFORM: configuration for a client that has its address
// (RFC 2131 section 4.3.5), so without yiaddr and lease time.
func (s *Server) inform(ctx context.Context, c *client) (*reply, error) {
	if have, ok := addrOf(c.req.ClientIPAddr); !ok || !c.subnet.Prefix.Contains(have) {
		return nil, unanswered{DropOther, nil}
	}
	plan, err := s.plan(ctx, c)
	if err != nil || plan.Action == boot.Ignore {
		return nil, err
	}
	return c.reply(dhcpv4.MessageTypeAck, netip.Addr{}, plan), nil
}

// decline takes an address out of use that its client found in use by someone
// else. Only the address the client was given counts: anyone may send this.
func (s *Server) decline(ctx context.Context, c *client) error {
	addr, ok := addrIn(c.req, dhcpv4.OptionRequestedIPAddress)
	if server, ok := addrIn(c.req, dhcpv4.OptionServerIdentifier); ok && !s.isServer(c, server) {
		return nil
	}
	if !ok {
		return nil
	}
	if addr == c.address {
		if s.news("decline log "+c.mac.String(), time.Minute) {
			s.Log.Warn("a node found its reserved address in use by another box", "node", c.node.Name, "mac", c.mac, "address", addr)
		}
		return s.eventOnce(ctx, "decline "+c.mac.String(), dsas.Event{Node: c.node.Name, MAC: c.mac, Kind: dsas.KindRefused,
			Message: fmt.Sprintf("another box uses this node's address %s (DHCPDECLINE)", addr)})
	}
	if !c.subnet.Pool.Contains(addr) {
		return nil
	}
	now := s.Now()
	if _, has, err := s.Store.MayHave(ctx, c.subnet, c.mac, c.id, addr, now); err != nil || !has {
		return err
	}
	if s.news("decline "+addr.String(), time.Minute) {
		s.Log.Warn("a pool address is in use by another box", "mac", c.mac, "address", addr, "subnet", c.subnet.Prefix)
	}
	s.limits.release(c)
	s.limits.declined(c, addr, now.Add(declineTime))
	if err := s.Store.Decline(ctx, addr, now.Add(declineTime)); err != nil {
		return fmt.Errorf("decline %s: %w", addr, err)
	}
	return nil
}

func (s *Server) release(ctx context.Context, c *client) error {
	addr, ok := addrOf(c.req.ClientIPAddr)
	if !ok || !c.subnet.Pool.Contains(addr) {
		return nil
	}
	_, has, err := s.Store.MayHave(ctx, c.subnet, c.mac, c.id, addr, s.Now())
	if err == nil && has {
		err = s.Store.Release(ctx, c.mac, addr)
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	if has { // else it keeps another, which counts
		s.limits.release(c)
		s.scarce.recount(c.subnet.Prefix)
	}
	return nil
}

// isServer tells whether a is one of our addresses, or what c's relay says
// instead of it (RFC 5107).
func (s *Server) isServer(c *client, a netip.Addr) bool {
	if a == c.relay.serverID && a.IsValid() {
		return true
	}
	for _, sub := range s.Subnets {
		if sub.Server == a {
			return true
		}
	}
	return false
}
