// Package dhcp speaks DHCPv4 (RFC 2131) to firmware, boot loaders and
// operating systems: an address from a node's reservation or from a subnet's
// pool, and the boot file that package boot decides on.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// Store is what DHCP needs of the state.
type Store interface {
	// NodeByMAC gives the node one of whose NICs has mac, or ErrNotFound.
	NodeByMAC(ctx context.Context, mac dsas.MAC) (dsas.Node, error)
	// NodeByClientID gives the node with that client identifier, or ErrNotFound.
	NodeByClientID(ctx context.Context, id string) (dsas.Node, error)
	// Offer finds an address of subnet's pool for mac: the one it holds, else
	// want if that is free, else a free one. It promises nothing and need not
	// be durable. ErrNotFound: none is free.
	Offer(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error)
	// LeaseFor is Offer, and the lease is on disk when it returns.
	LeaseFor(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error)
	// MayHave tells whether LeaseFor would give mac just addr, and whether mac
	// was given or offered it before. It sets nothing aside.
	MayHave(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, addr netip.Addr, now time.Time) (may, has bool, err error)
	// InUse counts the addresses of subnet's pool that are not free.
	InUse(ctx context.Context, subnet dsas.Subnet, now time.Time) (int, error)
	// Standing tells what subnet's pool knows of mac.
	Standing(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, now time.Time) (dsas.Standing, error)
	// Prove notes that mac was found to use addr, which it has a lease of.
	Prove(ctx context.Context, mac dsas.MAC, addr netip.Addr)
	// Unproven gives a lease that nobody was found to use, held since then or
	// longer: the next to be asked after. ErrNotFound: there is none.
	Unproven(ctx context.Context, subnet dsas.Subnet, then, now time.Time) (dsas.Lease, error)
	// TakeBack offers to mac what Unproven gave, unless it changed meanwhile.
	TakeBack(ctx context.Context, l dsas.Lease, mac dsas.MAC, clientID string, now time.Time) error
	// Release ends mac's lease of addr; that there is none is no error.
	Release(ctx context.Context, mac dsas.MAC, addr netip.Addr) error
	// Decline takes addr out of use until then.
	Decline(ctx context.Context, addr netip.Addr, until time.Time) error
	// RecordPort notes which relay and switch port a MAC asks through.
	RecordPort(ctx context.Context, p dsas.Port) error
	// RecordUnknown notes a MAC that belongs to no node; it tells whether it is new.
	RecordUnknown(ctx context.Context, u dsas.Unknown) (bool, error)
	// Event records a fact.
	Event(ctx context.Context, e dsas.Event) error
}

// Releases tells what boxes boot.
type Releases interface {
	// Assigned gives the release that a node, nil for a box that is none, boots
	// as role; nil where there is none.
	Assigned(node *dsas.Node, role string) (*dsas.Release, error)
}

// Config holds the parts and figures of a Server.
type Config struct {
	Log      *slog.Logger
	Store    Store
	Releases Releases
	Subnets  []dsas.Subnet
	// Listeners are opened sockets, usually from Listen; the server closes them.
	Listeners []net.PacketConn
	HTTPPort  int  // of the boot listener; 0: 8080
	Discovery bool // unknown MACs boot the inventory role
	// Proxy: another server gives the addresses, and we answer as a proxyDHCP
	// server (proxy.go). Listeners are then those of ListenBoot too.
	Proxy bool
	// Probing tells whether it is still being found out if the segment has
	// another DHCP server (Watch.Probing): until then nodes alone are answered
	// and nobody is refused an address. nil: no.
	Probing func() bool
	// HasLoader tells whether a boot loader's file is there; nil: all are.
	HasLoader func(file string) bool
	// Vendor gives a role's options by vendor class; nil: none have any.
	Vendor func(role string) []dsas.VendorOptions
	// NoProbe: pool addresses are offered without asking whether somebody uses
	// them already.
	NoProbe bool
	// In runs a function in the interfaces' network namespace; nil: it is the
	// process's own. An interface that was made anew is opened in it.
	In  func(func() error) error
	Now func() time.Time
}

// Figures. The lease default is for a subnet that names none.
const (
	defaultLease = time.Hour
	declineTime  = time.Hour       // an address that someone else uses is left alone this long
	answerWithin = 5 * time.Second // then the client has asked again anyway
	// A worker waits while its client's lease gets to disk, and all that wait
	// get there together: so there are many (docs/adr/0015).
	workers      = 128
	queue        = 16 // packets waiting for one worker
	maxStrangers = 50 // unknown MACs recorded in one second
	maxLines     = 60 // lines a minute that anybody can have logged
)

