package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pin "github.com/pin/tftp/v3"

	"dsas/server/boot"
)

// begin asks for a file and expects this OACK.
func (p *peer) begin(addr string, oack string, opts ...string) {
	p.t.Helper()
	p.send(addr, rrq(dir+boot.FileUndionly, opts...))
	op, rest, ok := p.recv(10 * time.Second)
	if !ok || op != opOACK || string(rest) != oack {
		p.t.Fatalf("answer = %d %q; want OACK %q", op, rest, oack)
	}
}

// data expects the next packet to be this block, and gives its content.
func (p *peer) data(number uint16) []byte {
	p.t.Helper()
	op, rest, ok := p.recv(10 * time.Second)
	for ok && p.stalled && op == opDATA && binary.BigEndian.Uint16(rest) != number {
		op, rest, ok = p.recv(10 * time.Second)
	}
	if !ok || op != opDATA || binary.BigEndian.Uint16(rest) != number {
		p.t.Fatalf("answer = %d %.8q; want DATA %d", op, rest, number)
	}
	return rest[2:]
}

// quiet expects that nothing more comes for a while in which it would.
func (p *peer) quiet(d time.Duration) {
	p.t.Helper()
	if op, rest, ok := p.recv(d); ok {
		p.t.Errorf("then %d %.8q came; want nothing", op, rest)
	}
}

// done waits until the server tells of a whole file.
func done(t *testing.T, sent chan Transfer, size int64) {
	t.Helper()
	select {
	case x := <-sent:
		if x.Bytes != size {
			t.Errorf("Sent told %d bytes; want %d", x.Bytes, size)
		}
	case <-time.After(20 * time.Second):
		t.Error("Sent told nothing")
	}
}

// TestWindowLoss: a client that lost a block within a window, and one that
// lost the first one of it, get the rest again, and nothing twice.
func TestWindowLoss(t *testing.T) {
	addr, files, sent := start(t, nil)
	want := content(t, files, boot.FileUndionly, 9*16+5)
	p := newPeer(t)
	p.begin(addr, "blksize\x0016\x00windowsize\x004\x00", "blksize", "16", "windowsize", "4")
	p.ack(0)
	for n := uint16(1); n <= 4; n++ {
		p.data(n)
	}
	p.ack(2) // 3 is lost
	for n := uint16(3); n <= 6; n++ {
		if got := p.data(n); !bytes.Equal(got, want[(n-1)*16:n*16]) {
			t.Errorf("block %d = %x; want %x", n, got, want[(n-1)*16:n*16])
		}
	}
	p.ack(2) // an old one, that came twice
	p.ack(6)
	for n := uint16(7); n <= 9; n++ {
		p.data(n)
	}
	if got := p.data(10); len(got) != 5 {
		t.Errorf("last block has %d bytes; want 5", len(got))
	}
	// All of the window is lost: the client asks for it by its last ACK again,
	// once it has waited.
	time.Sleep(50 * time.Millisecond) // longer than a round trip on loopback
	p.ack(6)
	for n := uint16(7); n <= 10; n++ {
		p.data(n)
	}
	p.ack(10)
	done(t, sent, int64(len(want)))
	p.quiet(100 * time.Millisecond)
}

// TestApprentice: every ACK comes twice. Each block is sent once all the same
// (RFC 1123, 4.2.3.1).
func TestApprentice(t *testing.T) {
	addr, files, sent := start(t, nil)
	content(t, files, boot.FileUndionly, 20*512)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	for n := uint16(1); n <= 21; n++ {
		p.data(n)
		p.ack(n)
		if n < 21 {
			p.ack(n)
		}
		if n > 1 {
			p.ack(n - 1)
		}
	}
	done(t, sent, 20*512)
}

// TestRetransmit: what is lost comes again by itself, and so does an OACK.
func TestRetransmit(t *testing.T) {
	t.Parallel()
	var s *Server
	addr, files, sent := start(t, nil, func(v *Server) { s = v })
	content(t, files, boot.FileUndionly, 1000)
	p := newPeer(t)
	p.begin(addr, "tsize\x001000\x00", "tsize", "0")
	if op, _, ok := p.recv(10 * time.Second); !ok || op != opOACK {
		t.Fatalf("answer = %d; want the OACK again", op)
	}
	p.ack(0)
	p.data(1)
	p.data(1)
	p.ack(1)
	p.data(2)
	p.data(2)
	p.ack(2)
	done(t, sent, 1000)
	st := s.Stats()
	if st.Retransmits < 3 || st.Bytes < 1000+512+488 || st.Transfers[FileOutcome{boot.FileUndionly, Sent}] != 1 || st.Active != 0 {
		t.Errorf("Stats = %+v; want 3 retransmits or more, 2000 bytes, one file sent, none active", st)
	}
}

