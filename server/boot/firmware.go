package boot

import (
	"fmt"
	"strings"

	"dsas"
)

// HTTPClient begins the vendor class (option 60) of UEFI HTTP Boot, and is the
// whole of it in an answer (UEFI specification 2.10, section 24.7.3).
const HTTPClient = "HTTPClient"

// IsHTTPBoot tells whether UEFI HTTP Boot asks: it takes a URL for a boot file
// and an answer of its own vendor class, where PXE takes neither.
func (r *Request) IsHTTPBoot() bool {
	if strings.HasPrefix(r.VendorClass, HTTPClient) {
		return true
	}
	return r.HasArch && (r.Arch == dsas.ArchEFIX64HTTP || r.Arch == dsas.ArchEFIARM64HTTP)
}

// nbp is a loader file and the way it goes.
type nbp struct {
	file string // empty: there is none, and note says why
	http bool
	note string // on the choice
}

// nbpFor gives the loader for an architecture, or the reason for a refusal.
func nbpFor(a dsas.Arch, http bool, n *dsas.Node) nbp {
	var loader dsas.Loader
	if n != nil {
		loader = n.Loader
	}
	if http && a == dsas.ArchBIOS {
		return nbp{note: "It asks for HTTP Boot as a BIOS (option 93: 0), which there is not: a boot loader for the wrong architecture would hang the box."}
	}
	switch a {
	case dsas.ArchBIOS:
		switch loader {
		case dsas.LoaderPXELINUX:
			return nbp{file: FileLPXELINUX, note: " (its loader is set to pxelinux)"}
		case dsas.LoaderGRUB:
			return nbp{file: FileUndionly, note: " (grub is for UEFI only, so iPXE it is)"}
		}
		return nbp{file: FileUndionly}
	case dsas.ArchEFIX64, dsas.ArchEFIX64BC, dsas.ArchEFIX64HTTP:
		x := nbp{file: FileSNPOnly, http: http}
		switch {
		case loader == dsas.LoaderGRUB && http:
			return nbp{note: noGRUBByHTTP}
		case loader == dsas.LoaderGRUB:
			x.file, x.note = FileShimX64, ", which loads "+FileGRUBX64+" (its loader is set to grub: Secure Boot)"
		case loader == dsas.LoaderPXELINUX:
			x.note = " (pxelinux is for BIOS only, so iPXE it is)"
		}
		return x
	case dsas.ArchEFIARM64:
		switch {
		case n == nil: // not ours: let it go on to its own disk
			return nbp{note: noKernel(a)}
		case http:
			return nbp{note: noGRUBByHTTP}
		}
		return nbp{file: FileShimARM64, note: ", which loads " + FileGRUBARM64}
	case dsas.ArchEFIARM64HTTP:
		return nbp{note: noGRUBByHTTP}
	}
	return nbp{note: fmt.Sprintf("There is no boot loader for architecture %s (option 93: %d); x86 BIOS (0), x64 UEFI (7, 9), its HTTP Boot (16) and arm64 UEFI (11) are served.", a, uint16(a))}
}

// noGRUBByHTTP: Debian's signed GRUB learns its addresses from the firmware's
// PXE protocol, which HTTP Boot does not have, and has no http module.
const noGRUBByHTTP = "GRUB cannot be booted by UEFI HTTP Boot (Debian's signed one knows neither HTTP nor its own address there); let the firmware boot by PXE over IPv4."

// isX86 tells whether our kernels run on a.
func isX86(a dsas.Arch) bool {
	switch a {
	case dsas.ArchBIOS, dsas.ArchEFIX64, dsas.ArchEFIX64BC, dsas.ArchEFIX64HTTP:
		return true
	}
	return false
}

func noKernel(a dsas.Arch) string {
	return fmt.Sprintf("Images are built for x86-64 alone, so there is no kernel for %s.", a)
}

// howToGet names the command that brings an optional loader, or mends the
// others.
func howToGet(file string) string {
	switch file {
	case FileShimX64, FileGRUBX64:
		return "dsas loader fetch secureboot"
	case FileShimARM64, FileGRUBARM64:
		return "dsas loader fetch arm64"
	}
	return "dsas loader ls"
}
