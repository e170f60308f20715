package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dsas"
	"dsas/server/netns"
)

// start runs a program in a namespace until the test ends.
func (s *segment) start(ns string, args ...string) *logBuffer {
	s.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			s.t.Fatalf("%s is missing", args[0])
		}
		s.t.Skipf("%s is missing", args[0])
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := &logBuffer{}
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cancel(); cmd.Wait() })
	return out
}

// hook writes a script for udhcpc that configures the interface and keeps what
// it is told.
func hookFile(t *testing.T) (hook, log string) {
	t.Helper()
	dir := t.TempDir()
	hook, log = filepath.Join(dir, "hook"), filepath.Join(dir, "log")
	text := "#!/bin/sh\n[ $1 = bound ] && { ip addr replace $ip/$mask dev $interface; ip route replace default via $router; }\n" +
		"{ echo \"state $1\"; env | sort; } >>" + log + "\nexit 0\n"
	if err := os.WriteFile(hook, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return hook, log
}

func fileHas(name, want string) func() bool {
	return func() bool {
		b, _ := os.ReadFile(name)
		return strings.Contains(string(b), want)
	}
}

// behind is far, served through a relay.
func behind() dsas.Subnet {
	s := far
	s.Relayed, s.Server, s.Gateway = true, near.Server, netip.MustParseAddr("10.78.0.254")
	return s
}

// newRelayed is a segment whose client is behind a router with a relay: the
// relay's namespace has "upl" on the server's wire and "dnl" on the client's.
func newRelayed(t *testing.T) (s *segment, relay string) {
	t.Helper()
	s = newSegment(t, behind())
	relay = fmt.Sprintf("dsasdhcpr%d", os.Getpid())
	if err := netns.Create(context.Background(), relay); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete(context.Background(), relay); err != nil {
			t.Error(err)
		}
	})
	f1 := dsas.MAC{0x52, 0x54, 0, 0, 2, 1}
	s.store.AddNode(dsas.Node{Name: "f1", NICs: []dsas.NIC{{MAC: f1}}, Address: netip.MustParsePrefix("10.78.0.5/23"), Role: "web"})
	// The wire's far end becomes the router's; the client gets a new NIC.
	ipCmd(t, fmt.Sprintf("-n %s link set nic netns %s name upl", s.client, relay))
	ipCmd(t, fmt.Sprintf("-n %s link add dnl type veth peer name nic netns %s address %s", relay, s.client, f1))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.250/24 dev upl", relay))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.78.0.254/23 dev dnl", relay))
	for _, dev := range []string{"upl", "dnl", "lo"} {
		ipCmd(t, fmt.Sprintf("-n %s link set %s up", relay, dev))
	}
	ipCmd(t, fmt.Sprintf("-n %s link set nic up", s.client))
	ipCmd(t, fmt.Sprintf("-n %s route add 10.78.0.0/23 via 10.77.0.250", s.server))
	if out, err := exec.Command("ip", "netns", "exec", relay, "sysctl", "-qw", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
		t.Fatalf("sysctl: %v: %s", err, out)
	}
	return s, relay
}

