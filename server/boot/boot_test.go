package boot

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"dsas"
)

var (
	mac    = dsas.MAC{0x52, 0x54, 0, 0, 1, 1}
	server = Server{Addr: netip.MustParseAddr("10.77.0.1"), URL: "http://10.77.0.1:8080"}
	rel    = &dsas.Release{ID: part('c').Digest, Role: "web", Number: 7, Boot: dsas.BootSet{Kernel: part('a'), Initramfs: part('b')}}
)

const (
	undionly  = "nbp/52-54-00-00-01-01/undionly.kpxe"
	snponly   = "nbp/52-54-00-00-01-01/snponly.efi"
	shimX64   = "nbp/52-54-00-00-01-01/shimx64.efi"
	shimARM64 = "nbp/52-54-00-00-01-01/shimaa64.efi"
	byHTTP    = "http://10.77.0.1:8080/nbp/52-54-00-00-01-01/snponly.efi"
	pxelinux  = "nbp/52-54-00-00-01-01/lpxelinux.0"
	script    = "http://10.77.0.1:8080/boot/52-54-00-00-01-01/script.ipxe"
)

func part(c byte) dsas.Part {
	return dsas.Part{Digest: dsas.Digest("sha256:" + strings.Repeat(string(c), 64)), Size: 1}
}

func node(loader dsas.Loader) *dsas.Node {
	return &dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: mac}, {MAC: dsas.MAC{0x52, 0x54, 0, 0, 1, 2}}}, Role: "web", Loader: loader, Address: netip.MustParsePrefix("10.77.0.101/24")}
}

// captured is option 175 as QEMU's ROM and Debian's undionly.kpxe send it, the
// same in both (captured from them).
var captured = []byte{
	0xb1, 5, 1, 0x80, 0x86, 0x10, 0x0e, 0xeb, 3, 1, 0, 0,
	0x17, 1, 1, 0x22, 1, 1, 0x13, 1, 1, 0x11, 1, 1, 0x27, 1, 1, 0x19, 1, 1, 0x29, 1, 1, 0x10, 1, 2, 0x21, 1, 1, 0x15, 1, 1, 0x18, 1, 1, 0x12, 1, 1,
}

