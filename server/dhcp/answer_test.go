package dhcp

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

func TestFirmware(t *testing.T) {
	b := newBench(t)
	r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, firmware()...)
	b.check("DISCOVER", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	m := r.msg
	for code, want := range map[uint8]string{
		1: "ffffff00", 3: "0a4d00fe", 6: "0a4d00020a4d0003", 12: hex.EncodeToString([]byte("w101")), 15: hex.EncodeToString([]byte("rack.example")),
		28: "0a4d00ff", 51: "000001e0", 54: "0a4d0001", 58: "000000f0", 59: "000001a4", 66: hex.EncodeToString([]byte("10.77.0.1")), 67: hex.EncodeToString([]byte(undionly)),
		97: strings.Repeat("00", 17),
	} {
		if got := hex.EncodeToString(m.Options.Get(dhcpv4.GenericOptionCode(code))); got != want {
			t.Errorf("option %d = %s; want %s", code, got, want)
		}
	}
	for _, code := range []uint8{60, 43, 61, 82, 175} {
		if m.Options.Has(dhcpv4.GenericOptionCode(code)) {
			t.Errorf("option %d is in the answer; want none", code)
		}
	}
	if m.BootFileName != undionly || m.ServerIPAddr.String() != "10.77.0.1" {
		t.Errorf("file %q, siaddr %s; want %q and 10.77.0.1", m.BootFileName, m.ServerIPAddr, undionly)
	}
	r = b.ask(nodeMAC, dhcpv4.MessageTypeRequest, with(firmware(), optIP(54, "10.77.0.1"), optIP(50, "10.77.0.101"))...)
	b.check("REQUEST", r, dhcpv4.MessageTypeAck, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	if ev := b.store.Events(dsas.KindDHCP); len(ev) != 1 || ev[0].Node != "w101" || !strings.Contains(ev[0].Message, undionly) {
		t.Errorf("events = %+v; want one dhcp.ack of w101 that names the boot file", ev)
	}
	// The other NIC is the same node.
	r = b.ask(nodeMAC2, dhcpv4.MessageTypeDiscover, firmware()...)
	b.check("DISCOVER from the second NIC", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC2.String())
}

func TestIPXE(t *testing.T) {
	b := newBench(t)
	ipxe := with(firmware(), optText(77, "iPXE"), opt(175, 19, 1, 1, 24, 1, 1))
	r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, ipxe...)
	b.check("DISCOVER", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	if r.msg.BootFileName != script || r.msg.BootFileNameOption() != script {
		t.Errorf("file %q, option 67 %q; want %q", r.msg.BootFileName, r.msg.BootFileNameOption(), script)
	}
	if got := r.msg.Options.Get(optionEtherboot); !bytes.Equal(got, []byte{176, 1, 1}) {
		t.Errorf("option 175 = %x; want no-proxydhcp set", got)
	}
	r = b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, with(ipxe, dhcpv4.WithBroadcast(true))...)
	b.check("with the broadcast flag", r, dhcpv4.MessageTypeOffer, "10.77.0.101", all, broadcastMAC.String())
}

