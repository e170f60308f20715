package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// Figures of a desk, in packets.
const (
	// maxBacklog is how many of unknown boxes wait for those that are known.
	maxBacklog = 2048
	// share of them that is answered before what came meanwhile is looked at;
	// less than a batch while the socket is never empty, so that it is read faster
	// than it fills.
	share, floodShare = batch, batch / 4
	// sendSoon is how many answers go out together: whoever waits for the first is
	// not to wait for the last. In a crowd it is a whole batch, for then all wait,
	// and each time that it is sent costs a little.
	sendSoon = 16
	// maxGiven is how much may wait to be recorded.
	maxGiven = 1024
)

// bookDelay is how long it may: less than a box needs for what is recorded next, so
// that a node's events come in their order. In a flood that does not end, too.
const bookDelay = 20 * time.Millisecond

// desk is where a link's packets are answered, in batches by one goroutine: most
// answers need nothing but memory, and handing a packet to another goroutine
// costs more than they do (docs/adr/0022). What has to wait for the disk is left
// to clerks. Packets of boxes that are known go first, so that a flood of others
// is a full backlog and not their wait.
type desk struct {
	s       *Server
	l       *link
	in      *inbox
	out     *outbox
	slate   *slate
	backlog []received // in memory of their own
	clerks  *clerks
	// promised are answers that wait for the disk, of this batch: it is begun when
	// all of them are known, so that they get there together.
	promised []promise
	sendAt   int // answers that go out together
	// given is not recorded yet: in a crowd whoever waits for an answer goes before
	// who will read of it.
	given []gave
}

type promise struct {
	rep   *reply
	known bool
}

func (s *Server) newDesk(l *link) *desk {
	return &desk{s: s, l: l, in: newInbox(), out: newOutbox(), slate: new(slate), clerks: newClerks()}
}

// serve answers the packets of a link until ctx ends.
func (s *Server) serve(ctx context.Context, l *link) error {
	d := s.newDesk(l)
	defer d.clerks.close()
	defer d.record(ctx)
	if st := l.state.Load(); st.raw != nil {
		d.out.through(st.raw)
	}
	if !s.Proxy {
		d.rehearse(ctx)
	}
	s.Log.Info("DHCP listens", "interface", l.name)
	pause := 10 * time.Millisecond
	for {
		st := l.state.Load()
		list, err := d.in.read(st, len(d.backlog)+len(d.given) == 0)
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
		if st.raw != nil {
			d.out.through(st.raw)
		}
		d.turn(ctx, list)
	}
}

// turn answers what was read.
func (d *desk) turn(ctx context.Context, list []received) {
	d.work(ctx, list)
	d.flush()
	d.settle(ctx)
	if len(d.given) == 0 {
		return
	}
	age := d.s.Now().Sub(d.given[0].at)
	if len(list) < batch || len(d.given) >= maxGiven || age >= bookDelay || age < 0 {
		d.record(ctx)
	}
}

// work answers a batch, and as much of the backlog as there is time for.
func (d *desk) work(ctx context.Context, list []received) {
	others := list[:0]
	for i := range list {
		p := list[i]
		if len(p.data) < fixed || p.data[0] != 1 { // shorter than the fixed part, or not a BOOTREQUEST
			d.s.count.drop(DropMalformed)
		} else if node := d.s.Store.SharedNode(p.mac()); node != nil {
			d.packet(ctx, &p, node)
		} else {
			others = append(others, p)
		}
	}
	n := share
	d.sendAt = sendSoon
	if len(list) == batch {
		n, d.sendAt = floodShare, batch
	}
	for len(d.backlog) > 0 && n > 0 {
		d.packet(ctx, &d.backlog[0], nil)
		d.backlog = d.backlog[1:]
		n--
	}
	for i := range others {
		switch {
		case len(d.backlog) == 0 && n > 0:
			d.packet(ctx, &others[i], nil)
			n--
		case len(d.backlog) < maxBacklog:
			d.backlog = append(d.backlog, others[i].clone())
		default:
			d.dropped()
		}
	}
}