func full(t *testing.T) *IPXE {
	t.Helper()
	x, err := ParseIPXE(captured)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestDecideDHCP(t *testing.T) {
	noHTTP, noBzImage := full(t), full(t)
	noHTTP.Features = []byte{ipxeFeatureBzImage}
	noBzImage.Features = []byte{ipxeFeatureHTTP}
	noRole := node("")
	noRole.Role = ""
	pxe := "PXEClient:Arch:00000:UNDI:002001"
	tests := []struct {
		name   string
		r      Request
		action Action
		file   string
		reason string // part of it
	}{
		{"BIOS firmware", Request{HasArch: true, VendorClass: pxe, Node: node("")}, NBP, undionly, "bios firmware of node w101"},
		{"BIOS by vendor class alone", Request{VendorClass: pxe, Node: node("")}, NBP, undionly, ""},
		{"UEFI 7", Request{HasArch: true, Arch: 7, Node: node("")}, NBP, snponly, ""},
		{"UEFI 9", Request{HasArch: true, Arch: 9, Node: node("")}, NBP, snponly, ""},
		{"UEFI by vendor class alone", Request{VendorClass: "PXEClient:Arch:00007:UNDI:003016", Node: node("")}, NBP, snponly, ""},
		{"UEFI ia32", Request{HasArch: true, Arch: 6, Node: node("")}, Refuse, "", "uefi-ia32"},
		{"arm64", Request{HasArch: true, Arch: 11, Node: node("")}, NBP, shimARM64, "grubaa64.efi"},
		{"arm64, loader ipxe", Request{HasArch: true, Arch: 11, Node: node(dsas.LoaderIPXE)}, NBP, shimARM64, ""},
		{"arm64, unknown, discovery", Request{HasArch: true, Arch: 11, Discovery: true}, Refuse, "", "no kernel for uefi-arm64"},
		{"arm64 HTTP boot", Request{HasArch: true, Arch: 19, VendorClass: "HTTPClient:Arch:00019:UNDI:003001", Node: node("")}, Refuse, "", "PXE over IPv4"},
		{"arm64's number, HTTP's class", Request{HasArch: true, Arch: 11, VendorClass: "HTTPClient:Arch:00011:UNDI:003001", Node: node("")}, Refuse, "", "PXE over IPv4"},
		{"arm64's iPXE", Request{HasArch: true, Arch: 11, UserClass: "iPXE", IPXE: full(t), Node: node("")}, Refuse, "", "no kernel for uefi-arm64"},
		{"ia32's iPXE", Request{HasArch: true, Arch: 6, UserClass: "iPXE", IPXE: full(t), Node: node("")}, Refuse, "", "no kernel for uefi-ia32"},
		{"arch nobody knows", Request{HasArch: true, Arch: 4711, Node: node("")}, Refuse, "", "4711"},
		{"no arch at all", Request{VendorClass: "PXEClient", Node: node("")}, Refuse, "", "says nothing of its architecture"},
		{"vendor class with a broken arch", Request{VendorClass: "PXEClient:Arch:0000x:UNDI", Node: node("")}, Refuse, "", ""},
		{"vendor class with an arch too large", Request{VendorClass: "PXEClient:Arch:65536:UNDI", Node: node("")}, Refuse, "", ""},
		{"HTTP boot", Request{HasArch: true, Arch: 16, VendorClass: "HTTPClient:Arch:00016:UNDI:003001", Node: node("")}, NBP, byHTTP, "by HTTP"},
		{"HTTP boot by vendor class alone", Request{VendorClass: "HTTPClient:Arch:00016:UNDI:003001", Node: node("")}, NBP, byHTTP, ""},
		{"HTTP boot with PXE's number", Request{HasArch: true, Arch: 7, VendorClass: "HTTPClient:Arch:00007:UNDI:003001", Node: node("")}, NBP, byHTTP, ""},
		{"HTTP boot, loader pxelinux", Request{HasArch: true, Arch: 16, Node: node(dsas.LoaderPXELINUX)}, NBP, byHTTP, "BIOS only"},
		{"HTTP boot, loader grub", Request{HasArch: true, Arch: 16, VendorClass: HTTPClient, Node: node(dsas.LoaderGRUB)}, Refuse, "", "PXE over IPv4"},
		{"HTTP boot of a BIOS", Request{HasArch: true, VendorClass: HTTPClient, Node: node("")}, Refuse, "", "as a BIOS"},
		{"HTTP boot, unknown", Request{HasArch: true, Arch: 16, VendorClass: HTTPClient}, AddressOnly, "", "belongs to no node"},
		{"UEFI, loader grub", Request{HasArch: true, Arch: 7, Node: node(dsas.LoaderGRUB)}, NBP, shimX64, "Secure Boot"},
		{"UEFI, loader grub, shim is missing", Request{HasArch: true, Arch: 7, Node: node(dsas.LoaderGRUB), HasLoader: func(f string) bool { return f != FileShimX64 }}, Refuse, "", "dsas loader fetch secureboot"},
		{"arm64, shim is missing", Request{HasArch: true, Arch: 11, Node: node(""), HasLoader: func(string) bool { return false }}, Refuse, "", "dsas loader fetch arm64"},
		{"BIOS, loader grub", Request{HasArch: true, VendorClass: pxe, Node: node(dsas.LoaderGRUB)}, NBP, undionly, "UEFI only"},
		{"operating system", Request{VendorClass: "udhcp 1.35", Node: node("")}, AddressOnly, "", "operating system"},
		{"iPXE", Request{HasArch: true, UserClass: "iPXE", IPXE: full(t), Node: node("")}, Script, script, "script"},
		{"iPXE with its user class as RFC 3004 has it", Request{HasArch: true, UserClass: "\x04iPXE", Node: node("")}, Script, script, ""},
		{"iPXE that tells nothing", Request{UserClass: "iPXE", Node: node("")}, Script, script, ""},
		{"iPXE on UEFI, no bzImage among features", Request{HasArch: true, Arch: 7, UserClass: "iPXE", IPXE: noBzImage, Node: node("")}, Script, script, ""},
		{"gPXE is not iPXE", Request{HasArch: true, UserClass: "gPXE", IPXE: full(t), Node: node("")}, NBP, undionly, ""},
		{"iPXE in a ROM, no HTTP", Request{HasArch: true, UserClass: "iPXE", IPXE: noHTTP, Node: node("")}, NBP, undionly, "lacks HTTP"},
		{"iPXE in a ROM, no bzImage", Request{HasArch: true, UserClass: "iPXE", IPXE: noBzImage, Node: node("")}, NBP, undionly, "lacks bzImage"},
		{"iPXE on UEFI, no HTTP", Request{HasArch: true, Arch: 7, UserClass: "iPXE", IPXE: noHTTP, Node: node("")}, NBP, snponly, "lacks HTTP"},
		{"chain-loaded iPXE still lacks", Request{HasArch: true, UserClass: "iPXE", Broadcast: true, IPXE: noHTTP, Node: node("")}, Refuse, "", "did not help"},
		{"ROM, loader nbp", Request{HasArch: true, UserClass: "iPXE", IPXE: full(t), Node: node(dsas.LoaderNBP)}, NBP, undionly, "set to nbp"},
		{"chain-loaded, loader nbp", Request{HasArch: true, UserClass: "iPXE", IPXE: full(t), Broadcast: true, Node: node(dsas.LoaderNBP)}, Script, script, ""},
		{"firmware, loader nbp", Request{HasArch: true, VendorClass: pxe, Node: node(dsas.LoaderNBP)}, NBP, undionly, ""},
		{"UEFI's iPXE, loader nbp: no loop", Request{HasArch: true, Arch: 7, UserClass: "iPXE", IPXE: full(t), Node: node(dsas.LoaderNBP)}, Script, script, ""},
		{"firmware, loader pxelinux", Request{HasArch: true, VendorClass: pxe, Node: node(dsas.LoaderPXELINUX)}, NBP, pxelinux, ""},
		{"ROM, loader pxelinux", Request{HasArch: true, UserClass: "iPXE", IPXE: full(t), Node: node(dsas.LoaderPXELINUX)}, NBP, pxelinux, ""},
		{"UEFI, loader pxelinux", Request{HasArch: true, Arch: 7, Node: node(dsas.LoaderPXELINUX)}, NBP, snponly, "BIOS only"},
		{"UEFI's iPXE, loader pxelinux", Request{HasArch: true, Arch: 7, UserClass: "iPXE", Node: node(dsas.LoaderPXELINUX)}, Script, script, ""},
		{"no role", Request{HasArch: true, Node: noRole}, AddressOnly, "", "dsas node set w101 --role"},
		{"no role, iPXE waits", Request{HasArch: true, UserClass: "iPXE", Node: noRole}, Script, script, "no role"},
		{"unknown", Request{HasArch: true}, AddressOnly, "", "belongs to no node"},
		{"unknown iPXE goes on to its disk", Request{HasArch: true, UserClass: "iPXE"}, AddressOnly, "", "belongs to no node"},
		{"unknown, discovery", Request{HasArch: true, Discovery: true}, NBP, undionly, "role inventory"},
		{"unknown, discovery, iPXE", Request{HasArch: true, UserClass: "iPXE", Discovery: true}, Script, script, "role inventory"},
		{"a node is no discovery", Request{HasArch: true, Discovery: true, Node: noRole}, AddressOnly, "", "no role"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.r
			r.Step, r.MAC, r.Server, r.Release = StepDHCP, mac, server, rel
			p := Decide(r)
			if p.Action != tt.action || p.BootFile != tt.file {
				t.Errorf("Decide = %s %q (%s); want %s %q", p.Action, p.BootFile, p.Reason, tt.action, tt.file)
			}
			if p.Reason == "" || !strings.Contains(p.Reason, tt.reason) {
				t.Errorf("reason = %q; want it to contain %q", p.Reason, tt.reason)
			}
			if (p.BootFile != "") != (p.NextServer == server.Addr) || (p.BootFile != "") != (p.TFTPServerName == "10.77.0.1") {
				t.Errorf("file %q, siaddr %v, option 66 %q; want all or none", p.BootFile, p.NextServer, p.TFTPServerName)
			}
			if (p.VendorClass == HTTPClient) != strings.HasPrefix(p.BootFile, server.URL+"/nbp/") {
				t.Errorf("file %q, option 60 %q; want HTTPClient with the URL of an NBP, and else none", p.BootFile, p.VendorClass)
			}
			if p.Boots() {
				t.Errorf("a plan for DHCP has a kernel: %q", p.Kernel)
			}
		})
	}
}

