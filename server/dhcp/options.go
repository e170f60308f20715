package dhcp

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// Options that the library has no name for.
const (
	optionCaptivePortal = dhcpv4.GenericOptionCode(114) // RFC 8910
	optionSearch        = dhcpv4.GenericOptionCode(119) // RFC 3397
)

// leastImportant lists options in the order in which an answer that is too
// long for its client loses them. Boot options go last, and only because the
// fields siaddr and file hold the same.
var leastImportant = []dhcpv4.OptionCode{
	optionCaptivePortal, optionSearch, dhcpv4.OptionNTPServers, dhcpv4.OptionDomainName, dhcpv4.OptionBroadcastAddress,
	dhcpv4.OptionInterfaceMTU, dhcpv4.OptionHostName, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionVendorSpecificInformation,
	dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue, dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionTFTPServerName,
}

// fit drops options until m has at most limit bytes; it gives what it dropped.
func fit(m *dhcpv4.DHCPv4, limit int) (dropped []uint8) {
	for _, code := range leastImportant {
		if messageLen(m) <= limit {
			return dropped
		}
		if m.Options.Has(code) {
			delete(m.Options, code.Code())
			dropped = append(dropped, code.Code())
		}
	}
	if m.BootFileName != "" && messageLen(m) > limit {
		delete(m.Options, dhcpv4.OptionBootfileName.Code())
		dropped = append(dropped, dhcpv4.OptionBootfileName.Code())
	}
	return dropped
}

// network sets the options that say how the subnet is used, those that the
// client asks for. The mask and the router come unasked: there are boot ROMs
// that do not ask and need them.
func (s *slate) network(m, req *dhcpv4.DHCPv4, sub *dsas.Subnet) {
	asked := wanted(req)
	set := func(code dhcpv4.OptionCode, v []byte) {
		if len(v) > 0 && asked.has(code) {
			m.Options[code.Code()] = v
		}
	}
	m.Options[dhcpv4.OptionSubnetMask.Code()] = s.number(^uint32(0) << (32 - sub.Prefix.Bits()))
	if sub.Gateway.Is4() {
		m.Options[dhcpv4.OptionRouter.Code()] = s.addr(sub.Gateway)
	}
	if bits := sub.Prefix.Bits(); bits < 31 {
		a := sub.Prefix.Masked().Addr().As4()
		n := binary.BigEndian.Uint32(a[:]) | 1<<(32-bits) - 1
		set(dhcpv4.OptionBroadcastAddress, s.number(n))
	}
	set(dhcpv4.OptionDomainNameServer, s.addrs(sub.DNS))
	set(dhcpv4.OptionDomainName, s.text(sub.Domain))
	set(dhcpv4.OptionNTPServers, s.addrs(sub.NTP))
	if sub.MTU > 0 {
		set(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(sub.MTU)))
	}
	set(optionSearch, searchList(sub.Search))
	set(dhcpv4.OptionClasslessStaticRoute, routes(sub))
	set(optionCaptivePortal, s.text(sub.CaptivePortal))
}

func (s *slate) addrs(list []netip.Addr) []byte {
	b := s.room(4 * len(list))
	for _, a := range list {
		if a.Is4() {
			v := a.As4()
			b = append(b, v[:]...)
		}
	}
	return b
}

// searchList writes names as DNS does, without compression (RFC 3397 section 2
// allows it, some clients do not know it).
func searchList(names []string) (b []byte) {
	for _, name := range names {
		for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
			if label == "" || len(label) > 63 {
				continue
			}
			b = append(append(b, byte(len(label))), label...)
		}
		b = append(b, 0)
	}
	return b
}

// routes writes option 121. A client that takes it ignores option 3 (RFC 3442),
// so the default route is repeated.
func routes(sub *dsas.Subnet) (b []byte) {
	if len(sub.Routes) == 0 {
		return nil
	}
	list := sub.Routes
	if sub.Gateway.Is4() {
		list = append([]dsas.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: sub.Gateway}}, list...)
	}
	for _, r := range list {
		to := r.To.Masked().Addr().As4()
		b = append(b, byte(r.To.Bits()))
		b = append(b, to[:(r.To.Bits()+7)/8]...) // the significant bytes alone
		b = append(b, r.Via.AsSlice()...)
	}
	return b
}