// TestRollover: beyond block 65535, by both conventions.
func TestRollover(t *testing.T) {
	addr, files, sent := start(t, nil)
	const size = 65540*8 + 3
	want := content(t, files, boot.FileUndionly, size)
	for _, to := range []string{"", "0", "1"} {
		p := newPeer(t)
		opts, oack := []string{"blksize", "8", "windowsize", "64"}, "blksize\x008\x00windowsize\x0064\x00"
		if to != "" {
			opts, oack = append(opts, "rollover", to), oack+"rollover\x00"+to+"\x00"
		}
		p.begin(addr, oack, opts...)
		p.ack(0)
		var got []byte
		for n := 1; ; n++ {
			number := uint16(n)
			if to == "1" && n > 65535 {
				number = uint16(n - 65535)
			}
			b := p.data(number)
			got = append(got, b...)
			if len(b) < 8 || n%64 == 0 {
				p.ack(number)
			}
			if len(b) < 8 {
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("rollover %q: got %d bytes; want the file's %d", to, len(got), len(want))
		}
		done(t, sent, size)
	}
}

// TestWrongTID: a packet from another port gets ERROR 5 and disturbs nothing;
// an ERROR from there gets no answer.
func TestWrongTID(t *testing.T) {
	addr, files, sent := start(t, nil)
	content(t, files, boot.FileUndionly, 600)
	content(t, files, boot.FileSNPOnly, 100_000) // by a connected socket
	for _, name := range []string{boot.FileSNPOnly, boot.FileUndionly} {
		wrongTID(t, addr, name)
	}
	done(t, sent, 600)
}

func wrongTID(t *testing.T, addr, name string) {
	p, other := newPeer(t), newPeer(t)
	p.send(addr, rrq(dir+name))
	p.data(1)
	other.to = p.to
	other.ack(1)
	op, rest, ok := other.recv(10 * time.Second)
	if !ok || op != opERROR || rest[1] != codeUnknownTID {
		t.Errorf("answer to a stranger = %d %q; want ERROR 5", op, rest)
	}
	other.c.WriteTo([]byte("\x00\x05\x00\x00no\x00"), p.to)
	other.quiet(100 * time.Millisecond)
	p.c.WriteTo([]byte{0, 4}, p.to) // cut off
	p.c.WriteTo([]byte{0, 3, 0, 1, 5}, p.to)
	p.c.WriteTo(bytes.Repeat([]byte{0, 4}, 4000), p.to) // too long for anything
	p.ack(77)                                           // of no block
	p.ack(1)
	p.data(2)
	p.ack(2)
	if name == boot.FileSNPOnly {
		p.data(3)
		p.c.WriteTo([]byte("\x00\x05\x00\x00enough\x00"), p.to)
	}
}

// TestRefusals: what is refused is said with its code, and why.
func TestRefusals(t *testing.T) {
	addr, files, _ := start(t, nil)
	content(t, files, boot.FileUndionly, 10)
	name := dir + boot.FileUndionly
	for _, tt := range []struct {
		name, packet string
		code         byte
		text         string
	}{
		{"write", "\x00\x02" + name + "\x00octet\x00", codeAccess, "only read"},
		{"netascii", "\x00\x01" + name + "\x00NetASCII\x00", codeIllegal, "octet"},
		{"mail", "\x00\x01" + name + "\x00mail\x00", codeIllegal, "octet"},
		{"no mode", "\x00\x01" + name + "\x00", codeIllegal, "mode"},
		{"cut off in the name", "\x00\x01nbp/52", codeIllegal, "file name"},
		{"cut off in the mode", "\x00\x01" + name + "\x00octe", codeIllegal, "mode"},
		{"no name", "\x00\x01\x00octet\x00", codeIllegal, "file name"},
		{"too long", "\x00\x01" + name + "\x00octet\x00" + strings.Repeat("x\x00y\x00", 200), codeIllegal, "512"},
		{"a way out", "\x00\x01../../etc/passwd\x00octet\x00", codeNotFound, "not found"},
		{"a long name", "\x00\x01" + strings.Repeat("a", 300) + "\x00octet\x00", codeNotFound, "not found"},
	} {
		p := newPeer(t)
		p.send(addr, []byte(tt.packet))
		op, rest, ok := p.recv(10 * time.Second)
		if !ok || op != opERROR || rest[1] != tt.code || !strings.Contains(string(rest[2:]), tt.text) || rest[len(rest)-1] != 0 {
			t.Errorf("%s: answer = %d %q; want ERROR %d that says %q", tt.name, op, rest, tt.code, tt.text)
		}
	}
}

// TestUnproven: to an address that never answers goes one packet, and three
// times the same again, however often its request is repeated.
func TestUnproven(t *testing.T) {
	t.Parallel()
	addr, files, _ := start(t, nil)
	content(t, files, boot.FileUndionly, 100000)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	n := 0
	for {
		op, rest, ok := p.recv(6 * time.Second) // longer than any pause between two
		if !ok {
			break
		}
		if n++; op != opDATA || rest[1] != 1 {
			t.Fatalf("packet %d = %d %.4q; want DATA 1", n, op, rest)
		}
		p.send(addr, rrq(dir+boot.FileUndionly))
		if n > 4 {
			break
		}
	}
	if n != 4 {
		t.Errorf("%d packets came; want 4", n)
	}
}

// TestClosedPort: when the client's machine says that its port has closed, the
// transfer ends at once.
func TestClosedPort(t *testing.T) {
	var s *Server
	addr, files, _ := start(t, nil, func(v *Server) { s = v })
	content(t, files, boot.FileUndionly, 100000)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	p.data(1)
	p.ack(1)
	p.c.Close() // DATA 2 finds nobody
	want := FileOutcome{boot.FileUndionly, Aborted}
	for end := time.Now().Add(20 * time.Second); s.Stats().Transfers[want] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("Stats = %+v; want one aborted", s.Stats())
		}
	}
}