// TestRequestStates walks through RFC 2131 section 4.3.2 for a node.
func TestRequestStates(t *testing.T) {
	req := dhcpv4.MessageTypeRequest
	for _, tt := range []struct {
		name string
		mac  dsas.MAC
		mods []dhcpv4.Modifier
		want dhcpv4.MessageType // 0: silence
		addr string
		to   string
		hw   string
	}{
		{"selecting us", nodeMAC, []dhcpv4.Modifier{optIP(54, "10.77.0.1"), optIP(50, "10.77.0.101")}, dhcpv4.MessageTypeAck, "10.77.0.101", "10.77.0.101:68", nodeMAC.String()},
		{"selecting another server", nodeMAC, []dhcpv4.Modifier{optIP(54, "10.77.0.9"), optIP(50, "10.77.0.101")}, 0, "", "", ""},
		{"selecting another address", nodeMAC, []dhcpv4.Modifier{optIP(54, "10.77.0.1"), optIP(50, "10.77.0.102")}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
		{"init-reboot", nodeMAC, []dhcpv4.Modifier{optIP(50, "10.77.0.101")}, dhcpv4.MessageTypeAck, "10.77.0.101", "10.77.0.101:68", nodeMAC.String()},
		{"init-reboot with an old address", nodeMAC, []dhcpv4.Modifier{optIP(50, "10.77.0.200")}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
		{"init-reboot from elsewhere", nodeMAC, []dhcpv4.Modifier{optIP(50, "192.168.1.5")}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
		{"renewing", nodeMAC, []dhcpv4.Modifier{ip("10.77.0.101")}, dhcpv4.MessageTypeAck, "10.77.0.101", "10.77.0.101:68", ""},
		{"rebinding a wrong one", nodeMAC, []dhcpv4.Modifier{ip("10.77.0.77"), dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
		{"nothing named", nodeMAC, nil, 0, "", "", ""},
		{"stranger, init-reboot, free", strangeMAC, []dhcpv4.Modifier{optIP(50, "10.77.0.201")}, dhcpv4.MessageTypeAck, "10.77.0.201", "10.77.0.201:68", strangeMAC.String()},
		{"stranger, init-reboot, not in the pool", strangeMAC, []dhcpv4.Modifier{optIP(50, "10.77.0.50")}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
		{"stranger wants a node's address", strangeMAC, []dhcpv4.Modifier{ip("10.77.0.101")}, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			r := b.ask(tt.mac, req, tt.mods...)
			if tt.want == 0 {
				if r != nil {
					t.Errorf("answer = %s; want none", r.msg.MessageType())
				}
				return
			}
			b.check(tt.name, r, tt.want, tt.addr, tt.to, tt.hw)
			if tt.want == dhcpv4.MessageTypeNak {
				if r.msg.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || r.msg.BootFileName != "" {
					t.Errorf("a NAK carries a lease time or a boot file: %s", r.msg.Summary())
				}
				for _, a := range []netip.Addr{near.Pool.First, near.Pool.Last} {
					if l, ok := b.store.Lease(a); ok {
						t.Errorf("a NAK left the lease %+v", l)
					}
				}
			}
		})
	}
}

func TestPool(t *testing.T) {
	b := newBench(t)
	durable := 0
	b.store.Written = func(dsas.Lease) { durable++ }
	first := b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, firmware()...)
	b.check("DISCOVER", first, dhcpv4.MessageTypeOffer, "10.77.0.200", "10.77.0.200:68", strangeMAC.String())
	if first.msg.BootFileName != "" || first.msg.Options.Has(dhcpv4.OptionBootfileName) || first.msg.Options.Has(dhcpv4.OptionHostName) || !first.msg.ServerIPAddr.IsUnspecified() {
		t.Errorf("an unknown box is given a boot file, a server or a name: %s", first.msg.Summary())
	}
	if durable != 0 {
		t.Errorf("an OFFER wrote %d leases; want none", durable)
	}
	r := b.ask(strangeMAC, dhcpv4.MessageTypeRequest, with(firmware(), optIP(54, "10.77.0.1"), optIP(50, "10.77.0.200"))...)
	b.check("REQUEST", r, dhcpv4.MessageTypeAck, "10.77.0.200", "10.77.0.200:68", strangeMAC.String())
	if l, _ := b.store.Lease(netip.MustParseAddr("10.77.0.200")); durable != 1 || l.MAC != strangeMAC || !l.Expires.Equal(b.now.Add(near.Lease)) {
		t.Errorf("lease = %+v, %d writes; want it written before the ACK, for %s", l, durable, near.Lease)
	}
	u, ok := b.store.Unknown(strangeMAC)
	if !ok || u.Arch != "bios" || u.VendorClass != "PXEClient:Arch:00000:UNDI:002001" || u.Address.String() != "10.77.0.200" {
		t.Errorf("unknown = %+v, %t; want it recorded with its address", u, ok)
	}
	if ev := b.store.Events(dsas.KindUnknown); len(ev) != 1 || ev[0].MAC != strangeMAC {
		t.Errorf("unknown.seen events = %+v; want one", ev)
	}
	// Somebody else has the second address, a third gets none.
	other := dsas.MAC{0x52, 0x54, 0, 0, 9, 8}
	r = b.ask(other, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.201"))
	b.check("second", r, dhcpv4.MessageTypeAck, "10.77.0.201", "10.77.0.201:68", other.String())
	third := dsas.MAC{0x52, 0x54, 0, 0, 9, 7}
	if r := b.ask(third, dhcpv4.MessageTypeDiscover); r != nil {
		t.Errorf("with an empty pool: %s of %s; want silence", r.msg.MessageType(), r.msg.YourIPAddr)
	}
	r = b.ask(third, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.201"))
	b.check("third asks for the second's", r, dhcpv4.MessageTypeNak, "0.0.0.0", all, broadcastMAC.String())
	// A released address is free again, but not for a word of someone else's.
	b.ask(third, dhcpv4.MessageTypeRelease, ip("10.77.0.201"), optIP(54, "10.77.0.1"))
	if l, ok := b.store.Lease(netip.MustParseAddr("10.77.0.201")); !ok || l.MAC != other {
		t.Errorf("after a stranger's RELEASE the lease is %+v, %t; want the holder's", l, ok)
	}
	b.ask(other, dhcpv4.MessageTypeRelease, ip("10.77.0.201"), optIP(54, "10.77.0.1"))
	r = b.ask(third, dhcpv4.MessageTypeDiscover)
	b.check("after RELEASE", r, dhcpv4.MessageTypeOffer, "10.77.0.201", "10.77.0.201:68", third.String())
}

func TestDecline(t *testing.T) {
	b := newBench(t)
	decline := func(mac dsas.MAC, a string) {
		if r := b.ask(mac, dhcpv4.MessageTypeDecline, optIP(50, a), optIP(54, "10.77.0.1")); r != nil {
			t.Errorf("DECLINE is answered with %s; want nothing", r.msg.MessageType())
		}
	}
	b.ask(strangeMAC, dhcpv4.MessageTypeRequest, optIP(50, "10.77.0.200"))
	decline(dsas.MAC{0x52, 0x54, 0, 0, 9, 1}, "10.77.0.200") // not its own
	if l, _ := b.store.Lease(netip.MustParseAddr("10.77.0.200")); l.Declined {
		t.Error("another box's DECLINE took the address out of use")
	}
	decline(strangeMAC, "10.77.0.200")
	if l, _ := b.store.Lease(netip.MustParseAddr("10.77.0.200")); !l.Declined || !l.Expires.After(b.now) {
		t.Errorf("after DECLINE the lease is %+v; want it declined", l)
	}
	r := b.ask(strangeMAC, dhcpv4.MessageTypeDiscover)
	b.check("DISCOVER after DECLINE", r, dhcpv4.MessageTypeOffer, "10.77.0.201", "10.77.0.201:68", strangeMAC.String())
	decline(nodeMAC, "10.77.0.101")
	if ev := b.store.Events(dsas.KindRefused); len(ev) != 1 || !strings.Contains(ev[0].Message, "another box uses") {
		t.Errorf("events = %+v; want one that says that the node's address is in use", ev)
	}
}

func TestInform(t *testing.T) {
	b := newBench(t)
	r := b.ask(nodeMAC, dhcpv4.MessageTypeInform, with(firmware(), ip("10.77.0.101"))...)
	b.check("INFORM", r, dhcpv4.MessageTypeAck, "0.0.0.0", "10.77.0.101:68", "")
	if r.msg.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || r.msg.BootFileName != undionly || r.msg.ClientIPAddr.String() != "10.77.0.101" {
		t.Errorf("INFORM: %s; want ciaddr and a boot file, no lease time", r.msg.Summary())
	}
	if r := b.ask(nodeMAC, dhcpv4.MessageTypeInform); r != nil {
		t.Errorf("INFORM without an address: %s; want nothing", r.msg.MessageType())
	}
}

// TestRelay: identity is chaddr, the subnet giaddr's, the answer goes to
// giaddr port 67 with options 61 and 82 as they came.
func TestRelay(t *testing.T) {
	b := newBench(t)
	f1 := dsas.MAC{0x52, 0x54, 0, 0, 2, 1}
	gi := dhcpv4.WithGatewayIP(net.ParseIP("10.78.0.254"))
	o82, o61 := []byte{1, 4, 'p', 'o', 'r', 't', 2, 2, 'i', 'd'}, []byte{1, 0x52, 0x54, 0, 0, 2, 1}
	r := b.ask(f1, dhcpv4.MessageTypeDiscover, with(firmware(), gi, opt(82, o82...), opt(61, o61...))...)
	b.check("relayed DISCOVER", r, dhcpv4.MessageTypeOffer, "10.78.0.5", "10.78.0.254:67", "")
	if !bytes.Equal(r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation), o82) || !bytes.Equal(r.msg.Options.Get(dhcpv4.OptionClientIdentifier), o61) {
		t.Errorf("options 82 and 61 = %s; want them as they came", r.msg.Summary())
	}
	if r.msg.GatewayIPAddr.String() != "10.78.0.254" || r.msg.BootFileName != "nbp/52-54-00-00-02-01/undionly.kpxe" || r.msg.ServerIPAddr.String() != "10.78.0.1" {
		t.Errorf("relayed OFFER: %s; want giaddr, boot file and the far subnet's server", r.msg.Summary())
	}
	raw := r.msg.ToBytes()
	if i, j := bytes.LastIndex(raw, append([]byte{82, byte(len(o82))}, o82...)), bytes.LastIndexByte(raw, 255); i < 0 || j != i+2+len(o82) {
		t.Errorf("option 82 at %d, end at %d; want 82 last (RFC 3046)", i, j)
	}
	r = b.ask(f1, dhcpv4.MessageTypeRequest, gi, optIP(50, "10.77.0.200"))
	b.check("relayed NAK", r, dhcpv4.MessageTypeNak, "0.0.0.0", "10.78.0.254:67", "")
	if !r.msg.IsBroadcast() {
		t.Error("a relayed NAK has no broadcast flag; the relay would send it to an address that the client does not have")
	}
	r = b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, gi)
	b.check("relayed stranger", r, dhcpv4.MessageTypeOffer, "10.78.1.10", "10.78.0.254:67", "")
	r = b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.ParseIP("10.99.0.1")), opt(82, 5, 4, 10, 78, 1, 0))
	b.check("link selection (RFC 3527)", r, dhcpv4.MessageTypeOffer, "10.78.1.10", "10.99.0.1:67", "")
	if r := b.ask(f1, dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.ParseIP("10.99.0.1"))); r != nil {
		t.Errorf("a relay of no subnet of ours: %s; want silence", r.msg.MessageType())
	}
	// A node that asks on another subnet gets an address there, and no boot
	// file, since its own address would not work.
	r = b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, with(firmware(), gi)...)
	b.check("node elsewhere", r, dhcpv4.MessageTypeOffer, "10.78.1.10", "10.78.0.254:67", "")
	if r.msg.BootFileName != "" || r.msg.Options.Has(dhcpv4.OptionHostName) {
		t.Errorf("node elsewhere: %s; want no boot file and no name", r.msg.Summary())
	}
	if ev := b.store.Events(dsas.KindRefused); len(ev) != 1 || ev[0].Node != "w101" || !strings.Contains(ev[0].Message, "10.78.0.0/23") {
		t.Errorf("events = %+v; want a refusal that names the subnet", ev)
	}
}

