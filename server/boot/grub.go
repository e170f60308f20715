package boot

import (
	"fmt"
	"strings"

	"dsas"
)

// GRUBFirst is what Debian's signed GRUB asks for by TFTP, whatever its own
// name was: its prefix, /grub, is built in. So this one is the same for all
// boxes, and those it goes on with carry the MAC, which GRUB writes with colons.
const GRUBFirst = "grub/grub.cfg"

// GRUBFile is the name of a file that our GRUB configurations ask for.
type GRUBFile struct {
	MAC dsas.MAC
	// One of the three is set.
	CPU    string      // grub/MAC/boot-CPU.cfg, boot-CPU-ROLE.cfg: Plan.GRUBConfig; GRUB's variable grub_cpu
	Blob   dsas.Digest // grub/MAC/blob/HEX: kernel or initramfs
	Failed string      // grub/MAC/failed-WHAT: a report; GRUB can send nothing but names

	Role string // beside CPU: picked at the menu; "": none was
}

// ParseGRUB takes a path apart; false for one that is no GRUBFile.
func ParseGRUB(path string) (f GRUBFile, ok bool) {
	mac, name, ok := strings.Cut(strings.TrimPrefix(path, "grub/"), "/")
	if !ok || !strings.HasPrefix(path, "grub/") {
		return f, false
	}
	var err error
	if f.MAC, err = dsas.ParseMAC(mac); err != nil || f.MAC.String() != mac && f.MAC.Dashed() != mac {
		return f, false
	}
	if hex, ok := strings.CutPrefix(name, "blob/"); ok {
		f.Blob, err = dsas.ParseDigest("sha256:" + hex)
		return f, err == nil
	}
	if what, ok := strings.CutPrefix(name, "failed-"); ok {
		f.Failed = what
		return f, what == "configuration" || what == "kernel" || what == "initramfs"
	}
	cpu, ok := strings.CutPrefix(name, "boot-")
	cpu, cfg := strings.CutSuffix(cpu, ".cfg")
	if !ok || !cfg {
		return f, false
	}
	var picked bool
	if f.CPU, f.Role, picked = strings.Cut(cpu, "-"); picked && dsas.CheckName("role", f.Role) != nil {
		return f, false
	}
	return f, f.CPU != "" && !strings.Contains(f.CPU, "/")
}

// GRUBArch gives the architecture of GRUB's variable grub_cpu.
func GRUBArch(cpu string) (dsas.Arch, bool) {
	switch cpu {
	case "x86_64":
		return dsas.ArchEFIX64, true
	case "arm64":
		return dsas.ArchEFIARM64, true
	case "i386":
		return dsas.ArchEFIIA32, true
	}
	return 0, false
}

// GRUBConfig is the configuration every GRUB begins with: it asks for its own
// box's and, whatever comes of that, waits (1 s, doubling to 64 s) and asks
// again for ever, since the token in each ages. It ends, and GRUB shows a menu,
// where the box's configuration made one.
func GRUBConfig() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("set timeout=-1")
	line("set dsas_dir=/grub/$net_default_mac")
	line("set dsas_wait=1")
	line("export dsas_dir dsas_wait") // to what configfile runs
	// $1 is the role that was picked, after a dash, or nothing.
	line("function dsas_boot {")
	line("  while true; do")
	line("    set dsas_why=configuration")
	line("    source $dsas_dir/boot-$grub_cpu$1.cfg")
	// Reached when nothing was booted.
	line("    if [ $dsas_why = menu ]; then break; fi")
	// What cannot be reported is shown.
	line("    if [ $dsas_why != reason -a $dsas_why != refused ]; then")
	line("      echo \"dsas: $net_default_mac: $dsas_why failed\"")
	line("      source $dsas_dir/failed-$dsas_why")
	line("    fi")
	line("    echo \"dsas: $net_default_mac: trying again in $dsas_wait s\"")
	line("    sleep $dsas_wait")
	line("    if [ $dsas_wait = 32 ]; then set dsas_wait=64")
	for w := 16; w >= 1; w /= 2 {
		line("    elif [ $dsas_wait = %d ]; then set dsas_wait=%d", w, 2*w)
	}
	line("    fi")
	// Back to a menu, which is another one now: entries that a menu has cannot be
	// taken out of it, so this is a menu within the menu.
	line("    if [ $dsas_why = refused ]; then configfile $dsas_dir/boot-$grub_cpu.cfg; fi")
	line("  done")
	line("}")
	line("dsas_boot")
	return b.String()
}

// GRUBConfig writes the plan as a part of GRUB's configuration: it returns,
// with the reason in dsas_why, when nothing was booted.
func (p *Plan) GRUBConfig(q Params) string {
	if p.Action == Menu {
		return p.grubMenu()
	}
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	args, why := p.bootable(q)
	reason := "reason"
	if p.Refused {
		reason = "refused"
	}
	if why != "" {
		line("echo \"dsas: %s: %s\"", p.MAC, say(why))
		line("set dsas_why=%s", reason)
		if p.Refused {
			line("sleep 4") // the menu that comes next clears the screen
		}
		return b.String()
	}
	dir := "/grub/" + p.MAC.Dashed() + "/blob/"
	line("echo \"dsas: %s: %s\"", p.MAC, say(p.Reason))
	line("set dsas_why=kernel")
	// Quoted, for GRUB would look for files where an argument has a wildcard.
	line("if linux %s%s '%s'; then", dir, blobHex(p.Kernel), strings.ReplaceAll(args, " ", "' '"))
	line("  set dsas_why=initramfs")
	var files strings.Builder
	for _, i := range p.Initrds {
		files.WriteString(" " + dir + blobHex(i.URL))
	}
	line("  if initrd%s; then", files.String())
	line("    boot")
	// GRUB has taken its network down, so it can neither report nor ask again.
	line("    echo \"dsas: %s: the kernel does not start, restarting in 30 s\"", p.MAC)
	line("    sleep 30")
	line("    reboot")
	line("  fi")
	line("fi")
	return b.String()
}

// blobHex gives the digest at the end of a blob's URL.
func blobHex(url string) string { return url[strings.LastIndexByte(url, ':')+1:] }
