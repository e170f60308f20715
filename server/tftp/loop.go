package tftp

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is the whole server: one thread that waits for all sockets at once. A
// block costs it a recvfrom and a sendmsg, and no allocation. What may take
// longer, finding files, is done beside it.
type loop struct {
	s         *Server
	ctx       context.Context // of what runs beside
	started   time.Time
	epoll     int
	wakeFD    int
	listeners []*listener
	byFD      []any // *transfer or *listener, by socket
	ids       map[requestID]*transfer
	active    []*transfer
	young     []*transfer // those that were begun, oldest first; the unproven ones are among them
	perAddr   map[netip.Addr]int
	seed      maphash.Seed
	maps      *mappings
	gso       bool
	ending    bool

	out     out
	buf     [2048]byte
	control [256]byte
	scratch []byte
	events  [64]unix.EpollEvent

	beside sync.WaitGroup
	mu     sync.Mutex
	opened []opening
}

// requestID tells a repeated request from a new one of the same client.
type requestID struct {
	peer netip.AddrPort
	hash uint64
}

// opening is what became of looking for a file.
type opening struct {
	t       *transfer
	content Content
	view    []byte
	release func()
	err     error
}

const (
	tick     = 25 * time.Millisecond // how exactly timeouts are kept
	linkTick = time.Second           // how soon an interface is missed
	// evictAge is when an unproven transfer may have to make room: a real
	// client's first ACK has come long before.
	evictAge = 200 * time.Millisecond
	// maxStrays is how many packets with a wrong TID are answered per transfer.
	maxStrays = 16
)

func newLoop(ctx context.Context, s *Server) (*loop, error) {
	l := &loop{s: s, ctx: ctx, started: time.Now(), epoll: -1, wakeFD: -1, ids: map[requestID]*transfer{}, perAddr: map[netip.Addr]int{},
		seed: maphash.MakeSeed(), maps: newMappings(), gso: true}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("wait for sockets: %w", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		err = l.watch(l.wakeFD, nil)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("wait for sockets: %w", err)
	}
	return l, nil
}

