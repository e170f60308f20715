package boot

import (
	"fmt"
	"strings"

	"dsas"
)

// NBP file names, as package loaders installs them and TFTP serves them.
const (
	FileUndionly  = "undionly.kpxe" // iPXE on the BIOS's own UNDI driver
	FileSNPOnly   = "snponly.efi"   // iPXE on the firmware's own SNP driver
	FileLPXELINUX = "lpxelinux.0"   // PXELINUX with HTTP
	FileLdlinux   = "ldlinux.c32"   // what PXELINUX loads first
	// Debian's chain for UEFI Secure Boot: the firmware trusts shim, shim
	// trusts GRUB, GRUB asks shim about the kernel. The names are those by
	// which one asks for the next.
	FileShimX64   = "shimx64.efi"
	FileGRUBX64   = "grubx64.efi"
	FileShimARM64 = "shimaa64.efi"
	FileGRUBARM64 = "grubaa64.efi"
)

// LoaderFiles lists all that may be served as a loader.
func LoaderFiles() []string {
	return []string{FileUndionly, FileSNPOnly, FileLPXELINUX, FileLdlinux, FileShimX64, FileGRUBX64, FileShimARM64, FileGRUBARM64}
}

// TFTPPath gives the path a loader file is served at. It carries the MAC
// because TFTP has no identity of its own.
func TFTPPath(mac dsas.MAC, file string) string { return "nbp/" + mac.Dashed() + "/" + file }

// ScriptURL gives where a node's iPXE script is.
func ScriptURL(server string, mac dsas.MAC) string {
	return server + "/boot/" + mac.Dashed() + "/script.ipxe"
}

// Decide gives the plan for r. It is a function of r alone.
func Decide(r Request) Plan {
	p := Plan{MAC: r.MAC, Node: r.Node, Server: r.Server, Step: r.Step, Role: r.Role()}
	if r.MAC.IsZero() {
		return p.end(Ignore, "The request carries no Ethernet address, so it cannot be anyone's.")
	}
	if r.Step == StepDHCP && !r.IsIPXE() {
		if why := r.refusal(r.arch()); why != "" {
			return p.end(Refuse, why)
		}
	}
	if r.Step == StepDHCP && !r.IsPXE() {
		return p.end(AddressOnly, "An operating system asks (no PXE vendor class, option 60), not boot firmware: an address is all it wants.")
	}
	why := p.content(r)
	if why == "" && r.Step != StepDHCP { // a boot file comes first
		p.parts(r)
	}
	switch r.Step {
	case StepScript:
		p.Loader = "ipxe"
		return p.atLoader(r, why)
	case StepTFTPConfig:
		p.Loader = string(dsas.LoaderPXELINUX)
		return p.atLoader(r, why)
	case StepGRUBConfig:
		p.Loader = string(dsas.LoaderGRUB)
		if r.HasArch && !isX86(r.Arch) {
			p.noContent()
			return p.script(noKernel(r.Arch)) // whatever is picked
		}
		return p.atLoader(r, why)
	case StepDHCP:
		return p.dhcp(r, why)
	}
	return p.end(Ignore, fmt.Sprintf("Nobody asks at step %q.", r.Step))
}

// content fills in the image, or says why there is none to boot.
func (p *Plan) content(r Request) string {
	switch {
	case r.Node == nil && !r.Discovery:
		return fmt.Sprintf("MAC %s belongs to no node and discovery is off; add it with: dsas node add NAME --mac %s", r.MAC, r.MAC)
	case p.Role == "":
		return fmt.Sprintf("Node %s has no role; give it one with: dsas node set %s --role ROLE", r.Node.Name, r.Node.Name)
	case r.Release == nil && r.Node != nil && r.Node.Release != "" && r.Node.Role == p.Role:
		return fmt.Sprintf("Node %s is pinned to release %s, which is not in the store; have it follow its role with: dsas image unpin %s", r.Node.Name, r.Node.Release.Short(), r.Node.Name)
	case r.Release == nil:
		return fmt.Sprintf("Role %s has no release to boot; build one with: dsas image build %s", p.Role, p.Role)
	}
	set := &r.Release.Boot
	for _, part := range set.Parts() {
		// Digests become URLs in scripts: nothing else may stand there.
		if _, err := dsas.ParseDigest(string(part.Digest)); err != nil {
			return fmt.Sprintf("Kernel and initramfs of release %s are damaged (a digest is not one); build it anew with: dsas image build %s", r.Release.Name(), p.Role)
		}
	}
	p.Release, p.ReleaseName = r.Release.ID, r.Release.Name()
	return ""
}

// parts fills in where kernel and initramfs are.
func (p *Plan) parts(r Request) {
	set := &r.Release.Boot
	p.Kernel = blobURL(r.Server.URL, set.Kernel.Digest)
	// Firmware first: early microcode is only found in the first cpio
	// (kernel: Documentation/arch/x86/microcode.rst); for /lib/firmware the
	// order does not matter.
	if set.Firmware != nil {
		p.Initrds = append(p.Initrds, Initrd{"firmware", blobURL(r.Server.URL, set.Firmware.Digest)})
	}
	p.Initrds = append(p.Initrds, Initrd{"initramfs", blobURL(r.Server.URL, set.Initramfs.Digest)})
}

func blobURL(server string, d dsas.Digest) string {
	return server + "/v2/dsas/boot/blobs/" + string(d)
}