// Server answers on its listeners.
type Server struct {
	Config
	seen         *recent
	known        *macs // nodes' MACs that asked already: they go first
	limits       *admission
	scarce       *scarcity
	strange      window // unknown MACs recorded this second
	strangePorts window // and where they hang
	lines        window // logged this minute
	checks       checks
	pinger       *pinger // nil: no pool is behind a relay
	ports        *recentPorts
	count        *counters
	poolSize     []int // of Subnets, in their order

	watchEvery time.Duration
	tap        func([]byte) // a test's: every packet that is worked on
}

// New checks c and makes a Server.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.HTTPPort == 0 {
		c.HTTPPort = 8080
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.Subnets) == 0 {
		return nil, fmt.Errorf("DHCP: no subnet is configured: %w", dsas.ErrInvalid)
	}
	if c.In == nil {
		c.In = func(f func() error) error { return f() }
	}
	s := &Server{
		Config: c, seen: newRecent(4096), known: newMACs(1 << 16), limits: newAdmission(), scarce: newScarcity(), count: newCounters(), ports: newRecentPorts(1 << 14),
		checks: checks{busy: map[dsas.MAC]struct{}{}}, watchEvery: time.Second,
	}
	for i := range c.Subnets {
		if err := c.Subnets[i].Check(); err != nil {
			return nil, fmt.Errorf("DHCP: %w", err)
		}
		s.poolSize = append(s.poolSize, c.Subnets[i].PoolSize())
	}
	return s, nil
}

