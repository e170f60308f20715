package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/netns"
)

// wire is our namespace and another's, with one cable.
type wire struct {
	t           *testing.T
	ours, other string
	otherMAC    dsas.MAC
}

var wires atomic.Int32

func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	n := wires.Add(1)
	w := &wire{t: t, ours: fmt.Sprintf("dsasrga%d-%d", os.Getpid(), n), other: fmt.Sprintf("dsasrgb%d-%d", os.Getpid(), n), otherMAC: dsas.MAC{0x52, 0x54, 0, 0, 7, 7}}
	for _, ns := range []string{w.ours, w.other} {
		if err := netns.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(context.Background(), ns); err != nil {
				t.Error(err)
			}
		})
	}
	w.lay()
	return w
}

// lay lays the cable.
func (w *wire) lay() {
	t := w.t
	t.Helper()
	ipCmd(t, fmt.Sprintf("-n %s link add wire type veth peer name eth0 netns %s address %s", w.ours, w.other, w.otherMAC))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.1/24 dev wire", w.ours))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.2/24 dev eth0", w.other))
	ipCmd(t, fmt.Sprintf("-n %s link set wire up", w.ours))
	ipCmd(t, fmt.Sprintf("-n %s link set eth0 up", w.other))
}

func (w *wire) ear() *Ear {
	w.t.Helper()
	var e *Ear
	if err := netns.Do(w.ours, func() (err error) {
		e, err = OpenEar("wire")
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { e.Close() })
	return e
}

// dnsmasq runs the other server until the test ends.
func (w *wire) dnsmasq(args ...string) {
	t := w.t
	t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", w.other, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
		"--interface=eth0", "--bind-interfaces", "--user=root", "--log-dhcp", "--log-facility=" + log, "--pid-file=",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--dhcp-range=10.77.0.150,10.77.0.159,5m"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	deadline := time.Now().Add(30 * time.Second)
	for {
		b, _ := os.ReadFile(log)
		if strings.Contains(string(b), "DHCP, IP range") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("dnsmasq is not up: %s", b)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Cleanup(func() {
		// No lease may have been taken by asking.
		if b, _ := os.ReadFile(filepath.Join(dir, "leases")); strings.Contains(string(b), "10.77.0.15") && !strings.Contains(string(b), nodeMAC.String()) {
			t.Errorf("the probe took a lease: %s", b)
		}
	})
}

// TestProbe: a dnsmasq as Debian starts it, which pings for 3 s first, is heard;
// with nobody there, nobody is.
func TestProbe(t *testing.T) {
	t.Run("dnsmasq", func(t *testing.T) {
		t.Parallel()
		w := newWire(t)
		w.dnsmasq()
		found, err := w.ear().Probe(t.Context())
		if err != nil || len(found) != 1 {
			t.Fatalf("Probe = %v, %v; want one server", found, err)
		}
		o := found[0]
		if o.Server.String() != "10.77.0.2" || o.MAC != w.otherMAC || o.Interface != "wire" || !strings.HasPrefix(o.Address.String(), "10.77.0.15") || o.Client[0]&3 != 2 {
			t.Errorf("Probe = %+v; want 10.77.0.2, its MAC, an address of its range, for a locally administered MAC", o)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		found, err := newWire(t).ear().Probe(t.Context())
		if err != nil || len(found) != 0 {
			t.Errorf("Probe = %v, %v; want nobody", found, err)
		}
	})
	t.Run("no carrier", func(t *testing.T) {
		t.Parallel()
		w := newWire(t)
		ipCmd(t, "-n "+w.ours+" link set wire down")
		if _, err := w.ear().Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "wire") {
			t.Errorf("Probe = %v; want an error that names the interface", err)
		}
	})
}

// watched is a Watch that runs, and what it told.
type watched struct {
	*Watch
	done   chan error
	mu     sync.Mutex
	events []dsas.Event
}

func watch(t *testing.T, w *wire, allow bool) *watched {
	t.Helper()
	x := &watched{done: make(chan error, 1)}
	x.Watch = &Watch{Log: slog.New(slog.DiscardHandler), Ears: []*Ear{w.ear()}, Own: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, Allow: allow, every: 50 * time.Millisecond,
		In: func(f func() error) error { return netns.Do(w.ours, f) },
		Event: func(_ context.Context, e dsas.Event) error {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.events = append(x.events, e)
			return nil
		}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); x.done <- x.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return x
}

func (x *watched) told() []dsas.Event {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]dsas.Event(nil), x.events...)
}

func TestWatchRefuses(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.dnsmasq()
	x := watch(t, w, false)
	if !x.Probing() {
		t.Error("Probing before the answer = false; want true")
	}
	select {
	case err := <-x.done:
		if !errors.Is(err, ErrOther) {
			t.Fatalf("Run = %v; want ErrOther", err)
		}
		for _, want := range []string{"10.77.0.2", w.otherMAC.String(), "wire", "--proxy-dhcp", "--allow-other-dhcp"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Run = %v; want %q in it", err, want)
			}
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on beside a dnsmasq")
	}
}

