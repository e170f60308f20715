package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
	"dsas/server/netns"
	"dsas/server/store"
)

func TestAskTwice(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	a := newScarcity()
	ask := func(m uint32, after time.Duration, want bool) {
		t.Helper()
		if got := a.again(madeUp(m), now.Add(after)); got != want {
			t.Errorf("again(%d, after %s) = %t; want %t", m, after, got, want)
		}
	}
	ask(1, 0, false)
	ask(1, 100*time.Millisecond, false) // the same packet by another way
	ask(1, time.Second, true)
	ask(1, 30*time.Second, true)
	ask(2, 2*askedFor, false)
	ask(1, 2*askedFor, true)
	// A flood of a hundred thousand in between: who asked before is not forgotten,
	// and of the flood no more than a bound is kept.
	ask(3, 3*askedFor, false)
	for i := range uint32(maxAsked + maxAsked/2) {
		if a.again(madeUp(1000+i), now.Add(3*askedFor)) {
			t.Fatalf("MAC %d of a flood asked for the first time and passes", i)
		}
	}
	ask(3, 3*askedFor+time.Second, true)
	if n := len(a.asked) + len(a.old); n > 2*maxAsked {
		t.Errorf("%d MACs are remembered; want at most %d", n, 2*maxAsked)
	}
}

// TestScarce: in a pool that is more than half in use, newcomers get short
// leases; those that renewed, and leases from before, stay as they are.
func TestScarce(t *testing.T) {
	b := newBench(t)
	sub := near
	sub.Pool, sub.Lease = dsas.Range{First: netip.MustParseAddr("10.77.0.192"), Last: netip.MustParseAddr("10.77.0.201")}, time.Hour // 10
	b.s.Subnets[0], b.s.poolSize[0], b.l = sub, sub.PoolSize(), testLink(sub)
	leaseTime := func(r *reply) time.Duration {
		if r == nil {
			return 0
		}
		return r.msg.IPAddressLeaseTime(0)
	}
	dora := func(i uint32) (addr string, lease time.Duration) {
		t.Helper()
		r := b.ask(madeUp(i), dhcpv4.MessageTypeDiscover)
		if r == nil {
			return "", 0
		}
		addr = r.msg.YourIPAddr.String()
		a := b.ask(madeUp(i), dhcpv4.MessageTypeRequest, optIP(50, addr))
		if leaseTime(a) != leaseTime(r) {
			t.Errorf("MAC %d was offered %s and got %s", i, leaseTime(r), leaseTime(a))
		}
		return addr, leaseTime(a)
	}
	renew := func(i uint32, addr string) time.Duration {
		return leaseTime(b.ask(madeUp(i), dhcpv4.MessageTypeRequest, ip(addr)))
	}
	first := map[uint32]string{}
	for i := range uint32(6) {
		addr, d := dora(i)
		if first[i] = addr; d != time.Hour {
			t.Errorf("MAC %d of a pool that is at most half in use got %s; want 1h", i, d)
		}
	}
	for i := uint32(6); i < 100; i++ {
		if addr, _ := dora(i); addr != "" {
			t.Fatalf("MAC %d got %s in a scarce pool when it asked first", i, addr)
		}
	}
	b.now = b.now.Add(4 * time.Second)
	addr, d := dora(6)
	if addr == "" || d != scarceLease {
		t.Errorf("who asked twice got %q for %s; want an address for %s", addr, d, scarceLease)
	}
	// A REQUEST without a DISCOVER is no way round.
	if r := b.ask(madeUp(200), dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.201")); r != nil {
		t.Errorf("the first REQUEST of one that was never offered anything: %s; want silence", r.msg.MessageType())
	}
	b.now = b.now.Add(scarceLease / 2)
	if d := renew(6, addr); d != scarceLease {
		t.Errorf("the first renewal gives %s; want %s", d, scarceLease)
	}
	if d := renew(6, addr); d != time.Hour {
		t.Errorf("the renewal of one that renewed before gives %s; want 1h", d)
	}
	b.now = b.now.Add(5 * time.Minute)
	if d := renew(0, first[0]); d < 50*time.Minute || d > 53*time.Minute {
		t.Errorf("the renewal of a lease from before gives %s; want what was left of its hour", d)
	}
	if d := renew(0, first[0]); d != time.Hour {
		t.Errorf("its next renewal gives %s; want 1h", d)
	}
}

// kept is a state whose leases are kept by the real store.
type kept struct {
	*dhcptest.Store
	st *store.Store
}