// TestRealRelay: through ISC's relay and dnsmasq's, a node gets its address, its
// boot file from our one address, and renews without the relay.
func TestRealRelay(t *testing.T) {
	for _, tt := range []struct {
		name, program, circuit string
	}{
		{"isc", "dhcrelay -4 -d --no-pid -a -id dnl -iu upl 10.77.0.1", "dnl"},
		{"dnsmasq", "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --user=root --pid-file= --dhcp-relay=10.78.0.254,10.77.0.1 --log-facility=-", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, relay := newRelayed(t)
			out := s.start(relay, strings.Fields(tt.program)...)
			hook, log := hookFile(t)
			s.start(s.client, strings.Fields("udhcpc -f -t 20 -T 1 -i nic -O bootfile -O tftp -O hostname -V PXEClient:Arch:00000:UNDI:002001 -x 0x5d:0000 -p "+filepath.Dir(log)+"/pid -s "+hook)...)
			for _, want := range []string{"ip=10.78.0.5", "router=10.78.0.254", "subnet=255.255.254.0", "serverid=10.77.0.1", "siaddr=10.77.0.1", "tftp=10.77.0.1", "hostname=f1", "boot_file=nbp/52-54-00-00-02-01/undionly.kpxe"} {
				eventually(t, want+" in the client's lease; the relay says: "+out.String(), fileHas(log, want+"\n"))
			}
			if tt.circuit != "" {
				eventually(t, "the port recorded", func() bool { return len(s.store.Ports()) > 0 })
				if p := s.store.Ports()[0]; p.CircuitID != tt.circuit || p.Relay.String() != "10.78.0.254" {
					t.Errorf("port = %+v; want circuit id %s by relay 10.78.0.254", p, tt.circuit)
				}
			}
			// Renewing is unicast, from 10.78.0.5 over the router to us.
			pid, err := os.ReadFile(filepath.Dir(log) + "/pid")
			if err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("kill", "-USR1", strings.TrimSpace(string(pid))).CombinedOutput(); err != nil {
				t.Fatalf("kill: %v: %s", err, out)
			}
			eventually(t, "renewed", fileHas(log, "state renew"))
			if st := s.srv.Stats(); st.Answered["nak"] != 0 || st.Answered["offer"] == 0 || st.Answered["ack"] < 2 {
				t.Errorf("answered = %v; want offers, two ACKs and no NAK", st.Answered)
			}
		})
	}
}