func TestDecideNothingBuilt(t *testing.T) {
	broken := *rel
	broken.Boot.Kernel.Digest = "sha256:../../x"
	pinned := node("")
	pinned.Release = part('e').Digest
	for _, tt := range []struct {
		name    string
		node    *dsas.Node
		release *dsas.Release
		reason  string
	}{
		{"no release", node(""), nil, "Role web has no release"},
		{"pinned to one that is gone", pinned, nil, "unpin w101"},
		{"damaged boot set", node(""), &broken, "damaged"},
	} {
		r := Request{Step: StepDHCP, MAC: mac, HasArch: true, Node: tt.node, Server: server, Release: tt.release}
		if p := Decide(r); p.Action != AddressOnly || !strings.Contains(p.Reason, tt.reason) {
			t.Errorf("%s: Decide = %s (%s); want %s (...%s...)", tt.name, p.Action, p.Reason, AddressOnly, tt.reason)
		}
		r.Step = StepScript
		p := Decide(r)
		if p.Action != Script || p.Boots() {
			t.Errorf("%s: Decide(script) = %s, kernel %q; want %s without one", tt.name, p.Action, p.Kernel, Script)
		}
		text := p.IPXEScript(Params{})
		for _, want := range []string{"52:54:00:00:01:01", "chain --replace", "sleep"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the script that waits lacks %q:\n%s", tt.name, want, text)
			}
		}
		if strings.Contains(text, "\nkernel ") {
			t.Errorf("%s: the script that waits has a kernel:\n%s", tt.name, text)
		}
	}
	if p := Decide(Request{Step: StepDHCP, Node: node("")}); p.Action != Ignore {
		t.Errorf("Decide without a MAC = %s; want %s", p.Action, Ignore)
	}
}

