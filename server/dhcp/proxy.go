package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// BootPort is where a PXE client asks a boot server for its boot file, when the
// offer sent it there (PXE specification 2.1 section 2.2.3).
const BootPort = 4011

// ListenBoot opens a Conn on the named interface, port 4011, for a Server that
// is a proxyDHCP server; see Listen.
func ListenBoot(name string) (*Conn, error) { return listen(name, BootPort) }

// PXE's own options in option 43 (PXE specification 2.1, table 2-1; RFC 4578
// leaves them there).
const (
	pxeDiscoveryControl = 6
	pxeBootItem         = 71
	pxeEnd              = 255
)

// takeFile is option 43 with discovery control's bit 3: take the boot file that
// this very packet names, and look for no boot server and no menu.
var takeFile = []byte{pxeDiscoveryControl, 1, 8, pxeEnd}

// proxy answers as a proxyDHCP server beside the one that gives addresses (PXE
// specification 2.1, sections 2.2.2 and 2.2.3): on port 67 a DISCOVER of boot
// firmware or of iPXE gets an offer without an address, on 4011 a REQUEST gets
// its boot file. Whatever we have no boot file for hears nothing of us, so that
// the other server's answer stands. Nobody is ever given or refused an address.
func (s *Server) proxy(ctx context.Context, m *slate, l *link, req *dhcpv4.DHCPv4, sender netip.AddrPort) (*reply, error) {
	mac, ok := dsas.MACFrom(req.ClientHWAddr)
	if !ok || mac[0]&1 != 0 || req.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, unanswered{DropMalformed, errors.New("not from an Ethernet address")}
	}
	asks := Classify(req)
	class := proxyClass(&asks)
	if class == "" {
		return nil, unanswered{DropOther, nil} // an operating system: the other server's
	}
	st := l.state.Load()
	at4011 := st.raw != nil && st.raw.port == BootPort || st.raw == nil && portOf(st.conn.LocalAddr()) == BootPort
	switch t := req.MessageType(); {
	case !at4011 && t == dhcpv4.MessageTypeDiscover:
	case at4011 && (t == dhcpv4.MessageTypeRequest || t == dhcpv4.MessageTypeInform):
	default:
		// A REQUEST on 67 takes an address, or gives one back: not ours to say.
		return nil, unanswered{DropOther, nil}
	}
	c := m.begin(l, mac, req)
	if err := s.findNode(ctx, c); err != nil {
		return nil, err
	}
	if c.subnet, ok = s.proxySubnet(l, c, sender); !ok {
		return nil, unanswered{DropNoSubnet, fmt.Errorf("no subnet for %s", c.relay.via(l.name))}
	}
	c.elsewhere = c.node != nil && !c.subnet.Prefix.Contains(c.node.Address.Addr())
	s.unknown(ctx, c, netip.Addr{})
	plan, err := s.plan(ctx, c)
	if err != nil {
		return nil, err
	}
	s.refused(ctx, c, plan)
	if plan.BootFile == "" {
		return nil, unanswered{DropOther, nil}
	}
	if at4011 {
		r := c.bootServerAck(class, plan, sender)
		r.gave = s.gave(c, netip.Addr{}, plan)
		return r, nil
	}
	// UEFI firmware takes an offer that names a file in several ways, old ones
	// in none. All of it goes to port 4011 of the server whose offer says
	// PXEClient and nothing more, as dnsmasq and pixiecore found before us.
	direct := asks.IsIPXE() || class == classHTTP || strings.HasPrefix(asks.VendorClass, "PXEClient:Arch:00000") || asks.HasArch && asks.Arch == dsas.ArchBIOS
	r := c.proxyOffer(class, plan, direct, asks.IsIPXE())
	if direct {
		r.gave = s.gave(c, netip.Addr{}, plan)
	}
	return r, nil
}

// The vendor classes that an offer's option 60 says in return.
const (
	classPXE  = "PXEClient"
	classHTTP = "HTTPClient"
)

// proxyClass gives what option 60 of the answer has to be, "" where none is
// wanted.
func proxyClass(r *boot.Request) string {
	switch {
	case strings.HasPrefix(r.VendorClass, classHTTP):
		return classHTTP
	case strings.HasPrefix(r.VendorClass, classPXE) || r.IsIPXE():
		return classPXE
	}
	return ""
}

