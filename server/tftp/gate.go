package tftp

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

// gate lets requests in: no more than so many at once, and none twice, since
// the library would begin another transfer for each repetition of a request.
type gate struct {
	max, maxPer int
	now         func() time.Time

	mu      sync.Mutex
	active  map[string]*entry // by peer's address and port
	running int
	perAddr map[string]int
}

// entry is what runs for one peer: one transfer, or two while the end of the
// first (UEFI's question for the size) is on its way.
type entry struct {
	request string // the latest, whole packet
	since   time.Time
	addr    string
	n       int
}

// stale is when an entry is given up whose handler never began or ended: the
// library drops what it cannot parse without a word.
const stale = 5 * time.Minute

func newGate(max, maxPer int) *gate {
	return &gate{max: max, maxPer: maxPer, now: time.Now, active: map[string]*entry{}, perAddr: map[string]int{}}
}

// admit tells whether a packet is to be handled. What it drops, the client
// sends again.
func (g *gate) admit(packet []byte, from net.Addr) bool {
	if len(packet) < 4 || packet[0] != 0 {
		return false
	}
	switch packet[1] {
	case 1: // RRQ
	case 2: // WRQ: the library refuses it with an ERROR
		return true
	default: // stray DATA or ACK to port 69
		return false
	}
	peer := from.String()
	addr, _, _ := net.SplitHostPort(peer)
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	e := g.active[peer]
	if e != nil && e.request == string(packet) && now.Sub(e.since) < stale {
		return false
	}
	if g.full(addr) {
		for p, old := range g.active {
			if now.Sub(old.since) >= stale {
				g.drop(p, old.n)
			}
		}
		if g.full(addr) {
			return false
		}
		e = g.active[peer]
	}
	if e == nil {
		e = &entry{addr: addr}
		g.active[peer] = e
	}
	e.request, e.since = string(packet), now
	e.n++
	g.running++
	g.perAddr[addr]++
	return true
}

func (g *gate) full(addr string) bool { return g.running >= g.max || g.perAddr[addr] >= g.maxPer }

// done ends one transfer of peer.
func (g *gate) done(peer string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(peer, 1)
}

// drop takes n transfers off peer's entry.
func (g *gate) drop(peer string, n int) {
	e := g.active[peer]
	if e == nil {
		return
	}
	g.running -= n
	if g.perAddr[e.addr] -= n; g.perAddr[e.addr] <= 0 {
		delete(g.perAddr, e.addr)
	}
	if e.n -= n; e.n <= 0 {
		delete(g.active, peer)
	}
}

// gatedConn is a listener behind the gate.
type gatedConn struct {
	net.PacketConn
	gate *gate
	ctx  context.Context
	log  *slog.Logger
}

// ReadFrom gives the next packet that may pass. It pauses after an error,
// because the library reads on at once whatever the error is.
func (c *gatedConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(b)
		if err != nil {
			if c.ctx.Err() == nil {
				c.log.Warn("TFTP cannot read; going on", "err", err)
				select {
				case <-c.ctx.Done():
				case <-time.After(time.Second):
				}
			}
			return n, from, err
		}
		if c.gate.admit(b[:n], from) {
			return n, from, nil
		}
	}
}