var update = os.Getenv("UPDATE_GOLDEN") != ""

// TestTexts compares with testdata; UPDATE_GOLDEN=1 writes it anew.
func TestTexts(t *testing.T) {
	withFirmware := *rel
	fw := part('d')
	withFirmware.Boot.Firmware = &fw
	params := Params{Boot: "b1", Token: "t1", Bond: "bond0:mode=active-backup:miimon=100", Gateway: netip.MustParseAddr("10.77.0.254")}
	noRole := node("")
	noRole.Role = ""
	for _, tt := range []struct {
		file string
		step Step
		r    Request
		try  int
	}{
		{"boot.ipxe", StepScript, Request{Node: node(""), Release: &withFirmware}, 0},
		{"wait.ipxe", StepScript, Request{Node: noRole, Release: rel}, 0},
		{"discover.ipxe", StepScript, Request{Discovery: true, Release: rel}, 0},
		{"menu.ipxe", StepScript, Request{Node: node(""), Release: rel, Menu: []string{"rescue", "inventory"}}, 0},
		{"picked.ipxe", StepScript, Request{Node: node(""), Release: rel, Menu: []string{"rescue"}, Pick: "rescue"}, 0},
		{"menu.pxelinux", StepTFTPConfig, Request{Node: node(dsas.LoaderPXELINUX), Release: rel, Menu: []string{"rescue", "inventory"}}, 0},
		{"picked.pxelinux", StepTFTPConfig, Request{Node: node(dsas.LoaderPXELINUX), Release: rel, Menu: []string{"rescue"}, Pick: "rescue"}, 1},
		{"boot.pxelinux", StepTFTPConfig, Request{Node: node(dsas.LoaderPXELINUX), Release: &withFirmware}, 0},
		{"wait.pxelinux", StepTFTPConfig, Request{Node: noRole}, 3},
		{"boot.grub", StepGRUBConfig, Request{Node: node(dsas.LoaderGRUB), Release: &withFirmware}, 0},
		{"wait.grub", StepGRUBConfig, Request{Node: noRole}, 0},
		{"menu.grub", StepGRUBConfig, Request{Node: node(dsas.LoaderGRUB), Release: rel, Menu: []string{"rescue", "inventory"}}, 0},
		{"picked.grub", StepGRUBConfig, Request{Node: node(dsas.LoaderGRUB), Release: rel, Menu: []string{"rescue"}, Pick: "rescue"}, 0},
		{"refused.grub", StepGRUBConfig, Request{Node: node(dsas.LoaderGRUB), Release: rel, Menu: []string{"rescue"}, Pick: "db"}, 0},
		{"arm64.grub", StepGRUBConfig, Request{Node: node(""), Arch: dsas.ArchEFIARM64, HasArch: true, Release: rel}, 0},
	} {
		tt.r.Step, tt.r.MAC, tt.r.Server = tt.step, mac, server
		p := Decide(tt.r)
		got := p.IPXEScript(params)
		if tt.step == StepTFTPConfig {
			got = p.PXELINUXConfig(params, tt.try)
		}
		if tt.step == StepGRUBConfig {
			got = p.GRUBConfig(params)
		}
		path := "testdata/" + tt.file
		if update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s = %s\nwant %s", tt.file, got, want)
		}
	}
}

