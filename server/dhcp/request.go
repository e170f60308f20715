package dhcp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"dsas"
	"dsas/server/boot"
)

// Where the fixed fields of a message lie (RFC 2131 section 2), in bytes.
const (
	snameAt = 44
	fileAt  = 108
	fixed   = 240 // up to and with the magic cookie
)

// parse reads a request; what it gives refers to data.
func parse(data []byte) (*dhcpv4.DHCPv4, error) {
	m := new(dhcpv4.DHCPv4)
	return m, parseInto(m, data)
}

// parseInto is parse into a message that may have been another one before.
// Options may go on in `file` and `sname` (option 52, RFC 2132 section 9.3);
// what is in several pieces is one value (RFC 3396 section 7: options field,
// then file, then sname).
func parseInto(m *dhcpv4.DHCPv4, data []byte) error {
	opts := m.Options
	if opts == nil {
		opts = dhcpv4.Options{}
	}
	clear(opts)
	*m = dhcpv4.DHCPv4{Options: opts}
	if len(data) < fixed {
		return fmt.Errorf("%d bytes; the fixed part of a message alone has %d", len(data), fixed)
	}
	m.OpCode, m.HWType, m.HopCount = dhcpv4.OpcodeType(data[0]), iana.HWType(data[1]), data[3]
	copy(m.TransactionID[:], data[4:])
	m.NumSeconds, m.Flags = binary.BigEndian.Uint16(data[8:]), binary.BigEndian.Uint16(data[10:])
	field := func(at, n int) []byte { return data[at : at+n : at+n] }
	m.ClientIPAddr, m.YourIPAddr, m.ServerIPAddr, m.GatewayIPAddr = field(12, 4), field(16, 4), field(20, 4), field(24, 4)
	m.ClientHWAddr = field(28, min(int(data[2]), 16))
	if c := binary.BigEndian.Uint32(data[fixed-4:]); c != magicCookie {
		return fmt.Errorf("magic cookie %08x; want %08x", c, magicCookie)
	}
	ended, err := readOptions(opts, data[fixed:])
	if err != nil {
		return err
	}
	if !ended && len(data) > fixed {
		return errors.New("the options have no end")
	}
	over := opts.Get(dhcpv4.OptionOptionOverload)
	if len(over) != 1 || over[0] == 0 || over[0] > 3 {
		m.ServerHostName, m.BootFileName = untilNUL(data[snameAt:fileAt]), untilNUL(data[fileAt:fixed-4])
		return nil
	}
	// Taken out: an answer that repeats fields must not repeat this one.
	delete(opts, dhcpv4.OptionOptionOverload.Code())
	if over[0]&1 == 0 {
		m.BootFileName = untilNUL(data[fileAt : fixed-4])
	} else if _, err := readOptions(opts, data[fileAt:fixed-4]); err != nil {
		return fmt.Errorf("options in the file field: %w", err)
	}
	if over[0]&2 == 0 {
		m.ServerHostName = untilNUL(data[snameAt:fileAt])
	} else if _, err := readOptions(opts, data[snameAt:fileAt]); err != nil {
		return fmt.Errorf("options in the sname field: %w", err)
	}
	return nil
}

// readOptions adds the options in b; ended: they had their end. Values refer to
// b, those that come in several pieces to memory of their own.
func readOptions(opts dhcpv4.Options, b []byte) (ended bool, err error) {
	for len(b) > 0 {
		code := b[0]
		switch {
		case code == dhcpv4.OptionPad.Code():
			b = b[1:]
			continue
		case code == dhcpv4.OptionEnd.Code():
			return true, nil
		case len(b) < 2:
			return false, nil
		case len(b) < 2+int(b[1]):
			return false, fmt.Errorf("option %d ends after the message", code)
		}
		n := 2 + int(b[1])
		v := b[2:n:n]
		if had := opts[code]; had != nil {
			v = append(had, v...)
		} else if len(v) == 0 {
			v = nil // nothing was said: none of these is worth giving back
		}
		opts[code] = v
		b = b[n:]
	}
	return false, nil
}

