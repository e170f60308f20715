package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tftpFetch is one file fetched by many clients at once. The clients are one
// thread that takes in packets in batches, so that they cost less than the
// servers that are measured.
type tftpFetch struct {
	server                   netip.AddrPort
	file                     string
	size                     int64
	clients, blksize, window int
}

type tftpResult struct {
	took    time.Duration
	retries int // what a client had to ask for again
	window  int // what the server agreed to
}

// tftpPatience is how long a client waits before it asks again, and how long
// all may take.
const (
	tftpPatience = 500 * time.Millisecond
	tftpLimit    = 5 * time.Minute
)

type tftpClient struct {
	fd       int
	from     bool // the server's port is known
	next     int64
	unacked  int
	window   int
	blksize  int
	got      int64
	heard    time.Time
	nacked   bool
	finished bool
}

// run fetches; it must be called in the clients' namespace.
func (f tftpFetch) run(ctx context.Context) (res tftpResult, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return res, err
	}
	defer unix.Close(epoll)
	to := &unix.SockaddrInet4{Port: int(f.server.Port()), Addr: f.server.Addr().As4()}
	request := append([]byte{0, 1}, f.file+"\x00octet\x00blksize\x00"+strconv.Itoa(f.blksize)+"\x00tsize\x000\x00"...)
	if f.window > 1 {
		request = append(request, "windowsize\x00"+strconv.Itoa(f.window)+"\x00"...)
	}
	clients := make([]*tftpClient, f.clients)
	byFD := map[int32]*tftpClient{}
	defer func() {
		for fd := range byFD {
			unix.Close(int(fd))
		}
	}()
	for i := range clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return res, err
		}
		clients[i] = &tftpClient{fd: fd, next: 1, window: 1, blksize: 512}
		byFD[int32(fd)] = clients[i]
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return res, err
		}
	}
	in := newBatch()
	begin := time.Now()
	for _, c := range clients {
		c.heard = begin
		if err := unix.Sendto(c.fd, request, 0, to); err != nil {
			return res, fmt.Errorf("send request: %w", err)
		}
	}
	var events [64]unix.EpollEvent
	left, look := len(clients), begin.Add(tftpPatience)
	for left > 0 {
		n, err := unix.EpollWait(epoll, events[:], 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return res, err
		}
		now := time.Now()
		for _, e := range events[:max(n, 0)] {
			c := byFD[e.Fd]
			if err := c.take(in, now, &res); err != nil {
				return res, err
			}
			if c.finished && c.got != f.size {
				return res, fmt.Errorf("got %d bytes of %d", c.got, f.size)
			}
			if c.finished {
				unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
				c.heard, left = now.Add(time.Hour), left-1
			}
		}
		if now.Before(look) {
			continue
		}
		look = now.Add(tftpPatience / 5)
		if now.Sub(begin) > tftpLimit || ctx.Err() != nil {
			return res, fmt.Errorf("%d of %d clients not finished after %s", left, len(clients), now.Sub(begin).Round(time.Second))
		}
		for _, c := range clients {
			if now.Sub(c.heard) < tftpPatience {
				continue
			}
			c.heard = now
			res.retries++
			if c.from {
				c.ack()
			} else {
				unix.Sendto(c.fd, request, 0, to)
			}
		}
	}
	res.took = time.Since(begin)
	return res, nil
}

// ack acknowledges what came in order.
func (c *tftpClient) ack() {
	b := [4]byte{0, 4}
	binary.BigEndian.PutUint16(b[2:], uint16(c.next-1))
	c.unacked = 0
	unix.Write(c.fd, b[:])
}

// take takes in what has come for c.
func (c *tftpClient) take(in *batch, now time.Time, res *tftpResult) error {
	n := in.receive(c.fd)
	for i := range n {
		b := in.buf[i][:in.msgs[i].n]
		if len(b) < 4 {
			continue
		}
		if !c.from {
			sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&in.from[i]))
			port := int(binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:]))
			if err := unix.Connect(c.fd, &unix.SockaddrInet4{Port: port, Addr: sa.Addr}); err != nil {
				return err
			}
			c.from = true
		}
		switch b[1] {
		case 5:
			return fmt.Errorf("the server says %q", b[4:])
		case 6:
			if c.next > 1 {
				continue
			}
			words := bytes.Split(b[2:], []byte{0})
			for j := 0; j+1 < len(words); j += 2 {
				v, _ := strconv.Atoi(string(words[j+1]))
				switch string(words[j]) {
				case "blksize":
					c.blksize = v
				case "windowsize":
					c.window = v
				}
			}
			res.window, c.heard = c.window, now
			c.ack()
		case 3:
			if binary.BigEndian.Uint16(b[2:]) != uint16(c.next) {
				if c.window > 1 && !c.nacked {
					c.nacked = true
					res.retries++
					c.ack()
				}
				continue
			}
			c.next++
			c.got += int64(len(b) - 4)
			c.heard, c.nacked = now, false
			c.finished = len(b)-4 < c.blksize
			if c.unacked++; c.finished || c.unacked >= c.window {
				c.ack()
			}
		}
	}
	return nil
}

