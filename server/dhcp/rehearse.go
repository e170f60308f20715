package dhcp

import (
	"context"
	"net"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// rehearsals is how many nodes' answers a desk makes before it takes packets.
const rehearsals = 512

// rehearse makes the answers that nodes will get, and throws them away; it gives
// how many. Code and memory that are used for the first time cost several times
// what they cost from then on, and in the night that the power comes back the
// server starts together with those that ask it. Nothing is sent, recorded,
// counted or promised.
func (d *desk) rehearse(ctx context.Context) (n int) {
	nodes, err := d.s.Store.Nodes(ctx)
	if err != nil {
		return 0 // whoever asks will be told
	}
	defer func() { d.out.n = 0 }()
	for _, node := range nodes {
		if len(node.NICs) == 0 {
			continue
		}
		for _, t := range [...]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest} {
			if d.rehearseOne(ctx, node.NICs[0].MAC, t, d.in.buf[n%batch][:0]) {
				n++
			}
		}
		if n >= 2*rehearsals {
			break
		}
	}
	return n
}

// rehearseOne answers a packet as a node's firmware sends it, which is written to buf.
// It tells whether there was an answer.
func (d *desk) rehearseOne(ctx context.Context, mac dsas.MAC, t dhcpv4.MessageType, buf []byte) bool {
	s := d.s
	p := received{data: appendFirmware(buf, t, mac.HardwareAddr())}
	d.slate.node = s.Store.SharedNode(mac)
	if d.slate.node == nil || !s.read(d.l, d.slate, &p) {
		return false
	}
	c := d.slate.begin(d.l, mac, &d.slate.req)
	var ok bool
	if c.subnet, ok = s.subnetFor(d.l, c, false); !ok || !c.subnet.Prefix.Contains(c.node.Address.Addr()) {
		return false // it is behind a relay
	}
	c.address = c.node.Address.Addr()
	plan, err := s.plan(ctx, c)
	if err != nil {
		return false
	}
	answer := dhcpv4.MessageTypeOffer
	if t == dhcpv4.MessageTypeRequest {
		answer = dhcpv4.MessageTypeAck
	}
	rep := c.reply(answer, c.address, plan)
	if d.out.conn == nil || rep.hw == nil {
		return true
	}
	d.out.put(rep.msg, rep.hw, rep.source(), rep.to, note{mac, answer})
	if d.out.n == batch {
		d.out.n = 0
	}
	return true
}

// appendFirmware appends what a PXE firmware on a BIOS asks.
func appendFirmware(b []byte, t dhcpv4.MessageType, mac net.HardwareAddr) []byte {
	return appendMessage(b, &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: mac, Options: dhcpv4.Options{
		dhcpv4.OptionDHCPMessageType.Code():                  {byte(t)},
		dhcpv4.OptionClassIdentifier.Code():                  []byte("PXEClient:Arch:00000:UNDI:002001"),
		dhcpv4.OptionClientSystemArchitectureType.Code():     {0, 0},
		dhcpv4.OptionClientNetworkInterfaceIdentifier.Code(): {1, 2, 1},
		dhcpv4.OptionClientMachineIdentifier.Code():          make([]byte, 17),
		dhcpv4.OptionMaximumDHCPMessageSize.Code():           {1500 >> 8, 1500 & 0xff},
		dhcpv4.OptionParameterRequestList.Code():             {1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 43, 54, 60, 67, 128, 129, 130, 131, 132, 133, 134, 135},
	}})
}
