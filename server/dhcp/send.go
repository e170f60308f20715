package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// packet answers one packet, and waits for all that there is to wait for.
func (s *Server) packet(ctx context.Context, l *link, p received) {
	m := new(slate)
	if !s.read(l, m, &p) {
		return
	}
	work, cancel := context.WithTimeout(ctx, answerWithin)
	rep := s.reply(work, m, l, &p)
	cancel()
	switch {
	case rep == nil:
	case rep.probe.IsValid():
		if !s.checks.begin(rep.seen.mac) {
			s.count.drop(DropSuperseded)
			return
		}
		go s.probeAndSend(ctx, l, rep)
	case rep.onDisk != nil:
		s.sendOnceOnDisk(ctx, l, rep)
	default:
		s.sendReply(ctx, l, rep)
	}
}

// read reads p into m.
func (s *Server) read(l *link, m *slate, p *received) bool {
	err := parseInto(&m.req, p.data)
	if err != nil {
		s.count.drop(DropMalformed)
		if s.news(l.name+" parse", time.Minute) {
			s.Log.Info("DHCP packet not understood", "interface", l.name, "from", p.from, "err", err)
		}
	}
	return err == nil
}

// reply makes the answer to what m read; nil for none.
func (s *Server) reply(ctx context.Context, m *slate, l *link, p *received) (rep *reply) {
	s.count.received[receivedType(&m.req)].Add(1)
	var err error
	if s.Proxy {
		rep, err = s.proxy(ctx, m, l, &m.req, p.from)
	} else {
		rep, err = s.answer(ctx, m, l, &m.req, p.unicast)
	}
	if err != nil {
		s.notAnswered(l, &m.req, err)
		return nil
	}
	return rep
}

// notAnswered counts a packet that gets no answer, and says why once in a
// while where that is news.
func (s *Server) notAnswered(l *link, req *dhcpv4.DHCPv4, err error) {
	why := DropError
	var u unanswered
	if errors.As(err, &u) {
		why = u.why
	}
	s.count.drop(why)
	if err == nil || errors.As(err, &u) && u.error == nil {
		return
	}
	r := relayOf(req)
	key := fmt.Sprint("drop ", why, " ", r.via(l.name))
	if why == DropLimit {
		key = err.Error() // names the port
	}
	if s.news(key, time.Minute) {
		s.Log.Warn("DHCP request not answered", "mac", req.ClientHWAddr.String(), "type", typeOf(req), "interface", l.name, "reason", why, "err", err)
	}
}

// news tells whether to log what anybody on the segment can bring about: the
// same once in d, and of made-up keys (MACs, relays) no more than a person reads.
func (s *Server) news(key string, d time.Duration) bool {
	now := s.Now()
	return s.seen.first(key, now, d) && s.lines.allow(now, time.Minute, maxLines)
}

// sendOnceOnDisk sends rep when what it promises is on disk.
func (s *Server) sendOnceOnDisk(ctx context.Context, l *link, rep *reply) {
	wait, cancel := context.WithTimeout(ctx, answerWithin)
	err := rep.onDisk(wait)
	cancel()
	if err != nil {
		s.notAnswered(l, rep.seen.req, leaseError(rep.lease(), rep.seen.mac, err))
		return
	}
	s.sendReply(ctx, l, rep)
}

// sendReply sends rep and records what is left to record.
func (s *Server) sendReply(ctx context.Context, l *link, rep *reply) {
	s.send(ctx, l, rep)
	s.record(ctx, rep.gave)
	if port, ok := s.portNews(rep.seen); ok {
		s.recordPort(ctx, port)
	}
}

// send sends rep by itself.
func (s *Server) send(ctx context.Context, l *link, rep *reply) {
	mac, _ := dsas.MACFrom(rep.msg.ClientHWAddr)
	s.sent(l, note{mac, typeOf(rep.msg)}, l.send(rep))
	s.debug(ctx, rep)
}

// debug tells of every answer, where that is wanted.
func (s *Server) debug(ctx context.Context, rep *reply) {
	if s.Log.Enabled(ctx, slog.LevelDebug) {
		s.Log.Debug("DHCP", "mac", rep.msg.ClientHWAddr.String(), "xid", rep.msg.TransactionID, "answer", typeOf(rep.msg),
			"address", rep.msg.YourIPAddr, "file", rep.msg.BootFileName, "to", rep.to)
	}
}

// sent counts an answer, or says why it did not go out.
func (s *Server) sent(l *link, who note, err error) {
	if err == nil {
		s.count.answered[typeName(who.typ)].Add(1)
		return
	}
	s.count.drop(DropError)
	if s.seen.first("send "+l.name, s.Now(), 10*time.Second) {
		s.Log.Warn("DHCP answer not sent", "mac", who.mac, "interface", l.name, "err", err)
	}
}

// lease is the address that an answer gives.
func (r *reply) lease() netip.Addr {
	a, _ := addrOf(r.msg.YourIPAddr)
	return a
}

// source is where an answer comes from.
func (r *reply) source() netip.AddrPort { return netip.AddrPortFrom(r.from, ServerPort) }

// send brings a reply to where RFC 2131 section 4.1 wants it.
func (l *link) send(r *reply) error {
	st := l.state.Load()
	b := appendMessage(nil, r.msg)
	if st.raw != nil && r.direct != nil {
		return st.raw.SendFrame(r.direct, r.source(), r.to, b)
	}
	if st.raw != nil && r.hw != nil {
		return st.raw.SendFrame(r.hw, r.source(), r.to, b)
	}
	to := r.to
	if r.hw != nil { // no packet socket: everyone hears it
		to = netip.AddrPortFrom(broadcast, to.Port())
	}
	if st.raw != nil {
		return st.raw.sendFrom(r.from, to, b)
	}
	_, err := st.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}
