package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

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
	// In is as Config.In: an interface that was made anew is listened on in it.
	In func(func() error) error

	done  atomic.Bool // asked, and nobody answered
	told  *recent
	every time.Duration // between looks at the interfaces
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
	if w.In == nil {
		w.In = func(f func() error) error { return f() }
	}
	if w.every == 0 {
		w.every = time.Second
	}
	w.told = newRecent(tellMost)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
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
		var now atomic.Pointer[Ear]
		now.Store(e)
		wg.Go(func() { w.follow(ctx, &now) })
		wg.Go(func() {
			if err := w.listen(ctx, &now, mine); err != nil {
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

// follow opens the ear anew when its interface was made anew, and closes it in
// the end. What becomes of the interface, the DHCP server says.
func (w *Watch) follow(ctx context.Context, now *atomic.Pointer[Ear]) {
	defer func() { now.Load().Close() }()
	t := time.NewTicker(w.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		old := now.Load()
		var again *Ear
		err := w.In(func() error {
			ifi, addrs, err := lookInterface(old.Name())
			if err != nil || !outlived(old.iface, old.addrs, ifi, addrs) {
				return err
			}
			again, err = OpenEar(old.Name())
			return err
		})
		if err != nil || again == nil {
			continue // it is gone, or as it was
		}
		now.Store(again)
		old.Close() // its reader goes on with the new one
		w.Log.Info("listening for other DHCP servers again", "interface", old.Name())
	}
}

// listen tells of every other server heard.
func (w *Watch) listen(ctx context.Context, now *atomic.Pointer[Ear], mine map[dhcpv4.TransactionID]bool) error {
	buf := make([]byte, 4096)
	pause := 10 * time.Millisecond
	for {
		e := now.Load()
		o, xid, err := e.hear(buf, func(a netip.Addr) bool { return slices.Contains(w.Own, a) || e.isOwn(a) })
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && now.Load() != e:
			continue // the interface was opened anew
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
