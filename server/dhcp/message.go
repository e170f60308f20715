package dhcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// noProxy is option 175 with sub-option 176 (no-pxedhcp) set: iPXE then takes
// our answer at once and does not wait for a proxyDHCP server's.
var noProxy = []byte{176, 1, 1}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// reply is a message and where it goes.
type reply struct {
	msg  *dhcpv4.DHCPv4
	from netip.Addr
	to   netip.AddrPort
	hw   net.HardwareAddr // set: the client has no address yet, send a frame to it
	// direct: the client has the address it is sent to, and this MAC; a frame
	// spares an ARP request.
	direct net.HardwareAddr
	// probe: to be sent only if nobody else is found to use this address.
	probe netip.Addr
	// heldBy is who has a lease of it: another MAC with the same client id. A
	// box that changed its NIC answers no more with the old one.
	heldBy dsas.MAC
	// back is a lease that may be taken back; then nothing is to be sent before
	// that was tried, and msg is nil.
	back *dsas.Lease
	// seen is what the request tells of where the client hangs, to be recorded.
	seen *client
	// onDisk waits until what the answer promises is there, and it may go; nil: it
	// may go now.
	onDisk func(context.Context) error
	// gave is what a node that boots gets with it, to be recorded after it was sent.
	gave gave
}

// slate is the memory of one request and its answer, which the next ones use
// again. Who keeps something of it keeps all of it.
type slate struct {
	req, msg dhcpv4.DHCPv4
	client   client
	node     *dsas.Node // whose packet it is, where that was looked up already
	reply    reply
	urlAt    netip.AddrPort // url is of
	url      string
	values   [512]byte // of the answer's options
	used     int       // of values
}

// room gives memory for n bytes to be appended to: the slate's, as long as it has
// some.
func (m *slate) room(n int) []byte {
	if n > len(m.values)-m.used {
		return make([]byte, 0, n)
	}
	b := m.values[m.used : m.used : m.used+n]
	m.used += n
	return b
}

func (m *slate) text(s string) []byte { return append(m.room(len(s)), s...) }

// addr is an IPv4 address's four bytes.
func (m *slate) addr(a netip.Addr) []byte {
	v := a.As4()
	return append(m.room(len(v)), v[:]...)
}

func (m *slate) number(n uint32) []byte { return binary.BigEndian.AppendUint32(m.room(4), n) }

func (m *slate) seconds(d time.Duration) []byte {
	return m.number(uint32(min(d/time.Second, 0xffffffff)))
}

// reply writes an OFFER or ACK. The boot options are sent whether or not
// option 55 asks for them: some firmware does not and wants them all the same.
func (c *client) reply(t dhcpv4.MessageType, addr netip.Addr, p boot.Plan) *reply {
	m := c.message(t)
	set := func(code dhcpv4.OptionCode, v []byte) { m.Options[code.Code()] = v }
	sub := &c.subnet
	if addr.IsValid() {
		m.YourIPAddr = c.slate.addr(addr)
		lease := sub.Lease
		if lease <= 0 {
			lease = defaultLease
		}
		set(dhcpv4.OptionIPAddressLeaseTime, c.slate.seconds(lease))
		set(dhcpv4.OptionRenewTimeValue, c.slate.seconds(lease/2))       // T1
		set(dhcpv4.OptionRebindingTimeValue, c.slate.seconds(lease*7/8)) // T2
	} else {
		m.ClientIPAddr = c.req.ClientIPAddr // INFORM
	}
	c.slate.network(m, c.req, sub)
	if c.node != nil && !c.elsewhere && wanted(c.req).has(dhcpv4.OptionHostName) {
		set(dhcpv4.OptionHostName, c.slate.text(c.node.Name))
	}
	if p.BootFile != "" {
		// siaddr, file, 66 and 67 say the same: some firmware reads the one,
		// some the other. No option 60 for PXE: with PXEClient and without option 43,
		// OVMF would look for a boot server instead.
		m.ServerIPAddr = c.slate.addr(p.NextServer)
		if len(p.BootFile) < 128 {
			m.BootFileName = p.BootFile
		}
		set(dhcpv4.OptionBootfileName, c.slate.text(p.BootFile))
		set(dhcpv4.OptionTFTPServerName, c.slate.text(p.TFTPServerName))
		if p.VendorClass != "" { // UEFI HTTP Boot takes no answer without its own
			set(dhcpv4.OptionClassIdentifier, []byte(p.VendorClass))
		}
	}
	if c.req.Options.Has(optionEtherboot) {
		set(optionEtherboot, noProxy)
	}
	// RFC 4578 section 2.1: a server returns the client's option 97.
	if g := c.req.Options.Get(dhcpv4.OptionClientMachineIdentifier); g != nil {
		set(dhcpv4.OptionClientMachineIdentifier, g)
	}
	if c.vendor != nil {
		set(dhcpv4.OptionVendorSpecificInformation, c.vendor)
	}
	fit(m, room(c.req))
	r := c.newReply(m)
	r.seen = c
	switch ci, has := addrOf(c.req.ClientIPAddr); {
	case c.relay.agent.IsValid():
		r.to = netip.AddrPortFrom(c.relay.agent, ServerPort)
	case has && t == dhcpv4.MessageTypeAck && sub.Prefix.Contains(ci):
		// An address of another network is not believed: it would be a way to
		// have our answers sent to anyone.
		r.to = netip.AddrPortFrom(ci, ClientPort)
		if c.onLink() {
			// It is on this segment, and we know its MAC: asking by ARP for
			// thousands of them overflows the kernel's neighbour table (1,024
			// entries, net.ipv4.neigh.default.gc_thresh3).
			r.direct = c.mac.HardwareAddr()
		}
	case c.req.IsBroadcast() || !addr.IsValid():
		r.to, r.hw = netip.AddrPortFrom(broadcast, ClientPort), broadcastMAC
	default:
		r.to, r.hw = netip.AddrPortFrom(addr, ClientPort), c.mac.HardwareAddr()
	}
	return r
}