// pingPong sends an ACK and takes in a window of packets, that many times, and
// gives the mean of what one such round took: the
// pauses that a busy machine makes are in it, as they are in what it is compared with.
func (f tftpFetch) pingPong(rounds int) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(f.server.Port()), Addr: f.server.Addr().As4()}); err != nil {
		return 0, err
	}
	buf, begin := make([]byte, 2048), time.Now()
	for range rounds {
		if _, err := unix.Write(fd, []byte{0, 4, 0, 0}); err != nil {
			return 0, err
		}
		for range f.window {
			if _, err := unix.Read(fd, buf); err != nil {
				return 0, err
			}
		}
	}
	return time.Since(begin) / time.Duration(rounds), nil
}

// batch is room for packets that come with one call (recvmmsg(2)).
type batch struct {
	buf  [32][2048]byte
	from [32]unix.RawSockaddrInet4
	iov  [32]unix.Iovec
	msgs [32]struct {
		hdr unix.Msghdr
		n   uint32
		_   uint32
	}
}

func newBatch() *batch {
	b := &batch{}
	for i := range b.msgs {
		b.iov[i].Base = &b.buf[i][0]
		b.iov[i].SetLen(len(b.buf[i]))
		b.msgs[i].hdr.Iov = &b.iov[i]
		b.msgs[i].hdr.SetIovlen(1)
		b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.from[i]))
	}
	return b
}

func (b *batch) receive(fd int) int {
	for i := range b.msgs {
		b.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
	}
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// relay delays packets in both directions, each by the same time: a network
// with that round trip, for one client. netem would do it in the kernel, where
// there is one.
type relay struct {
	front, back int // sockets: towards the client, and the server
	delay       time.Duration
	client      unix.Sockaddr
	server      unix.SockaddrInet4
	queue       []delayed
}

type delayed struct {
	b    []byte
	at   time.Time // when it came
	back bool      // towards the server
}

// newRelay listens on a port of loopback, in the namespace it is called in.
func newRelay(server netip.AddrPort, delay time.Duration) (*relay, netip.AddrPort, error) {
	r := &relay{delay: delay, server: unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}}
	var err error
	if r.front, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, netip.AddrPort{}, err
	}
	if r.back, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, netip.AddrPort{}, err
	}
	if err := unix.Bind(r.front, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, netip.AddrPort{}, err
	}
	sa, err := unix.Getsockname(r.front)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	in := sa.(*unix.SockaddrInet4)
	return r, netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)), nil
}

func (r *relay) close() { unix.Close(r.front); unix.Close(r.back) }

// run relays until stop is closed.
func (r *relay) run(stop <-chan struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	buf := make([]byte, 2048)
	fds := []unix.PollFd{{Fd: int32(r.front), Events: unix.POLLIN}, {Fd: int32(r.back), Events: unix.POLLIN}}
	for {
		select {
		case <-stop:
			return
		default:
		}
		wait := 20 * time.Millisecond
		if len(r.queue) > 0 {
			wait = max(0, time.Until(r.queue[0].at.Add(r.delay)))
		}
		ts := unix.NsecToTimespec(int64(wait))
		unix.Ppoll(fds, &ts, nil)
		for i, fd := range []int{r.front, r.back} {
			for {
				n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
				if err != nil {
					break
				}
				if i == 0 {
					r.client = from
				} else if a, ok := from.(*unix.SockaddrInet4); ok {
					r.server = *a // from the first answer on, the transfer's port
				}
				r.queue = append(r.queue, delayed{bytes.Clone(buf[:n]), time.Now(), i == 0})
			}
		}
		for len(r.queue) > 0 {
			d := r.queue[0]
			if time.Since(d.at) < r.delay {
				break
			}
			r.queue = r.queue[1:]
			if d.back {
				unix.Sendto(r.back, d.b, 0, &r.server)
			} else {
				unix.Sendto(r.front, d.b, 0, r.client)
			}
		}
	}
}
