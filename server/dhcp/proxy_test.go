package dhcp

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

var updateProxy = flag.Bool("update-proxy", false, "write testdata/proxy anew")

// at is a socket's address, for links without sockets.
type at struct {
	net.PacketConn
	port int
}

func (a at) LocalAddr() net.Addr { return &net.UDPAddr{Port: a.port} }

func boundLink(port int) *link {
	l := testLink(near)
	l.state.Store(&linkState{conn: at{port: port}, local: []dsas.Subnet{near}})
	return l
}

// newProxyBench is a bench whose server is a proxyDHCP server, with a link for
// each port.
func newProxyBench(t *testing.T) (b *bench, l67, l4011 *link) {
	t.Helper()
	b = newBench(t)
	b.s.Proxy = true
	l67 = boundLink(ServerPort)
	l4011 = boundLink(BootPort)
	return b, l67, l4011
}

func (b *bench) askProxy(l *link, m *dhcpv4.DHCPv4, sender string) *reply {
	b.t.Helper()
	m, err := dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := b.s.proxy(context.Background(), new(slate), l, m, netip.MustParseAddrPort(sender))
	if err != nil {
		b.t.Logf("proxy: %v", err)
		return nil
	}
	if r != nil {
		b.s.record(b.t.Context(), r.gave) // it went out
	}
	return r
}

func message(t *testing.T, mac dsas.MAC, typ dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(typ), dhcpv4.WithHwAddr(mac.HardwareAddr()),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootRequest
	return m
}

const nobody = "0.0.0.0:68"

// TestProxyGoldens: each captured request of testdata/proxy/NAME.hex (port,
// sender, payload) gets exactly the answer of NAME.golden, field by field.
func TestProxyGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/proxy/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".hex")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(string(text))
			if len(fields) < 3 {
				t.Fatalf("%s: want port, sender, payload", f)
			}
			payload, err := hex.DecodeString(strings.Join(fields[2:], ""))
			if err != nil {
				t.Fatal(err)
			}
			req, err := dhcpv4.FromBytes(payload)
			if err != nil {
				t.Fatal(err)
			}
			b, l67, l4011 := newProxyBench(t)
			mac, _ := dsas.MACFrom(req.ClientHWAddr)
			b.store = dhcptest.New(dsas.Node{Name: "p1", NICs: []dsas.NIC{{MAC: mac}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web", Loader: loaderOf(name)})
			b.store.Publish(bootSet, "web")
			b.s.Store, b.s.Releases = b.store, b.store
			l := l67
			if fields[0] == "4011" {
				l = l4011
			}
			got := "no answer\n"
			if r := b.askProxy(l, req, fields[1]); r != nil {
				got = fmt.Sprintf("to %s %s\n%s\n%x\n", r.to, r.hw, r.msg.Summary(), r.msg.ToBytes())
				if y := r.msg.YourIPAddr; !y.IsUnspecified() {
					t.Errorf("yiaddr = %s; a proxyDHCP server gives no address", y)
				}
			}
			golden := filepath.Join("testdata/proxy", name+".golden")
			if *updateProxy {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("answer to %s = %s; want %s", name, got, want)
			}
		})
	}
}

// loaderOf: a capture whose name says nbp is of a node whose loader is that.
func loaderOf(name string) dsas.Loader {
	if strings.Contains(name, "nbp") {
		return dsas.LoaderNBP
	}
	return ""
}

func uefi() []dhcpv4.Modifier {
	return []dhcpv4.Modifier{optText(60, "PXEClient:Arch:00007:UNDI:003016"), opt(93, 0, 7), opt(94, 1, 3, 16), opt(97, make([]byte, 17)...)}
}