// TestEventsAreFew: what firmware repeats is said once.
func TestEventsAreFew(t *testing.T) {
	b := newBench(t)
	for range 20 {
		b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, opt(93, 0, 6)) // ia32
		b.ask(strangeMAC, dhcpv4.MessageTypeDiscover, firmware()...)
	}
	if n := len(b.store.Events(dsas.KindRefused)); n != 1 {
		t.Errorf("%d dhcp.refused events for 20 DISCOVERs; want 1", n)
	}
	if n := len(b.store.Events(dsas.KindUnknown)); n != 1 {
		t.Errorf("%d unknown.seen events for 20 DISCOVERs; want 1", n)
	}
	// The same REQUEST three times, then an operating system that renews.
	xid := dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})
	for range 3 {
		b.ask(nodeMAC, dhcpv4.MessageTypeRequest, with(firmware(), xid, optIP(54, "10.77.0.1"), optIP(50, "10.77.0.101"))...)
	}
	b.ask(nodeMAC, dhcpv4.MessageTypeRequest, ip("10.77.0.101"))
	if n := len(b.store.Events(dsas.KindDHCP)); n != 1 {
		t.Errorf("%d dhcp.ack events; want 1", n)
	}
	b.now = b.now.Add(10 * time.Minute)
	b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, opt(93, 0, 6))
	if n := len(b.store.Events(dsas.KindRefused)); n != 2 {
		t.Errorf("%d dhcp.refused events after ten minutes; want 2", n)
	}
}

