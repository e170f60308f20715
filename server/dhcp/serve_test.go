package dhcp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

// sink keeps what is sent.
type sink struct {
	net.PacketConn
	sent chan *dhcpv4.DHCPv4
}

func (s sink) WriteTo(b []byte, _ net.Addr) (int, error) {
	m, err := dhcpv4.FromBytes(b)
	if err == nil {
		s.sent <- m
	}
	return len(b), err
}

// next gives the next answer as "ACK 52:54:...", "" where none comes at once.
func (s sink) next() string {
	select {
	case m := <-s.sent:
		return fmt.Sprint(m.MessageType(), " ", m.ClientHWAddr)
	default:
		return ""
	}
}

// newTestDesk is a desk in memory, on a subnet with a pool of 1,500.
func newTestDesk(t *testing.T, store Store) (*bench, *desk, sink) {
	t.Helper()
	b := newBench(t)
	sub := near
	sub.Prefix = netip.MustParsePrefix("10.77.0.0/20")
	sub.Pool = dsas.Range{First: netip.MustParseAddr("10.77.1.0"), Last: netip.MustParseAddr("10.77.6.219")}
	b.s.Subnets[0], b.s.poolSize[0] = sub, sub.PoolSize()
	if store != nil {
		b.s.Store = store
	}
	out := sink{sent: make(chan *dhcpv4.DHCPv4, 4096)}
	b.l.state.Store(&linkState{conn: out, local: []dsas.Subnet{sub}})
	d := b.s.newDesk(b.l)
	t.Cleanup(d.clerks.close)
	return b, d, out
}

func packetOf(t *testing.T, typ dhcpv4.MessageType, mac dsas.MAC, mods ...dhcpv4.Modifier) received {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(typ), dhcpv4.WithHwAddr(mac.HardwareAddr())}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootRequest
	return received{data: m.ToBytes()}
}

// TestKnownGoFirst: in a flood that never lets the socket be empty a known node
// is answered at once, others in their turn, and what is too much is dropped.
func TestKnownGoFirst(t *testing.T) {
	b, d, out := newTestDesk(t, nil)
	n := uint32(0)
	flood := func() (list []received) {
		for range batch - 1 {
			list = append(list, packetOf(t, dhcpv4.MessageTypeDiscover, madeUp(n)))
			n++
		}
		return append(list, packetOf(t, dhcpv4.MessageTypeDiscover, nodeMAC))
	}
	want := uint32(0) // the stranger whose turn it is
	for round := range 60 {
		d.work(t.Context(), flood())
		d.flush()
		if got, want := out.next(), fmt.Sprint("OFFER ", nodeMAC); got != want {
			t.Fatalf("round %d: the first answer = %q; want %q", round, got, want)
		}
		for i := range floodShare {
			if got, want := out.next(), fmt.Sprint("OFFER ", madeUp(want)); round < 40 && got != want { // then half of the pool is out
				t.Fatalf("round %d: answer %d = %q; want %q", round, i+2, got, want)
			}
			want++
		}
		if got := out.next(); got != "" {
			t.Fatalf("round %d: %q too; want %d of others' packets answered", round, got, floodShare)
		}
		if len(d.backlog) > maxBacklog {
			t.Fatalf("round %d: %d packets wait; want at most %d", round, len(d.backlog), maxBacklog)
		}
	}
	if got, want := b.s.count.dropped[DropQueue].Load(), uint64(60*(batch-1-floodShare)-maxBacklog); got != want {
		t.Errorf("%d packets dropped; want %d", got, want)
	}
	for range maxBacklog / share { // the flood is over
		d.work(t.Context(), nil)
	}
	if len(d.backlog) != 0 {
		t.Errorf("%d packets still wait; want none", len(d.backlog))
	}
}

// TestRecordedAfterTheCrowd: while packets come faster than they are answered none
// waits for what only a reader of events wants; what was given is recorded when the
// crowd is over, or when too much waits, and once for each exchange.
func TestRecordedAfterTheCrowd(t *testing.T) {
	b, d, out := newTestDesk(t, nil)
	request := packetOf(t, dhcpv4.MessageTypeRequest, nodeMAC, with(firmware(), optIP(54, "10.77.0.1"), optIP(50, "10.77.0.101"))...)
	crowd := slices.Repeat([]received{request}, batch)
	acks := func() int { return len(b.store.Events(dsas.KindDHCP)) }
	d.turn(t.Context(), crowd)
	if got, want := out.next(), fmt.Sprint("ACK ", nodeMAC); got != want {
		t.Errorf("the first answer = %q; want %q", got, want)
	}
	if n := acks(); n != 0 || len(d.given) != batch {
		t.Errorf("in the crowd %d events and %d waiting; want none, and %d", n, len(d.given), batch)
	}
	d.turn(t.Context(), nil)
	if n := acks(); n != 1 || len(d.given) != 0 {
		t.Errorf("after the crowd %d events and %d waiting; want one, of the one exchange, and none", n, len(d.given))
	}
	// In a flood of others that does not end a node's still comes soon, with its time.
	request = packetOf(t, dhcpv4.MessageTypeRequest, nodeMAC, with(firmware(), optIP(54, "10.77.0.1"), optIP(50, "10.77.0.101"))...)
	flood := slices.Repeat([]received{packetOf(t, dhcpv4.MessageTypeDiscover, madeUp(1))}, batch)
	d.turn(t.Context(), append([]received{request}, flood[1:]...))
	at := b.now
	if n := acks(); n != 1 {
		t.Errorf("%d events at once in a flood; want the one of before", n)
	}
	b.now = b.now.Add(bookDelay)
	d.turn(t.Context(), slices.Clone(flood))
	if ev := b.store.Events(dsas.KindDHCP); len(ev) != 2 || !ev[1].Time.Equal(at) {
		t.Errorf("events after %s of a flood = %+v; want a second one, of %s", bookDelay, ev, at)
	}
	for range maxGiven/batch - 1 {
		d.turn(t.Context(), crowd)
	}
	if len(d.given) != maxGiven-batch {
		t.Errorf("%d wait to be recorded; want %d", len(d.given), maxGiven-batch)
	}
	if d.turn(t.Context(), crowd); len(d.given) != 0 {
		t.Errorf("%d wait to be recorded in a crowd that does not end; want fewer than %d", len(d.given), maxGiven)
	}
}