// onLink tells whether the client's subnet is one of the segment it asks on.
func (c *client) onLink() bool {
	for _, sub := range c.link.subnets() {
		if sub.Prefix == c.subnet.Prefix {
			return true
		}
	}
	return false
}

// nak tells a client that its address is not for it (RFC 2131 section 4.3.2);
// we say so for any address of our subnets, as the authority on them.
func (c *client) nak(why string) *reply {
	m := c.message(dhcpv4.MessageTypeNak)
	m.UpdateOption(dhcpv4.OptMessage(why))
	r := c.newReply(m)
	r.seen = c
	switch ci, has := addrOf(c.req.ClientIPAddr); {
	case c.relay.agent.IsValid():
		// The client may have no working address: the relay is to broadcast.
		m.SetBroadcast()
		r.to = netip.AddrPortFrom(c.relay.agent, ServerPort)
	case c.subnet.Relayed && has:
		// It renews over routers; a broadcast of ours would not get there.
		r.to = netip.AddrPortFrom(ci, ClientPort)
	default:
		r.to, r.hw = netip.AddrPortFrom(broadcast, ClientPort), broadcastMAC
	}
	return r
}

// message begins an answer with what every one repeats of its request: xid,
// flags, giaddr, chaddr, and the options 61 (RFC 6842) and 82 (RFC 3046).
func (c *client) message(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	q := c.req
	opts := c.slate.msg.Options
	if opts == nil {
		opts = dhcpv4.Options{}
	}
	clear(opts)
	m := &c.slate.msg
	*m = dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: q.HWType, TransactionID: q.TransactionID,
		Flags: q.Flags, GatewayIPAddr: q.GatewayIPAddr, ClientHWAddr: q.ClientHWAddr,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero,
		Options: opts,
	}
	if t == dhcpv4.MessageTypeAck {
		m.ClientIPAddr = q.ClientIPAddr // RFC 2131 table 3
	}
	opts[dhcpv4.OptionDHCPMessageType.Code()] = append(c.slate.room(1), byte(t))
	id := c.subnet.Server
	if c.relay.serverID.IsValid() {
		id = c.relay.serverID
	}
	opts[dhcpv4.OptionServerIdentifier.Code()] = c.slate.addr(id)
	for _, code := range [...]uint8{dhcpv4.OptionClientIdentifier.Code(), dhcpv4.OptionRelayAgentInformation.Code()} {
		if v := q.Options[code]; v != nil {
			opts[code] = v
		}
	}
	return m
}

// newReply is an answer of m, whose way is still open.
func (c *client) newReply(m *dhcpv4.DHCPv4) *reply {
	c.slate.reply = reply{msg: m, from: c.subnet.Server}
	return &c.slate.reply
}

func (c *client) name() string {
	if c.node == nil {
		return ""
	}
	return c.node.Name
}

// addrOf converts an address field; ok is false where it is empty.
func addrOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a, true
}

// guid writes option 97 as it is printed on boxes (SMBIOS: the first three
// fields are little-endian).
func guid(b []byte) string {
	if len(b) != 16 {
		return ""
	}
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:])
}

// clean keeps the printable part of what a box says of itself.
func clean(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, s)
	return s[:min(len(s), 80)]
}
