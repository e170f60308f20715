package dhcp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
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
	own   []netip.Addr
}

// OpenEar opens an Ear on the named interface; as [Listen], in the interface's
// network namespace. CAP_NET_RAW is needed.
func OpenEar(name string) (*Ear, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("listen for other DHCP servers on %s: %w", name, err)
	}
	e := &Ear{iface: *ifi}
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			e.own = append(e.own, p.Addr())
		}
	}
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
	for _, o := range e.own {
		if o == a {
			return true
		}
	}
	return false
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

// Watch notices other DHCP servers on the segments we serve. It asks once, when
// it starts, and listens from then on. Without Allow, a server that answers the
// question ends Run with an error, and so the whole server: two that give
// addresses make a network in which nothing is certain. One that turns up later
// is told, and ends nothing: nobody shall stop us by sending one packet.
type Watch struct {
	Log   *slog.Logger
	Ears  []*Ear // Run closes them
	Own   []netip.Addr
	Allow bool // we were told that there is one
	// Event records a fact; an error is logged.
	Event func(context.Context, dsas.Event) error
	Now   func() time.Time

	done atomic.Bool // asked, and nobody answered
	told *recent
}

// ErrOther: another DHCP server answers on a segment that we were to serve.
var ErrOther = errors.New("another DHCP server answers")

// Probing tells whether Run has yet to find out if there is another server.
// dhcp.Server answers nodes meanwhile, so that a restart keeps no boot waiting,
// and leaves strangers to ask again.
func (w *Watch) Probing() bool { return !w.Allow && !w.done.Load() }

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	if w.Now == nil {
		w.Now = time.Now
	}
	w.told = newRecent(tellMost)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		for _, e := range w.Ears {
			e.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	mine := map[dhcpv4.TransactionID]bool{}
	if !w.Allow {
		for _, e := range w.Ears {
			p, err := newProbe()
			if err != nil {
				return err
			}
			mine[p.xid] = true
			wg.Go(func() {
				if err := errors.Join(e.ask(p), e.askAgain(ctx, p)); err != nil && ctx.Err() == nil {
					// No carrier, most often. What comes later is heard all the same.
					w.Log.Warn("cannot ask if there is another DHCP server", "interface", e.Name(), "err", err)
				}
			})
		}
		wg.Go(func() {
			select {
			case <-ctx.Done():
			case <-time.After(probeFor):
				w.done.Store(true)
				w.Log.Info("no other DHCP server answers; boxes that are not known are answered too")
			}
		})
	}
	for _, e := range w.Ears {
		wg.Go(func() {
			if err := w.listen(ctx, e, mine); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); errors.Is(err, ErrOther) {
		return err
	}
	return nil
}

// Bounds of what is told: each server once in a while, and no more of them than
// a person would read; the sender of a frame is anybody.
const (
	tellEvery = 10 * time.Minute
	tellMost  = 20
)

// listen tells of every other server heard.
func (w *Watch) listen(ctx context.Context, e *Ear, mine map[dhcpv4.TransactionID]bool) error {
	ours := func(a netip.Addr) bool {
		for _, o := range w.Own {
			if o == a {
				return true
			}
		}
		return e.isOwn(a)
	}
	buf := make([]byte, 4096)
	pause := 10 * time.Millisecond
	for {
		o, xid, err := e.hear(buf, ours)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // the interface is down for a moment
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, 2*time.Second)
			continue
		}
		pause = 10 * time.Millisecond
		if mine[xid] && w.Probing() {
			return fmt.Errorf("%w: %s. Two servers would give the boxes of this segment different answers. Switch the other one off; "+
				"or leave the addresses to it and start with --proxy-dhcp; or, if the two never answer the same box, start with --allow-other-dhcp", ErrOther, o)
		}
		w.tell(ctx, o)
	}
}

// tell logs and records that a server was heard.
func (w *Watch) tell(ctx context.Context, o Other) {
	if !w.told.within(fmt.Sprint(o.Interface, o.Server, o.MAC), w.Now(), tellEvery) {
		return
	}
	if w.Allow {
		w.Log.Info("another DHCP server answers, as allowed", "interface", o.Interface, "server", o.Server, "server_mac", o.MAC, "mac", o.Client, "type", o.Type, "address", o.Address)
		return
	}
	w.Log.Warn("another DHCP server answers", "interface", o.Interface, "server", o.Server, "server_mac", o.MAC, "mac", o.Client, "type", o.Type, "address", o.Address)
	err := w.Event(ctx, dsas.Event{Time: w.Now(), Kind: dsas.KindServer, Message: "another DHCP server answers: " + o.String()})
	if err != nil {
		w.Log.Warn("event not recorded", "kind", dsas.KindServer, "err", err)
	}
}

// within is first, but says no while as many keys as fit are fresh: a flood of
// made-up keys is then silence.
func (r *recent) within(key string, now time.Time, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.m[key]; ok && now.Sub(t) < d {
		return false
	}
	if len(r.m) >= r.max {
		for k, t := range r.m {
			if now.Sub(t) >= d {
				delete(r.m, k)
			}
		}
		if len(r.m) >= r.max {
			return false
		}
	}
	r.m[key] = now
	return true
}
