package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"dsas"
)

// TestRelayedConflict: behind a real relay and a router, a box that is there
// has the first address of the pool: the next stranger gets another, found by
// ping. A node gets its own, whoever has it.
func TestRelayedConflict(t *testing.T) {
	s, relay := newRelayed(t)
	s.start(relay, strings.Fields("dhcrelay -4 -d --no-pid -a -id dnl -iu upl 10.77.0.1")...)
	f1, err := s.store.NodeByMAC(t.Context(), dsas.MAC{0x52, 0x54, 0, 0, 2, 1})
	if err != nil {
		t.Fatal(err)
	}
	squatter := far.Pool.First
	ipCmd(t, fmt.Sprintf("-n %s link set nic address 52:54:00:00:05:05", s.client))
	ipCmd(t, fmt.Sprintf("-n %s addr add %s/23 dev nic", s.client, squatter))
	ipCmd(t, fmt.Sprintf("-n %s addr add %s dev nic", s.client, f1.Address))
	ipCmd(t, fmt.Sprintf("-n %s route add default via 10.78.0.254", s.client))
	for _, tt := range []struct{ mac, want string }{{"52:54:00:00:09:77", squatter.Next().String()}, {f1.NICs[0].MAC.String(), f1.Address.Addr().String()}} {
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
	if l, _ := s.store.Lease(squatter); !l.Declined {
		t.Errorf("lease of %s = %+v; want it declined", squatter, l)
	}
	if ev := s.store.Events("dhcp.refused"); len(ev) != 1 || !strings.Contains(ev[0].Message, squatter.String()+" is in use by a box behind relay 10.78.0.254 that answers ping") {
		t.Errorf("events = %+v; want one that names the address and the relay", ev)
	}
}

// TestRelayedSameClientID: as TestSameClientID, where only ping gets.
func TestRelayedSameClientID(t *testing.T) {
	s, relay := newRelayed(t)
	s.start(relay, strings.Fields("dhcrelay -4 -d --no-pid -a -id dnl -iu upl 10.77.0.1")...)
	const id = "ff00112233445566"
	l, _, err := s.store.Bind(t.Context(), behind(), strangeMAC, id, far.Pool.First, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ipCmd(t, fmt.Sprintf("-n %s link set nic address %s", s.client, strangeMAC))
	ipCmd(t, fmt.Sprintf("-n %s addr add %s/23 dev nic", s.client, l.Address))
	ipCmd(t, fmt.Sprintf("-n %s route add default via 10.78.0.254", s.client))
	ipCmd(t, fmt.Sprintf("-n %s link add link nic name box address 52:54:00:00:09:77 type macvlan mode bridge", s.client))
	ipCmd(t, fmt.Sprintf("-n %s link set box up", s.client))
	hook, log := hookFile(t)
	if out, err := s.run(strings.Fields("udhcpc -f -q -n -t 10 -T 2 -i box -C -x 0x3d:" + id + " -s " + hook)...); err != nil || !fileHas(log, "ip="+l.Address.Next().String()+"\n")() {
		b, _ := os.ReadFile(log)
		t.Errorf("the second: %v, %s\n%s; want %s\n%s", err, out, b, l.Address.Next(), s.log)
	}
	if got, _ := s.store.Lease(l.Address); got.MAC != strangeMAC || got.Declined {
		t.Errorf("the first's lease = %+v; want it as it was", got)
	}
}

// TestOpenPings: the socket is opened where it is of use, and nowhere else.
func TestOpenPings(t *testing.T) {
	noPool := behind()
	noPool.Pool = dsas.Range{}
	for _, tt := range []struct {
		name  string
		c     Config
		opens int
	}{
		{"a pool behind a relay", Config{Subnets: []dsas.Subnet{near, behind()}}, 1},
		{"two of them", Config{Subnets: []dsas.Subnet{behind(), behind()}}, 1},
		{"none behind a relay", Config{Subnets: []dsas.Subnet{near}}, 0},
		{"no pool there", Config{Subnets: []dsas.Subnet{near, noPool}}, 0},
		{"no check is wanted", Config{Subnets: []dsas.Subnet{near, behind()}, NoProbe: true}, 0},
		{"another server gives the addresses", Config{Subnets: []dsas.Subnet{near, behind()}, Proxy: true}, 0},
	} {
		opens := 0
		tt.c.In = func(func() error) error { opens++; return nil }
		s := &Server{Config: tt.c}
		if err := s.openPings(); err != nil || opens != tt.opens {
			t.Errorf("%s: openPings = %v, %d sockets; want %d", tt.name, err, opens, tt.opens)
		}
	}
}

// TestPingerHears: nothing but the answer to its own question counts.
func TestPingerHears(t *testing.T) {
	p := &pinger{id: 0x1234, nonce: 0x1122334455667788}
	q, err := p.echo()
	if err != nil {
		t.Fatal(err)
	}
	if p.ours(q) {
		t.Error("a question of our own counts as an answer")
	}
	answer := func(id int, data string) []byte {
		b, err := (&icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte(data)}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const nonce = "\x11\x22\x33\x44\x55\x66\x77\x88"
	good := answer(0x1234, nonce)
	if !p.ours(good) {
		t.Error("an answer does not count")
	}
	for what, b := range map[string][]byte{"another's id": answer(0x1235, nonce), "another nonce": answer(0x1234, "\x11\x22\x33\x44\x55\x66\x77\x89"),
		"more than was asked": answer(0x1234, nonce+"x"), "nothing": nil, "no data": answer(0x1234, "")} {
		if p.ours(b) {
			t.Errorf("%s counts as an answer", what)
		}
	}
	for i := range good {
		if p.ours(good[:i]) {
			t.Errorf("%d bytes of an answer count as one", i)
		}
	}
}

// TestAsk: an answer that counts, one that does not, no wire, and the end.
func TestAsk(t *testing.T) {
	var a askers[int]
	addr := netip.MustParseAddr("10.78.1.10")
	odd := func(n int) bool { return n%2 == 1 }
	tell := func(to netip.Addr, list ...int) func() error {
		return func() error {
			for _, n := range list {
				a.tell(to, n)
			}
			return nil
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		send func() error
		want int
		used bool
	}{
		{"an answer", t.Context(), tell(addr, 2, 3), 3, true},
		{"none that counts", t.Context(), tell(addr, 2), 0, false},
		{"another's address", t.Context(), tell(addr.Next(), 3), 0, false},
		{"more than are kept", t.Context(), tell(addr, 3, 3, 3, 3, 3, 3), 3, true},
		{"no wire", t.Context(), func() error { return errors.New("network is down") }, 0, false},
		{"it ends", ended, tell(addr), 0, false},
	} {
		if got, used := a.ask(tt.ctx, addr, tt.send, odd); got != tt.want || used != tt.used {
			t.Errorf("%s: ask = %d, %t; want %d, %t", tt.name, got, used, tt.want, tt.used)
		}
	}
	if len(a.by) != 0 {
		t.Errorf("%d addresses are still waited for; want none", len(a.by))
	}
	// Two ask for the same, and one answer comes.
	var here sync.WaitGroup
	here.Add(2)
	told := make(chan struct{})
	answer := sync.OnceFunc(func() { a.tell(addr, 1); close(told) })
	both := make(chan bool, 2)
	for range 2 {
		arrive := sync.OnceFunc(here.Done)
		go func() {
			_, used := a.ask(t.Context(), addr, func() error {
				arrive()
				here.Wait()
				answer()
				<-told
				return nil
			}, odd)
			both <- used
		}()
	}
	if one, other := <-both, <-both; !one || !other {
		t.Error("of two who ask for an address one hears nothing")
	}
}
