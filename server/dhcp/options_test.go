package dhcp

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// full is near with everything a subnet may say.
func full() dsas.Subnet {
	s := near
	s.NTP = []netip.Addr{netip.MustParseAddr("10.77.0.4")}
	s.MTU = 9000
	s.Search = []string{"rack.example", "example."}
	s.Routes = []dsas.Route{{To: netip.MustParsePrefix("10.2.0.0/15"), Via: netip.MustParseAddr("10.77.0.253")}}
	s.CaptivePortal = "https://portal.example/api"
	return s
}

func TestSubnetOptions(t *testing.T) {
	b := newBench(t)
	b.l = testLink(full())
	want := map[uint8]string{
		42: "0a4d0004", 26: "2328", 119: "047261636b076578616d706c6500" + "076578616d706c6500",
		// The default route comes first, since option 3 is ignored then (RFC 3442).
		121: "000a4d00fe" + "0f0a020a4d00fd", 114: hex.EncodeToString([]byte("https://portal.example/api")),
	}
	r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, opt(57, 5, 220))
	for code, v := range want {
		if got := hex.EncodeToString(r.msg.Options.Get(dhcpv4.GenericOptionCode(code))); got != v {
			t.Errorf("nothing listed: option %d = %s; want %s", code, got, v)
		}
	}
	// What is listed comes, and what is not does not, but for what boots.
	r = b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, with(firmware(), opt(57, 5, 220), opt(55, 1, 3, 42))...)
	for code, has := range map[uint8]bool{1: true, 3: true, 42: true, 66: true, 67: true, 97: true, 51: true, 54: true, 6: false, 12: false, 15: false, 26: false, 28: false, 114: false, 119: false, 121: false} {
		if got := r.msg.Options.Has(dhcpv4.GenericOptionCode(code)); got != has {
			t.Errorf("1, 3 and 42 listed: has option %d = %t; want %t", code, got, has)
		}
	}
}

// TestVendorOptions: a role's option 43 goes to its vendor class alone, and
// brings no option 60 with it.
func TestVendorOptions(t *testing.T) {
	b := newBench(t)
	b.s.Vendor = func(role string) []dsas.VendorOptions {
		if role != "web" {
			return nil
		}
		return []dsas.VendorOptions{{Class: "AcmeBox", Options: map[int]string{1: "10.77.0.9"}}}
	}
	for _, tt := range []struct {
		mac  dsas.MAC
		mods []dhcpv4.Modifier
		want string
	}{
		{nodeMAC, []dhcpv4.Modifier{optText(60, "AcmeBox v2"), opt(55, 1, 3)}, "01040a4d0009ff"},
		{nodeMAC, firmware(), ""},
		{nodeMAC, nil, ""},
		{strangeMAC, []dhcpv4.Modifier{optText(60, "AcmeBox v2")}, ""},
	} {
		r := b.ask(tt.mac, dhcpv4.MessageTypeDiscover, tt.mods...)
		if got := hex.EncodeToString(r.msg.Options.Get(dhcpv4.OptionVendorSpecificInformation)); got != tt.want || r.msg.Options.Has(dhcpv4.OptionClassIdentifier) {
			t.Errorf("%s: option 43 = %s, option 60 %t; want %q and no 60", tt.mac, got, r.msg.Options.Has(dhcpv4.OptionClassIdentifier), tt.want)
		}
	}
}

