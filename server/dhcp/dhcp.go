// Package dhcp speaks DHCPv4 (RFC 2131) to firmware, boot loaders and
// operating systems: an address from a node's reservation or from a subnet's
// pool, and the boot file that package boot decides on.
package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"dsas"
)

// Store is what DHCP needs of the state.
type Store interface {
	// SharedNode gives the node one of whose NICs has mac, nil for none; nobody
	// changes it. It is asked for each packet before anything else is done with
	// that, and so waits for nothing.
	SharedNode(mac dsas.MAC) *dsas.Node
	// Nodes gives all nodes.
	Nodes(ctx context.Context) ([]dsas.Node, error)
	// NodeByClientID gives the node with that client identifier, or ErrNotFound.
	NodeByClientID(ctx context.Context, id string) (dsas.Node, error)
	// Offer finds an address of subnet's pool for mac: the one it holds, else
	// want if that is free, else a free one. It promises nothing and need not
	// be durable. ErrNotFound: none is free.
	Offer(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error)
	// Bind is Offer for as long as subnet's leases last. The lease counts once
	// onDisk has returned nil, and at once where onDisk is nil: what is on disk
	// promises as much already.
	Bind(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (lease dsas.Lease, onDisk func(context.Context) error, err error)
	// MayHave tells whether Bind would give mac just addr, and whether mac
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
	maxStrangers = 50              // unknown MACs recorded in one second
	maxLines     = 60              // lines a minute that anybody can have logged
)

// Server answers on its listeners.
type Server struct {
	Config
	seen         *recent
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
		Config: c, seen: newRecent(4096), limits: newAdmission(), scarce: newScarcity(), count: newCounters(), ports: newRecentPorts(1 << 14),
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
