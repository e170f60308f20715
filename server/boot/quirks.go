package boot

import (
	"bytes"
	"encoding/binary"
	"strings"

	"dsas"
)

// Quirk is an odd thing that boot firmware or a loader does, and what our
// answer makes of it. docs/quirks.md is written from this table by a test.
type Quirk struct {
	ID   string // short, for tests and documents
	Who  string // which firmware
	Does string // what it sends, reads or misses
	// Answer is what we do about it.
	Answer string
	// Asks, where set, is what such a box sends, as far as Decide sees it, and
	// Gets and Loader the kind of answer and the NBP: the table is its own test.
	Asks   *Request
	Gets   Action
	Loader string
	// Held names the test that holds what no Request shows; "" with Asks.
	Held    string
	Sources []string // where it can be read
}

// Architectures of option 93 that are told apart only to be refused by name
// (IANA, "Processor Architecture Types"; 0x100 is U-Boot's own).
const (
	archUBootARM32    = 21
	archUBootARM64    = 22
	archUBootARM32Old = 0x100
	archRPi           = 41
)

// uBoot is how the vendor class of a U-Boot begins, in whatever case.
const uBoot = "u-boot."

// refusal gives the reason for which a box is told apart from what it says it
// is, "" for most boxes. It is asked before a loader is picked.
func (r *Request) refusal(a dsas.Arch, known bool) string {
	switch {
	case known && (a == dsas.ArchBIOS && raspberryPi(r.GUID) || a == archRPi):
		return "A Raspberry Pi asks, which says that it is an x86 BIOS; there is no boot loader for it."
	case known && (a == archUBootARM32 || a == archUBootARM64 || a == archUBootARM32Old),
		len(r.VendorClass) >= len(uBoot) && strings.EqualFold(r.VendorClass[:len(uBoot)], uBoot):
		return "U-Boot asks; there is no boot loader for it. Where it can, let it start UEFI's PXE (bootefi) or iPXE from its own disk."
	case strings.HasPrefix(r.VendorClass, "AAPLBSDPC"):
		return "An Apple computer asks for NetBoot (BSDP), which is not served."
	}
	return ""
}

// raspberryPi tells a Raspberry Pi's option 97: the serial number four times
// over (Pi 3, and the Pi 4's first releases), or a fourcc "RPi4", "RPi5" in
// front; a Pi 4 of early 2020 sends 0x80017590 there.
func raspberryPi(guid []byte) bool {
	if len(guid) != 16 {
		return false
	}
	if bytes.HasPrefix(guid, []byte("RPi")) || binary.LittleEndian.Uint32(guid) == 0x80017590 {
		return true
	}
	first := guid[:4]
	return !bytes.Equal(first, make([]byte, 4)) && !bytes.Equal(first, []byte{0xff, 0xff, 0xff, 0xff}) && // boards without a UUID
		bytes.Equal(first, guid[4:8]) && bytes.Equal(first, guid[8:12]) && bytes.Equal(first, guid[12:])
}

const (
	biosPXE = "PXEClient:Arch:00000:UNDI:002001"
	github  = "https://github.com/"
)