// TestSize: an answer is no longer than its client takes, and never shorter
// than BOOTP's 300 bytes.
func TestSize(t *testing.T) {
	sub := full()
	sub.Search = []string{strings.Repeat("long.", 40) + "example"}
	sub.CaptivePortal = "https://portal.example/" + strings.Repeat("x", 200)
	for _, tt := range []struct {
		name    string
		mods    []dhcpv4.Modifier
		max     int
		dropped []uint8
		kept    []uint8
	}{
		{"no option 57", firmware(), 548, []uint8{114}, []uint8{1, 3, 51, 54, 66, 67}},
		{"less than may be", with(firmware(), opt(57, 0, 100)), 548, []uint8{114}, []uint8{67}},
		{"an Ethernet frame", with(firmware(), opt(57, 5, 220)), 1472, nil, []uint8{114, 119, 67}},
		{"more than a frame", with(firmware(), opt(57, 255, 255)), 1472, nil, []uint8{114, 119, 67}},
		{"option 82 stays", with(firmware(), opt(82, append([]byte{1, 250}, bytes.Repeat([]byte{'p'}, 250)...)...)), 548, []uint8{114, 119, 66, 67}, []uint8{82, 51, 1, 3}},
	} {
		b := newBench(t)
		b.l = testLink(sub)
		r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, tt.mods...)
		n := len(padBootFile(r.msg.ToBytes()))
		if n > tt.max || n < 300 {
			t.Errorf("%s: %d bytes; want 300 to %d", tt.name, n, tt.max)
		}
		for _, code := range tt.dropped {
			if r.msg.Options.Has(dhcpv4.GenericOptionCode(code)) {
				t.Errorf("%s: option %d is there; want it dropped", tt.name, code)
			}
		}
		for _, code := range tt.kept {
			if !r.msg.Options.Has(dhcpv4.GenericOptionCode(code)) {
				t.Errorf("%s: option %d is not there", tt.name, code)
			}
		}
	}
	b := newBench(t)
	if n := len(b.ask(nodeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.200")).msg.ToBytes()); n != 300 {
		t.Errorf("a NAK has %d bytes; want BOOTP's 300", n)
	}
}

// TestOverload: options that go on in file and sname (option 52), and a value
// in pieces (RFC 3396), are read as one.
func TestOverload(t *testing.T) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(nodeMAC.HardwareAddr()), opt(52, 3), opt(60, []byte("PXECl")...))
	if err != nil {
		t.Fatal(err)
	}
	data := m.ToBytes()
	copy(data[fileAt:], append([]byte{60, 3, 'i', 'e', 'n'}, 255))
	copy(data[snameAt:], append([]byte{60, 1, 't', 93, 2, 0, 0}, 255))
	req, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(req.Options.Get(dhcpv4.OptionClassIdentifier)); got != "PXEClient" || !req.Options.Has(dhcpv4.OptionClientSystemArchitectureType) || req.BootFileName != "" {
		t.Errorf("parse: vendor class %q, file %q; want PXEClient from three places, and no file", got, req.BootFileName)
	}
	r, err := newBench(t).s.answer(context.Background(), new(slate), testLink(near), req, false)
	if err != nil || r.msg.BootFileName != undionly || r.msg.Options.Has(dhcpv4.OptionOptionOverload) {
		t.Errorf("answer = %+v, %v; want the boot file, and no option 52", r, err)
	}
	copy(data[fileAt:], bytes.Repeat([]byte{60, 200}, 64)) // longer than the field
	if _, err := parse(data); err == nil {
		t.Error("parse of options that leave the file field = nil error; want one")
	}
}

// TestRenewOverRouters: a node behind a relay renews by unicast, without the
// relay (RFC 2131 section 4.3.2).
func TestRenewOverRouters(t *testing.T) {
	b := newBench(t)
	f1 := dsas.MAC{0x52, 0x54, 0, 0, 2, 1}
	b.unicast = true
	r := b.ask(f1, dhcpv4.MessageTypeRequest, ip("10.78.0.5"))
	b.check("renewing", r, dhcpv4.MessageTypeAck, "10.78.0.5", "10.78.0.5:68", "")
	if r := b.ask(f1, dhcpv4.MessageTypeInform, ip("10.78.0.5")); r == nil || r.to.String() != "10.78.0.5:68" {
		t.Errorf("INFORM from behind routers: %+v; want an answer to 10.78.0.5", r)
	}
	b.unicast = false
	r = b.ask(f1, dhcpv4.MessageTypeRequest, ip("10.78.0.5"))
	b.check("rebinding, moved to the near segment", r, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String())
	// A server's answer goes to no address that is not of its subnets.
	if r := b.ask(nodeMAC, dhcpv4.MessageTypeInform, ip("192.0.2.7")); r != nil {
		t.Errorf("INFORM for 192.0.2.7 is answered to %s; want silence", r.to)
	}
	if r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, ip("192.0.2.7")); r.to.String() != "10.77.0.101:68" {
		t.Errorf("DISCOVER with ciaddr 192.0.2.7 is answered to %s; want 10.77.0.101", r.to)
	}
}