// TestWatchNotices: a server that turns up while we run is told once, with
// address and MAC, and ends nothing. Frames that are not a server's are not.
func TestWatchNotices(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	x := watch(t, w, false)
	until(t, "the probe's end", func() bool { return !x.Probing() })
	var conn *Conn
	if err := netns.Do(w.other, func() (err error) {
		conn, err = Listen("eth0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(typ dhcpv4.MessageType, server string, port uint16, mods ...dhcpv4.Modifier) {
		t.Helper()
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(typ), dhcpv4.WithHwAddr(strangeMAC.HardwareAddr()),
			dhcpv4.WithYourIP(netip.MustParseAddr("10.77.0.150").AsSlice()), optIP(54, server)}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		m.OpCode = dhcpv4.OpcodeBootReply
		if err := conn.SendFrame(broadcastMAC, netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), port), netip.MustParseAddrPort(all), m.ToBytes()); err != nil {
			t.Fatal(err)
		}
	}
	say(dhcpv4.MessageTypeOffer, "10.77.0.1", 67)  // ours, through a relay
	say(dhcpv4.MessageTypeOffer, "10.77.0.66", 68) // not a server's port
	conn.SendFrame(broadcastMAC, netip.MustParseAddrPort("10.77.0.2:67"), netip.MustParseAddrPort(all), []byte{2, 1, 6})
	for range 5 {
		say(dhcpv4.MessageTypeOffer, "10.77.0.2", 67)
		say(dhcpv4.MessageTypeAck, "10.77.0.2", 67)
	}
	say(dhcpv4.MessageTypeNak, "10.77.0.3", 67)
	until(t, "the second server's event", func() bool { return len(x.told()) >= 2 })
	// A flood of made-up servers makes few.
	for i := range 200 {
		say(dhcpv4.MessageTypeOffer, fmt.Sprintf("10.99.0.%d", i), 67)
	}
	say(dhcpv4.MessageTypeOffer, "10.77.0.2", 67)
	until(t, "the flood", func() bool { return len(x.told()) >= tellMost })
	got := x.told()
	if len(got) != tellMost {
		t.Errorf("%d events; want %d, however many servers there seem to be", len(got), tellMost)
	}
	if e := got[0]; e.Kind != dsas.KindServer || !strings.Contains(e.Message, "10.77.0.2 (MAC ") || !strings.Contains(e.Message, w.otherMAC.String()) || !strings.Contains(e.Message, "10.77.0.150") {
		t.Errorf("event = %+v; want the server's address, MAC and what it gave", e)
	}
	if !strings.Contains(got[1].Message, "10.77.0.3") {
		t.Errorf("second event = %+v; want the NAK's server", got[1])
	}
	select {
	case err := <-x.done:
		t.Errorf("Run ended: %v; want it to go on", err)
	default:
	}
}

// TestWatchComesBack: an interface that was made anew is listened on.
func TestWatchComesBack(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	x := watch(t, w, false)
	ipCmd(t, "-n "+w.ours+" link del wire")
	w.lay()
	var conn *Conn
	if err := netns.Do(w.other, func() (err error) {
		conn, err = Listen("eth0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithHwAddr(strangeMAC.HardwareAddr()), optIP(54, "10.77.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	until(t, "the other server's event", func() bool {
		if err := conn.SendFrame(broadcastMAC, netip.MustParseAddrPort("10.77.0.2:67"), netip.MustParseAddrPort(all), m.ToBytes()); err != nil {
			t.Fatal(err)
		}
		return len(x.told()) > 0
	})
}

func TestWatchAllowed(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.dnsmasq()
	x := watch(t, w, true)
	if x.Probing() {
		t.Error("Probing = true; want no probe where another server is allowed")
	}
	select {
	case err := <-x.done:
		t.Errorf("Run = %v; want it to go on", err)
	case <-time.After(100 * time.Millisecond):
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestProbingHolds: until it is known who else answers, nodes alone hear of us,
// and nobody is refused.
func TestProbingHolds(t *testing.T) {
	b := newBench(t)
	open := true
	b.s.Probing = func() bool { return open }
	b.check("node", b.ask(nodeMAC, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	b.check("node's REQUEST", b.ask(nodeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.101")), dhcpv4.MessageTypeAck, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	for what, r := range map[string]*reply{
		"stranger's DISCOVER":   b.ask(strangeMAC, dhcpv4.MessageTypeDiscover),
		"stranger's REQUEST":    b.ask(strangeMAC, dhcpv4.MessageTypeRequest, optIP(50, "192.0.2.1")),
		"node's wrong address":  b.ask(nodeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.150")),
		"node's foreign subnet": b.ask(nodeMAC, dhcpv4.MessageTypeRequest, optIP(50, "192.0.2.1")),
	} {
		if r != nil {
			t.Errorf("%s while it is probed: %s; want silence", what, r.msg.MessageType())
		}
	}
	open = false
	if r := b.ask(nodeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.150")); r == nil || r.msg.MessageType() != dhcpv4.MessageTypeNak {
		t.Error("a wrong address afterwards: no NAK")
	}
	if b.ask(strangeMAC, dhcpv4.MessageTypeDiscover) == nil {
		t.Error("a stranger afterwards: no offer")
	}
}

func FuzzParseServer(f *testing.F) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithHwAddr(nodeMAC.HardwareAddr()))
	if err != nil {
		f.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	whole := frame(nodeMAC.HardwareAddr(), broadcastMAC, netip.MustParseAddrPort("10.77.0.2:67"), netip.MustParseAddrPort(all), m.ToBytes())
	f.Add(whole)
	f.Add(whole[:60])
	f.Fuzz(func(t *testing.T, b []byte) {
		o, _, ok := parseServer(b)
		if ok && (!o.Server.Is4() || o.Type == 0) {
			t.Errorf("parseServer = %+v; want a server and a type", o)
		}
	})
}