func TestProxyOffers(t *testing.T) {
	b, l67, l4011 := newProxyBench(t)
	discover := func(mods ...dhcpv4.Modifier) *reply {
		t.Helper()
		return b.askProxy(l67, message(t, nodeMAC, dhcpv4.MessageTypeDiscover, mods...), nobody)
	}
	option := func(r *reply, code uint8) string {
		return string(r.msg.Options.Get(dhcpv4.GenericOptionCode(code)))
	}
	// A BIOS takes the file of the offer, without menu or discovery.
	r := discover(firmware()...)
	b.check("BIOS", r, dhcpv4.MessageTypeOffer, "0.0.0.0", all, "ff:ff:ff:ff:ff:ff")
	if r.msg.BootFileName != undionly || option(r, 67) != undionly || option(r, 66) != "10.77.0.1" || option(r, 60) != "PXEClient" ||
		option(r, 43) != "\x06\x01\x08\xff" || r.msg.ServerIPAddr.String() != "10.77.0.1" || len(option(r, 97)) != 17 {
		t.Errorf("offer to a BIOS: %s", r.msg.Summary())
	}
	for _, code := range []uint8{1, 3, 6, 12, 15, 51, 58, 59, 175} {
		if option(r, code) != "" {
			t.Errorf("offer to a BIOS has option %d; what is not the boot is the other server's to say", code)
		}
	}
	// UEFI is sent to port 4011: PXEClient, no option 43, no file.
	r = discover(uefi()...)
	b.check("UEFI", r, dhcpv4.MessageTypeOffer, "0.0.0.0", all, "ff:ff:ff:ff:ff:ff")
	if r.msg.BootFileName != "" || option(r, 67) != "" || option(r, 60) != "PXEClient" || option(r, 43) != "" || r.msg.ServerIPAddr.String() != "10.77.0.1" {
		t.Errorf("offer to a UEFI: %s", r.msg.Summary())
	}
	request := message(t, nodeMAC, dhcpv4.MessageTypeRequest, with(uefi(), ip("10.77.0.150"))...)
	r = b.askProxy(l4011, request, "10.77.0.150:68")
	b.check("4011", r, dhcpv4.MessageTypeAck, "0.0.0.0", "10.77.0.150:68", "")
	const snponly = "nbp/52-54-00-00-01-01/snponly.efi"
	if r.msg.BootFileName != snponly || option(r, 67) != snponly || option(r, 60) != "PXEClient" || option(r, 43) != "" || r.msg.ClientIPAddr.String() != "10.77.0.150" {
		t.Errorf("4011's answer to a UEFI: %s", r.msg.Summary())
	}
	// What was picked of a menu is repeated; where it came from is where it goes.
	request.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{0, 71, 4, 0x80, 0, 0, 0, 255}))
	r = b.askProxy(l4011, request, "10.77.0.150:4011")
	b.check("4011 with a boot item", r, dhcpv4.MessageTypeAck, "0.0.0.0", "10.77.0.150:4011", "")
	if option(r, 43) != "\x47\x04\x80\x00\x00\x00\xff" {
		t.Errorf("boot item = %x; want it repeated", option(r, 43))
	}
	// iPXE has its script's URL of the offer, in its second round too.
	ipxe := with(firmware(), optText(77, "iPXE"))
	for _, m := range [][]dhcpv4.Modifier{with(ipxe, dhcpv4.WithBroadcast(true)), with(uefi(), optText(77, "iPXE"))} {
		r = discover(m...)
		if r == nil || r.msg.BootFileName != script || option(r, 67) != script || option(r, 60) != "PXEClient" || option(r, 43) != "" || option(r, 175) != "" {
			t.Errorf("offer to iPXE: %v", r)
		}
	}
	// UEFI HTTP Boot takes a URL, and its own vendor class alone.
	r = discover(optText(60, "HTTPClient:Arch:00016:UNDI:003001"), opt(93, 0, 16))
	b.check("HTTP Boot", r, dhcpv4.MessageTypeOffer, "0.0.0.0", all, "ff:ff:ff:ff:ff:ff")
	if f := option(r, 67); !strings.HasPrefix(f, "http://10.77.0.1:8080/") || option(r, 60) != "HTTPClient" || option(r, 43) != "" {
		t.Errorf("offer to HTTP Boot: %s", r.msg.Summary())
	}
	// One per file and exchange: BIOS, 4011, HTTP, iPXE (both of its offers here are
	// of one exchange).
	if got := len(b.store.Events(dsas.KindDHCP)); got != 4 {
		t.Errorf("%d events of boot files given; want 4", got)
	}
	for _, e := range b.store.Events(dsas.KindDHCP) {
		if e.Node != "w101" || !strings.HasPrefix(e.Message, "proxyDHCP: boot file ") {
			t.Errorf("event = %+v", e)
		}
	}
}

// TestProxySilence: what is the other server's is left to it.
func TestProxySilence(t *testing.T) {
	b, l67, l4011 := newProxyBench(t)
	for _, tt := range []struct {
		what   string
		l      *link
		sender string
		m      *dhcpv4.DHCPv4
	}{
		{"DISCOVER of an operating system", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeDiscover, optText(60, "udhcp 1.36"))},
		{"DISCOVER with an architecture alone", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeDiscover, opt(93, 0, 0))},
		{"DISCOVER of an unknown box", l67, nobody, message(t, strangeMAC, dhcpv4.MessageTypeDiscover, firmware()...)},
		{"DISCOVER of an architecture without a loader", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeDiscover, optText(60, "PXEClient:Arch:00009:UNDI:003016"), opt(93, 0, 99))},
		{"REQUEST for the other's offer", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeRequest, with(firmware(), optIP(54, "10.77.0.2"), optIP(50, "10.77.0.150"))...)},
		{"REQUEST for a wrong address", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeRequest, with(firmware(), optIP(50, "192.0.2.1"))...)},
		{"RELEASE", l67, "10.77.0.150:68", message(t, nodeMAC, dhcpv4.MessageTypeRelease, with(firmware(), ip("10.77.0.150"))...)},
		{"DECLINE", l67, nobody, message(t, nodeMAC, dhcpv4.MessageTypeDecline, with(firmware(), optIP(50, "10.77.0.150"))...)},
		{"INFORM", l67, "10.77.0.150:68", message(t, nodeMAC, dhcpv4.MessageTypeInform, with(firmware(), ip("10.77.0.150"))...)},
		{"DISCOVER on 4011", l4011, nobody, message(t, nodeMAC, dhcpv4.MessageTypeDiscover, firmware()...)},
		{"REQUEST of an unknown box on 4011", l4011, "10.77.0.150:68", message(t, strangeMAC, dhcpv4.MessageTypeRequest, with(uefi(), ip("10.77.0.150"))...)},
		{"REQUEST of no PXE client on 4011", l4011, "10.77.0.150:68", message(t, nodeMAC, dhcpv4.MessageTypeRequest, ip("10.77.0.150"))},
	} {
		if r := b.askProxy(tt.l, tt.m, tt.sender); r != nil {
			t.Errorf("%s: answered with %s; want silence", tt.what, r.msg.Summary())
		}
	}
	if u, ok := b.store.Unknown(strangeMAC); !ok || u.VendorClass == "" {
		t.Errorf("the unknown box was recorded as %+v, %t; want it shown to the operator", u, ok)
	}
}