// Quirks lists all that is known, in the order of a boot.
func Quirks() []Quirk {
	pxe := func(arch dsas.Arch, class string) *Request {
		return &Request{HasArch: true, Arch: arch, VendorClass: class}
	}
	noBzImage := &IPXE{Features: []byte{ipxeFeatureHTTP}}
	noHTTP := &IPXE{Features: []byte{ipxeFeatureBzImage}}
	serial := []byte{245, 150, 134, 141}
	rpi := func(guid []byte) *Request {
		return &Request{HasArch: true, VendorClass: biosPXE, GUID: guid}
	}
	return []Quirk{
		{
			ID: "arch-7-or-9", Who: "x64 UEFI of every vendor",
			Does:   "Option 93 is 7 on some boxes (Dell, HP, OVMF) and 9 on others (VMware, older OVMF): RFC 4578 had the two the wrong way round, and its erratum came late.",
			Answer: "7 and 9 are the same.",
			Asks:   pxe(9, "PXEClient:Arch:00009:UNDI:003016"), Gets: NBP, Loader: FileSNPOnly,
			Sources: []string{"RFC 4578 section 2.1", github + "danderson/netboot/pull/101", github + "danderson/netboot/pull/30", github + "crowbar/barclamp-provisioner/pull/180", github + "opnsense/core/pull/2669", github + "danderson/pixiecore/issues/8"},
		},
		{
			ID: "no-option-93", Who: "old PXE ROMs",
			Does:   "The architecture stands in the vendor class alone.",
			Answer: "It is read there; where it stands nowhere, nothing is guessed: a loader for another architecture hangs the box.",
			Asks:   &Request{VendorClass: biosPXE}, Gets: NBP, Loader: FileUndionly,
			Sources: []string{"RFC 4578 section 2", github + "ipxe/ipxe/issues/1527"},
		},
		{
			ID: "no-option-60", Who: "Raspberry Pi in its REQUEST; iPXE that was chain-loaded by another",
			Does:   "The vendor class is missing in some of the packets of one boot.",
			Answer: "Option 93, or iPXE's user class, tells a boot as well.",
			Asks:   &Request{HasArch: true, Arch: 7}, Gets: NBP, Loader: FileSNPOnly,
			Sources: []string{github + "raspberrypi/rpi-eeprom/issues/82", github + "ipxe/ipxe/issues/1527"},
		},
		{
			ID: "raspberry-pi-3", Who: "Raspberry Pi 3, and 4 with old firmware",
			Does:   "Option 93 says x86 BIOS and option 60 PXEClient:Arch:00000:UNDI:002001; option 97 is the serial number four times over. It wants \"Raspberry Pi Boot\" as a PXE menu in option 43, ignores option 67 and gives up an answer with a pad option in it.",
			Answer: "Told by option 97 and refused by name: no x86 loader is sent to an ARM.",
			Asks:   rpi(bytes.Repeat(serial, 4)), Gets: Refuse,
			Sources: []string{github + "raspberrypi/firmware/issues/941", github + "raspberrypi/firmware/issues/1928", github + "raspberrypi/rpi-eeprom/issues/182", github + "raspberrypi/rpi-eeprom/issues/82", github + "raspberrypi/rpi-eeprom/issues/69"},
		},
		{
			ID: "raspberry-pi-4", Who: "Raspberry Pi 4 and 5",
			Does:   "As a Pi 3, but option 97 begins with the letters RPi4 or RPi5 (0x80017590 for a while in 2020), the board's revision, the MAC's last bytes and the serial number.",
			Answer: "As for a Pi 3.",
			Asks:   rpi(append([]byte("RPi4\x11\x31\xc0\x00"), 0xb7, 0x9d, 0xf1, 0, 1, 2, 3, 4)), Gets: Refuse,
			Sources: []string{github + "raspberrypi/documentation/pull/1460", github + "raspberrypi/cmprovision/issues/16", github + "raspberrypi/documentation/issues/3586"},
		},
		{
			ID: "raspberry-pi-siaddr", Who: "Raspberry Pi 3",
			Does:   "It fetches from the DHCP server and not from siaddr.",
			Answer: "siaddr, option 54 and option 66 are always the same address.",
			Held:   "server/dhcp TestFirmware", Sources: []string{github + "raspberrypi/firmware/issues/801"},
		},
		{
			ID: "u-boot", Who: "U-Boot",
			Does:   "Vendor class U-Boot.armv7 or U-Boot.armv8; option 93 is 21, 22 or 256.",
			Answer: "Refused by name.",
			Asks:   pxe(archUBootARM64, "U-Boot.armv8"), Gets: Refuse,
			Sources: []string{github + "siderolabs/omni-infra-provider-bare-metal/issues/48", "U-Boot's header of distribution defaults: CONFIG_BOOTP_PXE_CLIENTARCH, CONFIG_BOOTP_VCI_STRING"},
		},
		{
			ID: "file-alone", Who: "U-Boot, shim, old PXE ROMs",
			Does:   "They read the packet's file field and not option 67; others read option 67 alone.",
			Answer: "file, option 67, siaddr and option 66 are all set, and say the same.",
			Held:   "server/dhcp TestFirmware", Sources: []string{github + "siderolabs/booter/pull/12", github + "rhboot/shim/issues/710", github + "flan/staticdhcpd/issues/31"},
		},
		{
			ID: "option-67-end", Who: "Intel UNDI PXE 2.1 ROMs and boards of about 2000 to 2012 (Jetway, Gigabyte, Kontron, Lenovo T460)",
			Does:   "They read option 67 up to a zero byte, past its length: the name they ask for by TFTP has 0xFF, the end option, behind it.",
			Answer: "A pad option (one zero byte) follows option 67. That is no part of the name, so those who want no NUL in it (RFC 2132 section 2) are content too.",
			Held:   "server/dhcp TestPadBootFile", Sources: []string{github + "netbootxyz/netboot.xyz/issues/1198", github + "netbootxyz/netboot.xyz-docs/issues/149", github + "garybowers/bootimus/pull/117", github + "insomniacslk/dhcp/pull/286", "RFC 2132 sections 2 and 3.1"},
		},
		{
			ID: "option-60-without-43", Who: "EDK2 (OVMF and most UEFI)",
			Does:   "An offer with option 60 PXEClient and no option 43 is taken for a boot server's invitation: it asks port 4011 and never TFTP.",
			Answer: "An ordinary answer has neither. The proxy's has both.",
			Held:   "server/dhcp TestFirmware", Sources: []string{"EDK2, NetworkPkg/UefiPxeBcDxe/PxeBcDhcp4.c: PxeBcRetryBinlOffer", github + "FOGProject/fog-docs/pull/188"},
		},
		{
			ID: "http-boot", Who: "UEFI HTTP Boot",
			Does:   "Vendor class HTTPClient, option 93 16. It takes an offer only with option 60 HTTPClient and a URL as its boot file, and never a TFTP path.",
			Answer: "Option 60 HTTPClient and the loader's URL; never a TFTP path.",
			Asks:   pxe(dsas.ArchEFIX64HTTP, "HTTPClient:Arch:00016:UNDI:003001"), Gets: NBP, Loader: FileSNPOnly,
			Sources: []string{github + "xcat2/xcat-core/issues/7743", github + "tinkerbell/smee/issues/210"},
		},
		{
			ID: "native-drivers", Who: "Dell PowerEdge, Mellanox ConnectX, VMs under UEFI",
			Does:   "iPXE's own NIC drivers (ipxe.efi, ipxe.pxe) find no NIC or hang.",
			Answer: "undionly.kpxe and snponly.efi, which use the firmware's driver.",
			Asks:   pxe(7, "PXEClient:Arch:00007:UNDI:003016"), Gets: NBP, Loader: FileSNPOnly,
			Sources: []string{github + "warewulf/warewulf/issues/681", github + "warewulf/warewulf3/issues/84", github + "metal3-io/ironic-image/pull/152"},
		},
		{
			ID: "virtualbox", Who: "VirtualBox without its extension pack",
			Does:   "The NIC's ROM is an iPXE cut down to 56 KB: it says iPXE and boots no bzImage.",
			Answer: "Option 175 tells its features: it gets undionly.kpxe by TFTP first.",
			Asks:   &Request{HasArch: true, UserClass: "iPXE", IPXE: noBzImage}, Gets: NBP, Loader: FileUndionly,
			Sources: []string{github + "warewulf/warewulf3/pull/195", github + "bloomberg/chef-bcpc/issues/432", github + "coreos/tectonic-installer/issues/932"},
		},
		{
			ID: "ipxe-without-http", Who: "iPXE in NIC ROMs",
			Does:   "Built without HTTP.",
			Answer: "As for VirtualBox's.",
			Asks:   &Request{HasArch: true, UserClass: "iPXE", IPXE: noHTTP}, Gets: NBP, Loader: FileUndionly,
			Sources: []string{github + "cobbler/cobbler/issues/360"},
		},
		{
			ID: "gpxe", Who: "gPXE in NIC ROMs (HP DL580 G7)",
			Does:   "iPXE's forerunner: user class gPXE.",
			Answer: "It is firmware to us, and gets undionly.kpxe.",
			Asks:   &Request{HasArch: true, UserClass: "gPXE"}, Gets: NBP, Loader: FileUndionly,
			Sources: []string{github + "CSCfi/ansible-role-pxe_bootstrap/pull/6"},
		},
		{
			ID: "user-class-plain", Who: "iPXE",
			Does:   "Option 77 is plain text, without the length byte that RFC 3004 puts before each class.",
			Answer: "Both ways are read.",
			Asks:   &Request{HasArch: true, UserClass: "\x04iPXE"}, Gets: Script, Loader: "ipxe",
			Sources: []string{"seen with QEMU's NIC ROM and Debian's ipxe (docs/adr/0010)"},
		},
		{
			ID: "apple-netboot", Who: "Apple computers",
			Does:   "NetBoot is BSDP: vendor class AAPLBSDPC and a list of images in option 43, asked for by INFORM.",
			Answer: "An address and no boot file.",
			Asks:   &Request{VendorClass: "AAPLBSDPC/i386/Macmini7,1"}, Gets: Refuse,
			Sources: []string{github + "insomniacslk/dhcp/pull/3", github + "danderson/netboot/issues/91", github + "ipxe/ipxe/pull/54"},
		},
		{
			ID: "hyper-v-gen-1", Who: "Hyper-V, generation 1",
			Does:   "Only the legacy network adapter boots by PXE; it is a plain x86 BIOS.",
			Answer: "As any BIOS. The VM has to be given that adapter.",
			Asks:   pxe(0, biosPXE), Gets: NBP, Loader: FileUndionly,
			Sources: []string{github + "ananace/foreman_hyperv/issues/18"},
		},
		{
			ID: "guid-byte-order", Who: "every firmware; Windows tools; some Dells",
			Does:   "Option 97 has the first three fields of the UUID little-endian, as SMBIOS stores them; iPXE's ${uuid} turns them, and boards with an SMBIOS before 2.6 have them the other way.",
			Answer: "A node is known by its MACs and never by this; the UUID is only shown, in SMBIOS's order.",
			Held:   "server/dhcp TestFirmware", Sources: []string{github + "ipxe/ipxe/pull/545", github + "ipxe/ipxe/pull/30", github + "siderolabs/go-smbios/pull/8"},
		},
		{
			ID: "pxelinux-prefix", Who: "PXELINUX",
			Does:   "It looks for its files below the folder of the name it was loaded by (or option 210), and a name of 128 bytes is too long for it.",
			Answer: "The name is nbp/MAC/lpxelinux.0, so that all it asks for carries its MAC; options 208 to 211 are not sent.",
			Asks:   &Request{HasArch: true, VendorClass: biosPXE, Node: &dsas.Node{Name: "x", Role: "x", Loader: dsas.LoaderPXELINUX}}, Gets: NBP, Loader: FileLPXELINUX,
			Sources: []string{"syslinux, txt/pxelinux.txt: CURRENT DIRECTORY"},
		},
		{
			ID: "grub-menu", Who: "GRUB",
			Does:   "At a menu, with Secure Boot on too, c is a command line and e an editor of the kernel's arguments; an entry that fails leads back to the menu, which then waits without an end.",
			Answer: "superusers is set to a name that has no password, the entries are --unrestricted, and each tries for ever.",
			Held:   "TestMenuTexts, lab/e2e TestRack/firmware", Sources: []string{"GNU GRUB manual 2.06, section 18.1; seen with Debian's signed 2.06 (docs/adr/0018)"},
		},
		{
			ID: "tsize-probe", Who: "UEFI PXE",
			Does:   "It asks for a file's size by TFTP and breaks off with ERROR 8 before it asks for the file.",
			Answer: "That is no failed transfer, and no event.",
			Held:   "server/tftp tests", Sources: []string{github + "pin/tftp/issues/125", "EDK2, NetworkPkg/UefiPxeBcDxe/PxeBcMtftp.c"},
		},
	}
}
