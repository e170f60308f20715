package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
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

// Crowd has many nodes speak DHCPv4 at once, each under its own MAC. It is one
// thread that sends and takes in by batches, so that it costs less than the
// servers that it loads.
type Crowd struct {
	// Wait is how long the first answer is waited for; each further try waits
	// twice as long. Tries is how often is asked in all.
	Wait  time.Duration
	Tries int
	// Retries counts how often something was asked again.
	Retries int

	wire *wire
	io   *batch
	xid  uint32
	talk map[uint32]*talk // by xid
	free []*talk
}

// Talk is what one node wants: an address by DISCOVER, OFFER, REQUEST and ACK;
// or where Renew is set, as RENEWING does, more time for that one.
type Talk struct {
	Ask   Ask
	Renew *Answer
}

// Outcome is how a talk ended: with an ACK, or an error.
type Outcome struct {
	Answer Answer
	Took   time.Duration
	Err    error
}

// talk is a Talk under way.
type talk struct {
	n     int
	ask   Ask
	to    dsas.MAC // of the server, where it is addressed
	frame []byte
	want  byte
	begun time.Time
	until time.Time // then it is asked again
	wait  time.Duration
	tries int
}

// OpenCrowd opens the named interface in the thread's network namespace (see
// netns.Do); the Crowd may then be used from anywhere. It wants CAP_NET_RAW.
func OpenCrowd(name string) (*Crowd, error) {
	w, err := openWire(name)
	if err != nil {
		return nil, err
	}
	fd, err := w.fd()
	if err != nil {
		w.close()
		return nil, err
	}
	return &Crowd{Wait: time.Second, Tries: 5, wire: w, io: newBatch(fd), xid: rand.Uint32()}, nil
}

// Close ends it.
func (c *Crowd) Close() error { return c.wire.close() }

// look is how often it is looked for talks whose time is over.
const look = 5 * time.Millisecond

// Run has talks going, so many at a time, until next has no more and the last
// has ended. next and done get the talk's number, from 0 on; they must not keep
// it waiting.
func (c *Crowd) Run(ctx context.Context, atOnce int, next func(n int) (Talk, bool), done func(n int, o Outcome)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.talk, c.free = make(map[uint32]*talk, atOnce), nil
	end := func(t *talk, o Outcome) {
		o.Took = time.Since(t.begun)
		delete(c.talk, t.ask.XID)
		c.free = append(c.free, t)
		done(t.n, o)
	}
	more, looked := true, time.Now()
	for n := 0; ; {
		for more && len(c.talk) < atOnce {
			var t Talk
			if t, more = next(n); !more {
				break
			}
			if err := c.begin(n, t); err != nil {
				return err
			}
			n++
		}
		if err := c.io.flush(); err != nil {
			return err
		}
		if len(c.talk) == 0 {
			return ctx.Err()
		}
		got := c.io.receive()
		for i := range got {
			if err := c.take(c.io.frame(i), end); err != nil {
				return err
			}
		}
		now := time.Now()
		if now.Sub(looked) >= look {
			looked = now
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := c.again(now, end); err != nil {
				return err
			}
		}
		if got == 0 {
			if err := c.io.poll(unix.POLLIN, int(look.Milliseconds())); err != nil {
				return err
			}
		}
	}
}

// begin sends a talk's first message.
func (c *Crowd) begin(n int, w Talk) error {
	t := &talk{}
	if last := len(c.free) - 1; last >= 0 {
		t, c.free = c.free[last], c.free[:last]
	}
	*t = talk{n: n, ask: w.Ask, frame: t.frame, begun: time.Now()}
	if old := w.Renew; old != nil {
		t.ask.Type, t.ask.Have, t.ask.Server, t.ask.Wanted, t.to, t.want = Request, old.Address, old.Server, netip.Addr{}, old.From, Ack
	} else {
		t.ask.Type, t.to, t.want = Discover, broadcastMAC, Offer
	}
	return c.say(t)
}

// say sends what t asks next.
func (c *Crowd) say(t *talk) error {
	delete(c.talk, t.ask.XID)
	if t.want == Offer || t.to != broadcastMAC { // a REQUEST has its DISCOVER's
		c.xid++
		t.ask.XID = c.xid
	}
	c.talk[t.ask.XID] = t
	t.frame = t.ask.frame(t.frame, t.to)
	t.tries, t.wait = 1, c.Wait
	t.until = time.Now().Add(t.wait)
	return c.io.send(t.frame)
}

// take takes in a frame.
func (c *Crowd) take(frame []byte, end func(*talk, Outcome)) error {
	m, ok := payload(frame)
	if !ok {
		return nil
	}
	a, ok := ParseAnswer(m)
	if !ok {
		return nil
	}
	t := c.talk[a.XID]
	if t == nil || t.ask.MAC != a.MAC {
		return nil // late
	}
	a.From = dsas.MAC(frame[6:12])
	switch {
	case a.Type == Offer && t.want == Offer:
		t.ask.Type, t.ask.Wanted, t.ask.Server, t.want = Request, a.Address, a.Server, Ack
		return c.say(t)
	case a.Type == Ack && t.want == Ack:
		end(t, Outcome{Answer: a})
	case a.Type == Nak && t.want == Ack:
		end(t, Outcome{Answer: a, Err: fmt.Errorf("%w of %s: %s", ErrNak, a.MAC, a.Message)})
	}
	return nil
}

// again asks again where an answer is overdue.
func (c *Crowd) again(now time.Time, end func(*talk, Outcome)) error {
	for _, t := range c.talk {
		if now.Before(t.until) {
			continue
		}
		if t.tries >= c.Tries {
			end(t, Outcome{Err: fmt.Errorf("%w for %s to message type %d, asked %d times", ErrNoAnswer, t.ask.MAC, t.ask.Type, t.tries)})
			continue
		}
		c.Retries++
		t.tries++
		t.wait *= 2
		t.until = now.Add(t.wait)
		if err := c.io.send(t.frame); err != nil {
			return err
		}
	}
	return c.io.flush()
}

// MAC gives the MAC of the n-th simulated node, locally administered.
func MAC(n int) dsas.MAC {
	return dsas.MAC{0x52, 0x54, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}
