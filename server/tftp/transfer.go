package tftp

import (
	"net/netip"
	"time"

	"dsas"
)

// How long a transfer waits, and for how long it tries. The pause before
// something is sent again follows the round trips, as TCP's does (RFC 6298),
// and doubles each time: with the client's own retries, a lost packet costs a
// fraction of a second, and a box that went away is given up after about 15 s.
const (
	firstWait = time.Second            // before there is a round trip to go by
	minWait   = 250 * time.Millisecond // boxes pause: they write to flash, or switch video modes
	maxWait   = 4 * time.Second
	// Repetitions without an answer in between, to a client that has
	// acknowledged something, and to an address that is unproven.
	maxTries, maxUnproven = 7, 3
	// longest is how long a transfer with a client's own timeout may hang.
	longest = time.Minute
)

// maxWindow is the largest windowsize agreed on, in blocks: beyond, nothing is
// gained in any network a box boots from.
const maxWindow = 64

// transfer is one file on its way to one client. Its state machine is in this
// file and does no I/O: the loop does, by what these methods say.
type transfer struct {
	id      requestID
	peer    netip.AddrPort
	to      sockaddr
	on      *listener
	local   netip.Addr // the server's address that was asked
	scope   int
	req     request
	mac     dsas.MAC
	file    string // "": the name was nonsense
	content Content
	view    []byte // the whole content, where it is in memory
	release func()

	fd      int  // -1: none
	others  int  // has what comes for fd's port from elsewhere, where fd is connected; else -1
	index   int  // in loop.active
	writing bool // waits until its socket takes more
	held    bool // what it sent was thrown away on this machine
	strays  int
	begun   time.Duration // when the request came, on the loop's clock
	over    bool

	size     int64
	blksize  int
	window   int64
	toOne    bool
	oack     []byte // awaits its ACK 0
	blocks   int64  // in all; the last one is shorter than blksize, perhaps empty
	acked    int64  // the client has all up to this block
	sent     int64  // last block sent, of this round
	high     int64  // last block ever sent
	asked    int64  // the block after which the client has asked for the rest again; -1: none
	proven   bool   // the client has answered: the address is real
	tries    int    // repetitions since the last progress
	wait     time.Duration
	sentAt   time.Duration // when the round began that awaits its ACK
	progress time.Duration // when the client last got on
	deadline time.Duration
	srtt     time.Duration
	rttvar   time.Duration
	timed    bool // nothing of this round was sent before: its ACK tells the round trip
}

// agree fixes the transfer's options; limit is the largest block that the
// interface carries whole.
func (t *transfer) agree(limit int) {
	t.blksize, t.window, t.toOne = 512, 1, t.req.rollover == 1
	if t.req.blksize > 0 {
		t.blksize = min(t.req.blksize, max(limit, 8))
	}
	if t.req.window > 0 {
		t.window = int64(min(t.req.window, maxWindow))
	}
	t.asked = -1
	t.blocks = t.size/int64(t.blksize) + 1
	t.oack = t.req.oack(t.blksize, int(t.window), t.size)
	t.wait = firstWait
	if t.req.timeout > 0 {
		t.wait = time.Duration(t.req.timeout) * time.Second
	}
}

// verdict is what an ACK or the passing of time calls for.
type verdict int

const (
	nothing verdict = iota
	sendOn          // send what the window allows
	finished
	gaveUp
)

// round begins a round of sending at now.
func (t *transfer) round(now time.Duration) {
	t.sentAt, t.deadline = now, now+t.wait
	t.timed = t.sent >= t.high
}

// ack takes in an ACK.
func (t *transfer) ack(number uint16, now time.Duration) verdict {
	if t.oack != nil {
		if number != 0 {
			return nothing
		}
		t.oack = nil
		t.gotOn(now)
		return sendOn
	}
	n := t.acked
	for ; n <= t.sent && wire(n, t.toOne) != number; n++ {
	}
	switch {
	case n > t.sent: // of a block long past, or of none that was sent
		return nothing
	case n > t.acked:
		t.acked = n
		t.gotOn(now)
		if n == t.blocks {
			return finished
		}
		// Within a window: what came after n is lost (RFC 7440, section 4).
		if n < t.sent {
			t.asked = n
		}
		t.sent = n
		return sendOn
	case t.window == 1:
		// Again an ACK that was answered. To answer again would double every
		// packet from here on: the Sorcerer's Apprentice (RFC 1123, 4.2.3.1).
		return nothing
	case t.sent == t.acked, t.asked == n, now-t.sentAt < t.guard():
		// With windows, clients say it once for every block that comes behind
		// a gap: the first time counts, and the clock after that.
		return nothing
	}
	// The client lost the window's first block and says so.
	t.asked, t.sent = n, t.acked
	return sendOn
}

// guard is the time within which an ACK cannot be about what was sent last: it
// was on its way before, or came twice.
func (t *transfer) guard() time.Duration {
	if t.srtt == 0 {
		return minWait
	}
	return t.srtt - t.srtt/8
}

// gotOn notes that the client has something it had not.
func (t *transfer) gotOn(now time.Duration) {
	if t.timed && t.tries == 0 {
		rtt := now - t.sentAt
		if t.srtt == 0 {
			t.srtt, t.rttvar = rtt, rtt/2
		} else {
			t.rttvar += (max(t.srtt-rtt, rtt-t.srtt) - t.rttvar) / 4
			t.srtt += (rtt - t.srtt) / 8
		}
	}
	t.proven, t.tries, t.progress = true, 0, now
	if t.req.timeout == 0 {
		t.wait = min(max(t.srtt+4*t.rttvar, minWait), firstWait)
	}
}

// expire says what is to be done when nothing has come for a while.
func (t *transfer) expire(now time.Duration) verdict {
	if now < t.deadline {
		return nothing
	}
	if t.held && now-max(t.progress, t.begun) < longest { // a full queue of ours is not the client's silence
		t.held, t.sent = false, t.acked
		return sendOn
	}
	most := maxTries
	if !t.proven {
		most = maxUnproven
	}
	if t.tries >= most || t.tries > 0 && now-max(t.progress, t.begun) > longest {
		return gaveUp
	}
	t.tries++
	if t.req.timeout == 0 { // a client that gave a timeout wants just that (RFC 2349)
		t.wait = min(2*t.wait, maxWait)
	}
	t.sent = t.acked
	return sendOn
}

// next gives the block after those sent, if the window has room: its number
// on the wire, and where its content begins and ends.
func (t *transfer) next() (number uint16, from, to int64, ok bool) {
	n := t.sent + 1
	if n > t.blocks || n > t.acked+t.window {
		return 0, 0, 0, false
	}
	from = (n - 1) * int64(t.blksize)
	return wire(n, t.toOne), from, min(from+int64(t.blksize), t.size), true
}