// TestRehearsal: a desk that rehearses sends, counts and records nothing, and gives
// the answers after it that it gives without.
func TestRehearsal(t *testing.T) {
	b, d, out := newTestDesk(t, nil)
	d.out.conn = &Conn{iface: net.Interface{HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	if n := d.rehearse(t.Context()); n != 2 {
		t.Fatalf("%d answers rehearsed; want 2: an OFFER and an ACK of the one node that is here", n)
	}
	if d.out.kept[0] == nil || d.out.kept[1] == nil {
		t.Error("the rehearsal has written no answers")
	}
	d.out.conn = nil
	if got := out.next(); got != "" || d.out.n != 0 || len(d.given)+len(d.promised)+len(d.backlog) != 0 {
		t.Errorf("the rehearsal has sent %q, and %d answers wait; want nothing", got, d.out.n)
	}
	for name, n := range b.s.count.received {
		if n.Load() != 0 {
			t.Errorf("the rehearsal counts as %d %v received; want none", n.Load(), name)
		}
	}
	for _, k := range []dsas.Kind{dsas.KindDHCP, dsas.KindRefused, dsas.KindUnknown} {
		if ev := b.store.Events(k); len(ev) != 0 {
			t.Errorf("the rehearsal has recorded %+v; want nothing", ev)
		}
	}
	d.turn(t.Context(), []received{packetOf(t, dhcpv4.MessageTypeDiscover, nodeMAC, firmware()...)})
	m := <-out.sent
	if got := m.YourIPAddr.String(); got != "10.77.0.101" || m.BootFileName != undionly || m.HostName() != "w101" {
		t.Errorf("the first answer: %s %s %q; want 10.77.0.101 %s w101", got, m.BootFileName, m.HostName(), undionly)
	}
}

// slowDisk is a store whose leases get to disk when it is said.
type slowDisk struct {
	*dhcptest.Store
	spin chan struct{}
}

func (s slowDisk) Bind(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, func(context.Context) error, error) {
	l, _, err := s.Store.Bind(ctx, sub, mac, id, want, now)
	return l, func(ctx context.Context) error {
		select {
		case <-s.spin:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, err
}

// TestSlowDisk: while a lease waits for the disk others are answered, and what its
// box asked after that is answered after it.
func TestSlowDisk(t *testing.T) {
	store := dhcptest.New(dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: nodeMAC}}, Address: netip.MustParsePrefix("10.77.0.101/20"), Role: "web"})
	store.Publish(bootSet, "web")
	disk := slowDisk{store, make(chan struct{})}
	_, d, out := newTestDesk(t, disk)
	d.work(t.Context(), []received{
		packetOf(t, dhcpv4.MessageTypeRequest, strangeMAC, optIP(50, "10.77.1.9")),
		packetOf(t, dhcpv4.MessageTypeDiscover, strangeMAC),
		packetOf(t, dhcpv4.MessageTypeDiscover, nodeMAC),
	})
	d.settle(t.Context())
	if got, want := out.next(), fmt.Sprint("OFFER ", nodeMAC); got != want {
		t.Errorf("the first answer = %q; want %q, which needs no disk", got, want)
	}
	d.work(t.Context(), []received{packetOf(t, dhcpv4.MessageTypeDiscover, strangeMAC)})
	if got := out.next(); got != "" {
		t.Errorf("%q before the lease was on disk; want nothing", got)
	}
	close(disk.spin)
	var got []string
	for range 3 {
		select {
		case m := <-out.sent:
			got = append(got, fmt.Sprint(m.MessageType()))
		case <-time.After(30 * time.Second):
			t.Fatalf("only %q after the disk; want three answers", got)
		}
	}
	if want := []string{"ACK", "OFFER", "OFFER"}; !slices.Equal(got, want) {
		t.Errorf("answers = %q; want %q, in the order in which they were asked for", got, want)
	}
}

// TestTooManyPromises: a lease that no clerk has time to wait for is taken back.
func TestTooManyPromises(t *testing.T) {
	disk := slowDisk{dhcptest.New(), make(chan struct{})}
	b, d, _ := newTestDesk(t, disk)
	taken := make(chan error, 4*queue)
	// As many as one clerk can have and more: all of one box.
	for range 4 * queue {
		d.promised = append(d.promised, promise{rep: &reply{seen: &client{mac: strangeMAC}, onDisk: func(ctx context.Context) error {
			<-ctx.Done()
			taken <- ctx.Err()
			return ctx.Err()
		}, msg: &dhcpv4.DHCPv4{}}})
		d.promised[len(d.promised)-1].rep.seen.req = &dhcpv4.DHCPv4{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.settle(ctx)
	if n := b.s.count.dropped[DropQueue].Load(); n < 2*queue || int(n) != len(taken) {
		t.Errorf("%d answers dropped, %d leases taken back; want the same, at least %d", n, len(taken), 2*queue)
	}
	cancel()
}