// TestRestarted: a box that was reset in the middle asks anew from the port
// that its ROM always takes, and gets the file from the start.
func TestRestarted(t *testing.T) {
	t.Parallel()
	addr, files, sent := start(t, nil)
	content(t, files, boot.FileUndionly, 600)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	p.data(1)
	p.ack(1)
	first := p.to.Port
	p.data(2)
	for end := time.Now().Add(10 * time.Second); p.to.Port == first; {
		if time.Now().After(end) {
			t.Fatal("the old transfer goes on; want a new one")
		}
		p.send(addr, rrq(dir+boot.FileUndionly))
		p.recv(500 * time.Millisecond)
	}
	p.ack(1)
	p.data(2)
	p.ack(2)
	done(t, sent, 600)
}

// TestFlood: requests from many made-up clients, all that may run, do not keep
// a real one out.
func TestFlood(t *testing.T) {
	var s *Server
	addr, files, sent := start(t, func(c *Config) { c.MaxTransfers, c.MaxPerAddress = 20, 1000 }, func(v *Server) { s = v })
	content(t, files, boot.FileUndionly, 600)
	for range 60 {
		newPeer(t).send(addr, rrq(dir+boot.FileUndionly))
	}
	p := newPeer(t)
	for n := uint16(1); n <= 2; {
		p.send(addr, rrq(dir+boot.FileUndionly))
		if op, rest, ok := p.recv(300 * time.Millisecond); ok && op == opDATA && rest[1] == byte(n) {
			p.ack(n)
			n++
			if n == 2 {
				p.data(2)
				p.ack(2)
				n++
			}
		}
	}
	done(t, sent, 600)
	if st := s.Stats(); st.Dropped == 0 || st.Active > 20 {
		t.Errorf("Stats = %+v; want some dropped, 20 active at most", st)
	}
}

// TestPerAddress: one address has no more transfers than it may.
func TestPerAddress(t *testing.T) {
	var s *Server
	addr, files, _ := start(t, func(c *Config) { c.MaxPerAddress = 3 }, func(v *Server) { s = v })
	content(t, files, boot.FileUndionly, 600)
	for i := range 3 {
		p := newPeer(t)
		p.send(addr, rrq(dir+boot.FileUndionly))
		if _, _, ok := p.recv(10 * time.Second); !ok {
			t.Fatalf("client %d got no answer", i)
		}
	}
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	p.quiet(200 * time.Millisecond)
	if st := s.Stats(); st.Active != 3 || st.Dropped != 1 {
		t.Errorf("Stats = %+v; want 3 active, 1 dropped", st)
	}
}

