package storm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"dsas"
)

// wire is a packet socket on the nodes' interface: every simulated node sends
// real broadcast frames with its own MAC as the source, as firmware without an
// address does, and answers that are unicast to that MAC arrive because the
// interface is promiscuous. A relay's packets would test another path.
type wire struct {
	conn *packet.Conn

	mu      sync.Mutex
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

// forClients passes unfragmented IPv4 UDP to port 68.
var forClients = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 5},
	bpf.LoadAbsolute{Off: 23, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipFalse: 3},
	bpf.LoadAbsolute{Off: 36, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: dhcpv4.ClientPort, SkipFalse: 1},
	bpf.RetConstant{Val: 4096},
	bpf.RetConstant{Val: 0},
}

// openWire opens the socket; it needs CAP_NET_RAW.
func openWire(ifi *net.Interface) (*wire, error) {
	filter, err := bpf.Assemble(forClients)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	c, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s (it needs root, or CAP_NET_RAW): %w", ifi.Name, err)
	}
	if rc, err := c.SyscallConn(); err == nil {
		// A thousand answers in one go; beyond net.core.rmem_max where allowed.
		rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	if err := c.SetPromiscuous(true); err != nil {
		c.Close()
		return nil, fmt.Errorf("make %s promiscuous: %w", ifi.Name, err)
	}
	w := &wire{conn: c, waiting: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}
	go w.read()
	return w, nil
}

func (w *wire) close() { w.conn.Close() }

// read deals answers to those who wait for them, by transaction id.
func (w *wire) read() {
	buf := make([]byte, 4096)
	for {
		n, _, err := w.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		const headers = 14 + 20 + 8
		if err != nil || n < headers || buf[14] != 0x45 {
			continue
		}
		m, err := dhcpv4.FromBytes(append([]byte(nil), buf[headers:n]...))
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
			continue
		}
		w.mu.Lock()
		c := w.waiting[m.TransactionID]
		w.mu.Unlock()
		select {
		case c <- m: // nil: nobody waits
		default:
		}
	}
}

// broadcast sends m from a box that has no address.
func (w *wire) broadcast(from dsas.MAC, m *dhcpv4.DHCPv4) error {
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	_, err := w.conn.WriteTo(frame(from, m.ToBytes()), &packet.Addr{HardwareAddr: all})
	return err
}

// frame writes Ethernet II, IPv4 (RFC 791) from 0.0.0.0 to the broadcast
// address, and UDP (RFC 768) without a checksum, which IPv4 allows.
func frame(from dsas.MAC, payload []byte) []byte {
	f := make([]byte, 14+20+8, 14+20+8+len(payload))
	for i := range 6 {
		f[i] = 0xff
	}
	copy(f[6:], from[:])
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	h := f[14:34]
	h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(h[2:], uint16(28+len(payload)))
	copy(h[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(f[34:], dhcpv4.ClientPort)
	binary.BigEndian.PutUint16(f[36:], dhcpv4.ServerPort)
	binary.BigEndian.PutUint16(f[38:], uint16(8+len(payload)))
	return append(f, payload...)
}

// asker is who a simulated box says that it is at one step of its boot.
type asker int

const (
	asFirmware asker = iota // x64 UEFI's PXE
	asIPXE                  // the NBP that we sent it
	asSystem                // an operating system: no PXE
)

func (a asker) options() []dhcpv4.Modifier {
	switch a {
	case asFirmware:
		return []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")),
			dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 7}),
			dhcpv4.WithGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 16}),
		}
	case asIPXE:
		return []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")),
			dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 7}),
			dhcpv4.WithGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 16}),
			dhcpv4.WithOption(dhcpv4.OptUserClass("iPXE")),
			dhcpv4.WithGeneric(dhcpv4.OptionEtherboot, []byte{19, 1, 1}), // HTTP
		}
	}
	return nil
}

// dhcp is one exchange: DISCOVER, OFFER, REQUEST, ACK. What is lost is asked
// again after 1, 2, 4 and then every 8 s, until ctx ends.
func (w *wire) dhcp(ctx context.Context, mac dsas.MAC, as asker, retry func(time.Duration)) (*dhcpv4.DHCPv4, error) {
	started := time.Now()
	for {
		discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(mac[:]), as.options()...)
		if err != nil {
			return nil, fmt.Errorf("make DISCOVER: %w", err)
		}
		offer, err := w.ask(ctx, mac, discover, dhcpv4.MessageTypeOffer, started, 1<<20, retry)
		if err != nil {
			return nil, err
		}
		request, err := dhcpv4.NewRequestFromOffer(offer, as.options()...)
		if err != nil {
			return nil, fmt.Errorf("make REQUEST: %w", err)
		}
		ack, err := w.ask(ctx, mac, request, dhcpv4.MessageTypeAck, started, 4, retry)
		if err == nil {
			return ack, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		retry(time.Second) // NAK, or no answer to four REQUESTs: from the start
	}
}

var errNAK = errors.New("the server says NAK")

func (w *wire) ask(ctx context.Context, mac dsas.MAC, m *dhcpv4.DHCPv4, want dhcpv4.MessageType, started time.Time, tries int, retry func(time.Duration)) (*dhcpv4.DHCPv4, error) {
	c := make(chan *dhcpv4.DHCPv4, 4)
	w.mu.Lock()
	w.waiting[m.TransactionID] = c
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.waiting, m.TransactionID)
		w.mu.Unlock()
	}()
	pause := time.Second
	for range tries {
		m.NumSeconds = uint16(min(time.Since(started)/time.Second, 0xffff))
		if err := w.broadcast(mac, m); err != nil {
			return nil, fmt.Errorf("send %s: %w", m.MessageType(), err)
		}
		timer := time.NewTimer(pause)
		for again := false; !again; {
			select {
			case r := <-c:
				if r.MessageType() == want {
					timer.Stop()
					return r, nil
				}
				if r.MessageType() == dhcpv4.MessageTypeNak {
					timer.Stop()
					return nil, errNAK
				}
			case <-timer.C:
				again = true
			case <-ctx.Done():
				timer.Stop()
				return nil, ctx.Err()
			}
		}
		retry(pause)
		pause = min(2*pause, 8*time.Second)
	}
	return nil, fmt.Errorf("no %s to %d requests", want, tries)
}

// given is what an ACK promises.
func given(ack *dhcpv4.DHCPv4) (addr netip.Addr, lease time.Duration) {
	addr, _ = netip.AddrFromSlice(ack.YourIPAddr.To4())
	return addr, ack.IPAddressLeaseTime(0)
}