func TestNewRefuses(t *testing.T) {
	bad := near
	bad.Server = netip.MustParseAddr("10.1.1.1")
	for name, subs := range map[string][]dsas.Subnet{"none": nil, "server outside": {bad}} {
		if _, err := New(Config{Subnets: subs}); err == nil {
			t.Errorf("New with subnets %s = nil error; want one", name)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	m, err := dhcpv4.New(with(firmware(), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(nodeMAC.HardwareAddr()), optText(77, "iPXE"), opt(175, 19, 1, 1), opt(82, 5, 4, 10, 78, 1, 0))...)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.ToBytes())
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	f.Add(m.ToBytes())
	for _, c := range captures(f) {
		f.Add(c.payload)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := parse(data)
		if err != nil {
			return
		}
		Classify(req)
		b := newBench(t)
		r, err := b.s.answer(context.Background(), new(slate), b.l, req, false)
		if err != nil || r == nil {
			return
		}
		if !r.to.IsValid() || !r.from.IsValid() {
			t.Errorf("an answer without a way: to %s from %s", r.to, r.from)
		}
		out := padBootFile(r.msg.ToBytes())
		if _, err := dhcpv4.FromBytes(out); err != nil {
			t.Errorf("our answer cannot be read: %v", err)
		}
		if len(out) < 300 || len(out) > 1472 && len(req.Options.Get(dhcpv4.OptionRelayAgentInformation))+len(req.Options.Get(dhcpv4.OptionClientIdentifier))+len(req.Options.Get(dhcpv4.OptionClientMachineIdentifier)) < 512 {
			t.Errorf("our answer has %d bytes", len(out))
		}
	})
}

