package dsas

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestNodeCheck(t *testing.T) {
	nic := func(last byte) NIC { return NIC{MAC{0x52, 0x54, 0, 0, 0, last}} }
	good := func() Node {
		return Node{Name: "w101", NICs: []NIC{nic(1), nic(2)}, Role: "web", Address: netip.MustParsePrefix("10.0.0.101/24"),
			Interfaces: []Interface{{"bond0.2", netip.MustParsePrefix("192.168.2.1/24")}, {"eth1", netip.MustParsePrefix("10.1.0.1/24")}},
			Disks:      map[string]string{"DBDEVICE": "/dev/disk/by-path/pci-0000:00:05.0"}, Loader: LoaderPXELINUX}
	}
	for _, c := range []struct {
		name   string
		change func(*Node)
		want   string // "": nothing wrong
	}{
		{"good", func(*Node) {}, ""},
		{"a name and a NIC are enough", func(n *Node) { *n = Node{Name: "w", NICs: n.NICs[:1]} }, ""},
		{"no name", func(n *Node) { n.Name = "" }, "node name"},
		{"capital", func(n *Node) { n.Name = "W101" }, "lower-case"},
		{"dots", func(n *Node) { n.Name = "w101.example" }, "node name"},
		{"dash first", func(n *Node) { n.Name = "-w" }, "node name"},
		{"dash last", func(n *Node) { n.Name = "w-" }, "node name"},
		{"long name", func(n *Node) { n.Name = strings.Repeat("w", 64) }, "at most 63"},
		{"longest name", func(n *Node) { n.Name = strings.Repeat("w", 63) }, ""},
		{"line end", func(n *Node) { n.Name = "w101\n" }, "node name"},
		{"no MAC", func(n *Node) { n.NICs = nil }, "no MAC"},
		{"empty MAC", func(n *Node) { n.NICs[1] = NIC{} }, "empty MAC"},
		{"a MAC twice", func(n *Node) { n.NICs[1] = n.NICs[0] }, "given twice"},
		{"loader", func(n *Node) { n.Loader = "lilo" }, `"lilo"`},
		{"role", func(n *Node) { n.Role = "../web" }, "role name"},
		{"device", func(n *Node) { n.Interfaces[0].Device = "bond0:1" }, `"bond0:1"`},
		{"long device", func(n *Node) { n.Interfaces[0].Device = "abcdefghijklmnop" }, "interface device"},
		{"the last VLAN", func(n *Node) { n.Interfaces[0].Device = "bond0.4094" }, ""},
		{"no VLAN", func(n *Node) { n.Interfaces[0].Device = "bond0.4095" }, "no VLAN 4095"},
		{"VLAN 0", func(n *Node) { n.Interfaces[0].Device = "bond0.0" }, "no VLAN 0"},
		{"interface without address", func(n *Node) { n.Interfaces[1].Address = netip.Prefix{} }, "interface eth1"},
		{"disk key", func(n *Node) { n.Disks = map[string]string{"dbdevice": "/dev/vda"} }, `"dbdevice"`},
		{"disk elsewhere", func(n *Node) { n.Disks["DBDEVICE"] = "/etc/passwd" }, "below /dev/"},
		{"disk by dots", func(n *Node) { n.Disks["DBDEVICE"] = "/dev/../etc/passwd" }, "below /dev/"},
		{"disk with shell", func(n *Node) { n.Disks["DBDEVICE"] = "/dev/vda$(id)" }, "below /dev/"},
	} {
		n := good()
		c.change(&n)
		err := n.Check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: Check = %v; want ErrInvalid that says %q", c.name, err, c.want)
		}
	}
	n := good()
	if !n.HasMAC(nic(2).MAC) || n.HasMAC(nic(3).MAC) || n.HasMAC(MAC{}) {
		t.Error("HasMAC finds the wrong ones")
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "0", "w101", "a-b", "1-2"} {
		if err := CheckName("site", good); err != nil {
			t.Errorf("CheckName(%q) = %v; want nil", good, err)
		}
	}
	for _, bad := range []string{"", "-", "a_b", "a b", "ä", "a/b", "..", "a\x00"} {
		if err := CheckName("site", bad); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "site name") {
			t.Errorf("CheckName(%q) = %v; want ErrInvalid about a site name", bad, err)
		}
	}
}
