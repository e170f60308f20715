// Package boot answers one question: what should this box boot? The answer is
// pure, since firmware asks it several times on the way from DHCP to a kernel
// (address, NBP, loader configuration, script) and each time over another
// protocol: whoever is asked builds a Request and calls Decide.
package boot

import (
	"net/netip"
	"strings"
	"time"

	"dsas"
)

// Step is where on the way to a kernel the question comes from.
type Step string

// The steps that ask.
const (
	StepDHCP       Step = "dhcp"         // DISCOVER, REQUEST or INFORM, of firmware or of a loader
	StepTFTPConfig Step = "pxelinux.cfg" // PXELINUX asks for its configuration
	StepGRUBConfig Step = "grub.cfg"     // GRUB asks for its configuration
	StepScript     Step = "script"       // iPXE asks for its script
)

// InventoryRole is what an unknown box boots when discovery is on.
const InventoryRole = "inventory"

// Server is us, as the asking box sees us.
type Server struct {
	Addr netip.Addr // siaddr, options 54 and 66; the TFTP server
	URL  string     // base of the boot listener, "http://10.77.0.1:8080", no slash at the end
}

// Request is the question, with everything the answer depends on.
type Request struct {
	Step        Step
	MAC         dsas.MAC  // chaddr, or the MAC in the path
	Arch        dsas.Arch // option 93 (RFC 4578 section 2.1), valid with HasArch
	HasArch     bool
	VendorClass string // option 60
	UserClass   string // option 77
	GUID        []byte // option 97 without its type byte
	IPXE        *IPXE  // option 175; nil when there is none
	// Broadcast is the BOOTP broadcast flag. iPXE sets it when the NIC has an
	// IPv4 address already, which is so when it was chain-loaded: the PXE stack
	// below it did DHCP before and handed its answer on. That is how our
	// undionly.kpxe is told from an iPXE in a ROM, which tells the very same of
	// itself in every option.
	Broadcast bool

	Node *dsas.Node // nil: the MAC is unknown
	// Menu lists the roles that may be picked at the node's loader now: those of
	// Node.Menu that are built and may not harm a disk, which is the caller's to
	// say. Pick is the role that the request names, as the menu made it.
	Menu        []string
	MenuTimeout time.Duration // 0: DefaultMenuTimeout
	Pick        string
	Discovery   bool // unknown MACs boot InventoryRole

	// HasLoader tells whether a loader file is there to be served: those of
	// UEFI Secure Boot and arm64 are optional. nil: all are.
	HasLoader func(file string) bool

	// Via names the relay or switch port a box asks through; "" for none. It
	// changes nothing but what Explain says.
	Via string

	Server  Server
	Release *dsas.Release // of Role(), that the node is to boot; nil: there is none
}

// Role gives the role that the request's box is to have, "" for none: what a
// caller looks the release up by.
func (r *Request) Role() string {
	switch {
	case r.picked():
		return r.Pick
	case r.Node != nil:
		return r.Node.Role
	case r.Discovery:
		return InventoryRole
	}
	return ""
}

// IsIPXE tells whether iPXE asks: it says so in its user class, sent as plain
// text, where RFC 3004 wants a length byte first.
func (r *Request) IsIPXE() bool {
	return r.UserClass == "iPXE" || r.UserClass == "\x04iPXE"
}

// IsPXE tells whether boot firmware or a boot loader asks, and not an
// operating system that merely wants an address.
func (r *Request) IsPXE() bool {
	return r.HasArch || r.IsIPXE() || strings.HasPrefix(r.VendorClass, "PXEClient") || strings.HasPrefix(r.VendorClass, "HTTPClient")
}

// Action is the kind of answer.
type Action string

// The answers.
const (
	// Ignore: say nothing at all.
	Ignore Action = "ignore"
	// AddressOnly: an address and no boot file; firmware goes on to its next
	// boot device.
	AddressOnly Action = "address-only"
	// Refuse: as AddressOnly, and it is worth an entry in the log: the box
	// wanted to boot something we have nothing right for.
	Refuse Action = "refuse"
	// NBP: a boot loader, by TFTP or, for UEFI HTTP Boot, by HTTP.
	NBP Action = "nbp"
	// Script: a loader's script or configuration. Without a kernel in the plan
	// it shows why there is none and asks again for ever.
	Script Action = "script"
)

// Initrd is one cpio of the initial file system. Name is what the loader
// calls it, which UEFI needs on the cmdline as initrd=NAME.
type Initrd struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Plan is the answer.
type Plan struct {
	Action         Action     `json:"action"`
	Reason         string     `json:"reason"`                   // a sentence for people; always set
	NextServer     netip.Addr `json:"nextServer,omitzero"`      // siaddr
	BootFile       string     `json:"bootFile,omitempty"`       // file and option 67: a TFTP path or a URL
	TFTPServerName string     `json:"tftpServerName,omitempty"` // option 66
	VendorClass    string     `json:"vendorClass,omitempty"`    // option 60 of the answer; only UEFI HTTP Boot wants one
	Loader         string     `json:"loader,omitempty"`         // file name of the NBP
	Role           string     `json:"role,omitempty"`
	Kernel         string     `json:"kernel,omitempty"` // URL
	Initrds        []Initrd   `json:"initrds,omitempty"`

	Menu        []string      `json:"menu,omitempty"` // roles, the assigned one first
	MenuTimeout time.Duration `json:"menuTimeout,omitempty"`
	Pick        string        `json:"pick,omitempty"` // the role that was picked, "" where none was
	// Refused: a role was asked for that may not be had, so the way back is to the menu.
	Refused bool `json:"refused,omitempty"`

	MAC    dsas.MAC   `json:"mac"`
	Node   *dsas.Node `json:"-"`
	Server Server     `json:"-"`
	Step   Step       `json:"step"`
	// Release is what is booted, and ReleaseName what people call it, "web:7".
	Release     dsas.Digest `json:"release,omitempty"`
	ReleaseName string      `json:"releaseName,omitempty"`
}

// Boots tells whether the plan ends in a kernel.
func (p *Plan) Boots() bool { return p.Kernel != "" }