// script ends a plan at the last step: kernel, or a text that says why not.
func (p Plan) script(why string) Plan {
	if why != "" {
		return p.end(Script, why)
	}
	return p.end(Script, fmt.Sprintf("%s boots as %s, release %s.", p.who(), p.Role, p.ReleaseName))
}

// dhcp picks the boot file.
func (p Plan) dhcp(r Request, why string) Plan {
	if r.IsIPXE() {
		return p.ipxe(r, why)
	}
	if why != "" {
		return p.end(AddressOnly, why)
	}
	arch, ok := r.arch()
	if !ok {
		return p.end(Refuse, fmt.Sprintf("The request says nothing of its architecture (option 93; vendor class %.40q): a boot loader for the wrong one would hang the box.", r.VendorClass))
	}
	n := nbpFor(arch, r.IsHTTPBoot(), r.Node)
	if n.file == "" {
		return p.end(Refuse, n.note)
	}
	by := "TFTP"
	if n.http {
		by = "HTTP"
	}
	// Joined and not formatted: it is said for every packet of a storm.
	return p.nbp(r, n, arch.String()+" firmware of "+p.who()+" gets "+n.file+" by "+by+n.note+", on its way to role "+p.Role+".")
}

// ipxe answers an iPXE: the one we sent, or one that lives in a ROM.
func (p Plan) ipxe(r Request, why string) Plan {
	if r.Node == nil && why != "" {
		// A box that is not ours: let it go on to its own disk.
		return p.end(AddressOnly, why)
	}
	arch, known := r.arch()
	if known && !isX86(arch) {
		return p.end(Refuse, fmt.Sprintf("iPXE on %s, architecture %s: %s", p.who(), arch, noKernel(arch)))
	}
	bios := known && arch == dsas.ArchBIOS
	lacks := r.IPXE.lacks(bios)
	ours := bios && r.Broadcast
	switch {
	case why != "" && lacks == "":
		// Below: a script that waits.
	case why != "":
		return p.end(AddressOnly, why)
	case bios && r.Node != nil && r.Node.Loader == dsas.LoaderPXELINUX:
		return p.nbp(r, nbp{file: FileLPXELINUX}, fmt.Sprintf("iPXE in the ROM of %s gets %s by TFTP, since its loader is set to pxelinux.", p.who(), FileLPXELINUX))
	case !ours && known && (lacks != "" || bios && r.Node != nil && r.Node.Loader == dsas.LoaderNBP):
		cause := "since its loader is set to nbp"
		if lacks != "" {
			cause = "since it lacks " + lacks
		}
		n := nbpFor(arch, false, nil)
		if n.file == "" {
			return p.end(Refuse, n.note)
		}
		return p.nbp(r, n, fmt.Sprintf("iPXE in the ROM of %s gets %s by TFTP, %s.", p.who(), n.file, cause))
	case lacks != "":
		return p.end(Refuse, fmt.Sprintf("iPXE on %s lacks %s, and the one we serve did not help.", p.who(), lacks))
	}
	p.BootFile = ScriptURL(r.Server.URL, r.MAC)
	p.NextServer = r.Server.Addr
	p.TFTPServerName = r.Server.Addr.String()
	p.Loader = "ipxe"
	p.Kernel, p.Initrds = "", nil // the script's plan has them
	if why != "" {
		return p.end(Script, why+" The script shows this and asks again.")
	}
	return p.end(Script, "iPXE on "+p.who()+" gets the URL of its script, for role "+p.Role+".")
}

func (p Plan) nbp(r Request, n nbp, reason string) Plan {
	p.noContent()
	if r.HasLoader != nil && !r.HasLoader(n.file) {
		return p.end(Refuse, fmt.Sprintf("The boot loader %s that %s needs is not on this server; get it with: %s", n.file, p.who(), howToGet(n.file)))
	}
	p.Loader = n.file
	p.BootFile = TFTPPath(p.MAC, n.file)
	if n.http {
		// UEFI 2.10 section 24.7.3: the answer's option 60 is HTTPClient, or
		// the firmware takes it for a plain DHCP server's.
		p.BootFile, p.VendorClass = p.Server.URL+"/"+p.BootFile, HTTPClient
	}
	p.NextServer = p.Server.Addr
	p.TFTPServerName = p.Server.Addr.String()
	return p.end(NBP, reason)
}

// noContent takes back what content filled in.
func (p *Plan) noContent() {
	p.Kernel, p.Initrds, p.Release, p.ReleaseName = "", nil, "", ""
}

func (p Plan) end(a Action, reason string) Plan {
	p.Action, p.Reason = a, reason
	if a != Script {
		p.Kernel, p.Initrds = "", nil
	}
	return p
}

func (p *Plan) who() string {
	if p.Node != nil {
		return "node " + p.Node.Name
	}
	return "unknown box " + p.MAC.String()
}

// arch gives the architecture from option 93, or from the vendor class, which
// repeats it ("PXEClient:Arch:00007:UNDI:003016", RFC 4578 section 2 and the
// PXE specification 2.1 section 2.2.1).
func (r *Request) arch() (dsas.Arch, bool) {
	if r.HasArch {
		return r.Arch, true
	}
	_, rest, ok := strings.Cut(r.VendorClass, ":Arch:")
	if !ok || len(rest) < 5 {
		return 0, false
	}
	n := 0
	for _, c := range rest[:5] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	if n > 0xffff {
		return 0, false
	}
	return dsas.Arch(n), true
}