// watch has the loop told of what comes in on fd.
func (l *loop) watch(fd int, who any) error {
	for len(l.byFD) <= fd {
		l.byFD = append(l.byFD, nil)
	}
	l.byFD[fd] = who
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// forget closes fd.
func (l *loop) forget(fd int) {
	l.byFD[fd] = nil
	unix.Close(fd)
}

// listen adds a listener.
func (l *loop) listen(li *listener) error {
	if err := l.watch(li.fd, li); err != nil {
		return fmt.Errorf("TFTP on %s: %w", li.address, err)
	}
	l.listeners = append(l.listeners, li)
	return nil
}

func (l *loop) close() {
	for _, li := range l.listeners {
		unix.Close(li.fd)
	}
	for _, fd := range []int{l.wakeFD, l.epoll} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (l *loop) now() time.Duration { return time.Since(l.started) }

// wake makes the loop look around; any goroutine may call it.
func (l *loop) wake() { unix.Write(l.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) } //nolint:errcheck // full: it is awake

// run serves until stop is done, and then ends what is under way, within grace.
func (l *loop) run(stop context.Context) error {
	l.beside.Add(1) // so that nothing is written to a descriptor that is another's by then
	unhook := context.AfterFunc(stop, func() {
		l.wake()
		l.beside.Done()
	})
	defer func() {
		if unhook() {
			l.beside.Done()
		}
	}()
	var nextTick, nextLink, end time.Duration
	for {
		now := l.now()
		if stop.Err() != nil {
			if !l.ending {
				l.ending, end = true, now+grace
				for _, li := range l.listeners {
					l.forget(li.fd)
				}
				l.listeners = nil
			}
			if len(l.active) == 0 {
				return nil
			}
			if now >= end {
				for len(l.active) > 0 {
					l.end(l.active[0], Failed, errEnding)
				}
				return nil
			}
		}
		if now >= nextLink {
			l.links()
			nextLink = now + linkTick
		}
		wait := nextLink - now
		if len(l.active) > 0 {
			if now >= nextTick {
				l.expire(now)
				nextTick = now + tick
			}
			wait = min(wait, nextTick-now)
		}
		n, err := unix.EpollWait(l.epoll, l.events[:], int(wait/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for sockets: %w", err)
		}
		for _, e := range l.events[:max(n, 0)] {
			switch who := l.byFD[e.Fd].(type) {
			case *transfer:
				l.handle(who, int(e.Fd), e.Events)
			case *listener:
				l.requests(who)
			default:
				if int(e.Fd) == l.wakeFD {
					unix.Read(l.wakeFD, l.buf[:8]) //nolint:errcheck // only to reset it
					l.takeOpened()
				}
			}
		}
	}
}

// expire looks after transfers whose client has not answered.
func (l *loop) expire(now time.Duration) {
	for i := len(l.active) - 1; i >= 0; i-- {
		t := l.active[i]
		if t.fd < 0 || t.writing {
			continue // its file is being looked for, or its socket is full
		}
		switch t.expire(now) {
		case sendOn:
			l.push(t, now)
		case gaveUp:
			l.end(t, TimedOut, nil)
		}
	}
}

// handle takes in what has come for a transfer, by one of its sockets.
func (l *loop) handle(t *transfer, fd int, events uint32) {
	if events&unix.EPOLLERR != 0 && l.refused(t, fd) {
		l.end(t, Aborted, nil)
		return
	}
	if events&unix.EPOLLOUT != 0 && t.writing {
		t.writing = false
		l.interest(t, unix.EPOLLIN)
		l.fill(t, l.now())
	}
	if events&unix.EPOLLIN == 0 {
		return
	}
	var n int
	var err error
	if t.others >= 0 && fd == t.fd { // connected: it is from the client
		n, err = recv(fd, l.buf[:])
	} else {
		var from sockaddr
		n, err = recvFrom(fd, l.buf[:], &from)
		if err == nil && from.b != t.to.b && from.addrPort() != t.peer {
			l.stray(t, fd, l.buf[:min(n, len(l.buf))], &from)
			return
		}
	}
	if err != nil {
		return // an error that was kept for us, or nothing
	}
	if n < 4 || n > len(l.buf) || l.buf[0] != 0 {
		l.s.count.stray.Add(1)
		return
	}
	switch l.buf[1] {
	case opACK:
		now := l.now()
		switch t.ack(uint16(l.buf[2])<<8|uint16(l.buf[3]), now) {
		case sendOn:
			l.push(t, now)
		case finished:
			l.end(t, Sent, nil)
		}
	case opERROR:
		code, text := parseError(l.buf[:n])
		if t.oack != nil && t.req.tsize {
			// UEFI asks for the size, and breaks off once it knows.
			l.end(t, Probed, nil)
			return
		}
		t.log(l.s).Debug("TFTP client broke off", "code", code, "text", text)
		l.end(t, Aborted, nil)
	default:
		l.s.count.stray.Add(1)
	}
}

// stray answers a packet that is not from the transfer's client (RFC 1350,
// section 4), which disturbs nothing. An ERROR is not answered with one.
func (l *loop) stray(t *transfer, fd int, b []byte, from *sockaddr) {
	l.s.count.stray.Add(1)
	if t.strays++; t.strays > maxStrays || len(b) >= 2 && b[1] == opERROR {
		return
	}
	sendTo(fd, errorPacket(&refusal{codeUnknownTID, "unknown transfer"}), from) //nolint:errcheck // lost is lost
}

// refused reads what came back about packets sent, and tells whether the
// client's port has closed.
func (l *loop) refused(t *transfer, fd int) (gone bool) {
	var to sockaddr
	var b [64]byte
	for range 8 {
		_, oob, err := recvMsg(fd, b[:], l.control[:], &to, unix.MSG_ERRQUEUE)
		if err != nil {
			break
		}
		// struct sock_extended_err begins with the errno; the address is the
		// one that the packet was sent to.
		if len(oob) >= unix.SizeofCmsghdr+4 && oob[unix.SizeofCmsghdr] == byte(unix.ECONNREFUSED) && to.addrPort() == t.peer {
			gone = true
		}
	}
	return gone
}

func (l *loop) interest(t *transfer, events uint32) {
	unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, t.fd, &unix.EpollEvent{Events: events, Fd: int32(t.fd)}) //nolint:errcheck // the socket is in it
}

// push sends what t's window allows, or its OACK.
func (l *loop) push(t *transfer, now time.Duration) {
	t.round(now)
	if t.oack == nil {
		l.fill(t, now)
		return
	}
	if t.tries > 0 {
		l.s.count.retransmits.Add(1)
	}
	l.try(t, now, func() error { return sendTo(t.fd, t.oack, &t.to) })
}

// try sends something, and once more after an error of an earlier packet that
// the kernel had kept for us. It tells whether to go on; what is lost otherwise
// is sent again after a while, so a link that went down is not the end.
func (l *loop) try(t *transfer, now time.Duration, send func() error) bool {
	err := send()
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
		err = send()
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		t.writing = true
		l.interest(t, unix.EPOLLIN|unix.EPOLLOUT)
	case errors.Is(err, unix.ENOBUFS):
		t.held, t.deadline = true, now+tick
	}
	return err == nil
}

// maxMessage is what one message may hold, in bytes, IPv4's and UDP's heads
// taken off.
const maxMessage = 65507

// fill sends blocks as long as the window has room.
func (l *loop) fill(t *transfer, now time.Duration) {
	segment := t.blksize + 4
	most := 1
	if l.gso {
		most = max(1, min(maxMessage/segment, maxSegments))
	}
	for !t.over {
		before, o := t.sent, &l.out
		o.n = 0
		bytes := int64(0)
		for o.n < most {
			number, from, to, ok := t.next()
			if !ok {
				break
			}
			data, err := l.read(t, o.n, from, to)
			if err != nil {
				t.log(l.s).Error("TFTP cannot read file", "err", err)
				l.end(t, Failed, errServer)
				return
			}
			o.add(number, data)
			t.sent++
			bytes += to - from
		}
		if o.n == 0 {
			return
		}
		to := &t.to
		if t.others >= 0 {
			to = nil
		}
		err := o.send(t.fd, to, segment)
		switch {
		case o.n > 1 && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)):
			// No segmentation on this interface (it has no checksums of its
			// own) or in this kernel: packets one by one, from here on.
			l.gso, most, t.sent = false, 1, before
			continue
		case errors.Is(err, unix.EFAULT):
			t.log(l.s).Error("TFTP file became shorter while it was sent", "err", err)
			l.end(t, Failed, errServer)
			return
		case err != nil && !l.try(t, now, func() error { return o.send(t.fd, to, segment) }):
			t.sent = before
			return
		}
		l.s.count.bytes.Add(uint64(bytes))
		if again := min(t.sent, t.high) - before; again > 0 {
			l.s.count.retransmits.Add(uint64(again))
		}
		t.high = max(t.high, t.sent)
	}
}

// read gives the content of a block: where it is in memory, or in a part of
// the scratch memory of its own.
func (l *loop) read(t *transfer, nth int, from, to int64) ([]byte, error) {
	if t.view != nil {
		return t.view[from:to], nil
	}
	if from == to {
		return nil, nil
	}
	if l.scratch == nil {
		l.scratch = make([]byte, maxMessage)
	}
	b := l.scratch[nth*t.blksize:][:to-from]
	if n, err := t.content.ReadAt(b, from); n < len(b) {
		return nil, fmt.Errorf("read at %d: %w", from, err)
	}
	return b, nil
}