// TestBadNetwork fetches through a network that loses, doubles and reorders,
// with a client that this project did not write (no windows) and with one that
// has windows. All arrives, and not many times over.
func TestBadNetwork(t *testing.T) {
	t.Parallel()
	var s *Server
	addr, files, _ := start(t, nil, func(v *Server) { s = v })
	want := content(t, files, boot.FileUndionly, 60_000)
	through := badNetwork(t, addr, 0.03)
	c, err := pin.NewClient(through)
	if err != nil {
		t.Fatal(err)
	}
	c.SetTimeout(500 * time.Millisecond)
	c.SetRetries(20)
	c.SetBlockSize(1000)
	c.RequestTSize(true)
	r, err := c.Receive(dir+boot.FileUndionly, "octet")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := r.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the library got %d bytes (%v); want the file's %d", got.Len(), err, len(want))
	}
	for _, window := range []int{1, 2, 4, 16} {
		b, err := windowed(t, badNetwork(t, addr, 0.03), window)
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("window %d: got %d bytes (%v); want the file's %d", window, len(b), err, len(want))
		}
	}
	st := s.Stats()
	t.Logf("%+v", st)
	if max := uint64(5 * 3 * len(want)); st.Bytes > max {
		t.Errorf("%d bytes were sent for 5 × %d; want at most 3 times that", st.Bytes, len(want))
	}
}

// windowed fetches as RFC 7440 says: an ACK per window, and one at once when a
// block is missing.
func windowed(t *testing.T, addr string, window int) ([]byte, error) {
	p := newPeer(t)
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return nil, err
	}
	ask := rrq(dir+boot.FileUndionly, "blksize", "500", "windowsize", fmt.Sprint(window))
	var got []byte
	var next, unacked = uint16(1), 0
	var began bool
	ack := func() { p.c.WriteTo([]byte{0, 4, byte((next - 1) >> 8), byte(next - 1)}, p.to); unacked = 0 }
	p.c.WriteTo(ask, to)
	for idle := 0; idle < 40; {
		op, rest, ok := p.recv(300 * time.Millisecond)
		switch {
		case !ok && !began:
			idle++
			p.c.WriteTo(ask, to)
		case !ok:
			idle++
			ack()
		case op == opOACK && next == 1:
			began = true
			ack()
		case op == opDATA && binary.BigEndian.Uint16(rest) == next:
			idle = 0
			next++
			got = append(got, rest[2:]...)
			if unacked++; unacked == window || len(rest) < 502 {
				ack()
			}
			if len(rest) < 502 {
				return got, nil
			}
		case op == opDATA: // missing, or again
			if window > 1 {
				ack()
			}
		case op == opERROR:
			return got, fmt.Errorf("ERROR %q", rest)
		}
	}
	return got, fmt.Errorf("nothing came any more")
}

// badNetwork is a relay for one client that loses, doubles and delays that
// part of the packets each.
func badNetwork(t *testing.T, server string, part float64) string {
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close(); back.Close() })
	to, err := net.ResolveUDPAddr("udp4", server)
	if err != nil {
		t.Fatal(err)
	}
	var client, transfer atomic.Pointer[net.UDPAddr]
	transfer.Store(to)
	pass := func(in, out *net.UDPConn, from, to *atomic.Pointer[net.UDPAddr], seed uint64) {
		dice := rand.New(rand.NewPCG(seed, 7))
		var late []byte
		b := make([]byte, 2048)
		for {
			n, a, err := in.ReadFromUDP(b)
			if err != nil {
				return
			}
			from.Store(a)
			send := func(p []byte) { out.WriteToUDP(p, to.Load()) }
			switch x := dice.Float64(); {
			case x < part: // lost
				continue
			case x < 2*part:
				send(b[:n])
				send(b[:n])
			case x < 3*part && late == nil:
				late = bytes.Clone(b[:n])
				continue
			default:
				send(b[:n])
			}
			if late != nil {
				send(late)
				late = nil
			}
		}
	}
	go pass(front, back, &client, &transfer, 1)
	go pass(back, front, &transfer, &client, 2)
	return front.LocalAddr().String()
}

