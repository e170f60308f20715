package dsas

import "fmt"

// Arch is a client system architecture, DHCP option 93 (RFC 4578 section 2.1,
// values from the IANA registry "Processor Architecture Types").
type Arch uint16

// The architectures that have a plan or a named refusal.
const (
	ArchBIOS         Arch = 0  // x86 BIOS
	ArchEFIIA32      Arch = 6  // x86 UEFI, 32 bit
	ArchEFIX64       Arch = 7  // x64 UEFI; RFC 4578 calls 7 EFI BC
	ArchEFIX64BC     Arch = 9  // the number RFC 4578 gave x64; some firmware sends it
	ArchEFIARM64     Arch = 11 // arm64 UEFI
	ArchEFIX64HTTP   Arch = 16 // x64 UEFI HTTP Boot
	ArchEFIARM64HTTP Arch = 19 // arm64 UEFI HTTP Boot
)

// String names the architecture for logs and tables.
func (a Arch) String() string {
	switch a {
	case ArchBIOS:
		return "bios"
	case ArchEFIIA32:
		return "uefi-ia32"
	case ArchEFIX64, ArchEFIX64BC:
		return "uefi-x64"
	case ArchEFIARM64:
		return "uefi-arm64"
	case ArchEFIX64HTTP:
		return "uefi-x64-http"
	case ArchEFIARM64HTTP:
		return "uefi-arm64-http"
	}
	return fmt.Sprintf("arch-%d", uint16(a))
}
