package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas/server/netns"
)

// oddServer answers by UDP on the link "odd": it hears each third node's DISCOVER
// the second time, gives every seventh a NAK, and node 5 nothing at all.
func oddServer(t *testing.T, ns string) {
	t.Helper()
	var pc net.PacketConn
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) (err error) {
		rc.Control(func(fd uintptr) {
			err = errors.Join(unix.BindToDevice(int(fd), "odd"), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
		})
		return err
	}}
	if err := netns.Do(ns, func() (err error) {
		pc, err = lc.ListenPacket(context.Background(), "udp4", ":67")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		heard, buf := map[int]bool{}, make([]byte, 2048)
		for {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			m := buf[:n]
			node, typ := int(binary.BigEndian.Uint32(m[30:])), m[fixedLen+6]
			first := !heard[node]
			heard[node] = true
			if node == 5 || node%3 == 0 && first {
				continue
			}
			a := make([]byte, fixedLen+4, 300)
			copy(a, m[:44])
			a[0] = 2
			copy(a[16:], []byte{10, 9, 0, byte(10 + node)})
			binary.BigEndian.PutUint32(a[fixedLen:], cookie)
			answer := map[byte]byte{Discover: Offer, Request: Ack}[typ]
			if typ == Request && node%7 == 0 {
				answer = Nak
			}
			a = append(a, 53, 1, answer, 54, 4, 10, 9, 0, 1, 255)
			pc.WriteTo(a, &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
	}()
}

// TestCrowd: each talk ends once, as its server has it; what is lost is asked
// again.
func TestCrowd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces want root")
	}
	server, client := fmt.Sprintf("ld%d-s", os.Getpid()), fmt.Sprintf("ld%d-c", os.Getpid())
	for _, ns := range []string{server, client} {
		if err := netns.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	}
	for _, args := range []string{
		"-n " + server + " link add odd type veth peer name odd netns " + client,
		"-n " + server + " addr add 10.9.0.1/16 dev odd", "-n " + server + " link set odd up", "-n " + client + " link set odd up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	oddServer(t, server)
	var c *Crowd
	if err := netns.Do(client, func() (err error) { c, err = OpenCrowd("odd"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Wait, c.Tries = 300*time.Millisecond, 4
	const nodes = 100
	got := map[int]Outcome{}
	err := c.Run(t.Context(), 16, func(n int) (Talk, bool) { return Talk{Ask: Ask{MAC: MAC(n)}}, n < nodes }, func(n int, o Outcome) {
		if _, twice := got[n]; twice {
			t.Errorf("talk %d ended twice", n)
		}
		got[n] = o
	})
	if err != nil || len(got) != nodes {
		t.Fatalf("Run = %v, %d talks ended; want nil, %d", err, len(got), nodes)
	}
	for n, o := range got {
		want, addr := error(nil), netip.AddrFrom4([4]byte{10, 9, 0, byte(10 + n)})
		switch {
		case n == 5:
			want = ErrNoAnswer
		case n%7 == 0:
			want = ErrNak
		}
		if !errors.Is(o.Err, want) || want == nil && (o.Answer.Address != addr || o.Answer.MAC != MAC(n)) {
			t.Errorf("talk %d = %+v; want error %v, address %s", n, o, want, addr)
		}
	}
	if c.Retries < nodes/3+3 { // node 5 asked four times
		t.Errorf("Retries = %d; want at least %d", c.Retries, nodes/3+3)
	}
	// A lease that is renewed is asked of its server.
	old := got[1].Answer
	var renewed Outcome
	if err := c.Run(t.Context(), 1, func(n int) (Talk, bool) { return Talk{Ask: Ask{MAC: MAC(1)}, Renew: &old}, n < 1 }, func(_ int, o Outcome) { renewed = o }); err != nil || renewed.Err != nil {
		t.Errorf("renewal = %+v, %v; want an ACK", renewed, err)
	}
}
