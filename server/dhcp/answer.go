package dhcp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// reply is a message and where it goes.
type reply struct {
	msg  *dhcpv4.DHCPv4
	from netip.Addr
	to   netip.AddrPort
	hw   net.HardwareAddr // set: the client has no address yet, send a frame to it
}

// client is what one request says of who asks.
type client struct {
	req    *dhcpv4.DHCPv4
	mac    dsas.MAC
	id     string // option 61, hex; "" when none
	node   *dsas.Node
	subnet dsas.Subnet
	// address is the node's reserved address, when it lies in subnet.
	address netip.Addr
	// elsewhere: it is a node, and its address is of another subnet.
	elsewhere bool
}

// answer gives the reply to req; nil for none.
func (s *Server) answer(ctx context.Context, l *link, req *dhcpv4.DHCPv4) (*reply, error) {
	mac, ok := dsas.MACFrom(req.ClientHWAddr)
	if !ok || mac[0]&1 != 0 || req.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, nil // not Ethernet, or nobody's address
	}
	c := client{req: req, mac: mac, id: hex.EncodeToString(req.Options.Get(dhcpv4.OptionClientIdentifier))}
	node, err := s.Store.NodeByMAC(ctx, mac)
	switch {
	case err == nil:
		c.node = &node
	case !errors.Is(err, dsas.ErrNotFound):
		return nil, fmt.Errorf("look up %s: %w", mac, err)
	}
	if c.node == nil && s.probing() {
		return nil, nil // it asks again; by then it is known whose it is
	}
	if c.subnet, ok = s.subnetFor(l, &c); !ok {
		return nil, fmt.Errorf("no subnet for relay %s", req.GatewayIPAddr)
	}
	if c.node != nil {
		if a := c.node.Address.Addr(); c.subnet.Prefix.Contains(a) {
			c.address = a
		} else {
			c.elsewhere = true
		}
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, &c)
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, &c)
	case dhcpv4.MessageTypeInform:
		return s.inform(ctx, &c)
	case dhcpv4.MessageTypeDecline:
		return nil, s.decline(ctx, &c)
	case dhcpv4.MessageTypeRelease:
		return nil, s.release(ctx, &c)
	}
	return nil, nil
}

// subnetFor finds the subnet the client is on: by the relay agent (giaddr, or
// the link it names, RFC 3527), else one of the segment's own, preferably the
// one that holds the node's reserved address, then one with a pool.
func (s *Server) subnetFor(l *link, c *client) (dsas.Subnet, bool) {
	if gi, ok := addrOf(c.req.GatewayIPAddr); ok {
		if o := c.req.RelayAgentInfo(); o != nil {
			if a, ok := addrOf(o.Get(dhcpv4.LinkSelectionSubOption)); ok {
				gi = a
			}
		}
		for _, sub := range s.Subnets {
			if sub.Prefix.Contains(gi) {
				return sub, true
			}
		}
		return dsas.Subnet{}, false
	}
	if len(l.local) == 0 {
		return dsas.Subnet{}, false
	}
	if c.node != nil {
		for _, sub := range l.local {
			if sub.Prefix.Contains(c.node.Address.Addr()) {
				return sub, true
			}
		}
	}
	for _, sub := range l.local {
		if sub.Pool.First.IsValid() {
			return sub, true
		}
	}
	return l.local[0], true
}

// discover answers DHCPDISCOVER with an OFFER (RFC 2131 section 4.3.1).
func (s *Server) discover(ctx context.Context, c *client) (*reply, error) {
	addr := c.address
	if !addr.IsValid() {
		want, _ := addrOf(c.req.RequestedIPAddress())
		s.unknown(ctx, c, netip.Addr{})
		if !c.subnet.Pool.First.IsValid() {
			return nil, nil // a stranger, and nothing for strangers: another server may have
		}
		lease, err := s.Store.Offer(ctx, c.subnet, c.mac, c.id, want, s.Now())
		if err != nil {
			return nil, fmt.Errorf("address for %s: %w", c.mac, err)
		}
		addr = lease.Address
	}
	plan, err := s.plan(ctx, c)
	if err != nil || plan.Action == boot.Ignore {
		return nil, err
	}
	s.refused(ctx, c, plan)
	return c.reply(dhcpv4.MessageTypeOffer, addr, plan), nil
}

