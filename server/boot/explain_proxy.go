package boot

import (
	"strings"

	"dsas"
)

// ExplainProxy is Explain where another DHCP server gives the addresses and we
// are the proxyDHCP server beside it.
func ExplainProxy(r Request) []Explained {
	steps := Explain(r)
	if len(steps) == 0 {
		return steps
	}
	first := steps[0]
	out := []Explained{{Step: "address", Asks: first.Asks, Gets: "an address of the other DHCP server", Plan: first.Plan,
		Reason: "dsas gives no addresses (proxyDHCP). From its kernel on the node has the address that dsas has for it: the other server must not give that one to another box."}}
	for _, e := range steps {
		before, dhcp := strings.CutSuffix(e.Step, " DHCP")
		switch {
		case !dhcp:
		case e.Plan.BootFile == "":
			e.Step = before + " proxyDHCP"
			e.Gets = "nothing of dsas; the other server's answer stands"
		case before == "firmware" && sentTo4011(&e.Plan, &r):
			out = append(out, Explained{Step: "firmware proxyDHCP", Asks: e.Asks, Gets: "the way to port 4011", Plan: e.Plan,
				Reason: "UEFI firmware asks for its boot file there: the offer says PXEClient and has no option 43."})
			e.Step, e.Asks = "boot server", "REQUEST to port 4011, with the address it has"
		default:
			e.Step = before + " proxyDHCP"
		}
		out = append(out, e)
	}
	return out
}

// sentTo4011 tells whether firmware is, as server/dhcp does it: all but a BIOS
// and UEFI HTTP Boot.
func sentTo4011(p *Plan, r *Request) bool {
	return p.Action == NBP && !strings.Contains(p.BootFile, "://") && r.HasArch && r.Arch != dsas.ArchBIOS
}
