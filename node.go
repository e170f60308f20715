package dsas

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NIC is one network port of a node. The order of a node's NICs is the order
// of their kernel names on the node: the first is eth0.
type NIC struct {
	MAC MAC `json:"mac"`
}

// Loader says by which boot loader a node is booted.
type Loader string

// The loaders. LoaderAuto picks by architecture: iPXE everywhere it runs.
const (
	LoaderAuto     Loader = ""
	LoaderIPXE     Loader = "ipxe"
	LoaderPXELINUX Loader = "pxelinux"
	// LoaderNBP sends a BIOS node whose ROM is iPXE already through the
	// served NBP by TFTP once more: for boxes whose ROM's iPXE is too old or
	// lacks HTTP or bzImage.
	LoaderNBP Loader = "nbp"
	// LoaderGRUB is Debian's signed chain, shim and GRUB, for UEFI with Secure
	// Boot on.
	LoaderGRUB Loader = "grub"
)

// Loaders lists the values an operator may choose.
func Loaders() []Loader {
	return []Loader{LoaderAuto, LoaderIPXE, LoaderPXELINUX, LoaderNBP, LoaderGRUB}
}

// Interface is an address a node holds beside its own, on a device that
// exists because it is named: "bond0.2" is VLAN 2 on bond0.
type Interface struct {
	Device  string       `json:"device"`
	Address netip.Prefix `json:"address"`
}

// Node is one box.
type Node struct {
	Name string `json:"name"`
	NICs []NIC  `json:"nics"`
	// Address is the node's reserved address with its subnet's prefix length
	// ("10.77.0.101/24"). The server fills it in from the subnet when a node
	// is added without one.
	Address netip.Prefix `json:"address"`
	// ClientID, where set, is one more thing the node is known by to DHCP,
	// beside its MACs.
	ClientID ClientID `json:"clientId,omitempty"`
	Role     string   `json:"role,omitempty"` // assigned; "" boots nothing
	// Release pins the node to one release of its role, by ID; "": it follows
	// what is current for the role.
	Release Digest `json:"release,omitempty"`
	Loader  Loader `json:"loader,omitempty"`
	// Menu lists roles that are offered at the node's boot loader beside the
	// assigned one; what is picked there is for that boot alone. Empty: no menu.
	Menu       []string    `json:"menu,omitempty"`
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Disks names block devices by stable names, by dsas.conf key:
	// DBDEVICE=/dev/disk/by-path/... or /dev/vda.
	Disks map[string]string `json:"disks,omitempty"`
	// Conf holds lines appended to the node's /etc/dsas.conf as they are.
	Conf string `json:"conf,omitempty"`
	BMC  *BMC   `json:"bmc,omitempty"`

	Created time.Time `json:"created,omitzero"`
}

// BMC tells how a node's power is driven. The password is write-only: it is
// kept encrypted by the store and is never part of an answer.
type BMC struct {
	Kind     string `json:"kind"`    // "ipmi"
	Address  string `json:"address"` // host or host:port; IPMI's own port is 623
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
}

// NodeStatus is what events have told of a node.
type NodeStatus struct {
	Phase     Phase     `json:"phase"`
	Since     time.Time `json:"since,omitzero"`    // when the phase began
	LastSeen  time.Time `json:"lastSeen,omitzero"` // any sign of life, heartbeats included
	LastEvent *Event    `json:"lastEvent,omitempty"`
	// Boot is the boot that runs; where none does, the newest one begun.
	Boot    string `json:"boot,omitempty"`
	Running string `json:"running,omitempty"` // role that this boot was given
	// Picked: Running was picked at the loader's menu, for this boot alone.
	Picked bool   `json:"picked,omitempty"`
	Image  Digest `json:"image,omitempty"` // ID of the release of this boot
	// Serving is the role whose services the node said last to be ready. It
	// stays while the node is merely silent or somebody asks for its boot
	// script, and ends when the node says so, boots anew or is switched.
	Serving string `json:"serving,omitempty"`
}

// Unknown is a MAC that asked and belongs to no node.
type Unknown struct {
	MAC         MAC        `json:"mac"`
	Arch        string     `json:"arch,omitempty"`
	VendorClass string     `json:"vendorClass,omitempty"` // option 60
	GUID        string     `json:"guid,omitempty"`        // option 97
	Address     netip.Addr `json:"address,omitzero"`      // leased from the pool, if any
	Hardware    string     `json:"hardware,omitempty"`    // what the inventory role found, with the MACs of all ports
	First       time.Time  `json:"first"`
	Last        time.Time  `json:"last"`
	Count       int        `json:"count"`
	Port        *Port      `json:"port,omitempty"` // where it hangs, if a relay or switch said so
}