// TestNothingBreaksOut: whatever stands in a field, each line of a text begins
// with a word of ours, and no field is expanded or ends a command.
func TestNothingBreaksOut(t *testing.T) {
	for _, evil := range []string{"x\nshell", "a b", "${net0/mac}", "a||shell", "a&&shell", "`id`", "a;b", "#x", "\"", "'", "\\", "ü", "\x00", "\x7f"} {
		n := node("")
		p := Decide(Request{Step: StepScript, MAC: mac, Node: n, Server: server, Release: rel})
		text := p.IPXEScript(Params{Boot: "b", Token: "t", Extra: []string{"x=" + evil}})
		if strings.Contains(text, "\nkernel ") {
			t.Errorf("argument %q was put into the script:\n%s", evil, text)
		}
		if text := p.PXELINUXConfig(Params{Extra: []string{"x=" + evil}}, 0); strings.Contains(text, "KERNEL") {
			t.Errorf("argument %q was put into the configuration:\n%s", evil, text)
		}
		if text := p.GRUBConfig(Params{Extra: []string{"x=" + evil}}); strings.Contains(text, "linux ") {
			t.Errorf("argument %q was put into GRUB's configuration:\n%s", evil, text)
		}
		// A name that the store should never hold: shown, and not obeyed.
		n.Name, n.Role = "n"+evil, "r"+evil
		for _, step := range []Step{StepScript, StepTFTPConfig, StepGRUBConfig} {
			p := Decide(Request{Step: step, MAC: mac, Node: n, Server: server, Release: rel})
			for _, line := range strings.Split(p.IPXEScript(Params{})+p.PXELINUXConfig(Params{}, 0)+p.GRUBConfig(Params{}), "\n") {
				if text, ok := strings.CutPrefix(line, `echo "`); ok { // GRUB's, whose quotes are ours
					line = strings.TrimSuffix(text, `"`)
				}
				if strings.Contains(line, evil) && evil != "a b" && evil != "#x" || strings.HasPrefix(line, "shell") {
					t.Errorf("name %q broke out in line %q", evil, line)
				}
			}
		}
	}
}