// request answers DHCPREQUEST in the client's four states (RFC 2131 section
// 4.3.2), told apart by option 54, option 50 and ciaddr.
func (s *Server) request(ctx context.Context, c *client) (*reply, error) {
	server, selecting := addrOf(c.req.ServerIdentifier())
	want, wanted := addrOf(c.req.RequestedIPAddress())
	if have, ok := addrOf(c.req.ClientIPAddr); ok {
		// RENEWING or REBINDING; some clients repeat the address in option 50.
		want, wanted = have, true
	}
	if selecting && !s.isServer(server) {
		return nil, nil // it took another server's offer
	}
	if !wanted {
		return nil, fmt.Errorf("REQUEST of %s names no address (option 50 and ciaddr are empty)", c.mac)
	}
	if !c.address.IsValid() && !c.subnet.Pool.First.IsValid() {
		// Without a pool we know nothing of a stranger's address: a NAK would
		// take away what another server gave (RFC 2131 section 4.3.2).
		s.unknown(ctx, c, netip.Addr{})
		return nil, nil
	}
	if s.probing() && want != c.address {
		return nil, nil // no NAK before it is known who else may have given it
	}
	if !c.subnet.Prefix.Contains(want) {
		return c.nak(fmt.Sprintf("%s is not an address of %s", want, c.subnet.Prefix)), nil
	}
	if c.address.IsValid() {
		if want != c.address {
			return c.nak(fmt.Sprintf("%s has address %s", c.node.Name, c.address)), nil
		}
	} else {
		lease, err := s.lease(ctx, c, want)
		if err != nil {
			return nil, err
		}
		if lease.Address != want {
			return c.nak(fmt.Sprintf("%s is not free", want)), nil
		}
		s.unknown(ctx, c, want)
	}
	plan, err := s.plan(ctx, c)
	if err != nil || plan.Action == boot.Ignore {
		return nil, err
	}
	s.refused(ctx, c, plan)
	s.acked(ctx, c, want, plan)
	return c.reply(dhcpv4.MessageTypeAck, want, plan), nil
}

// lease makes the lease of want durable. A client that may not have want gets
// another address back, and no lease.
func (s *Server) lease(ctx context.Context, c *client, want netip.Addr) (dsas.Lease, error) {
	now := s.Now()
	lease, err := s.Store.Offer(ctx, c.subnet, c.mac, c.id, want, now)
	if errors.Is(err, dsas.ErrNotFound) {
		return dsas.Lease{}, nil // none free: a NAK, since want is not its own
	}
	if err == nil && lease.Address == want {
		lease, err = s.Store.LeaseFor(ctx, c.subnet, c.mac, c.id, want, now)
	}
	if err != nil {
		return lease, fmt.Errorf("lease %s to %s: %w", want, c.mac, err)
	}
	return lease, nil
}