// Port is where a box hangs, as the relay agent or switch that its DHCP
// request came through said (RFC 3046).
type Port struct {
	MAC       MAC        `json:"mac"`
	Relay     netip.Addr `json:"relay,omitzero"`      // giaddr; unset: a switch on our own segment
	CircuitID string     `json:"circuitId,omitempty"` // as text, or 0x and hex
	RemoteID  string     `json:"remoteId,omitempty"`
	Interface string     `json:"interface,omitempty"` // of the server
	Seen      time.Time  `json:"seen"`
}

// String gives "port 5 of sw1, relay 10.2.0.254".
func (p Port) String() string {
	var parts []string
	if p.CircuitID != "" {
		parts = append(parts, "port "+p.CircuitID)
	}
	if p.RemoteID != "" {
		parts = append(parts, "of "+p.RemoteID)
	}
	text := strings.Join(parts, " ")
	if p.Relay.IsValid() {
		if text != "" {
			text += ", "
		}
		text += "relay " + p.Relay.String()
	}
	return text
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName refuses what cannot be a host name label (RFC 1123 section 2.1).
func CheckName(kind, name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%s name %q: use lower-case letters, digits and dashes, at most 63: %w", kind, name, ErrInvalid)
	}
	return nil
}

var deviceRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}(\.[0-9]{1,4})?$`)

var confKeyRE = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// Check says what is wrong with n, in words that name the field, or nil.
func (n *Node) Check() error {
	if err := CheckName("node", n.Name); err != nil {
		return err
	}
	if len(n.NICs) == 0 {
		return fmt.Errorf("node %s: has no MAC; give at least one: %w", n.Name, ErrInvalid)
	}
	seen := map[MAC]bool{}
	for _, nic := range n.NICs {
		if nic.MAC.IsZero() {
			return fmt.Errorf("node %s: an empty MAC: %w", n.Name, ErrInvalid)
		}
		if seen[nic.MAC] {
			return fmt.Errorf("node %s: MAC %s is given twice: %w", n.Name, nic.MAC, ErrInvalid)
		}
		seen[nic.MAC] = true
	}
	if !slices.Contains(Loaders(), n.Loader) {
		return fmt.Errorf("node %s: loader %q: use ipxe, pxelinux, nbp or grub, or leave it empty: %w", n.Name, n.Loader, ErrInvalid)
	}
	if n.Role != "" {
		if err := CheckName("role", n.Role); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	if n.Release != "" {
		if _, err := ParseDigest(string(n.Release)); err != nil {
			return fmt.Errorf("node %s: release: %w", n.Name, err)
		}
		if n.Role == "" {
			return fmt.Errorf("node %s: is pinned to a release and has no role: %w", n.Name, ErrInvalid)
		}
	}
	if err := checkMenu(n.Menu); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	for _, i := range n.Interfaces {
		if !deviceRE.MatchString(i.Device) {
			return fmt.Errorf("node %s: interface device %q: write it as bond0.2 or eth1: %w", n.Name, i.Device, ErrInvalid)
		}
		if _, vlan, ok := strings.Cut(i.Device, "."); ok {
			if id, err := strconv.Atoi(vlan); err != nil || id < 1 || id > 4094 {
				return fmt.Errorf("node %s: interface device %q: there is no VLAN %s; use 1 to 4094: %w", n.Name, i.Device, vlan, ErrInvalid)
			}
		}
		if !i.Address.IsValid() {
			return fmt.Errorf("node %s: interface %s: has no address; write it as 192.0.2.1/24: %w", n.Name, i.Device, ErrInvalid)
		}
	}
	for k, v := range n.Disks {
		if !confKeyRE.MatchString(k) {
			return fmt.Errorf("node %s: disk key %q: use capitals, as DBDEVICE: %w", n.Name, k, ErrInvalid)
		}
		if !strings.HasPrefix(v, "/dev/") || strings.ContainsAny(v, " \t\n'\"$`\\") || strings.Contains(v, "..") {
			return fmt.Errorf("node %s: disk %s=%q: give a path below /dev/: %w", n.Name, k, v, ErrInvalid)
		}
	}
	return nil
}

// HasMAC tells whether one of n's NICs has address m.
func (n *Node) HasMAC(m MAC) bool {
	return slices.ContainsFunc(n.NICs, func(c NIC) bool { return c.MAC == m })
}