// TestSilent: `authoritative: false`.
func TestSilent(t *testing.T) {
	sub := near
	sub.Silent = true
	for _, tt := range []struct {
		name string
		mac  dsas.MAC
		mods []dhcpv4.Modifier
		nak  bool
	}{
		{"stranger, another network", strangeMAC, []dhcpv4.Modifier{optIP(50, "192.168.1.5")}, false},
		{"stranger, an address outside the pool", strangeMAC, []dhcpv4.Modifier{ip("10.77.0.50")}, false},
		{"stranger that chose us", strangeMAC, []dhcpv4.Modifier{optIP(54, "10.77.0.1"), optIP(50, "10.77.0.50")}, true},
		{"a node", nodeMAC, []dhcpv4.Modifier{optIP(50, "10.77.0.50")}, true},
	} {
		b := newBench(t)
		b.s.Subnets[0] = sub
		b.l = testLink(sub)
		if r := b.ask(tt.mac, dhcpv4.MessageTypeRequest, tt.mods...); (r != nil) != tt.nak || r != nil && r.msg.MessageType() != dhcpv4.MessageTypeNak {
			t.Errorf("%s: %+v; want a NAK: %t", tt.name, r, tt.nak)
		}
	}
}

// TestRelayDetails: what a relay says is kept (RFC 3046), its wish for option
// 54 followed (RFC 5107).
func TestRelayDetails(t *testing.T) {
	b := newBench(t)
	f1 := dsas.MAC{0x52, 0x54, 0, 0, 2, 1}
	gi := dhcpv4.WithGatewayIP(net.ParseIP("10.78.0.254"))
	o82 := opt(82, 1, 3, 'g', 'e', '5', 2, 3, 0, 1, 2, 11, 4, 10, 78, 0, 254)
	r := b.ask(f1, dhcpv4.MessageTypeDiscover, with(firmware(), gi, o82)...)
	if got := r.msg.ServerIdentifier().String(); got != "10.78.0.254" || r.msg.ServerIPAddr.String() != "10.78.0.1" {
		t.Errorf("option 54 = %s, siaddr = %s; want the relay's address in 54 and ours in siaddr", got, r.msg.ServerIPAddr)
	}
	r = b.ask(f1, dhcpv4.MessageTypeRequest, with(firmware(), gi, o82, optIP(54, "10.78.0.254"), optIP(50, "10.78.0.5"))...)
	if r == nil || r.msg.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("REQUEST with the relay's option 54: %+v; want an ACK", r)
	}
	for range 3 {
		b.record(r.seen)
	}
	ports := b.store.Ports()
	if len(ports) != 1 || ports[0].MAC != f1 || ports[0].CircuitID != "ge5" || ports[0].RemoteID != "0x000102" || ports[0].Relay.String() != "10.78.0.254" {
		t.Errorf("ports = %+v; want one: ge5 of 0x000102 by 10.78.0.254", ports)
	}
	if got := ports[0].String(); got != "port ge5 of 0x000102, relay 10.78.0.254" {
		t.Errorf("Port.String = %q", got)
	}
}

// TestClientID: a node is known by its client identifier from a MAC that is on
// no list, and its boot files are under its own MAC.
func TestClientID(t *testing.T) {
	b := newBench(t)
	b.store.AddNode(dsas.Node{Name: "w9", NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 7, 7}}}, ClientID: "ff00aa", Address: netip.MustParsePrefix("10.77.0.9/24"), Role: "web"})
	r := b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, with(firmware(), opt(61, 0xff, 0, 0xaa))...)
	b.check("by client id", r, dhcpv4.MessageTypeOffer, "10.77.0.9", "10.77.0.9:68", strangeMAC.String())
	if r.msg.BootFileName != "nbp/52-54-00-00-07-07/undionly.kpxe" || !bytes.Equal(r.msg.Options.Get(dhcpv4.OptionClientIdentifier), []byte{0xff, 0, 0xaa}) {
		t.Errorf("by client id: file %q, option 61 %x; want w9's file and the id as it came (RFC 6842)", r.msg.BootFileName, r.msg.Options.Get(dhcpv4.OptionClientIdentifier))
	}
	// A MAC on a list counts for more than an identifier.
	r = b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, opt(61, 0xff, 0, 0xaa))
	b.check("MAC before id", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
}
