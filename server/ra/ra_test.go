package ra_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"dsas/server/netns"
	"dsas/server/ra"
)

// patience bounds what must happen in the end.
const patience = 30 * time.Second

// wire is two namespaces with two wires between them: "nic" leads to "wire",
// where the server answers, and "nic2" to "other", where it does not.
type wire struct {
	t              *testing.T
	server, client string
}

func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	w := &wire{t, fmt.Sprintf("dsasras%d", os.Getpid()), fmt.Sprintf("dsasrac%d", os.Getpid())}
	for _, ns := range []string{w.server, w.client} {
		if err := netns.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(context.Background(), ns); err != nil {
				t.Error(err)
			}
		})
	}
	w.lay("wire", "nic")
	w.lay("other", "nic2")
	w.linkLocal(w.server, "wire") // before that it drops all it gets
	return w
}

// lay lays one wire.
func (w *wire) lay(at, peer string) {
	w.t.Helper()
	w.run(w.server, "ip link add "+at+" type veth peer name "+peer+" netns "+w.client)
	// Whose solicitations are counted must not solicit by itself.
	w.run(w.client, "echo 0 > /proc/sys/net/ipv6/conf/"+peer+"/accept_ra")
	w.run(w.client, "echo 0 > /proc/sys/net/ipv6/conf/"+peer+"/accept_dad; ip link set "+peer+" up")
	w.run(w.server, "echo 0 > /proc/sys/net/ipv6/conf/"+at+"/accept_dad; ip link set "+at+" up")
}

func (w *wire) run(ns, script string) string {
	w.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", ns, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("in %s: %s: %v: %s", ns, script, err, out)
	}
	return string(out)
}

// serve runs the server on "wire"; stop waits for its end.
func (w *wire) serve() (stop func()) {
	w.t.Helper()
	var c *ra.Conn
	if err := netns.Do(w.server, func() (err error) { c, err = ra.Listen("wire"); return err }); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- (&ra.Server{Log: slog.New(slog.DiscardHandler), Conns: []*ra.Conn{c}, In: func(f func() error) error { return netns.Do(w.server, f) }}).Run(ctx)
	}()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("Run = %v; want it to end with its context", err)
		}
	}
}

// heard counts the router advertisements that came in, as the kernel does.
func (w *wire) heard() int {
	w.t.Helper()
	for line := range strings.Lines(w.run(w.client, "cat /proc/net/snmp6")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Icmp6InRouterAdvertisements" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				w.t.Fatal(err)
			}
			return n
		}
	}
	w.t.Fatal("no Icmp6InRouterAdvertisements in /proc/net/snmp6")
	return 0
}

// settled is heard once nothing is on the wire any more.
func (w *wire) settled() int {
	w.t.Helper()
	n := w.heard()
	for same := 0; same < 5; same++ {
		if now := w.heard(); now != n {
			n, same = now, 0
		}
	}
	return n
}

// solicitation is an Ethernet frame with a router solicitation (RFC 4861
// section 4.1).
func solicitation(hw net.HardwareAddr, src netip.Addr, hops byte, icmpType byte) []byte {
	dst := netip.MustParseAddr("ff02::2")
	body := []byte{icmpType, 0, 0, 0, 0, 0, 0, 0}
	// The checksum covers a pseudo header (RFC 8200 section 8.1).
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	var sum uint32
	for all := append(pseudo, body...); len(all) > 0; all = all[2:] {
		sum += uint32(binary.BigEndian.Uint16(all))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))
	frame := append([]byte{0x33, 0x33, 0, 0, 0, 2}, hw...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, hops)
	return append(append(append(frame, src.AsSlice()...), dst.AsSlice()...), body...)
}

