package dhcp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"dsas"
)

// Other is another DHCP server's word, as it was heard on the wire.
type Other struct {
	Interface string             `json:"interface"`
	Server    netip.Addr         `json:"server"`           // option 54, else who sent it
	MAC       dsas.MAC           `json:"mac"`              // of the frame: the server, or the relay or router in front of it
	Type      dhcpv4.MessageType `json:"-"`                // OFFER, ACK or NAK
	Address   netip.Addr         `json:"address,omitzero"` // what it gave; zero in a proxyDHCP offer and a NAK
	Client    dsas.MAC           `json:"client"`           // to whom
}

// String says it for people.
func (o Other) String() string {
	what := fmt.Sprintf("%s of %s to %s", o.Type, o.Address, o.Client)
	switch {
	case o.Type == dhcpv4.MessageTypeNak:
		what = "NAK to " + o.Client.String()
	case !o.Address.IsValid():
		what = "a boot file without an address (proxyDHCP) to " + o.Client.String()
	}
	return fmt.Sprintf("%s (MAC %s) on %s: %s", o.Server, o.MAC, o.Interface, what)
}

// Ear is a packet socket that hears what DHCP servers say on one interface. The
// kernel's filter lets nothing else through, so it costs a busy server nothing.
type Ear struct {
	conn  *packet.Conn
	iface net.Interface
	addrs []netip.Prefix
}

// OpenEar opens an Ear on the named interface; as [Listen], in the interface's
// network namespace. CAP_NET_RAW is needed.
func OpenEar(name string) (*Ear, error) {
	ifi, addrs, err := lookInterface(name)
	if err != nil {
		return nil, fmt.Errorf("listen for other DHCP servers on %s: %w", name, err)
	}
	e := &Ear{iface: *ifi, addrs: addrs}
	filter, err := bpf.Assemble(serverFilter)
	if err != nil {
		return nil, fmt.Errorf("listen for other DHCP servers on %s: %w", name, err)
	}
	// IPv4 frames that come in; what this machine sends is not among them.
	if e.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter}); err != nil {
		return nil, fmt.Errorf("listen for other DHCP servers on %s (CAP_NET_RAW is needed): %w", name, err)
	}
	return e, nil
}

// Name gives the interface's name.
func (e *Ear) Name() string { return e.iface.Name }

// Close closes the socket.
func (e *Ear) Close() error { return e.conn.Close() }

// serverFilter: IPv4, UDP, no later fragment, from port 67, and a BOOTREPLY. The
// offsets count from the Ethernet header.
var serverFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 23, Size: 1}, // protocol
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 8},
	bpf.LoadAbsolute{Off: 20, Size: 2}, // fragment offset
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 6},
	bpf.LoadMemShift{Off: 14}, // X: length of the IP header
	bpf.LoadIndirect{Off: 14, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ServerPort, SkipTrue: 3},
	bpf.LoadIndirect{Off: 14 + 8, Size: 1}, // op
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(dhcpv4.OpcodeBootReply), SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

// hear waits for the next word of a server that is not us. xid, when given,
// picks the answers to one's own question. Frames that are not understood are
// passed over: anyone can send them.
func (e *Ear) hear(buf []byte, ours func(netip.Addr) bool) (Other, dhcpv4.TransactionID, error) {
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if err != nil {
			return Other{}, dhcpv4.TransactionID{}, err
		}
		o, xid, ok := parseServer(buf[:n])
		if !ok || ours(o.Server) {
			continue
		}
		o.Interface = e.iface.Name
		return o, xid, nil
	}
}

