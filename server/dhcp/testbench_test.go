package dhcp

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

var (
	nodeMAC    = dsas.MAC{0x52, 0x54, 0, 0, 1, 1}
	nodeMAC2   = dsas.MAC{0x52, 0x54, 0, 0, 1, 2}
	strangeMAC = dsas.MAC{0x52, 0x54, 0, 0, 9, 9}
	near       = dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"), Gateway: netip.MustParseAddr("10.77.0.254"),
		DNS: []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")}, Domain: "rack.example",
		Pool: dsas.Range{First: netip.MustParseAddr("10.77.0.200"), Last: netip.MustParseAddr("10.77.0.201")}, Lease: 8 * time.Minute,
	}
	far = dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.78.0.0/23"), Server: netip.MustParseAddr("10.78.0.1"),
		Pool: dsas.Range{First: netip.MustParseAddr("10.78.1.10"), Last: netip.MustParseAddr("10.78.1.20")}, Lease: time.Hour,
	}
	bootSet = dsas.BootSet{Kernel: dsas.Part{Digest: "sha256:" + digest('a')}, Initramfs: dsas.Part{Digest: "sha256:" + digest('b')}}
)

func digest(c byte) dsas.Digest { return dsas.Digest(bytes.Repeat([]byte{c}, 64)) }

const (
	undionly = "nbp/52-54-00-00-01-01/undionly.kpxe"
	script   = "http://10.77.0.1:8080/boot/52-54-00-00-01-01/script.ipxe"
)

// bench is a server without sockets.
type bench struct {
	t     *testing.T
	s     *Server
	store *dhcptest.Store
	l     *link
	now   time.Time
	// unicast: what is asked was sent to the server's own address.
	unicast bool
}

func testLink(local ...dsas.Subnet) *link {
	l := &link{name: "eth1"}
	l.state.Store(&linkState{local: local})
	return l
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, now: time.Unix(1_800_000_000, 0)}
	b.store = dhcptest.New(
		dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: nodeMAC}, {MAC: nodeMAC2}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web"},
		dsas.Node{Name: "f1", NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 2, 1}}}, Address: netip.MustParsePrefix("10.78.0.5/23"), Role: "web"},
	)
	b.store.Publish(bootSet, "web")
	s, err := New(Config{Store: b.store, Releases: b.store, Subnets: []dsas.Subnet{near, far}, Now: func() time.Time { return b.now }})
	if err != nil {
		t.Fatal(err)
	}
	b.s, b.l = s, testLink(near)
	t.Cleanup(func() {
		if names := b.store.Changed(); len(names) > 0 {
			t.Errorf("nodes %q were changed, which belong to the store", names)
		}
	})
	return b
}

// ask answers a request as it would come off the wire and go back onto it.
func (b *bench) ask(mac dsas.MAC, t dhcpv4.MessageType, mods ...dhcpv4.Modifier) *reply {
	b.t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(t), dhcpv4.WithHwAddr(mac.HardwareAddr())}, mods...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootRequest
	if m, err = dhcpv4.FromBytes(m.ToBytes()); err != nil {
		b.t.Fatal(err)
	}
	r, err := b.s.answer(context.Background(), new(slate), b.l, m, b.unicast)
	if err != nil {
		b.t.Logf("answer: %v", err)
		return nil
	}
	if r != nil {
		if r.onDisk != nil {
			if err := r.onDisk(b.t.Context()); err != nil {
				b.t.Logf("answer: %v", err)
				return nil
			}
		}
		b.s.record(b.t.Context(), r.gave) // it went out
		if r.msg, err = dhcpv4.FromBytes(r.msg.ToBytes()); err != nil {
			b.t.Fatalf("our own answer: %v", err)
		}
		if r.msg.TransactionID != m.TransactionID {
			b.t.Errorf("xid = %s; want %s", r.msg.TransactionID, m.TransactionID)
		}
	}
	return r
}

// record records a client's port, as is done when its answer has gone.
func (b *bench) record(c *client) {
	if p, ok := b.s.portNews(c); ok {
		b.s.recordPort(b.t.Context(), p)
	}
}

func opt(code uint8, v ...byte) dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), v)
}

func optIP(code uint8, a string) dhcpv4.Modifier {
	return opt(code, netip.MustParseAddr(a).AsSlice()...)
}

func optText(code uint8, s string) dhcpv4.Modifier { return opt(code, []byte(s)...) }

// firmware is what a BIOS's PXE sends.
func firmware() []dhcpv4.Modifier {
	return []dhcpv4.Modifier{optText(60, "PXEClient:Arch:00000:UNDI:002001"), opt(93, 0, 0), opt(94, 1, 2, 1), opt(97, make([]byte, 17)...)}
}

func with(l []dhcpv4.Modifier, more ...dhcpv4.Modifier) []dhcpv4.Modifier {
	return append(append([]dhcpv4.Modifier{}, l...), more...)
}

func ip(s string) dhcpv4.Modifier { return dhcpv4.WithClientIP(net.ParseIP(s)) }

// check compares a reply with a type, an address and where it goes.
func (b *bench) check(what string, r *reply, t dhcpv4.MessageType, addr, to string, hw string) {
	b.t.Helper()
	if r == nil {
		b.t.Fatalf("%s: no answer; want %s", what, t)
	}
	if r.msg.MessageType() != t || r.msg.YourIPAddr.String() != addr || r.to.String() != to || r.hw.String() != hw {
		b.t.Errorf("%s: %s of %s to %s %s; want %s of %s to %s %s", what, r.msg.MessageType(), r.msg.YourIPAddr, r.to, r.hw, t, addr, to, hw)
	}
	if !r.msg.ServerIdentifier().Equal(r.from.AsSlice()) {
		b.t.Errorf("%s: option 54 = %s; want %s, where it is sent from", what, r.msg.ServerIdentifier(), r.from)
	}
}

const all = "255.255.255.255:68"