// Run answers until ctx ends. A packet that cannot be read or answered is
// logged and ends nothing.
func (s *Server) Run(ctx context.Context) error {
	if len(s.Listeners) == 0 {
		return fmt.Errorf("DHCP: no interface to listen on: %w", dsas.ErrInvalid)
	}
	if err := s.openPings(); err != nil {
		for _, c := range s.Listeners {
			c.Close()
		}
		return fmt.Errorf("DHCP: %w", err)
	}
	if s.pinger != nil {
		go s.pinger.run()
		defer s.pinger.conn.Close()
	}
	links := make([]*link, len(s.Listeners))
	for i, conn := range s.Listeners {
		l, err := s.newLink(conn)
		if err != nil {
			for _, c := range s.Listeners {
				c.Close()
			}
			return err
		}
		links[i] = l
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer s.checks.wg.Wait()
	closeAll := func() {
		for _, l := range links {
			l.state.Load().conn.Close()
		}
	}
	errs := make(chan error, len(links))
	for _, l := range links {
		if raw := l.state.Load().raw; raw != nil {
			raw.start()
			wg.Go(func() { s.watch(ctx, l) })
		}
		go func() { errs <- s.serve(ctx, l) }()
	}
	// Once the watches have ended nothing opens a socket any more.
	stop := context.AfterFunc(ctx, func() { wg.Wait(); closeAll() })
	defer stop()
	var first error
	for range links {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	cancel()
	wg.Wait()
	closeAll()
	return first
}

type received struct {
	data    []byte
	from    net.Addr
	unicast bool
}

// lanes are one worker's queues: packets of known nodes do not wait behind a
// flood of others.
type lanes struct{ known, others chan received }

// serve reads packets and deals them to a fixed number of workers, all packets
// of one client to the same, so that its order is kept and a flood of packets
// is a full queue and not a flood of goroutines.
func (s *Server) serve(ctx context.Context, l *link) error {
	var wg sync.WaitGroup
	var queues [workers]lanes
	done := make(chan struct{})
	for i := range queues {
		q := lanes{make(chan received, queue), make(chan received, queue)}
		queues[i] = q
		wg.Go(func() {
			for {
				select {
				case p := <-q.known:
					s.packet(ctx, l, p)
					continue
				default:
				}
				select {
				case p := <-q.known:
					s.packet(ctx, l, p)
				case p := <-q.others:
					s.packet(ctx, l, p)
				case <-done:
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer close(done)
	s.Log.Info("DHCP listens", "interface", l.name)
	pause := 10 * time.Millisecond
	buf := make([]byte, 4096) // more than any Ethernet frame that gets here
	for {
		st := l.state.Load()
		n, from, unicast, err := st.read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && l.state.Load() != st:
			continue // the interface was opened anew
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("DHCP on %s: %w", l.name, err)
		case err != nil:
			// An interface that goes down for a moment is such an error.
			if s.seen.first(l.name+" read", s.Now(), time.Minute) {
				s.Log.Warn("DHCP cannot read; going on", "interface", l.name, "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, 2*time.Second)
			continue
		}
		pause = 10 * time.Millisecond
		if n < fixed || buf[0] != 1 { // shorter than the fixed part, or not a BOOTREQUEST
			s.count.drop(DropMalformed)
			continue
		}
		q := queues[workerOf(dsas.MAC(buf[28:34]))]
		lane := q.others
		if s.known.has(dsas.MAC(buf[28:34])) {
			lane = q.known
		}
		select {
		case lane <- received{append([]byte(nil), buf[:n]...), from, unicast}:
		default:
			s.count.drop(DropQueue)
			if s.seen.first(l.name+" full", s.Now(), time.Minute) {
				s.Log.Warn("DHCP drops packets: too many at once", "interface", l.name)
			}
		}
	}
}

// workerOf deals MACs (chaddr) to workers. All bytes count: the boxes of a rack
// are often numbered in steps of 4 or 16.
func workerOf(m dsas.MAC) int {
	h := uint32(2166136261) // FNV-1a
	for _, b := range m {
		h = (h ^ uint32(b)) * 16777619
	}
	return int((h>>16 ^ h) % workers)
}

// news tells whether to log what anybody on the segment can bring about: the
// same once in d, and of made-up keys (MACs, relays) no more than a person reads.
func (s *Server) news(key string, d time.Duration) bool {
	now := s.Now()
	return s.seen.first(key, now, d) && s.lines.allow(now, time.Minute, maxLines)
}

// read gives the next packet; unicast: it was sent to an address of ours.
func (st *linkState) read(buf []byte) (n int, from net.Addr, unicast bool, err error) {
	if st.raw != nil {
		return st.raw.readPacket(buf)
	}
	n, from, err = st.conn.ReadFrom(buf)
	return n, from, false, err
}

// packet answers one packet.
func (s *Server) packet(ctx context.Context, l *link, p received) {
	if s.tap != nil {
		s.tap(p.data)
	}
	req, err := parse(p.data)
	if err != nil {
		s.count.drop(DropMalformed)
		if s.news(l.name+" parse", time.Minute) {
			s.Log.Info("DHCP packet not understood", "interface", l.name, "from", p.from, "err", err)
		}
		return
	}
	s.count.received[receivedType(req)].Add(1)
	work, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var rep *reply
	if s.Proxy {
		rep, err = s.proxy(work, l, req, p.from)
	} else {
		rep, err = s.answer(work, l, req, p.unicast)
	}
	switch {
	case err != nil:
		s.notAnswered(l, req, err)
	case rep == nil:
	case rep.probe.IsValid():
		if !s.checks.begin(rep.seen.mac) {
			s.count.drop(DropSuperseded)
			return
		}
		go s.probeAndSend(ctx, l, rep)
	default:
		s.sendReply(work, l, rep)
	}
}

// notAnswered counts a packet that gets no answer, and says why once in a
// while where that is news.
func (s *Server) notAnswered(l *link, req *dhcpv4.DHCPv4, err error) {
	why := DropError
	var u unanswered
	if errors.As(err, &u) {
		why = u.why
	}
	s.count.drop(why)
	if err == nil || errors.As(err, &u) && u.error == nil {
		return
	}
	r := relayOf(req)
	key := fmt.Sprint("drop ", why, " ", r.via(l.name))
	if why == DropLimit {
		key = err.Error() // names the port
	}
	if s.news(key, time.Minute) {
		s.Log.Warn("DHCP request not answered", "mac", req.ClientHWAddr.String(), "type", req.MessageType(), "interface", l.name, "reason", why, "err", err)
	}
}

// sendReply sends rep and records what is left to record.
func (s *Server) sendReply(ctx context.Context, l *link, rep *reply) {
	mac := rep.msg.ClientHWAddr.String()
	if err := l.send(rep); err != nil {
		s.count.drop(DropError)
		if s.seen.first("send "+l.name, s.Now(), 10*time.Second) {
			s.Log.Warn("DHCP answer not sent", "mac", mac, "interface", l.name, "err", err)
		}
		return
	}
	s.count.answered[typeName(rep.msg.MessageType())].Add(1)
	if s.Log.Enabled(ctx, slog.LevelDebug) {
		s.Log.Debug("DHCP", "mac", mac, "xid", rep.msg.TransactionID, "answer", rep.msg.MessageType(),
			"address", rep.msg.YourIPAddr, "file", rep.msg.BootFileName, "to", rep.to)
	}
	s.recordPort(ctx, rep.seen)
}

// send brings a reply to where RFC 2131 section 4.1 wants it.
func (l *link) send(r *reply) error {
	st := l.state.Load()
	b := padBootFile(r.msg.ToBytes())
	if st.raw != nil && r.direct != nil {
		return st.raw.SendFrame(r.direct, netip.AddrPortFrom(r.from, ServerPort), r.to, b)
	}
	if st.raw != nil && r.hw != nil {
		return st.raw.SendFrame(r.hw, netip.AddrPortFrom(r.from, ServerPort), r.to, b)
	}
	to := r.to
	if r.hw != nil { // no packet socket: everyone hears it
		to = netip.AddrPortFrom(broadcast, to.Port())
	}
	if st.raw != nil {
		return st.raw.sendFrom(r.from, to, b)
	}
	_, err := st.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}
