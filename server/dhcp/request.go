package dhcp

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/boot"
)

// Where the fixed fields of a message lie (RFC 2131 section 2), in bytes.
const (
	snameAt = 44
	fileAt  = 108
	fixed   = 240 // up to and with the magic cookie
)

// parse reads a request. Options may go on in `file` and `sname` (option 52,
// RFC 2132 section 9.3); what is in several pieces is one value (RFC 3396
// section 7: options field, then file, then sname).
func parse(data []byte) (*dhcpv4.DHCPv4, error) {
	req, err := dhcpv4.FromBytes(data)
	if err != nil {
		return nil, err
	}
	over := req.Options.Get(dhcpv4.OptionOptionOverload)
	if len(over) != 1 || over[0] == 0 || over[0] > 3 {
		return req, nil
	}
	// Taken out: an answer that repeats fields must not repeat this one.
	delete(req.Options, dhcpv4.OptionOptionOverload.Code())
	if over[0]&1 != 0 {
		req.BootFileName = ""
		if err := req.Options.FromBytes(data[fileAt : fileAt+128]); err != nil {
			return nil, fmt.Errorf("options in the file field: %w", err)
		}
	}
	if over[0]&2 != 0 {
		req.ServerHostName = ""
		if err := req.Options.FromBytes(data[snameAt : snameAt+64]); err != nil {
			return nil, fmt.Errorf("options in the sname field: %w", err)
		}
	}
	return req, nil
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

// wants tells whether the client asks for an option (option 55). One that
// lists nothing gets everything.
func wants(req *dhcpv4.DHCPv4, code dhcpv4.OptionCode) bool {
	list := req.Options.Get(dhcpv4.OptionParameterRequestList)
	return len(list) == 0 || bytes.IndexByte(list, code.Code()) >= 0
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