func TestParseIPXE(t *testing.T) {
	x, err := ParseIPXE(captured)
	if err != nil {
		t.Fatal(err)
	}
	if x.Version != [3]byte{1, 0, 0} || !x.Has(ipxeFeatureHTTP) || !x.Has(ipxeFeatureBzImage) || !bytes.Equal(x.BusID, []byte{1, 0x80, 0x86, 0x10, 0x0e}) {
		t.Errorf("ParseIPXE = %s; want version 1.0.0 with HTTP and bzImage on PCI 8086:100e", x)
	}
	for _, bad := range [][]byte{{19}, {19, 2, 1}, {235, 255}} {
		if _, err := ParseIPXE(bad); err == nil {
			t.Errorf("ParseIPXE(%v) = nil error; want one", bad)
		}
	}
	if x, err := ParseIPXE([]byte{0, 0, 19, 1, 1, 19, 1, 1, 24, 1, 0, 255, 1}); err != nil || !bytes.Equal(x.Features, []byte{19}) {
		t.Errorf("ParseIPXE(padding, twice, off, end) = %v, %v; want feature 19 alone", x, err)
	}
}

func FuzzParseIPXE(f *testing.F) {
	f.Add(captured)
	f.Add([]byte{19, 1})
	f.Add([]byte{0, 255, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseIPXE(b)
		if err != nil {
			return
		}
		if len(x.Features) > 128 || len(x.BusID) > 255 {
			t.Errorf("ParseIPXE(%x) holds more than an option can: %s", b, x)
		}
	})
}

// FuzzDecide: whatever firmware says, the answer has a reason, never names a
// loader of another architecture, and its texts have our lines only.
func FuzzDecide(f *testing.F) {
	f.Add(uint16(0), true, "PXEClient:Arch:00000:UNDI:002001", "iPXE", captured, true, "nbp", byte(7))
	f.Add(uint16(16), true, "HTTPClient:Arch:00016:UNDI:003001", "", []byte{}, false, "grub", byte(14))
	f.Add(uint16(11), true, "PXEClient:Arch:00011:UNDI:003016", "", []byte{}, false, "", byte(14))
	f.Add(uint16(7), true, "PXEClient:Arch:00007:UNDI:003016", "", []byte{}, false, "grub", byte(14))
	f.Add(uint16(7), false, "PXEClient:Arch:00007", "", []byte{}, false, "", byte(3))
	f.Fuzz(func(t *testing.T, arch uint16, has bool, vendor, user string, opt []byte, bcast bool, loader string, flags byte) {
		r := Request{Step: StepDHCP, MAC: mac, Arch: dsas.Arch(arch), HasArch: has, VendorClass: vendor, UserClass: user, Broadcast: bcast, Discovery: flags&1 != 0, Server: server}
		r.IPXE, _ = ParseIPXE(opt)
		if flags&2 != 0 {
			r.Node = node(dsas.Loader(loader))
		}
		if flags&4 != 0 {
			r.Release = rel
		}
		p := Decide(r)
		if p.Reason == "" {
			t.Errorf("Decide(%+v) gives no reason", r)
		}
		a, ok := r.arch()
		switch p.Loader {
		case FileUndionly, FileLPXELINUX:
			if !ok || a != dsas.ArchBIOS {
				t.Errorf("Decide(%+v) gives %s", r, p.Loader)
			}
		case FileSNPOnly, FileShimX64, FileGRUBX64:
			if !ok || a != dsas.ArchEFIX64 && a != dsas.ArchEFIX64BC && a != dsas.ArchEFIX64HTTP {
				t.Errorf("Decide(%+v) gives %s", r, p.Loader)
			}
		case FileShimARM64, FileGRUBARM64:
			if !ok || a != dsas.ArchEFIARM64 {
				t.Errorf("Decide(%+v) gives %s", r, p.Loader)
			}
		}
		if len(p.BootFile) >= 128 {
			t.Errorf("boot file %q does not fit the file field", p.BootFile)
		}
	})
}