// inform answers DHCPINFORM: configuration for a client that has its address
// (RFC 2131 section 4.3.5), so without yiaddr and lease time.
func (s *Server) inform(ctx context.Context, c *client) (*reply, error) {
	if _, ok := addrOf(c.req.ClientIPAddr); !ok {
		return nil, nil
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
	addr, ok := addrOf(c.req.RequestedIPAddress())
	if server, ok := addrOf(c.req.ServerIdentifier()); ok && !s.isServer(server) {
		return nil
	}
	if !ok {
		return nil
	}
	if addr == c.address {
		s.Log.Warn("a node found its reserved address in use by another box", "node", c.node.Name, "mac", c.mac, "address", addr)
		return s.eventOnce(ctx, "decline "+c.mac.String(), dsas.Event{Node: c.node.Name, MAC: c.mac, Kind: dsas.KindRefused,
			Message: fmt.Sprintf("another box uses this node's address %s (DHCPDECLINE)", addr)})
	}
	if !c.subnet.Pool.Contains(addr) {
		return nil
	}
	now := s.Now()
	if lease, err := s.Store.Offer(ctx, c.subnet, c.mac, c.id, addr, now); err != nil || lease.Address != addr {
		return err
	}
	s.Log.Warn("a pool address is in use by another box", "mac", c.mac, "address", addr, "subnet", c.subnet.Prefix)
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
	if err := s.Store.Release(ctx, c.mac, addr); err != nil {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	return nil
}

// isServer tells whether a is one of our addresses.
func (s *Server) isServer(a netip.Addr) bool {
	for _, sub := range s.Subnets {
		if sub.Server == a {
			return true
		}
	}
	return false
}

// plan asks package boot.
func (s *Server) plan(ctx context.Context, c *client) (boot.Plan, error) {
	r := Classify(c.req)
	r.Node, r.Discovery = c.node, s.Discovery
	r.Server = boot.Server{Addr: c.subnet.Server, URL: fmt.Sprintf("http://%s", netip.AddrPortFrom(c.subnet.Server, uint16(s.HTTPPort)))}
	if set, err := s.Images.Boot(); err == nil {
		r.Boot = &set
	} else if !errors.Is(err, dsas.ErrNotFound) {
		return boot.Plan{}, fmt.Errorf("kernel and initramfs: %w", err)
	}
	if role := r.Role(); role != "" {
		if m, err := s.Images.Current(role); err == nil {
			r.Image = &m
		} else if !errors.Is(err, dsas.ErrNotFound) {
			return boot.Plan{}, fmt.Errorf("image of role %s: %w", role, err)
		}
	}
	r.HasLoader = s.HasLoader
	plan := boot.Decide(r)
	if c.elsewhere && (plan.Action == boot.NBP || plan.Action == boot.Script) {
		// Its cmdline would carry an address that does not work here.
		plan = boot.Plan{Action: boot.Refuse, MAC: c.mac, Node: c.node, Step: r.Step, Role: plan.Role, Server: r.Server,
			Reason: fmt.Sprintf("Node %s has address %s, which is not of subnet %s where it asks.", c.node.Name, c.node.Address, c.subnet.Prefix)}
	}
	return plan, nil
}

// Classify says what a DHCP request tells of who asks and what it can run.
// Options that are damaged count as absent: firmware has many ways to be wrong.
func Classify(req *dhcpv4.DHCPv4) boot.Request {
	mac, _ := dsas.MACFrom(req.ClientHWAddr)
	r := boot.Request{
		Step: boot.StepDHCP, MAC: mac, Broadcast: req.IsBroadcast(),
		VendorClass: string(req.Options.Get(dhcpv4.OptionClassIdentifier)),
		UserClass:   string(req.Options.Get(dhcpv4.OptionUserClassInformation)),
	}
	// A list in RFC 4578; firmware sends one.
	if a := req.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(a) >= 2 {
		r.Arch, r.HasArch = dsas.Arch(uint16(a[0])<<8|uint16(a[1])), true
	}
	if g := req.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(g) == 17 && g[0] == 0 {
		r.GUID = bytes.Clone(g[1:])
	}
	if o := req.Options.Get(optionEtherboot); o != nil {
		if x, err := boot.ParseIPXE(o); err == nil {
			r.IPXE = x
		}
	}
	return r
}

// optionEtherboot is iPXE's own option (IANA: "Etherboot", tentative).
const optionEtherboot = dhcpv4.GenericOptionCode(175)

// unknown records a MAC that belongs to no node.
func (s *Server) unknown(ctx context.Context, c *client, addr netip.Addr) {
	if c.node != nil {
		return
	}
	now := s.Now()
	// Once per exchange: the DISCOVERs that repeat within it are one question.
	if !s.seen.first(fmt.Sprintf("unknown %s %s %t", c.mac, c.req.TransactionID, addr.IsValid()), now, time.Minute) {
		return
	}
	r := Classify(c.req)
	u := dsas.Unknown{MAC: c.mac, VendorClass: clean(r.VendorClass), Address: addr, First: now, Last: now, Count: 1}
	if r.HasArch {
		u.Arch = r.Arch.String()
	}
	u.GUID = guid(r.GUID)
	isNew, err := s.Store.RecordUnknown(ctx, u)
	if err != nil {
		s.Log.Warn("unknown MAC not recorded", "mac", c.mac, "err", err)
		return
	}
	if isNew {
		s.event(ctx, dsas.Event{MAC: c.mac, Kind: dsas.KindUnknown, Message: fmt.Sprintf("an unknown box asks for an address (%s)", cmp.Or(u.VendorClass, "no vendor class"))})
	}
}

// refused records a refusal, once in a while per MAC and reason.
func (s *Server) refused(ctx context.Context, c *client, p boot.Plan) {
	if p.Action != boot.Refuse {
		return
	}
	if !s.seen.first("refused "+c.mac.String()+p.Reason, s.Now(), 5*time.Minute) {
		return
	}
	s.Log.Warn("boot refused", "mac", c.mac, "node", c.name(), "reason", p.Reason)
	s.event(ctx, dsas.Event{Node: c.name(), MAC: c.mac, Kind: dsas.KindRefused, Message: p.Reason})
}

// acked records an address given to something that boots: a lease that an
// operating system renews is no news.
func (s *Server) acked(ctx context.Context, c *client, addr netip.Addr, p boot.Plan) {
	r := Classify(c.req)
	if c.node == nil || !r.IsPXE() || !s.seen.first("ack "+c.mac.String()+c.req.TransactionID.String(), s.Now(), time.Minute) {
		return
	}
	msg := fmt.Sprintf("%s, no boot file: %s", addr, p.Reason)
	if p.BootFile != "" {
		msg = fmt.Sprintf("%s, boot file %s", addr, p.BootFile)
	}
	s.event(ctx, dsas.Event{Node: c.name(), MAC: c.mac, Kind: dsas.KindDHCP, Message: msg})
}

func (s *Server) eventOnce(ctx context.Context, key string, e dsas.Event) error {
	if s.seen.first(key, s.Now(), 5*time.Minute) {
		s.event(ctx, e)
	}
	return nil
}

func (s *Server) event(ctx context.Context, e dsas.Event) {
	e.Time = s.Now()
	// An event that is lost is no reason to leave a box without an answer.
	if err := s.Store.Event(ctx, e); err != nil {
		s.Log.Warn("event not recorded", "kind", e.Kind, "mac", e.MAC, "err", err)
	}
}
