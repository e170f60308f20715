package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
	"dsas/server/netns"
)

// segment is a server's namespace and a client's, on one bridge of wires.
type segment struct {
	t              *testing.T
	server, client string
	store          *dhcptest.Store
	srv            *Server
	log            *logBuffer
	heardMu        sync.Mutex
	heard          [][]byte // every packet the server worked on
}

// logBuffer is what a server said.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s: not %s", what)
		}
	}
}

func ipCmd(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// newSegment lays a wire between two namespaces and runs the server on it. A
// second wire, "other", carries no server.
func newSegment(t *testing.T, more ...dsas.Subnet) *segment {
	t.Helper()
	return newSegmentOf(t, func(st *dhcptest.Store) Store { return st }, append([]dsas.Subnet{near}, more...)...)
}

// newSegmentOf is newSegment with a state and subnets of its own.
func newSegmentOf(t *testing.T, state func(*dhcptest.Store) Store, subnets ...dsas.Subnet) *segment {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &segment{t: t, server: fmt.Sprintf("dsasdhcps%d", os.Getpid()), client: fmt.Sprintf("dsasdhcpc%d", os.Getpid())}
	for _, ns := range []string{s.server, s.client} {
		if err := netns.Create(ctx, ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(context.Background(), ns); err != nil {
				t.Error(err)
			}
		})
	}
	ipCmd(t, fmt.Sprintf("-n %s link add wire type veth peer name nic netns %s address %s", s.server, s.client, nodeMAC))
	ipCmd(t, fmt.Sprintf("-n %s link add other type veth peer name nic2 netns %s address %s", s.server, s.client, strangeMAC))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.1/24 dev wire", s.server))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.99.0.1/24 dev other", s.server))
	for _, dev := range []string{"wire", "other"} {
		ipCmd(t, fmt.Sprintf("-n %s link set %s up", s.server, dev))
	}
	for _, dev := range []string{"nic", "nic2"} {
		ipCmd(t, fmt.Sprintf("-n %s link set %s up", s.client, dev))
	}
	nodes := []dsas.Node{{Name: "w101", NICs: []dsas.NIC{{MAC: nodeMAC}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web"}}
	burst := dsas.Node{Name: "burst", Address: netip.MustParsePrefix("10.77.0.102/24"), Role: "web"}
	for i := range burstSize {
		burst.NICs = append(burst.NICs, dsas.NIC{MAC: burstMAC(i)})
	}
	s.store = dhcptest.New(append(nodes, burst)...)
	s.store.Publish(bootSet, "web")
	var conn *Conn
	if err := netns.Do(s.server, func() (err error) {
		conn, err = Listen("wire")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.log = &logBuffer{}
	srv, err := New(Config{
		Store: state(s.store), Releases: s.store, Subnets: subnets, Listeners: []net.PacketConn{conn}, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		In: func(f func() error) error { return netns.Do(s.server, f) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.srv = srv
	srv.tap = func(b []byte) {
		s.heardMu.Lock()
		defer s.heardMu.Unlock()
		s.heard = append(s.heard, bytes.Clone(b))
	}
	srv.watchEvery = 50 * time.Millisecond
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Errorf("Run = %v; want nil after its context ended", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// run runs a program in the client's namespace.
func (s *segment) run(args ...string) (string, error) {
	s.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			s.t.Fatalf("%s is missing", args[0])
		}
		s.t.Skipf("%s is missing", args[0])
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.client}, args...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestUdhcpc(t *testing.T) {
	s := newSegment(t)
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\n[ $1 = bound ] && env | sort\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	// As an operating system, then as firmware, with the broadcast flag and
	// without it.
	for _, tt := range []struct{ args, file string }{
		{"", ""},
		{"-B", ""},
		{"-V PXEClient:Arch:00000:UNDI:002001 -x 0x5d:0000", undionly},
		{"-B -V PXEClient:Arch:00000:UNDI:002001 -x 0x5d:0000", undionly},
		{"-V PXEClient -x 0x5d:0000 -x 0x4d:69505845", script},
	} {
		out, err := s.run(append(strings.Fields("udhcpc -f -q -n -t 5 -T 3 -i nic -O bootfile -O tftp -O hostname -s "+hook), strings.Fields(tt.args)...)...)
		if err != nil {
			t.Errorf("udhcpc %s: %v: %s", tt.args, err, out)
			continue
		}
		want := []string{"ip=10.77.0.101", "subnet=255.255.255.0", "router=10.77.0.254", "hostname=w101", "domain=rack.example", "serverid=10.77.0.1", "lease=480"}
		if tt.file != "" {
			want = append(want, "siaddr=10.77.0.1", "boot_file="+tt.file, "bootfile="+tt.file, "tftp=10.77.0.1")
		} else if strings.Contains(out, "boot_file=") {
			t.Errorf("udhcpc %s: an operating system is given a boot file:\n%s", tt.args, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w+"\n") {
				t.Errorf("udhcpc %s: %q is not in\n%s", tt.args, w, out)
			}
		}
	}
}

// TestDhclient: bind, init-reboot from its lease file, release.
func TestDhclient(t *testing.T) {
	s := newSegment(t)
	ipCmd(t, fmt.Sprintf("-n %s link set nic address %s", s.client, strangeMAC))
	dir := t.TempDir()
	hook, leases := filepath.Join(dir, "hook"), filepath.Join(dir, "leases")
	// dhclient expects its script to configure; this one does, without resolv.conf.
	script := "#!/bin/sh\necho \"$reason $new_ip_address\" >>" + dir + "/log\n[ -n \"$new_ip_address\" ] && ip addr replace $new_ip_address/24 dev $interface\nexit 0\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dhclient := func(flag string) {
		t.Helper()
		args := append([]string{"dhclient"}, strings.Fields(flag+" -v -sf "+hook+" -lf "+leases+" -cf "+conf+" -pf "+dir+"/pid nic")...)
		if out, err := s.run(args...); err != nil {
			t.Fatalf("dhclient %s: %v: %s", flag, err, out)
		}
	}
	addr := netip.MustParseAddr("10.77.0.200")
	dhclient("-1")
	dhclient("-x") // ends it without a RELEASE
	l, ok := s.store.Lease(addr)
	if !ok || l.MAC != strangeMAC {
		t.Fatalf("lease = %+v, %t; want %s for the client", l, ok, addr)
	}
	dhclient("-1") // INIT-REBOOT
	log, err := os.ReadFile(dir + "/log")
	if err != nil || !strings.Contains(string(log), "REBOOT 10.77.0.200") {
		t.Errorf("dhclient's states = %q (%v); want a REBOOT with the same address", log, err)
	}
	dhclient("-r")
	eventually(t, "given back after RELEASE", func() bool { _, ok := s.store.Lease(addr); return !ok })
}

// TestOtherInterface: nobody is answered on a wire that is not ours.
func TestOtherInterface(t *testing.T) {
	s := newSegment(t)
	out, err := s.run(strings.Fields("udhcpc -f -q -n -t 3 -T 1 -i nic2 -s /bin/true")...)
	if err == nil {
		t.Errorf("udhcpc on the other wire got an answer:\n%s", out)
	}
	if u, ok := s.store.Unknown(strangeMAC); ok {
		t.Errorf("a MAC on the other wire was recorded: %+v", u)
	}
}

const burstSize = 400

// TestBurst: a whole rack at once; every DISCOVER is answered.
func TestBurst(t *testing.T) {
	s := newSegment(t)
	const n = burstSize
	var conn *Conn
	if err := netns.Do(s.client, func() (err error) {
		conn, err = Listen("nic")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pc, err := netListen(s.client, ":68")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	src, dst := netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67")
	got := map[dhcpv4.TransactionID]bool{}
	b := make([]byte, 2000)
	// The kernel's queue between the wire's ends is shared with everything on
	// this machine and may lose frames: what is missing asks again, as boxes do.
	// The server itself must answer each that reached it.
	for round := 0; len(got) < n && round < 10; round++ {
		for i := range n {
			xid := dhcpv4.TransactionID{9, 9, byte(i >> 8), byte(i)}
			if got[xid] {
				continue
			}
			m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(burstMAC(i).HardwareAddr()), dhcpv4.WithBroadcast(true), dhcpv4.WithTransactionID(xid))
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.SendFrame(broadcastMAC, src, dst, m.ToBytes()); err != nil {
				t.Fatal(err)
			}
		}
		pc.SetReadDeadline(time.Now().Add(5 * time.Second))
		for len(got) < n {
			k, _, err := pc.ReadFrom(b)
			if err != nil {
				break
			}
			if m, err := dhcpv4.FromBytes(b[:k]); err == nil && m.MessageType() == dhcpv4.MessageTypeOffer {
				got[m.TransactionID] = true
			}
		}
	}
	eventually(t, "each DISCOVER that was received answered", func() bool { // an answer is counted after it is sent
		st := s.srv.Stats()
		return st.Answered["offer"] == st.Received["discover"]
	})
	st := s.srv.Stats()
	if len(got) != n || st.Dropped[DropQueue] != 0 {
		t.Errorf("%d of %d DISCOVERs answered; want all, and each that was received (server: %+v)\n%s", len(got), n, st, s.log)
	}
}

func burstMAC(i int) dsas.MAC { return dsas.MAC{0x52, 0x54, 1, 0, byte(i >> 8), byte(i)} }

func netListen(ns, addr string) (pc net.PacketConn, err error) {
	// The test's own buffer must not be what overflows.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error { return control(rc, "nic") }}
	err = netns.Do(ns, func() error {
		pc, err = lc.ListenPacket(context.Background(), "udp4", addr)
		return err
	})
	return pc, err
}

// badConn fails to read a few times, then gives one packet.
type badConn struct {
	net.PacketConn
	mu    sync.Mutex
	fails int
	give  []byte
	sent  chan []byte
	quit  chan struct{}
	once  sync.Once
}

func (c *badConn) LocalAddr() net.Addr { return &net.UDPAddr{Port: 67} }
func (c *badConn) Close() error        { c.once.Do(func() { close(c.quit) }); return nil }
func (c *badConn) WriteTo(b []byte, _ net.Addr) (int, error) {
	c.sent <- append([]byte(nil), b...)
	return len(b), nil
}
func (c *badConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails > 0 {
		c.fails--
		return 0, nil, fmt.Errorf("network is down")
	}
	if c.give != nil {
		n := copy(b, c.give)
		c.give = nil
		return n, &net.UDPAddr{}, nil
	}
	<-c.quit
	return 0, nil, net.ErrClosed
}

// TestReadErrors: errors and nonsense end nothing.
func TestReadErrors(t *testing.T) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(nodeMAC.HardwareAddr()))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	c := &badConn{fails: 3, give: m.ToBytes(), sent: make(chan []byte, 1), quit: make(chan struct{})}
	srv, err := New(Config{Store: b.store, Releases: b.store, Subnets: []dsas.Subnet{near}, Listeners: []net.PacketConn{c}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	select {
	case <-c.sent:
	case <-time.After(30 * time.Second):
		t.Fatal("no answer after read errors")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v; want nil", err)
	}
}