// TestDhcpcd: a stranger's lease, with an RFC 4361 client id.
func TestDhcpcd(t *testing.T) {
	s := newSegment(t)
	ipCmd(t, fmt.Sprintf("-n %s link set nic address %s", s.client, strangeMAC))
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, []byte("duid\nnohook resolv.conf\noption domain_name_servers, ntp_servers, interface_mtu, classless_static_routes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := s.run("dhcpcd", "-4", "-1", "-d", "-B", "-t", "40", "--noarp", "-f", conf, "-c", "/bin/true", "nic")
	if err != nil {
		t.Fatalf("dhcpcd: %v: %s", err, out)
	}
	l, ok := s.store.Lease(near.Pool.First)
	if !ok || l.MAC != strangeMAC || !strings.HasPrefix(l.ClientID, "ff") {
		t.Errorf("lease = %+v, %t; want %s for %s with a client id of type 255\n%s", l, ok, near.Pool.First, strangeMAC, out)
	}
}

// TestConflict: a pool address that a box uses which did not get it from us is
// not offered; a node's own address is, whoever else uses it.
func TestConflict(t *testing.T) {
	s := newSegment(t)
	// A box with the pool's first address and the node's.
	ipCmd(t, fmt.Sprintf("-n %s link set nic address 52:54:00:00:05:05", s.client))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.200/24 dev nic", s.client))
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.101/24 dev nic", s.client))
	for _, tt := range []struct{ mac, want string }{{"52:54:00:00:09:77", "10.77.0.201"}, {nodeMAC.String(), "10.77.0.101"}} {
		ipCmd(t, fmt.Sprintf("-n %s link add link nic name box type macvlan mode bridge", s.client))
		ipCmd(t, fmt.Sprintf("-n %s link set box address %s", s.client, tt.mac))
		ipCmd(t, fmt.Sprintf("-n %s link set box up", s.client))
		hook, log := hookFile(t)
		if out, err := s.run(strings.Fields("udhcpc -f -q -n -t 10 -T 2 -i box -s " + hook)...); err != nil || !fileHas(log, "ip="+tt.want+"\n")() {
			b, _ := os.ReadFile(log)
			t.Errorf("%s: %v, %s\n%s; want %s", tt.mac, err, out, b, tt.want)
		}
		ipCmd(t, fmt.Sprintf("-n %s link del box", s.client))
	}
	if l, _ := s.store.Lease(near.Pool.First); !l.Declined {
		t.Errorf("lease of %s = %+v; want it declined", near.Pool.First, l)
	}
	if ev := s.store.Events(dsas.KindRefused); len(ev) != 1 || !strings.Contains(ev[0].Message, "10.77.0.200 is in use by") {
		t.Errorf("events = %+v; want one that names the address and who has it", ev)
	}
}

// TestSameClientID: copies of one installation have one client id. The second
// gets an address of its own as long as the first is there.
func TestSameClientID(t *testing.T) {
	s := newSegment(t)
	first := dsas.MAC{0x52, 0x54, 0, 0, 5, 5}
	const id = "ff00112233445566"
	l, _, err := s.store.Bind(t.Context(), near, first, id, near.Pool.First, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ipCmd(t, fmt.Sprintf("-n %s link set nic address %s", s.client, first))
	ipCmd(t, fmt.Sprintf("-n %s addr add %s/24 dev nic", s.client, l.Address))
	ipCmd(t, fmt.Sprintf("-n %s link add link nic name box address 52:54:00:00:09:77 type macvlan mode bridge", s.client))
	ipCmd(t, fmt.Sprintf("-n %s link set box up", s.client))
	hook, log := hookFile(t)
	if out, err := s.run(strings.Fields("udhcpc -f -q -n -t 10 -T 2 -i box -C -x 0x3d:" + id + " -s " + hook)...); err != nil || !fileHas(log, "ip="+l.Address.Next().String()+"\n")() {
		b, _ := os.ReadFile(log)
		t.Errorf("the second: %v, %s\n%s; want %s\n%s", err, out, b, l.Address.Next(), s.log)
	}
	if got, _ := s.store.Lease(l.Address); got.MAC != first || got.Declined {
		t.Errorf("the first's lease = %+v; want it as it was", got)
	}
	if !strings.Contains(s.log.String(), "the same DHCP client id") {
		t.Errorf("the log says nothing of it:\n%s", s.log)
	}
}

// TestInterfaceComesBack: down and up, deleted and made anew.
func TestInterfaceComesBack(t *testing.T) {
	s := newSegment(t)
	ask := func(when string) {
		t.Helper()
		hook, log := hookFile(t)
		if out, err := s.run(strings.Fields("udhcpc -f -q -n -t 20 -T 1 -i nic -s " + hook)...); err != nil || !fileHas(log, "ip=10.77.0.101\n")() {
			t.Fatalf("%s: %v: %s\nthe server says:\n%s", when, err, out, s.log)
		}
	}
	says := func(want string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%q in the log", want), func() bool { return strings.Contains(s.log.String(), want) })
	}
	ask("at first")
	ipCmd(t, fmt.Sprintf("-n %s link set wire down", s.server))
	says("the interface is down; set it up with: ip link set wire up")
	ipCmd(t, fmt.Sprintf("-n %s link set wire up", s.server))
	says("the interface is up again")
	ask("after down and up")

	ipCmd(t, fmt.Sprintf("-n %s link del wire", s.server))
	says("the interface is gone; it is served again once it is back")
	ipCmd(t, fmt.Sprintf("-n %s link add wire type veth peer name nic netns %s address %s", s.server, s.client, nodeMAC))
	ipCmd(t, fmt.Sprintf("-n %s link set wire up", s.server))
	ipCmd(t, fmt.Sprintf("-n %s link set nic up", s.client))
	says("the interface is back and cannot be served yet")
	ipCmd(t, fmt.Sprintf("-n %s addr add 10.77.0.1/24 dev wire", s.server))
	says("DHCP listens again")
	ask("after it was made anew")
	if n := strings.Count(s.log.String(), "the interface is gone"); n != 1 {
		t.Errorf("%d messages that it is gone; want 1", n)
	}
}

// TestStatsOnTheWire: what a client does is counted.
func TestStatsOnTheWire(t *testing.T) {
	s := newSegment(t)
	hook, _ := hookFile(t)
	out, err := s.run(strings.Fields("udhcpc -f -q -n -t 10 -T 2 -i nic -s " + hook)...)
	if err != nil {
		t.Fatalf("udhcpc: %v: %s", err, out)
	}
	eventually(t, "an ACK counted; the client says: "+out, func() bool { return s.srv.Stats().Answered["ack"] > 0 })
	st := s.srv.Stats()
	if st.Received["discover"] == 0 || st.Received["request"] == 0 || st.Answered["offer"] == 0 || st.Answered["ack"] == 0 || st.Answered["nak"] != 0 || st.Dropped[DropMalformed] != 0 {
		t.Errorf("Stats = %+v; want each message of the exchange", st)
	}
}
