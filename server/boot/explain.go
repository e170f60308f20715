package boot

import (
	"fmt"
	"strings"

	"dsas"
)

// Explained is one step of a boot as it would go.
type Explained struct {
	Step   string `json:"step"`   // "firmware DHCP", "TFTP", "iPXE DHCP", "script", ...
	Asks   string `json:"asks"`   // what the box sends
	Gets   string `json:"gets"`   // what it is given, in short
	Plan   Plan   `json:"plan"`   // the decision behind it
	Reason string `json:"reason"` // a sentence
}

// Explain lists what a box would be given at each step on its way to a kernel,
// without booting it. r holds what is known of it: MAC, Node, Discovery,
// Server, Boot, Image, and the architecture to assume. The list ends where the
// boot would.
func Explain(r Request) []Explained {
	var out []Explained
	add := func(step, asks string, p Plan) Plan {
		gets := string(p.Action)
		switch {
		case p.BootFile != "":
			gets = p.BootFile
		case p.Boots():
			gets = "kernel and initramfs for role " + p.Role
		case p.Action == Menu:
			gets = fmt.Sprintf("a menu of %s; %s after %s", strings.Join(p.Menu, ", "), p.Menu[0], p.MenuTimeout)
		case p.Action == Script:
			gets = "a text that shows the reason and asks again"
		case p.Action == AddressOnly:
			gets = "an address, no boot file"
		}
		out = append(out, Explained{step, asks, gets, p, p.Reason})
		return p
	}
	if !r.HasArch {
		r.Arch, r.HasArch = dsas.ArchBIOS, true
	}
	arch := fmt.Sprintf("architecture %s (option 93: %d)", r.Arch, uint16(r.Arch))
	r.Step, r.UserClass, r.IPXE, r.Broadcast = StepDHCP, "", nil, false
	r.VendorClass = fmt.Sprintf("PXEClient:Arch:%05d:UNDI:002001", uint16(r.Arch))
	p := add("firmware DHCP", "PXE firmware, "+arch, Decide(r))
	if p.Action != NBP {
		return out
	}
	nbp := p
	nbp.Reason = fmt.Sprintf("%s is sent to whoever asks for this path.", p.Loader)
	add("TFTP", "RRQ "+p.BootFile, nbp)
	if p.Loader == FileLPXELINUX {
		r.Step = StepTFTPConfig
		if p := add("pxelinux.cfg", "RRQ "+TFTPPath(r.MAC, "pxelinux.cfg/01-"+r.MAC.Dashed()), Decide(r)); p.Action == Menu {
			r.Pick = p.Menu[0]
			add("picked", "RRQ "+TFTPPath(r.MAC, configDir+ConfigName{Role: r.Pick}.String()), Decide(r))
		}
		return out
	}
	// What undionly.kpxe sends is a broadcast; snponly.efi does not.
	r.UserClass, r.Broadcast = "iPXE", r.Arch == dsas.ArchBIOS
	if p = add("iPXE DHCP", "user class iPXE, "+arch, Decide(r)); p.Action != Script {
		return out
	}
	r.Step = StepScript
	if s := add("script", "GET "+p.BootFile, Decide(r)); s.Action == Menu {
		r.Pick = s.Menu[0]
		add("picked", "GET "+p.BootFile+"?role="+r.Pick, Decide(r))
	}
	return out
}