func (k kept) Offer(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	return k.st.Offer(ctx, sub, mac, id, want, now)
}

func (k kept) Bind(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, func(context.Context) error, error) {
	return k.st.Bind(ctx, sub, mac, id, want, now)
}

func (k kept) MayHave(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, a netip.Addr, now time.Time) (may, has bool, err error) {
	return k.st.MayHave(ctx, sub, mac, id, a, now)
}

func (k kept) InUse(ctx context.Context, sub dsas.Subnet, now time.Time) (int, error) {
	return k.st.InUse(ctx, sub, now)
}

func (k kept) Standing(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, now time.Time) (dsas.Standing, error) {
	return k.st.Standing(ctx, sub, mac, now)
}

func (k kept) Prove(ctx context.Context, mac dsas.MAC, a netip.Addr) { k.st.Prove(ctx, mac, a) }

func (k kept) Unproven(ctx context.Context, sub dsas.Subnet, then, now time.Time) (dsas.Lease, error) {
	return k.st.Unproven(ctx, sub, then, now)
}

func (k kept) TakeBack(ctx context.Context, l dsas.Lease, mac dsas.MAC, id string, now time.Time) error {
	return k.st.TakeBack(ctx, l, mac, id, now)
}

func (k kept) Release(ctx context.Context, mac dsas.MAC, a netip.Addr) error {
	return k.st.Release(ctx, mac, a)
}

func (k kept) Decline(ctx context.Context, a netip.Addr, until time.Time) error {
	return k.st.Decline(ctx, a, until)
}

// flood takes leases with ever new MACs until its context ends: what it is
// offered it takes. It asks each time times, with a pause between.
type flood struct {
	asked, acked atomic.Int64
}

func (f *flood) run(ctx context.Context, t *testing.T, s *segment, times int, from uint32) {
	var out *Conn
	if err := netns.Do(s.client, func() (err error) {
		out, err = Listen("nic")
		return err
	}); err != nil {
		t.Error(err)
		return
	}
	defer out.Close()
	in, err := netListen(s.client, ":68")
	if err != nil {
		t.Error(err)
		return
	}
	src, dst := netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67")
	send := func(kind dhcpv4.MessageType, mac dsas.MAC, mods ...dhcpv4.Modifier) {
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac.HardwareAddr()), dhcpv4.WithBroadcast(true)}, mods...)...)
		if err == nil {
			err = out.SendFrame(broadcastMAC, src, dst, m.ToBytes())
		}
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for {
			n, _, err := in.ReadFrom(b)
			if err != nil {
				return
			}
			m, err := dhcpv4.FromBytes(b[:n])
			if err != nil || m.ClientHWAddr[0] != madeUp(0)[0] {
				continue
			}
			switch m.MessageType() {
			case dhcpv4.MessageTypeOffer:
				send(dhcpv4.MessageTypeRequest, dsas.MAC(m.ClientHWAddr), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(m.YourIPAddr)),
					dhcpv4.WithOption(dhcpv4.OptServerIdentifier(m.ServerIdentifier())))
			case dhcpv4.MessageTypeAck:
				f.acked.Add(1)
			}
		}
	})
	const batch = 200
	for ; ctx.Err() == nil; from += batch {
		for range times {
			for i := range uint32(batch) {
				send(dhcpv4.MessageTypeDiscover, madeUp(from+i))
				f.asked.Add(1)
				time.Sleep(200 * time.Microsecond)
			}
			if times > 1 {
				time.Sleep(askTwice)
			}
		}
	}
	in.Close()
	wg.Wait()
}