// TestSolicitation asks as iPXE does, and reads the answer on the wire.
func TestSolicitation(t *testing.T) {
	w := newWire(t)
	var nic, nic2 *net.Interface
	send := func(ifi *net.Interface, frame []byte) {
		t.Helper()
		err := netns.Do(w.client, func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: 0xdd86})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Do(w.client, func() (err error) {
		if nic, err = net.InterfaceByName("nic"); err != nil {
			return err
		}
		nic2, err = net.InterfaceByName("nic2")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	link := w.linkLocal(w.client, "nic")
	none := netip.IPv6Unspecified()
	// A link that has just come up may drop what it gets: ask until there is an
	// answer, then begin anew, to count.
	stop := w.serve()
	for deadline, before := time.Now().Add(patience), w.heard(); w.heard() == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no solicitation was answered")
		}
		send(nic, solicitation(nic.HardwareAddr, none, 255, 133))
	}
	stop()
	before := w.settled()
	answers := w.listen()
	defer answers.Close()
	p := answers.IPv6PacketConn()
	stop = w.serve()
	// These have no answer: one that may have come from outside the link, one
	// that is no solicitation, and one on an interface that is not served.
	send(nic, solicitation(nic.HardwareAddr, none, 64, 133))
	send(nic, solicitation(nic.HardwareAddr, none, 255, 128))
	send(nic2, solicitation(nic2.HardwareAddr, none, 255, 133))
	for _, c := range []struct {
		src, dst netip.Addr
	}{{none, netip.MustParseAddr("ff02::1")}, {link, link}} {
		send(nic, solicitation(nic.HardwareAddr, c.src, 255, 133))
		buf := make([]byte, 1500)
		n, cm, _, err := p.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no router advertisement for a solicitation from %s: %v", c.src, err)
		}
		// Type 134, router lifetime 0, and not one option: no prefix, no route.
		if n != 16 || buf[0] != 134 || buf[1] != 0 || !bytes.Equal(buf[4:16], make([]byte, 12)) {
			t.Errorf("advertisement = % x; want type 134, no flags, lifetime 0, no options", buf[:n])
		}
		if cm.HopLimit != 255 || cm.IfIndex != nic.Index || cm.Dst.String() != c.dst.String() {
			t.Errorf("advertisement for %s: hop limit %d, to %s, on interface %d; want 255, %s, %d", c.src, cm.HopLimit, cm.Dst, cm.IfIndex, c.dst, nic.Index)
		}
	}
	stop() // now all that it answered has been sent
	if got := w.settled() - before; got != 2 {
		t.Errorf("%d advertisements for 2 good solicitations and 3 bad ones; want 2", got)
	}
	if out := w.run(w.client, "ip -6 route show default"); out != "" {
		t.Errorf("default route after the advertisements: %q; want none", out)
	}
}

// listen hears the client's router advertisements.
func (w *wire) listen() *icmp.PacketConn {
	w.t.Helper()
	var c *icmp.PacketConn
	if err := netns.Do(w.client, func() (err error) { c, err = icmp.ListenPacket("ip6:ipv6-icmp", "::"); return err }); err != nil {
		w.t.Fatal(err)
	}
	p := c.IPv6PacketConn()
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := errors.Join(p.SetICMPFilter(&only), p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst|ipv6.FlagInterface, true),
		p.SetReadDeadline(time.Now().Add(patience))); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// linkLocal waits for an interface's own address.
func (w *wire) linkLocal(ns, name string) netip.Addr {
	w.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, f := range strings.Fields(w.run(ns, "ip -6 -o addr show dev "+name+" scope link -tentative")) {
			if p, err := netip.ParsePrefix(f); err == nil && p.Addr().IsLinkLocalUnicast() {
				return p.Addr()
			}
		}
	}
	w.t.Fatalf("%s has no link-local address", name)
	return netip.Addr{}
}

// TestKernelSolicits: Linux itself asks when an interface comes up, and learns
// no router from the answer.
func TestKernelSolicits(t *testing.T) {
	w := newWire(t)
	defer w.serve()()
	before := w.heard()
	w.run(w.client, "ip link set nic down; echo 2 > /proc/sys/net/ipv6/conf/nic/accept_ra; ip link set nic up")
	deadline := time.Now().Add(patience)
	for w.heard() == before {
		if time.Now().After(deadline) {
			t.Fatal("the kernel's solicitation was not answered")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if out := w.run(w.client, "ip -6 route show default"); out != "" {
		t.Errorf("default route = %q; want none: an advertisement of lifetime 0 makes no router", out)
	}
}

// TestComesBack: an interface that was made anew is served.
func TestComesBack(t *testing.T) {
	w := newWire(t)
	defer w.serve()()
	w.run(w.server, "ip link del wire")
	w.lay("wire", "nic")
	w.linkLocal(w.server, "wire")
	before := w.heard()
	w.run(w.client, "ip link set nic down; echo 2 > /proc/sys/net/ipv6/conf/nic/accept_ra; ip link set nic up") // the kernel asks until it hears
	for deadline := time.Now().Add(patience); w.heard() == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no solicitation was answered")
		}
	}
}

func TestListenRefuses(t *testing.T) {
	if _, err := ra.Listen("dsas-no-such"); err == nil || !strings.Contains(err.Error(), "dsas-no-such") {
		t.Errorf("Listen(dsas-no-such) = %v; want an error that names it", err)
	}
}
