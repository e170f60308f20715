package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// ErrNak: the server refused the address.
var ErrNak = errors.New("DHCPNAK")

// ErrNoAnswer: nobody answered, as often as it was asked.
var ErrNoAnswer = errors.New("no answer")

var (
	broadcastIP  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	anyIP        = netip.AddrFrom4([4]byte{})
	broadcastMAC = dsas.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// DHCP speaks DHCPv4 for any number of nodes on one interface, each under its
// own MAC. Its methods may be called concurrently.
type DHCP struct {
	// Wait is how long the first answer is waited for; each further try waits
	// twice as long. Tries is how often is asked in all.
	Wait  time.Duration
	Tries int

	wire *wire
	done chan struct{}

	mu      sync.Mutex
	pending map[uint32]waiting // by xid

	retries, stray atomic.Uint64
}

type waiting struct {
	mac     dsas.MAC
	answers chan Answer
}

// OpenDHCP opens the named interface in the thread's network namespace (see
// netns.Do); the DHCP may then be used from anywhere. It wants CAP_NET_RAW.
func OpenDHCP(name string) (*DHCP, error) {
	w, err := openWire(name, unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, err
	}
	d := &DHCP{Wait: time.Second, Tries: 5, wire: w, done: make(chan struct{}), pending: map[uint32]waiting{}}
	go d.read()
	return d, nil
}

// Close ends it; what still waits is left to its time-out.
func (d *DHCP) Close() error {
	err := d.wire.close()
	<-d.done
	return err
}

// Retries tells how often something was asked again.
func (d *DHCP) Retries() uint64 { return d.retries.Load() }

// Stray tells how many answers came that nobody waited for (any more).
func (d *DHCP) Stray() uint64 { return d.stray.Load() }

func (d *DHCP) read() {
	defer close(d.done)
	buf := make([]byte, maxFrame)
	for {
		n, err := d.wire.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the interface was down for a moment
		}
		m, ok := payload(buf[:n])
		if !ok {
			continue
		}
		a, ok := ParseAnswer(m)
		if !ok {
			continue
		}
		a.From = dsas.MAC(buf[6:12])
		d.mu.Lock()
		w, ok := d.pending[a.XID]
		d.mu.Unlock()
		if !ok || w.mac != a.MAC {
			d.stray.Add(1)
			continue
		}
		select {
		case w.answers <- a:
		default: // it has more than it can read
		}
	}
}

// Exchange sends a and gives the first answer to it of one of the wanted types,
// or a NAK. a.XID is chosen if it is 0. to is the server's MAC for a unicast
// from a.Have, and zero for a broadcast.
func (d *DHCP) Exchange(ctx context.Context, a Ask, to dsas.MAC, want byte) (Answer, error) {
	if a.XID == 0 {
		a.XID = rand.Uint32() | 1
	}
	if to.IsZero() {
		to = broadcastMAC
	}
	frame := a.frame(nil, to)

	w := waiting{a.MAC, make(chan Answer, 4)}
	d.mu.Lock()
	if _, taken := d.pending[a.XID]; taken {
		d.mu.Unlock()
		return Answer{}, fmt.Errorf("transaction id %#x is in use: %w", a.XID, dsas.ErrConflict)
	}
	d.pending[a.XID] = w
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.pending, a.XID)
		d.mu.Unlock()
	}()

	wait := d.Wait
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for try := 1; ; try++ {
		if _, err := d.wire.file.Write(frame); err != nil {
			return Answer{}, fmt.Errorf("send DHCP: %w", err)
		}
	listen:
		for {
			select {
			case got := <-w.answers:
				if got.Type == Nak && want == Ack {
					return got, fmt.Errorf("%w of %s: %s", ErrNak, a.MAC, got.Message)
				}
				if got.Type == want {
					return got, nil
				}
			case <-ctx.Done():
				return Answer{}, ctx.Err()
			case <-timer.C:
				break listen
			}
		}
		if try >= d.Tries {
			return Answer{}, fmt.Errorf("%w for %s to message type %d, asked %d times", ErrNoAnswer, a.MAC, a.Type, try)
		}
		d.retries.Add(1)
		wait *= 2
		timer.Reset(wait)
	}
}

// Lease does DISCOVER, OFFER, REQUEST and ACK for one node.
func (d *DHCP) Lease(ctx context.Context, a Ask) (Answer, error) {
	a.Type, a.XID = Discover, rand.Uint32()|1
	offer, err := d.Exchange(ctx, a, dsas.MAC{}, Offer)
	if err != nil {
		return offer, err
	}
	a.Type, a.Wanted, a.Server = Request, offer.Address, offer.Server
	return d.Exchange(ctx, a, dsas.MAC{}, Ack)
}

// Renew asks the server that gave old for more time, as RENEWING does: by
// unicast from the address that is held.
func (d *DHCP) Renew(ctx context.Context, a Ask, old Answer) (Answer, error) {
	a.Type, a.Have, a.Server, a.Wanted, a.XID = Request, old.Address, old.Server, netip.Addr{}, 0
	return d.Exchange(ctx, a, old.From, Ack)
}

// Confirm asks for a reserved or remembered address without a DISCOVER, as
// INIT-REBOOT does (RFC 2131 section 4.3.2).
func (d *DHCP) Confirm(ctx context.Context, a Ask, addr netip.Addr) (Answer, error) {
	a.Type, a.Have, a.Server, a.Wanted, a.XID = Request, netip.Addr{}, netip.Addr{}, addr, 0
	return d.Exchange(ctx, a, dsas.MAC{}, Ack)
}

// MAC gives the MAC of the n-th simulated node, locally administered.
func MAC(n int) dsas.MAC {
	return dsas.MAC{0x52, 0x54, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}