// TestOptions: what is asked for and what is agreed on.
func TestOptions(t *testing.T) {
	addr, files, _ := start(t, nil)
	content(t, files, boot.FileUndionly, 100_000)
	for _, tt := range []struct {
		ask  []string
		oack string // "": DATA 1 at once
	}{
		{nil, ""},
		{[]string{"blksize", "8"}, "blksize\x008\x00"},
		{[]string{"blksize", "7"}, ""},
		{[]string{"BlkSize", "1024"}, "blksize\x001024\x00"},
		{[]string{"blksize", "1468", "blksize", "512"}, "blksize\x001468\x00"},
		{[]string{"blksize", "65465"}, "blksize\x001468\x00"},
		{[]string{"blksize", "-1"}, ""},
		{[]string{"blksize", "99999999999999999999"}, ""},
		{[]string{"blksize", ""}, ""},
		{[]string{"blksize"}, ""}, // without a value
		{[]string{"windowsize", "4", "blksize", "1468", "tsize", "0"}, "windowsize\x004\x00blksize\x001468\x00tsize\x00100000\x00"}, // OVMF
		{[]string{"windowsize", "0"}, ""},
		{[]string{"windowsize", "65535"}, "windowsize\x0064\x00"},
		{[]string{"windowsize", "65536"}, ""},
		{[]string{"timeout", "6"}, "timeout\x006\x00"},
		{[]string{"timeout", "0"}, ""}, {[]string{"timeout", "256"}, ""},
		{[]string{"multicast", "", "blksize", "600"}, "blksize\x00600\x00"},
		{[]string{"rollover", "2"}, ""},
	} {
		p := newPeer(t)
		p.send(addr, rrq(dir+boot.FileUndionly, tt.ask...))
		op, rest, ok := p.recv(10 * time.Second)
		switch {
		case !ok:
			t.Errorf("%q: no answer", tt.ask)
		case tt.oack == "" && (op != opDATA || len(rest) != 2+512):
			t.Errorf("%q: answer = %d, %d bytes; want DATA of 512", tt.ask, op, len(rest))
		case tt.oack != "" && (op != opOACK || string(rest) != tt.oack):
			t.Errorf("%q: answer = %d %q; want OACK %q", tt.ask, op, rest, tt.oack)
		}
		p.c.WriteTo([]byte("\x00\x05\x00\x08enough\x00"), p.to)
	}
}

// TestIPv6: the same over IPv6, where a head is longer and a block shorter.
func TestIPv6(t *testing.T) {
	c, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	_, files, sent := start(t, func(cfg *Config) { cfg.Listeners = []net.PacketConn{c} })
	want := content(t, files, boot.FileUndionly, 5000)
	port := c.LocalAddr().(*net.UDPAddr).Port
	for host, blksize := range map[string]int{"::1": 1448, "127.0.0.1": 1468} {
		pc, err := pin.NewClient(net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Fatal(err)
		}
		pc.SetBlockSize(1468)
		r, err := pc.Receive(dir+boot.FileUndionly, "octet")
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		var got bytes.Buffer
		if _, err := r.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: got %d bytes (%v); want the file's %d", host, got.Len(), err, len(want))
		}
		done(t, sent, 5000)
		a, err := net.ResolveUDPAddr("udp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
		if err != nil {
			t.Fatal(err)
		}
		u.WriteTo(rrq(dir+boot.FileUndionly, "blksize", "2000"), a)
		b := make([]byte, 2000)
		u.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := u.ReadFrom(b)
		if err != nil || string(b[:n]) != fmt.Sprintf("\x00\x06blksize\x00%d\x00", blksize) {
			t.Errorf("%s: answer = %q (%v); want blksize %d", host, b[:n], err, blksize)
		}
		u.Close()
	}
}

// slowContent is content that is neither a file nor in memory.
type slowContent struct {
	*bytes.Reader
	closed *atomic.Int32
}

func (c slowContent) Size() int64  { return c.Reader.Size() }
func (c slowContent) Close() error { c.closed.Add(1); return nil }

// TestOpen: further files, by a function, of any kind.
func TestOpen(t *testing.T) {
	var closed atomic.Int32
	want := bytes.Repeat([]byte("0123456789abcdef"), 2000)
	addr, _, _ := start(t, func(c *Config) {
		c.Open = func(_ context.Context, r Request) (Content, error) {
			if r.File != "grub/grub.cfg" || r.From.String() != "127.0.0.1" {
				return nil, fmt.Errorf("asked for %+v", r)
			}
			return slowContent{bytes.NewReader(want), &closed}, nil
		}
	})
	for i, name := range []string{"grub/grub.cfg", "//grub//grub.cfg", dir + "grub/grub.cfg"} {
		c, err := pin.NewClient(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetBlockSize(1000)
		r, err := c.Receive(name, "octet")
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := r.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("got %d bytes (%v); want %d", got.Len(), err, len(want))
		}
		for end := time.Now().Add(10 * time.Second); closed.Load() != int32(i+1) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if n := closed.Load(); n != int32(i+1) {
			t.Errorf("%d contents were closed; want %d", n, i+1)
		}
	}
}
