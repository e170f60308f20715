package tftp

import (
	"errors"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// requests takes in what has come to port 69.
func (l *loop) requests(li *listener) {
	var from sockaddr
	for range 64 { // then the transfers have their turn
		n, oob, err := recvMsg(li.fd, l.buf[:], l.control[:], &from, 0)
		if err != nil {
			return
		}
		local, scope, direct := localAddr(oob)
		peer := from.addrPort()
		if !direct || !local.IsValid() || peer.Port() == 0 || peer.Addr().IsMulticast() {
			continue // requests to broadcast addresses are passed over (RFC 1123, 4.2.3.5)
		}
		l.request(li, l.buf[:min(n, len(l.buf))], peer, local, scope)
	}
}

// request begins a transfer, or says why not.
func (l *loop) request(li *listener, b []byte, peer netip.AddrPort, local netip.Addr, scope int) {
	q, err := parseRequest(b)
	if errors.Is(err, errNoRequest) {
		l.s.count.stray.Add(1)
		return
	}
	now := l.now()
	t := &transfer{peer: peer, on: li, local: local, scope: scope, req: q, fd: -1, others: -1, index: -1, begun: now}
	t.to.setAddr(peer.Addr(), peer.Port(), scope)
	var no *refusal
	if errors.As(err, &no) {
		l.refuse(t, Refused, no)
		return
	}
	t.id = requestID{peer, maphash.Bytes(l.seed, b)}
	if old := l.ids[t.id]; old != nil {
		// Repeated, or late: the first one's answer is under way, and is sent
		// again by itself. But a box that got on, then fell silent and now asks
		// anew, from the port that its ROM always takes, has begun anew.
		if !old.proven || now-old.progress < firstWait {
			return
		}
		l.end(old, Aborted, nil)
	}
	addr := limitKey(peer.Addr())
	if l.perAddr[addr] >= l.s.MaxPerAddress || len(l.active) >= l.s.MaxTransfers && !l.evict(now) {
		// Without a word: the client asks again.
		l.s.count.dropped.Add(1)
		return
	}
	if t.mac, t.file, err = ParsePath(q.name); err != nil {
		l.s.Log.Debug("TFTP request refused", "path", clip(q.name), "peer", peer, "err", err)
		l.refuse(t, NotFound, errMissing)
		return
	}
	l.admit(t, addr)
	l.beside.Go(func() {
		o := opening{t: t, release: func() {}}
		o.content, o.err = l.s.open(l.ctx, t.mac, t.file, zoned(peer.Addr(), scope))
		if o.err == nil {
			o.view, o.release = l.maps.of(o.content)
		}
		l.mu.Lock()
		l.opened = append(l.opened, o)
		l.mu.Unlock()
		l.wake()
	})
}

// limitKey is what counts as one address: of IPv6 a /64, which is one box's
// to choose from.
func limitKey(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// admit counts t in.
func (l *loop) admit(t *transfer, addr netip.Addr) {
	l.ids[t.id] = t
	l.perAddr[addr]++
	t.index = len(l.active)
	l.active = append(l.active, t)
	l.s.count.active.Store(int64(len(l.active)))
	for len(l.young) > 0 && (l.young[0].proven || l.young[0].over) {
		l.young[0] = nil
		l.young = l.young[1:]
	}
	l.young = append(l.young, t)
}

// evict makes room by ending the oldest transfer whose client has never
// answered: a flood of requests with made-up sources must not keep out boxes.
func (l *loop) evict(now time.Duration) bool {
	for len(l.young) > 0 {
		t := l.young[0]
		if !t.proven && !t.over {
			if now-t.begun < evictAge {
				return false
			}
			l.s.count.dropped.Add(1)
			l.end(t, TimedOut, nil)
			return true
		}
		l.young[0] = nil
		l.young = l.young[1:]
	}
	return false
}

// takeOpened begins the transfers whose files were found.
func (l *loop) takeOpened() {
	l.mu.Lock()
	list := l.opened
	l.opened = nil
	l.mu.Unlock()
	for _, o := range list {
		t := o.t
		if o.err == nil {
			t.content, t.view, t.release = o.content, o.view, o.release
		}
		switch {
		case t.over: // ended while its file was looked for
			t.drop()
		case errors.Is(o.err, dsas.ErrNotFound):
			t.log(l.s).Debug("TFTP file not found")
			l.end(t, NotFound, errMissing)
		case o.err != nil:
			t.log(l.s).Warn("TFTP file not sent", "err", o.err)
			l.end(t, Failed, errServer)
		default:
			l.begin(t)
		}
	}
}

// begin sends t's first packet.
func (l *loop) begin(t *transfer) {
	if t.size = t.content.Size(); t.view != nil {
		t.size = int64(len(t.view))
	}
	t.agree(t.on.limit(t.peer.Addr().Is4()))
	fd, err := newSocket(t.local, t.scope, t.on.device)
	if err == nil {
		if err = l.watch(fd, t); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		t.log(l.s).Warn("TFTP cannot begin a transfer", "err", err)
		l.end(t, Failed, nil)
		return
	}
	t.fd = fd
	if t.blocks >= connectFrom {
		l.connect(t)
	}
	l.push(t, l.now())
}

// connectFrom is from how many blocks on a connected socket is worth having,
// which takes a tenth off a packet.
const connectFrom = 64

// connect gives t a connected socket; without one, t does as well.
func (l *loop) connect(t *transfer) {
	fd, err := connect(t.fd, t.local, t.scope, t.on.device, &t.to)
	if err != nil {
		return
	}
	if err := l.watch(fd, t); err != nil {
		unix.Close(fd)
		return
	}
	t.fd, t.others = fd, t.fd
}

// refuse answers a request that begins no transfer.
func (l *loop) refuse(t *transfer, how Outcome, why *refusal) {
	l.s.count.end(label(t.file), how)
	l.tell(t, why)
}

// tell sends an ERROR, from a new port where t has none yet. Once: an ERROR is
// not acknowledged, and who asks again gets it again.
func (l *loop) tell(t *transfer, why *refusal) {
	fd := t.fd
	if fd < 0 {
		var err error
		if fd, err = newSocket(t.local, t.scope, t.on.device); err != nil {
			return
		}
		defer unix.Close(fd)
	}
	sendTo(fd, errorPacket(why), &t.to) //nolint:errcheck // lost is lost
}

// end closes t. why, where given, is told to the client.
func (l *loop) end(t *transfer, how Outcome, why *refusal) {
	if t.over {
		return
	}
	t.over = true
	if why != nil {
		l.tell(t, why)
	}
	for _, fd := range []*int{&t.fd, &t.others} {
		if *fd >= 0 {
			l.forget(*fd)
			*fd = -1
		}
	}
	last := len(l.active) - 1
	l.active[t.index] = l.active[last]
	l.active[t.index].index = t.index
	l.active[last] = nil
	l.active = l.active[:last]
	l.s.count.active.Store(int64(last))
	if l.ids[t.id] == t {
		delete(l.ids, t.id)
	}
	addr := limitKey(t.peer.Addr())
	if l.perAddr[addr]--; l.perAddr[addr] <= 0 {
		delete(l.perAddr, addr)
	}
	l.s.count.end(label(t.file), how)
	t.drop()
	took := l.now() - t.begun
	switch {
	case how == Sent:
		t.log(l.s).Debug("TFTP sent", "bytes", t.size, "took", took)
		if l.s.Sent != nil {
			x := Transfer{MAC: t.mac, File: t.file, Peer: t.peer.String(), Bytes: t.size, Duration: took}
			l.beside.Go(func() { l.s.Sent(l.ctx, x) })
		}
	case how == Probed:
		t.log(l.s).Debug("TFTP client asked for the size alone")
	case (how == TimedOut || how == Aborted) && t.proven:
		t.log(l.s).Info("TFTP transfer not finished", "outcome", string(how), "bytes", min(t.acked*int64(t.blksize), t.size), "of", t.size)
	}
}

// drop lets go of t's content.
func (t *transfer) drop() {
	if t.content == nil {
		return
	}
	t.release()
	t.content.Close()
	t.content, t.view = nil, nil
}

func (t *transfer) log(s *Server) *slog.Logger {
	return s.Log.With("mac", t.mac, "file", t.file, "peer", t.peer)
}