// parseServer reads an Ethernet frame that holds a DHCP server's answer.
func parseServer(f []byte) (o Other, xid dhcpv4.TransactionID, ok bool) {
	const eth = 14
	if len(f) < eth+20 || f[eth]>>4 != 4 {
		return o, xid, false
	}
	ihl := int(f[eth]&15) * 4
	if ihl < 20 || len(f) < eth+ihl+8 {
		return o, xid, false
	}
	payload := f[eth+ihl+8:]
	if n := int(binary.BigEndian.Uint16(f[eth+ihl+4:])) - 8; n < 0 || n > len(payload) {
		return o, xid, false
	} else {
		payload = payload[:n] // what follows is Ethernet's padding
	}
	m, err := dhcpv4.FromBytes(payload)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
		return o, xid, false
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak:
	default:
		return o, xid, false
	}
	o.Type = m.MessageType()
	o.MAC, _ = dsas.MACFrom(f[6:12])
	o.Client, _ = dsas.MACFrom(m.ClientHWAddr)
	o.Address, _ = addrOf(m.YourIPAddr)
	if o.Server, ok = addrOf(m.ServerIdentifier()); !ok {
		o.Server, _ = netip.AddrFromSlice(f[eth+12 : eth+16])
	}
	return o, m.TransactionID, true
}

// probeAt is when DISCOVERs leave, and probeFor how long their answers are
// waited for: a dnsmasq pings an address for 3 s before it offers it.
var (
	probeAt  = []time.Duration{0, time.Second, 2 * time.Second}
	probeFor = 4 * time.Second
)

// probe is one question to every DHCP server of a segment.
type probe struct {
	mac dsas.MAC
	xid dhcpv4.TransactionID
	msg []byte
}

// newProbe makes a DISCOVER of a box that does not exist: its MAC is made up
// and locally administered, so no reservation is hit, and no REQUEST follows, so
// no lease is taken. What the server set aside for it is free again when its
// offer ends. The frame itself carries the interface's own MAC, for switches
// that know who lives on a port.
func newProbe() (probe, error) {
	var p probe
	rand.Read(p.mac[:])
	p.mac[0] = p.mac[0]&^3 | 2
	rand.Read(p.xid[:])
	m, err := dhcpv4.New(
		dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithTransactionID(p.xid), dhcpv4.WithHwAddr(p.mac.HardwareAddr()),
		dhcpv4.WithBroadcast(true), // we do not hear what goes to its MAC
		dhcpv4.WithGeneric(dhcpv4.OptionClassIdentifier, []byte("dsas probe")),
		dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{1, 3, 6, 51, 54}),
	)
	if err != nil {
		return p, fmt.Errorf("make DHCPDISCOVER: %w", err)
	}
	p.msg = m.ToBytes()
	return p, nil
}

func (e *Ear) ask(p probe) error {
	from := e.iface.HardwareAddr
	src, dst := netip.AddrPortFrom(netip.IPv4Unspecified(), ClientPort), netip.AddrPortFrom(broadcast, ServerPort)
	if _, err := e.conn.WriteTo(frame(from, broadcastMAC, src, dst, p.msg), &packet.Addr{HardwareAddr: broadcastMAC}); err != nil {
		return fmt.Errorf("ask for other DHCP servers on %s: %w", e.iface.Name, err)
	}
	return nil
}

// Probe asks which other DHCP servers answer on the interface, for some seconds
// or until one did and a moment passed.
func (e *Ear) Probe(ctx context.Context) ([]Other, error) {
	p, err := newProbe()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	if err := e.ask(p); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { e.askAgain(ctx, p) })
	stop := context.AfterFunc(ctx, func() { e.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer cancel()
	var found []Other
	buf := make([]byte, 4096)
	for {
		o, xid, err := e.hear(buf, e.isOwn)
		if err != nil {
			if ctx.Err() != nil {
				return found, nil
			}
			return found, fmt.Errorf("listen for other DHCP servers on %s: %w", e.iface.Name, err)
		}
		if xid != p.xid {
			continue
		}
		if len(found) == 0 {
			defer time.AfterFunc(500*time.Millisecond, cancel).Stop() // there may be a second one
		}
		if !heard(found, o) {
			found = append(found, o)
		}
	}
}

func heard(l []Other, o Other) bool {
	for _, x := range l {
		if x.Server == o.Server && x.MAC == o.MAC {
			return true
		}
	}
	return false
}

func (e *Ear) isOwn(a netip.Addr) bool {
	return slices.ContainsFunc(e.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

func (e *Ear) askAgain(ctx context.Context, p probe) error {
	start := time.Now()
	for _, at := range probeAt[1:] {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(at - time.Since(start)):
		}
		if err := e.ask(p); err != nil {
			return err
		}
	}
	return nil
}