// packet answers p, or has a clerk do it where that would keep others waiting;
// node is the one that sent it, nil where it is of none that has this MAC.
func (d *desk) packet(ctx context.Context, p *received, node *dsas.Node) {
	s, mac, known := d.s, p.mac(), node != nil
	if s.tap != nil {
		s.tap(p.data)
	}
	if d.isPromised(mac) {
		d.settle(ctx)
	}
	if d.clerks.busy(mac) {
		d.leave(ctx, p, known) // behind what the box asked before
		return
	}
	d.slate.node = node
	if !s.read(d.l, d.slate, p) {
		return
	}
	if t := typeOf(&d.slate.req); t == dhcpv4.MessageTypeDecline || t == dhcpv4.MessageTypeRelease {
		d.leave(ctx, p, known)
		return
	}
	rep := s.reply(ctx, d.slate, d.l, p)
	switch {
	case rep == nil:
	case rep.probe.IsValid():
		if !s.checks.begin(mac) {
			s.count.drop(DropSuperseded)
			return
		}
		d.keep(p)
		go s.probeAndSend(ctx, d.l, rep)
	case rep.onDisk != nil:
		d.keep(p)
		d.promised = append(d.promised, promise{rep, known})
	default:
		d.send(ctx, rep, mac, known)
	}
}

// isPromised tells whether an answer to mac waits for the end of the batch.
func (d *desk) isPromised(mac dsas.MAC) bool {
	return slices.ContainsFunc(d.promised, func(p promise) bool { return p.rep.seen.mac == mac })
}

// send has rep go out with the next answers.
func (d *desk) send(ctx context.Context, rep *reply, mac dsas.MAC, known bool) {
	hw := rep.hw
	if rep.direct != nil {
		hw = rep.direct
	}
	if st := d.l.state.Load(); hw == nil || st.raw != d.out.conn || st.raw == nil {
		d.s.send(ctx, d.l, rep)
	} else {
		d.out.put(rep.msg, hw, rep.source(), rep.to, note{mac, typeOf(rep.msg)})
		d.s.debug(ctx, rep)
		if d.out.n >= d.sendAt {
			d.flush()
		}
	}
	if rep.gave.node != nil {
		d.given = append(d.given, rep.gave)
	}
	if port, ok := d.s.portNews(rep.seen); ok {
		d.hand(mac, known, func() { d.s.recordPort(ctx, port) })
	}
}

func (d *desk) flush() {
	d.out.flush(func(who note, err error) { d.s.sent(d.l, who, err) })
}

// record records what was given since it was last called.
func (d *desk) record(ctx context.Context) {
	for _, g := range d.given {
		d.s.record(ctx, g)
	}
	clear(d.given)
	d.given = d.given[:0]
}

// keep leaves p's memory, and that of its answer, to the answer.
func (d *desk) keep(p *received) {
	d.slate = new(slate)
	if len(d.backlog) == 0 || &d.backlog[0] != p {
		d.in.renew(p.slot)
	}
}

// settle has clerks wait for what was promised.
func (d *desk) settle(ctx context.Context) {
	for _, p := range d.promised {
		if !d.clerks.hand(p.rep.seen.mac, p.known, func() { d.s.sendOnceOnDisk(ctx, d.l, p.rep) }) {
			d.dropped()
			gone, cancel := context.WithCancel(ctx)
			cancel()
			p.rep.onDisk(gone) //nolint:errcheck // nobody waits: it is taken back
		}
	}
	clear(d.promised)
	d.promised = d.promised[:0]
}

// leave has a clerk answer p from the start.
func (d *desk) leave(ctx context.Context, p *received, known bool) {
	c := p.clone()
	d.hand(c.mac(), known, func() { d.s.packet(ctx, d.l, c) })
}

// hand gives a clerk something to do for a box.
func (d *desk) hand(mac dsas.MAC, known bool, do func()) {
	if !d.clerks.hand(mac, known, do) {
		d.dropped()
	}
}

func (d *desk) dropped() {
	d.s.count.drop(DropQueue)
	if d.s.seen.first(d.l.name+" full", d.s.Now(), time.Minute) {
		d.s.Log.Warn("DHCP drops packets: too many at once", "interface", d.l.name)
	}
}
