package dhcp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// unknown records a MAC that belongs to no node.
func (s *Server) unknown(ctx context.Context, c *client, addr netip.Addr) {
	if c.node != nil {
		return
	}
	now := s.Now()
	// Once per exchange: the DISCOVERs that repeat within it are one question.
	key := "unknown " + c.mac.String() + c.req.TransactionID.String()
	if addr.IsValid() {
		key += " has"
	}
	if !s.seen.first(key, now, time.Minute) {
		return
	}
	if !s.strange.allow(now, time.Second, maxStrangers) {
		return // a flood; who is really there asks again
	}
	r := &c.asks
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
	if s.lines.allow(s.Now(), time.Minute, maxLines) {
		s.Log.Warn("boot refused", "mac", c.mac, "node", c.name(), "reason", p.Reason)
	}
	s.event(ctx, dsas.Event{Node: c.name(), MAC: c.mac, Kind: dsas.KindRefused, Message: p.Reason})
}

// gave is what a node was given that boots; its zero value is nothing.
type gave struct {
	at           time.Time
	node         *dsas.Node
	mac          dsas.MAC
	xid          dhcpv4.TransactionID
	addr         netip.Addr // invalid: another server's (proxyDHCP)
	file, reason string     // a boot file, or why there is none
}

// gave is nothing where it is no news: a lease that an operating system renews,
// and what is no node's.
func (s *Server) gave(c *client, addr netip.Addr, p boot.Plan) gave {
	if c.node == nil || !c.asks.IsPXE() {
		return gave{}
	}
	return gave{s.Now(), c.node, c.mac, c.req.TransactionID, addr, p.BootFile, p.Reason}
}

// record records what was given, once however often it is asked for.
func (s *Server) record(ctx context.Context, g gave) {
	if g.node == nil || !s.seen.first("gave "+g.mac.String()+g.xid.String()+g.file, g.at, time.Minute) {
		return
	}
	var msg string
	switch {
	case !g.addr.IsValid():
		msg = "proxyDHCP: boot file " + g.file + ", the address is another server's"
	case g.file == "":
		msg = g.addr.String() + ", no boot file: " + g.reason
	default:
		msg = g.addr.String() + ", boot file " + g.file
	}
	s.event(ctx, dsas.Event{Time: g.at, Node: g.node.Name, MAC: g.mac, Kind: dsas.KindDHCP, Message: msg})
}

func (s *Server) eventOnce(ctx context.Context, key string, e dsas.Event) error {
	if s.seen.first(key, s.Now(), 5*time.Minute) {
		s.event(ctx, e)
	}
	return nil
}

func (s *Server) event(ctx context.Context, e dsas.Event) {
	if e.Time.IsZero() {
		e.Time = s.Now()
	}
	// An event that is lost is no reason to leave a box without an answer.
	if err := s.Store.Event(ctx, e); err != nil {
		s.Log.Warn("event not recorded", "kind", e.Kind, "mac", e.MAC, "err", err)
	}
}
