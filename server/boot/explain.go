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
// Server, Release, and the architecture to assume. The list ends where the
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
	kind, client, by, asks := "PXE", "PXEClient", "TFTP", "RRQ "
	if r.IsHTTPBoot() {
		kind, client, by, asks = "HTTP Boot", HTTPClient, "HTTP", "GET "
	}
	r.VendorClass = fmt.Sprintf("%s:Arch:%05d:UNDI:002001", client, uint16(r.Arch))
	asked := kind + " firmware, " + arch
	if r.Via != "" {
		asked += ", through " + r.Via
	}
	p := add("firmware DHCP", asked, Decide(r))
	if p.Action != NBP {
		return out
	}
	file := p
	file.Reason = fmt.Sprintf("%s is sent to whoever asks for this path.", p.Loader)
	add(by, asks+p.BootFile, file)
	if p.Loader == FileShimX64 || p.Loader == FileShimARM64 {
		explainGRUB(r, file, add)
		return out
	}
	if p.Loader == FileLPXELINUX {
		r.Step = StepTFTPConfig
		if p := add("pxelinux.cfg", "RRQ "+TFTPPath(r.MAC, "pxelinux.cfg/01-"+r.MAC.Dashed()), Decide(r)); p.Action == Menu {
			r.Pick = p.Menu[0]
			add("picked", "RRQ "+TFTPPath(r.MAC, configDir+ConfigName{Role: r.Pick}.String()), Decide(r))
		}
		return out
	}
	// iPXE on UEFI tells the architecture it was built for, by whatever way it came.
	r.VendorClass = ""
	if r.Arch == dsas.ArchEFIX64HTTP {
		r.Arch = dsas.ArchEFIX64
		arch = fmt.Sprintf("architecture %s (option 93: %d)", r.Arch, uint16(r.Arch))
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

// explainGRUB goes on from shim: GRUB, its first configuration, the box's own.
func explainGRUB(r Request, p Plan, add func(step, asks string, p Plan) Plan) {
	grub, cpu := FileGRUBX64, "x86_64"
	if p.Loader == FileShimARM64 {
		grub, cpu = FileGRUBARM64, "arm64"
	}
	p.Loader, p.BootFile = grub, TFTPPath(r.MAC, grub)
	p.Reason = fmt.Sprintf("%s loads %s from beside itself and checks its signature.", p.Loader, grub)
	if r.HasLoader != nil && !r.HasLoader(grub) {
		p = p.end(Refuse, fmt.Sprintf("The boot loader %s is not on this server; get it with: %s", grub, howToGet(grub)))
		p.BootFile = ""
	}
	if add("TFTP", "RRQ "+TFTPPath(r.MAC, grub), p).Action == Refuse {
		return
	}
	p.BootFile, p.Reason = GRUBFirst, "It is the same for all boxes; from it, GRUB asks for the box's own for ever."
	add("GRUB", "RRQ "+GRUBFirst, p)
	r.Step = StepGRUBConfig
	if p := add("grub.cfg", fmt.Sprintf("RRQ grub/%s/boot-%s.cfg", r.MAC, cpu), Decide(r)); p.Action == Menu {
		r.Pick = p.Menu[0]
		add("picked", fmt.Sprintf("RRQ grub/%s/boot-%s-%s.cfg", r.MAC, cpu, r.Pick), Decide(r))
	}
}