// TestFloodThatTakes: on a segment without circuit ids, strangers that take up
// what they are offered come without end. A real client gets an address all the
// same, and keeps it.
func TestFloodThatTakes(t *testing.T) {
	sub := near
	sub.Pool, sub.Lease = dsas.Range{First: netip.MustParseAddr("10.77.0.192"), Last: netip.MustParseAddr("10.77.0.223")}, time.Hour
	const size = 32
	for _, tt := range []struct {
		name  string
		times int
		fills bool
	}{
		{"ever new MACs", 1, false},
		{"MACs that ask twice", 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			st, err := store.Open(t.Context(), filepath.Join(dir, "dsas.db"), filepath.Join(dir, "key"), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			s := newSegmentOf(t, func(d *dhcptest.Store) Store { return kept{d, st} }, sub)
			s.srv.scarce.mu.Lock()
			s.srv.scarce.settle = 2 * time.Second
			s.srv.scarce.mu.Unlock()
			inUse := func() int {
				n, err := st.InUse(t.Context(), sub, time.Now())
				if err != nil {
					t.Error(err)
				}
				return n
			}
			ctx, cancel := context.WithCancel(t.Context())
			var f flood
			var wg sync.WaitGroup
			wg.Go(func() { f.run(ctx, t, s, tt.times, 0) })
			defer wg.Wait()
			defer cancel()
			if tt.fills {
				eventually(t, "full", func() bool { return inUse() == size })
			} else {
				eventually(t, "more than half full", func() bool { return inUse() > size/2 })
				was := f.asked.Load()
				eventually(t, "flooded on", func() bool { return f.asked.Load() > was+2000 })
				// What was on its way when the half was passed got through.
				if n := inUse(); n > size*3/4 {
					t.Errorf("%d of %d addresses are in use after %d MACs; want little more than half", n, size, f.asked.Load())
				}
			}
			// Boxes with MACs of their own, each of which answers ARP for its own
			// address and not for the others'.
			ipCmd(t, fmt.Sprintf("netns exec %s sysctl -qw net.ipv4.conf.all.arp_ignore=1", s.client))
			held := map[netip.Addr]dsas.MAC{}
			for i, client := range []string{"udhcpc", "udhcpc", "udhcpc", "dhclient"} {
				mac := dsas.MAC{0x52, 0x54, 0, 0, 9, byte(0x70 + i)}
				dev := fmt.Sprintf("box%d", i)
				ipCmd(t, fmt.Sprintf("-n %s link add link nic name %s address %s type macvlan mode bridge", s.client, dev, mac))
				ipCmd(t, fmt.Sprintf("-n %s link set %s up", s.client, dev))
				hook, log := hookFile(t)
				args := fmt.Sprintf("udhcpc -f -q -n -t 30 -T 1 -i %s -s %s", dev, hook)
				addrIs, leaseIs := "ip=", "lease="
				if client == "dhclient" {
					text := "#!/bin/sh\n[ -n \"$new_ip_address\" ] && ip addr replace $new_ip_address/24 dev $interface\nenv >>" + log + "\nexit 0\n"
					for name, text := range map[string]string{hook: text, hook + ".conf": "timeout 55; initial-interval 2; backoff-cutoff 4;"} {
						if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
							t.Fatal(err)
						}
					}
					args = fmt.Sprintf("dhclient -1 -v -sf %s -lf %s.leases -pf %s.pid -cf %s.conf %s", hook, hook, hook, hook, dev)
					addrIs, leaseIs = "new_ip_address=", "new_dhcp_lease_time="
				}
				out, err := s.run(strings.Fields(args)...)
				said, _ := os.ReadFile(log)
				a, parseErr := netip.ParseAddr(line(string(said), addrIs))
				if err != nil || parseErr != nil {
					t.Fatalf("box %d: %v; want a lease\n%s\nafter %d MACs, %d leases to them\n%s", i, err, out, f.asked.Load(), f.acked.Load(), s.log)
				}
				if pid := line(fileText(hook+".pid"), ""); pid != "" {
					defer func() { _ = exec.Command("kill", pid).Run() }() // dhclient goes on in the background
				}
				lease := line(string(said), leaseIs)
				if secs, err := strconv.Atoi(lease); err != nil || time.Duration(secs)*time.Second > scarceLease {
					t.Errorf("box %d has a lease of %s s; want at most %s, in a scarce pool", i, lease, scarceLease)
				}
				held[a] = mac
			}
			was := f.asked.Load()
			eventually(t, "flooded on", func() bool { return f.asked.Load() > was+2000 })
			for a, mac := range held {
				if l, err := st.Lease(t.Context(), a, time.Now()); err != nil || l.MAC != mac {
					t.Errorf("lease of %s = %+v, %v; want %s to keep it", a, l, err, mac)
				}
			}
			if got := strings.Contains(s.log.String(), "leases are taken back"); got != tt.fills {
				t.Errorf("the log says that leases are taken back: %t; want %t\n%s", got, tt.fills, s.log)
			}
			t.Logf("%d DISCOVERs, %d leases taken, %d of %d in use", f.asked.Load(), f.acked.Load(), inUse(), size)
		})
	}
}

func fileText(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}

// line gives what follows key in the first line that begins with it.
func line(text, key string) string {
	for l := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(l, key); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
