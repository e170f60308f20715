// Package storm simulates many nodes that boot at the same second, each doing
// the whole conversation of docs/architecture.md, "One boot": DHCP as firmware
// and as iPXE, NBP by TFTP, script, kernel, initramfs, node config with the
// token, image parts, signed events, ready, heartbeats and the long poll. It
// tells what a server made of it.
//
// One host is many nodes in two ways. DHCP is spoken by a packet socket, in
// frames with each node's own MAC, as a box without an address does. All else
// comes from the node's own address, of which the interface holds one per node
// (macvlan, which would give each a link of its own, is missing in many
// kernels). What is not simulated: the speed of a box's own network stack, and
// links of its own: all nodes share one.
package storm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/client"
)

// Config says what to do to which server.
type Config struct {
	// Interface is where the nodes are, on the server's segment. The calling
	// process is in its network namespace.
	Interface string
	// Nodes are known to the server and have an address. Nobody else uses them.
	Nodes []dsas.Node
	// Strangers are MACs that belong to no node: they take leases of the pool,
	// and renew them to the end.
	Strangers int
	// Over is the time within which the nodes are switched on.
	Over time.Duration
	// Timeout ends the storm; who is not ready then has failed. It is no
	// failure of the storm's own.
	Timeout time.Duration
	// Hold keeps the nodes running for so long after the last was ready.
	Hold time.Duration
	// Until, where set, makes nodes boot again and again, shortly after they were
	// ready, until it is closed; each then ends the boot it is in.
	Until <-chan struct{}
	// Plain is the URL of a plain HTTP server on the other side of the same
	// link that has the blobs by hex digest below it; empty: the boot
	// listener's own blobs are read, by readers that do nothing else.
	Plain string
	// NoPlain leaves the comparison out.
	NoPlain bool
	// Page asks for the page once; nil: it is not watched.
	Page func(ctx context.Context) error
	// API follows events, to tell how late they are shown; nil: it does not.
	API *client.Client
	// PID of the server, where it runs on this machine; 0: its memory and CPU
	// are not told.
	PID func() int
	Log *slog.Logger
	// Progress is told about every two seconds; nil: nobody.
	Progress func(Progress)
}

// Progress is how far a storm is.
type Progress struct {
	Elapsed time.Duration
	Ready   int
	Nodes   int
	Bytes   int64          // of kernels, initramfs and images
	At      map[string]int // nodes by what they are doing
}

// storm is one run.
type storm struct {
	Config
	wire    *wire
	started time.Time
	sums    sums
	figures *figures

	bytes atomic.Int64
	ready atomic.Int64 // nodes that are up for good
	boots atomic.Int64

	mu    sync.Mutex
	doing map[string]int
}

// Run is one storm. The error is the storm's own: nodes that failed are in the
// report.
func Run(ctx context.Context, c Config) (*Report, error) {
	if len(c.Nodes) == 0 {
		return nil, fmt.Errorf("storm: no nodes: %w", dsas.ErrInvalid)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Minute
	}
	ifi, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w; `ip -br link` lists what there is", c.Interface, err)
	}
	s := &storm{Config: c, figures: newFigures(), doing: map[string]int{}}
	if s.wire, err = openWire(ifi); err != nil {
		return nil, err
	}
	defer s.wire.close()
	drop, err := holdAddresses(ifi, c.Nodes)
	if err != nil {
		return nil, err
	}
	defer drop()

	watch, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	var watchers sync.WaitGroup
	watchers.Go(func() { s.watchPage(watch) })
	watchers.Go(func() { s.watchEvents(watch) })
	watchers.Go(func() { s.tell(watch) })
	usage := s.watchServer(watch, &watchers)

	rep, boots := s.boot(ctx)
	rep.Server = usage()
	stopWatch()
	watchers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.report(rep)
	if !c.NoPlain && rep.Ready > 0 {
		if err := s.plain(ctx, rep, boots); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// boot switches everybody on and waits until all are ready, or the time is over.
func (s *storm) boot(ctx context.Context) (*Report, []*node) {
	rep := &Report{Nodes: len(s.Nodes), Strangers: s.Strangers}
	limit, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	// running ends what nodes do once they are up.
	running, stop := context.WithCancel(ctx)
	defer stop()

	s.started = time.Now()
	var up, down sync.WaitGroup
	nodes := make([]*node, len(s.Nodes))
	for i, n := range s.Nodes {
		nodes[i] = &node{storm: s, is: n, mac: n.NICs[0].MAC, addr: n.Address.Addr()}
		up.Add(1)
		down.Go(func() { nodes[i].live(limit, running, spread(s.Over), up.Done) })
	}
	strangers := make([]*stranger, s.Strangers)
	for i := range strangers {
		strangers[i] = newStranger(s, i)
		up.Add(1)
		down.Go(func() { strangers[i].live(limit, running, spread(s.Over), up.Done) })
	}
	up.Wait()
	rep.Duration = time.Since(s.started)
	rep.Bytes = s.bytes.Load()
	rep.Boots = int(s.boots.Load())
	select {
	case <-time.After(s.Hold):
	case <-ctx.Done():
	}
	stop()
	down.Wait()
	for _, n := range nodes {
		if n.failed != nil {
			rep.Failed = append(rep.Failed, Failure{Node: n.is.Name, Step: n.step, Reason: n.failed.Error()})
		} else {
			rep.Ready++
		}
		rep.Reboots += n.reboots
	}
	for _, x := range strangers {
		rep.Leases = append(rep.Leases, x.acks...)
		if len(x.acks) == 0 {
			rep.Failed = append(rep.Failed, Failure{Node: x.mac.String(), Step: "lease", Reason: "no address of the pool"})
		}
	}
	return rep, nodes
}

func spread(over time.Duration) time.Duration {
	if over <= 0 {
		return 0
	}
	return rand.N(over)
}

// at counts a node from one step to the next.
func (s *storm) at(from, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from != "" {
		s.doing[from]--
	}
	s.doing[to]++
}

func (s *storm) tell(ctx context.Context) {
	if s.Progress == nil {
		return
	}
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		p := Progress{Elapsed: time.Since(s.started), Ready: int(s.ready.Load()), Nodes: len(s.Nodes), Bytes: s.bytes.Load(), At: map[string]int{}}
		s.mu.Lock()
		for k, v := range s.doing {
			if v > 0 {
				p.At[k] = v
			}
		}
		s.mu.Unlock()
		s.Progress(p)
	}
}

// plain reads what the nodes read, by as many readers, and nothing else.
func (s *storm) plain(ctx context.Context, rep *Report, nodes []*node) error {
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	var total atomic.Int64
	readers := 0
	for _, n := range nodes {
		if n.failed != nil {
			continue
		}
		readers++
		g.Go(func() error {
			h := httpFrom(n.addr)
			defer h.CloseIdleConnections()
			for _, u := range n.fetched {
				if s.Plain != "" {
					u = plainURL(s.Plain, u)
				}
				b, err := s.read(ctx, h, u)
				total.Add(b)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("plain HTTP for comparison: %w", err)
	}
	took := time.Since(start)
	rep.Plain = &Plain{Readers: readers, Bytes: total.Load(), Duration: took, Rate: rate(total.Load(), took)}
	if rep.Plain.Rate > 0 {
		rep.Plain.Ratio = rep.Rate / rep.Plain.Rate
	}
	return nil
}

// errGaveUp: the storm's time was over.
var errGaveUp = errors.New("not ready when the storm's time was over")