// proxySubnet is subnetFor, and by the sender's address on port 4011, where a
// box has one.
func (s *Server) proxySubnet(l *link, c *client, sender netip.AddrPort) (dsas.Subnet, bool) {
	_, relayed := addrOf(c.req.GatewayIPAddr)
	if hasAddr(sender) && !relayed {
		for _, sub := range s.Subnets {
			if sub.Prefix.Contains(sender.Addr()) {
				return sub, true
			}
		}
	}
	return s.subnetFor(l, c, false)
}

// proxyOffer writes the offer of a proxyDHCP server: yiaddr 0, option 60, and
// either the boot file or, by leaving option 43 out, the way to port 4011.
func (c *client) proxyOffer(class string, p boot.Plan, direct, ipxe bool) *reply {
	m := c.message(dhcpv4.MessageTypeOffer)
	c.pxe(m, class, p)
	if direct {
		setFile(m, p)
		if class == classPXE && !ipxe {
			m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, takeFile))
		}
	}
	r := c.newReply(m)
	if gi, relayed := addrOf(c.req.GatewayIPAddr); relayed {
		r.to = netip.AddrPortFrom(gi, ServerPort)
		return r
	}
	// It has no address yet, and we do not know the one it will get.
	r.to, r.hw = netip.AddrPortFrom(broadcast, ClientPort), broadcastMAC
	return r
}

// bootServerAck writes a boot server's answer, to where the request came from.
func (c *client) bootServerAck(class string, p boot.Plan, sender netip.AddrPort) *reply {
	m := c.message(dhcpv4.MessageTypeAck)
	c.pxe(m, class, p)
	setFile(m, p)
	// What was picked of a boot server's menu is said again (section 2.2.3).
	if item := subOption(c.req.Options.Get(dhcpv4.OptionVendorSpecificInformation), pxeBootItem); len(item) == 4 {
		v := append([]byte{pxeBootItem, 4}, item...)
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, append(v, pxeEnd)))
	}
	r := c.newReply(m)
	if hasAddr(sender) {
		r.to = sender
	} else if ci, ok := addrOf(c.req.ClientIPAddr); ok {
		r.to = netip.AddrPortFrom(ci, ClientPort)
	} else {
		r.to = netip.AddrPortFrom(broadcast, ClientPort)
	}
	return r
}

// pxe sets what every answer to a PXE client carries.
func (c *client) pxe(m *dhcpv4.DHCPv4, class string, p boot.Plan) {
	m.ServerIPAddr = p.NextServer.AsSlice()
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClassIdentifier, []byte(class)))
	if g := c.req.Options.Get(dhcpv4.OptionClientMachineIdentifier); g != nil {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, g))
	}
}

// setFile names the boot file: file, 66 and 67 alike.
func setFile(m *dhcpv4.DHCPv4, p boot.Plan) {
	if len(p.BootFile) < 128 {
		m.BootFileName = p.BootFile
	}
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionBootfileName, []byte(p.BootFile)))
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionTFTPServerName, []byte(p.TFTPServerName)))
}

// subOption finds a sub-option of option 43: code, length, value; 0 is padding
// and 255 the end (RFC 2132 section 8.4).
func subOption(b []byte, code byte) []byte {
	for i := 0; i < len(b) && b[i] != pxeEnd; {
		if b[i] == 0 {
			i++
			continue
		}
		if i+1 >= len(b) || i+2+int(b[i+1]) > len(b) {
			return nil
		}
		v := b[i+2 : i+2+int(b[i+1])]
		if b[i] == code {
			return v
		}
		i += 2 + len(v)
	}
	return nil
}

// probing tells whether it is open still if there is another DHCP server.
func (s *Server) probing() bool { return s.Probing != nil && s.Probing() }

// hasAddr tells whether a sender has an address already.
func hasAddr(sender netip.AddrPort) bool {
	return sender.Addr().Is4() && !sender.Addr().IsUnspecified() && sender.Port() != 0
}

// addrPort gives where a packet came from.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func portOf(a net.Addr) int {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.Port
	}
	return 0
}