func TestProxyRelayed(t *testing.T) {
	b, l67, l4011 := newProxyBench(t)
	f1 := dsas.MAC{0x52, 0x54, 0, 0, 2, 1}
	gi := func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IPv4(10, 78, 0, 254) }
	r := b.askProxy(l67, message(t, f1, dhcpv4.MessageTypeDiscover, with(firmware(), gi, opt(82, 1, 1, 7))...), "10.78.0.254:67")
	b.check("relayed", r, dhcpv4.MessageTypeOffer, "0.0.0.0", "10.78.0.254:67", "")
	if r.msg.ServerIPAddr.String() != "10.78.0.1" || string(r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation)) != "\x01\x01\x07" {
		t.Errorf("relayed offer: %s; want the far subnet's server, and option 82 kept", r.msg.Summary())
	}
	// It comes to 4011 by itself, through a router.
	r = b.askProxy(l4011, message(t, f1, dhcpv4.MessageTypeRequest, with(uefi(), ip("10.78.0.77"))...), "10.78.0.77:68")
	b.check("routed", r, dhcpv4.MessageTypeAck, "0.0.0.0", "10.78.0.77:68", "")
	if r.msg.ServerIPAddr.String() != "10.78.0.1" {
		t.Errorf("routed: %s; want the far subnet's server", r.msg.Summary())
	}
	// A node whose address is of another subnet than where it asks boots nothing.
	if r := b.askProxy(l67, message(t, f1, dhcpv4.MessageTypeDiscover, firmware()...), nobody); r != nil {
		t.Errorf("a node of another subnet: %s; want silence", r.msg.Summary())
	}
}

func TestSubOption(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""}, {"\xff", ""}, {"\x00\x00\x47\x01\x05\xff", "\x05"}, {"\x06\x01\x08\x47\x02\x01\x02", "\x01\x02"},
		{"\x47", ""}, {"\x47\x05\x01", ""}, {"\xff\x47\x01\x05", ""}, {"\x06\xff\x47\x01\x05", ""},
	} {
		if got := subOption([]byte(tt.in), pxeBootItem); string(got) != tt.want {
			t.Errorf("subOption(%x) = %x; want %x", tt.in, got, tt.want)
		}
	}
}

// FuzzProxy: no packet of anybody's gets an address or a NAK, or is made much
// larger.
func FuzzProxy(f *testing.F) {
	files, _ := filepath.Glob("testdata/proxy/*.hex")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		fields := strings.Fields(string(text))
		payload, _ := hex.DecodeString(strings.Join(fields[2:], ""))
		f.Add(payload, fields[0] == "4011")
	}
	store := dhcptest.New(dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: nodeMAC}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web"})
	store.Publish(bootSet, "web")
	now := time.Unix(1_800_000_000, 0)
	s, err := New(Config{Store: store, Releases: store, Subnets: []dsas.Subnet{near, far}, Proxy: true, Now: func() time.Time { return now }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, boot bool) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		port := ServerPort
		if boot {
			port = BootPort
		}
		copy(m.ClientHWAddr, nodeMAC[:])
		r, err := s.proxy(context.Background(), new(slate), boundLink(port), m, netip.MustParseAddrPort("10.77.0.150:68"))
		if err != nil || r == nil {
			return
		}
		if typ := r.msg.MessageType(); typ != dhcpv4.MessageTypeOffer && typ != dhcpv4.MessageTypeAck || !r.msg.YourIPAddr.IsUnspecified() {
			t.Errorf("answer = %s of %s; want an OFFER or ACK without an address", typ, r.msg.YourIPAddr)
		}
		if n := len(r.msg.ToBytes()); n > len(b)+400 {
			t.Errorf("answer of %d bytes to %d", n, len(b))
		}
	})
}