func TestFrame(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.77.0.1:67"), netip.MustParseAddrPort("10.77.0.101:68")
	for _, payload := range [][]byte{{}, {1}, {1, 2}, bytes.Repeat([]byte{0xff}, 301)} {
		f := frame(nodeMAC2.HardwareAddr(), nodeMAC.HardwareAddr(), src, dst, payload)
		if len(f) != 42+len(payload) || !bytes.Equal(f[:6], nodeMAC[:]) || !bytes.Equal(f[6:12], nodeMAC2[:]) || f[12] != 8 || f[13] != 0 {
			t.Errorf("Ethernet header of %d bytes payload = %x", len(payload), f[:14])
		}
		// A right checksum makes the sum over everything all ones.
		if c := fold(sum(0, f[14:34])); c != 0 {
			t.Errorf("IP checksum leaves %04x; want 0", c)
		}
		udp := f[34:]
		if c := fold(sum(sum(0, f[26:34])+17+uint64(len(udp)), udp)); c != 0 {
			t.Errorf("UDP checksum of %d bytes leaves %04x; want 0", len(payload), c)
		}
	}
}

// TestHTTPBoot: UEFI HTTP Boot takes only an answer of its own vendor class,
// with a URL for a boot file. The options are those that OVMF sends.
func TestHTTPBoot(t *testing.T) {
	b := newBench(t)
	r := b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, optText(60, "HTTPClient:Arch:00016:UNDI:003001"), opt(93, 0, 16), opt(94, 1, 3, 0), opt(97, make([]byte, 17)...))
	b.check("DISCOVER", r, dhcpv4.MessageTypeOffer, "10.77.0.101", "10.77.0.101:68", nodeMAC.String())
	const url = "http://10.77.0.1:8080/nbp/52-54-00-00-01-01/snponly.efi"
	if r.msg.BootFileName != url || r.msg.BootFileNameOption() != url {
		t.Errorf("file %q, option 67 %q; want %q", r.msg.BootFileName, r.msg.BootFileNameOption(), url)
	}
	if got := string(r.msg.Options.Get(dhcpv4.OptionClassIdentifier)); got != "HTTPClient" {
		t.Errorf("option 60 = %q; want HTTPClient", got)
	}
	// A loader that is not there is a refusal that names the way to get it.
	b.s.HasLoader = func(file string) bool { return file != "shimaa64.efi" }
	r = b.ask(nodeMAC, dhcpv4.MessageTypeDiscover, optText(60, "PXEClient:Arch:00011:UNDI:003000"), opt(93, 0, 11))
	if r.msg.BootFileName != "" {
		t.Errorf("file %q for arm64 without its loader; want none", r.msg.BootFileName)
	}
	if ev := b.store.Events(dsas.KindRefused); len(ev) != 1 || !strings.Contains(ev[0].Message, "dsas loader fetch arm64") {
		t.Errorf("events = %+v; want a refusal that names dsas loader fetch arm64", ev)
	}
}
