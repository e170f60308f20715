package dhcp

import (
	"net/netip"
	"testing"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

// BenchmarkAnswer is one DISCOVER of a reserved node, from a packet's bytes to
// those of its answer.
func BenchmarkAnswer(b *testing.B) {
	for _, c := range captures(b) {
		if c.name != "ovmf-discover" && c.name != "dhclient-discover" {
			continue
		}
		b.Run(c.name, func(b *testing.B) {
			m := new(slate)
			if err := parseInto(&m.req, c.payload); err != nil {
				b.Fatal(err)
			}
			mac, _ := dsas.MACFrom(m.req.ClientHWAddr)
			st := dhcptest.New(dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: mac}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web"})
			st.Publish(bootSet, "web")
			s, err := New(Config{Store: st, Releases: st, Subnets: []dsas.Subnet{near}})
			if err != nil {
				b.Fatal(err)
			}
			l, p, out := testLink(near), received{data: c.payload}, make([]byte, 0, 1500)
			b.ReportAllocs()
			for b.Loop() {
				if !s.read(l, m, &p) {
					b.Fatal("not read")
				}
				r := s.reply(b.Context(), m, l, &p)
				if r == nil {
					b.Fatal("no answer")
				}
				out = appendMessage(out[:0], r.msg)
			}
		})
	}
}