func untilNUL(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// typeOf gives option 53, MessageTypeNone where there is none.
func typeOf(m *dhcpv4.DHCPv4) dhcpv4.MessageType {
	if v := m.Options[dhcpv4.OptionDHCPMessageType.Code()]; len(v) == 1 {
		return dhcpv4.MessageType(v[0])
	}
	return dhcpv4.MessageTypeNone
}

// addrIn gives the address that an option holds; ok is false where it holds none.
func addrIn(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode) (a netip.Addr, ok bool) {
	v := m.Options[code.Code()]
	if len(v) != 4 {
		return a, false
	}
	return addrOf(v)
}

// Sub-options of option 82.
const (
	subCircuitID  = dhcpv4.GenericOptionCode(1)  // RFC 3046
	subRemoteID   = dhcpv4.GenericOptionCode(2)  // RFC 3046
	subLink       = dhcpv4.GenericOptionCode(5)  // RFC 3527
	subServerID   = dhcpv4.GenericOptionCode(11) // RFC 5107
	maxPortDetail = 64                           // bytes of an id that are kept
)

// relayed is what a relay agent, or a switch on the way, says of a request.
type relayed struct {
	agent    netip.Addr // giaddr; invalid: none, the request came over the segment
	circuit  []byte     // option 82: circuit id
	remote   []byte     // remote id
	link     netip.Addr // the link the client is on, where it is not agent's
	serverID netip.Addr // what the relay wants option 54 to be (server identifier override)
}

// relayOf reads giaddr and option 82. What is damaged counts as absent: the
// option is given back as it came all the same.
func relayOf(req *dhcpv4.DHCPv4) (r relayed) {
	r.agent, _ = addrOf(req.GatewayIPAddr)
	o := req.RelayAgentInfo()
	if o == nil {
		return r
	}
	r.circuit, r.remote = o.Get(subCircuitID), o.Get(subRemoteID)
	r.circuit, r.remote = r.circuit[:min(len(r.circuit), maxPortDetail)], r.remote[:min(len(r.remote), maxPortDetail)]
	if r.agent.IsValid() {
		r.link, _ = addrOf(o.Get(subLink))
		r.serverID, _ = addrOf(o.Get(subServerID))
	}
	return r
}

// via names the way a request came, for a person: "relay 10.2.0.254", "interface eth1".
func (r *relayed) via(iface string) string {
	if r.agent.IsValid() {
		return "relay " + r.agent.String()
	}
	return "interface " + iface
}

// port names the port of the relay or switch; "" where it says none.
func (r *relayed) port(iface string) string {
	if len(r.circuit) == 0 {
		return ""
	}
	if len(r.remote) == 0 {
		return fmt.Sprintf("port %s of %s", idText(r.circuit), r.via(iface))
	}
	return fmt.Sprintf("port %s of %s (%s)", idText(r.circuit), idText(r.remote), r.via(iface))
}

// idText writes an id as switches show it: as text where it is text, else as
// hex with 0x in front.
func idText(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			return "0x" + hex.EncodeToString(b)
		}
	}
	return string(b)
}

// Classify says what a DHCP request tells of who asks and what it can run.
// Options that are damaged count as absent: firmware has many ways to be wrong.
func Classify(req *dhcpv4.DHCPv4) boot.Request {
	mac, _ := dsas.MACFrom(req.ClientHWAddr)
	r := boot.Request{
		Step: boot.StepDHCP, MAC: mac, Broadcast: req.IsBroadcast(),
		VendorClass: string(req.Options.Get(dhcpv4.OptionClassIdentifier)),
		UserClass:   string(req.Options.Get(dhcpv4.OptionUserClassInformation)),
	}
	// A list in RFC 4578; firmware sends one.
	if a := req.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(a) >= 2 {
		r.Arch, r.HasArch = dsas.Arch(uint16(a[0])<<8|uint16(a[1])), true
	}
	if g := req.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(g) == 17 && g[0] == 0 {
		r.GUID = bytes.Clone(g[1:])
	}
	if o := req.Options.Get(optionEtherboot); o != nil {
		if x, err := boot.ParseIPXE(o); err == nil {
			r.IPXE = x
		}
	}
	return r
}

// optionEtherboot is iPXE's own option (IANA: "Etherboot", tentative).
const optionEtherboot = dhcpv4.GenericOptionCode(175)

// parameters is option 55: what the client asks for. One that lists nothing gets
// everything.
type parameters []byte

func wanted(req *dhcpv4.DHCPv4) parameters {
	return req.Options.Get(dhcpv4.OptionParameterRequestList)
}

func (p parameters) has(code dhcpv4.OptionCode) bool {
	return len(p) == 0 || bytes.IndexByte(p, code.Code()) >= 0
}

// room is how many bytes an answer may have: option 57 counts the whole IP
// datagram, and 576 is what every client takes (RFC 2132 section 9.10). Above
// an Ethernet frame nothing is believed: boot ROMs do not reassemble.
func room(req *dhcpv4.DHCPv4) int {
	const headers = 20 + 8 + 1 // IPv4, UDP; padBootFile's byte
	limit := 576
	if v := req.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		limit = min(max(limit, int(v[0])<<8|int(v[1])), 1500)
	}
	return limit - headers
}
