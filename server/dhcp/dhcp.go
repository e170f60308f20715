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
	// Offer finds an address of subnet's pool for mac: the one it holds, else
	// want if that is free, else a free one. It promises nothing and need not
	// be durable. ErrNotFound: none is free.
	Offer(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error)
	// LeaseFor is Offer, and the lease is on disk when it returns.
	LeaseFor(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error)
	// Release ends mac's lease of addr; that there is none is no error.
	Release(ctx context.Context, mac dsas.MAC, addr netip.Addr) error
	// Decline takes addr out of use until then.
	Decline(ctx context.Context, addr netip.Addr, until time.Time) error
	// RecordUnknown notes a MAC that belongs to no node; it tells whether it is new.
	RecordUnknown(ctx context.Context, u dsas.Unknown) (bool, error)
	// Event records a fact.
	Event(ctx context.Context, e dsas.Event) error
}

// Images tells what is built. ErrNotFound: nothing yet.
type Images interface {
	Current(role string) (dsas.Manifest, error)
	Boot() (dsas.BootSet, error)
}

// Config holds the parts and figures of a Server.
type Config struct {
	Log     *slog.Logger
	Store   Store
	Images  Images
	Subnets []dsas.Subnet
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
	Now       func() time.Time
}

// Figures. The lease default is for a subnet that names none.
const (
	defaultLease = time.Hour
	declineTime  = time.Hour       // an address that someone else uses is left alone this long
	answerWithin = 5 * time.Second // then the client has asked again anyway
	workers      = 16
	queue        = 64 // packets waiting for one worker
)

// Server answers on its listeners.
type Server struct {
	Config
	seen     *recent
	count    *counters
	poolSize []int // of Subnets, in their order
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
	s := &Server{Config: c, seen: newRecent(4096), count: newCounters()}
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
	defer s.close()
	links := make([]*link, len(s.Listeners))
	for i, conn := range s.Listeners {
		l, err := s.newLink(conn)
		if err != nil {
			return err
		}
		links[i] = l
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.close) // ends the reads
	defer stop()
	errs := make(chan error, len(links))
	for _, l := range links {
		go func() { errs <- s.serve(ctx, l) }()
	}
	var first error
	for range links {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

func (s *Server) close() {
	for _, c := range s.Listeners {
		c.Close()
	}
}

// newLink finds the subnets that live on conn's interface.
func (s *Server) newLink(conn net.PacketConn) (*link, error) {
	l := &link{conn: conn, name: conn.LocalAddr().String(), local: s.Subnets}
	c, ok := conn.(*Conn)
	if !ok {
		return l, nil
	}
	l.raw, l.name, l.local = c, c.Name(), nil
	for _, sub := range s.Subnets {
		for _, p := range c.Addrs() {
			if p.Addr() == sub.Server {
				l.local = append(l.local, sub)
			}
		}
	}
	if len(l.local) == 0 {
		return nil, fmt.Errorf("DHCP: interface %s has no address that is a subnet's server address (%s); add it with: ip addr add %s/%d dev %s: %w",
			l.name, s.Subnets[0].Server, s.Subnets[0].Server, s.Subnets[0].Prefix.Bits(), l.name, dsas.ErrInvalid)
	}
	return l, nil
}

// link is one listener.
type link struct {
	conn  net.PacketConn
	raw   *Conn // nil: answers to boxes without an address are broadcast
	name  string
	local []dsas.Subnet // that are on this segment
}

type received struct {
	data []byte
	from net.Addr
}

// serve reads packets and deals them to a fixed number of workers, all packets
// of one client to the same, so that its order is kept and a flood of packets
// is a full queue and not a flood of goroutines.
func (s *Server) serve(ctx context.Context, l *link) error {
	var wg sync.WaitGroup
	queues := make([]chan received, workers)
	for i := range queues {
		queues[i] = make(chan received, queue)
		wg.Go(func() {
			for p := range queues[i] {
				s.packet(ctx, l, p)
			}
		})
	}
	defer wg.Wait()
	defer func() {
		for _, q := range queues {
			close(q)
		}
	}()
	s.Log.Info("DHCP listens", "interface", l.name)
	pause := 10 * time.Millisecond
	buf := make([]byte, 4096) // more than any Ethernet frame that gets here
	for {
		n, from, err := l.conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
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
		if n < 240 || buf[0] != 1 { // shorter than the fixed part, or not a BOOTREQUEST
			continue
		}
		select {
		case queues[int(buf[33])%workers] <- received{append([]byte(nil), buf[:n]...), from}: // chaddr's last byte
		default:
			if s.seen.first(l.name+" full", s.Now(), time.Minute) {
				s.Log.Warn("DHCP drops packets: too many at once", "interface", l.name)
			}
		}
	}
}

// packet answers one packet.
func (s *Server) packet(ctx context.Context, l *link, p received) {
	req, err := dhcpv4.FromBytes(p.data)
	if err != nil {
		if s.seen.first(l.name+" parse", s.Now(), time.Minute) {
			s.Log.Info("DHCP packet not understood", "interface", l.name, "from", p.from, "err", err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var rep *reply
	if s.Proxy {
		rep, err = s.proxy(ctx, l, req, p.from)
	} else {
		rep, err = s.answer(ctx, l, req)
	}
	if err != nil {
		if s.seen.first("answer "+req.ClientHWAddr.String(), s.Now(), 10*time.Second) {
			s.Log.Warn("DHCP request not answered", "mac", req.ClientHWAddr.String(), "type", req.MessageType(), "interface", l.name, "err", err)
		}
		return
	}
	if rep == nil {
		return
	}
	if err := l.send(rep); err != nil {
		s.Log.Warn("DHCP answer not sent", "mac", req.ClientHWAddr.String(), "interface", l.name, "err", err)
		return
	}
	s.Log.Debug("DHCP", "mac", req.ClientHWAddr.String(), "xid", req.TransactionID, "asked", req.MessageType(), "answer", rep.msg.MessageType(),
		"address", rep.msg.YourIPAddr, "file", rep.msg.BootFileName, "to", rep.to)
}

// send brings a reply to where RFC 2131 section 4.1 wants it.
func (l *link) send(r *reply) error {
	b := padBootFile(r.msg.ToBytes())
	if r.hw != nil && l.raw != nil {
		return l.raw.SendFrame(r.hw, netip.AddrPortFrom(r.from, ServerPort), r.to, b)
	}
	if l.raw != nil && l.raw.port == BootPort {
		return l.raw.sendFrom(r.from, r.to, b)
	}
	to := r.to
	if r.hw != nil { // no packet socket: everyone hears it
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), to.Port())
	}
	_, err := l.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}

// recent remembers keys for a while, so that what repeats is said once. It
// holds a bounded number of them.
type recent struct {
	mu  sync.Mutex
	m   map[string]time.Time
	max int
}

func newRecent(max int) *recent { return &recent{m: map[string]time.Time{}, max: max} }

// first tells whether key was not seen within d before now.
func (r *recent) first(key string, now time.Time, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.m[key]; ok && now.Sub(t) < d {
		return false
	}
	if len(r.m) >= r.max {
		// Forgetting all of it costs a few repeated lines in a flood, no more.
		clear(r.m)
	}
	r.m[key] = now
	return true
}