func TestExplain(t *testing.T) {
	noRole := node("")
	noRole.Role = ""
	for _, tt := range []struct {
		name  string
		r     Request
		steps string
		gets  string // of the last
	}{
		{"BIOS", Request{Node: node("")}, "firmware DHCP, TFTP, iPXE DHCP, script", "kernel and initramfs for role web"},
		{"UEFI", Request{Node: node(""), Arch: 7, HasArch: true}, "firmware DHCP, TFTP, iPXE DHCP, script", "kernel and initramfs for role web"},
		{"nbp", Request{Node: node(dsas.LoaderNBP)}, "firmware DHCP, TFTP, iPXE DHCP, script", "kernel and initramfs for role web"},
		{"pxelinux", Request{Node: node(dsas.LoaderPXELINUX)}, "firmware DHCP, TFTP, pxelinux.cfg", "kernel and initramfs for role web"},
		{"no role", Request{Node: noRole}, "firmware DHCP", "an address, no boot file"},
		{"unknown", Request{}, "firmware DHCP", "an address, no boot file"},
		{"HTTP boot", Request{Node: node(""), Arch: 16, HasArch: true}, "firmware DHCP, HTTP, iPXE DHCP, script", "kernel and initramfs for role web"},
		{"grub", Request{Node: node(dsas.LoaderGRUB), Arch: 7, HasArch: true}, "firmware DHCP, TFTP, TFTP, GRUB, grub.cfg", "kernel and initramfs for role web"},
		{"grub with a menu", Request{Node: node(dsas.LoaderGRUB), Arch: 7, HasArch: true, Menu: []string{"rescue"}}, "firmware DHCP, TFTP, TFTP, GRUB, grub.cfg, picked", "kernel and initramfs for role web"},
		{"arm with a menu", Request{Node: node(dsas.LoaderGRUB), Arch: 11, HasArch: true, Menu: []string{"rescue"}}, "firmware DHCP, TFTP, TFTP, GRUB, grub.cfg", "a text that shows the reason and asks again"},
		{"grub by HTTP", Request{Node: node(dsas.LoaderGRUB), Arch: 16, HasArch: true}, "firmware DHCP", "refuse"},
		{"grub is half there", Request{Node: node(dsas.LoaderGRUB), Arch: 7, HasArch: true, HasLoader: func(f string) bool { return f != FileGRUBX64 }}, "firmware DHCP, TFTP, TFTP", "refuse"},
		{"arm", Request{Node: node(""), Arch: 11, HasArch: true}, "firmware DHCP, TFTP, TFTP, GRUB, grub.cfg", "a text that shows the reason and asks again"},
		{"arm HTTP boot", Request{Node: node(""), Arch: 19, HasArch: true}, "firmware DHCP", "refuse"},
		{"ia32", Request{Node: node(""), Arch: 6, HasArch: true}, "firmware DHCP", "refuse"},
	} {
		tt.r.MAC, tt.r.Server, tt.r.Release = mac, server, rel
		var steps []string
		list := Explain(tt.r)
		for _, e := range list {
			steps = append(steps, e.Step)
			if e.Reason == "" || e.Gets == "" || e.Asks == "" {
				t.Errorf("%s: step %s leaves something empty: %+v", tt.name, e.Step, e)
			}
		}
		if got := strings.Join(steps, ", "); got != tt.steps {
			t.Errorf("%s: Explain steps = %s; want %s", tt.name, got, tt.steps)
		}
		if got := list[len(list)-1].Gets; got != tt.gets {
			t.Errorf("%s: Explain ends with %q; want %q", tt.name, got, tt.gets)
		}
	}
}
