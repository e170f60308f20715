package boot

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"dsas"
)

// Params are what a boot adds to its plan's texts.
type Params struct {
	Boot  string // id of this boot
	Token string // secret: never logged
	// Name and Address default to the plan's node's; an unknown box that is
	// discovered has a name made up for it and a pool address.
	Name    string
	Address netip.Prefix
	Gateway netip.Addr
	// Bond is dsas.bond's value ("bond0:mode=active-backup:miimon=100"); empty: none.
	Bond    string
	Console []string // default: tty0, then ttyS0,115200 (the last is /dev/console)
	Extra   []string // further arguments, as they are
}

// Cmdline gives the kernel command line for the plan, as docs/architecture.md
// has it.
func (p *Plan) Cmdline(q Params) string { return strings.Join(p.args(q), " ") }

func (p *Plan) args(q Params) []string {
	name, addr := q.Name, q.Address
	ports := []string{p.MAC.String()}
	if p.Node != nil {
		if name == "" {
			name = p.Node.Name
		}
		if !addr.IsValid() {
			addr = p.Node.Address
		}
		ports = ports[:0]
		for _, n := range p.Node.NICs {
			ports = append(ports, n.MAC.String())
		}
	}
	if name == "" {
		name = NewName(p.MAC)
	}
	a := []string{"dsas.server=" + p.Server.URL, "dsas.node=" + name, "dsas.boot=" + q.Boot, "dsas.token=" + q.Token}
	if addr.IsValid() {
		a = append(a, "dsas.ip="+addr.String())
	}
	if q.Gateway.IsValid() {
		a = append(a, "dsas.gw="+q.Gateway.String())
	}
	a = append(a, "dsas.ports="+strings.Join(ports, ","))
	if q.Bond != "" {
		a = append(a, "dsas.bond="+q.Bond)
	}
	a = append(a, "BOOTIF=01-"+p.MAC.Dashed(), "panic=30")
	console := q.Console
	if len(console) == 0 {
		console = []string{"tty0", "ttyS0,115200"}
	}
	for _, c := range console {
		a = append(a, "console="+c)
	}
	return append(a, q.Extra...)
}

// NewName is what a box is called that belongs to no node: new-525400aabbcc.
func NewName(mac dsas.MAC) string {
	return "new-" + strings.ReplaceAll(mac.String(), ":", "")
}

// CheckArgs refuses a kernel argument that would not stay one argument of one line
// in a loader's language: iPXE expands ${...} and splits at || and &&, both
// split at blanks, and a line end begins another command.
func CheckArgs(args []string) error {
	for _, a := range args {
		for _, c := range a {
			if c <= ' ' || c >= 0x7f || strings.ContainsRune("\"'`\\$|&;#<>", c) {
				key, _, _ := strings.Cut(a, "=")
				return fmt.Errorf("kernel argument %.40q holds %q, which a loader would misread: %w", key, c, dsas.ErrInvalid)
			}
		}
	}
	return nil
}

// say makes any text safe to show by a loader's echo.
func say(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune(" .,:/_()+=@-", c):
			return c
		case c == ';':
			return ','
		}
		return '?'
	}, s)
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}

// bootable gives the kernel's arguments, or the reason to wait.
func (p *Plan) bootable(q Params) (args, why string) {
	if !p.Boots() {
		return "", p.Reason
	}
	list := p.args(q)
	if err := CheckArgs(list); err != nil {
		return "", err.Error()
	}
	return strings.Join(list, " "), ""
}

// IPXEScript writes the plan as an iPXE script. It never ends: whatever fails,
// it shows MAC and reason, tells the server, waits (1 s, doubling to 64 s) and
// asks for a new script, since the token in this one ages.
func (p *Plan) IPXEScript(q Params) string {
	if p.Action == Menu {
		return p.ipxeMenu()
	}
	var b strings.Builder
	self := ScriptURL(p.Server.URL, p.MAC)
	failed := p.Server.URL + "/boot/" + p.MAC.Dashed() + "/failed?why="
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("#!ipxe")
	// Kept when this script replaces an earlier one, so that the wait grows.
	line("isset ${dsas-wait} || set dsas-wait 1")
	line(":start")
	line("imgfree")
	args, why := p.bootable(q)
	if why != "" {
		line("echo dsas: %s: %s", p.MAC, say(why))
		line("goto again")
	} else {
		if p.Pick != "" {
			self += "?role=" + say(p.Pick) // a retry is of the same boot
		}
		line("echo dsas: %s: %s", p.MAC, say(p.Reason))
		var names strings.Builder
		for _, i := range p.Initrds {
			// UEFI: this iPXE passes initrds by name alone (BIOS ignores it).
			names.WriteString(" initrd=" + i.Name)
		}
		line("set dsas-why kernel")
		line("kernel --name kernel %s %s%s || goto failed", p.Kernel, args, names.String())
		for _, i := range p.Initrds {
			line("set dsas-why %s", i.Name)
			line("initrd --name %s %s || goto failed", i.Name, i.URL)
		}
		line("set dsas-why boot")
		line("boot ||")
		line(":failed")
		line("echo dsas: %s: ${dsas-why} failed: ${errno}", p.MAC)
		line("imgfree")
		line("imgfetch --name report %s${dsas-why} ||", failed)
		line("imgfree")
	}
	line(":again")
	line("echo dsas: %s: trying again in ${dsas-wait} s", p.MAC)
	line("sleep ${dsas-wait}")
	ipxeBackOff(line)
	line("chain --replace --autofree %s ||", self)
	line("echo dsas: %s: no script from %s: ${errno}", p.MAC, p.Server.URL)
	if why != "" {
		line("goto again") // nothing changes without a new script
	} else {
		line("goto start")
	}
	return b.String()
}

// Names below pxelinux.cfg/ that our configurations send PXELINUX to after a
// failure; the attempt's number follows. PXELINUX keeps no state of its own.
const (
	WaitPrefix  = "wait-"  // PXELINUXWait(attempt)
	AgainPrefix = "again-" // PXELINUXConfig(attempt)
)

// PXELINUXConfig writes the plan as a PXELINUX configuration. attempt is 0 for
// the first one of a boot and counts the retries.
func (p *Plan) PXELINUXConfig(q Params, attempt int) string {
	if p.Action == Menu {
		return p.pxelinuxMenu()
	}
	args, why := p.bootable(q)
	if why != "" { // without the pick: the next one shows the menu again
		return pxelinuxWait(p.MAC, why, ConfigName{Attempt: attempt})
	}
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	var urls []string
	for _, i := range p.Initrds {
		urls = append(urls, i.URL)
	}
	line("SAY dsas: %s: %s", p.MAC, say(p.Reason))
	line("PROMPT 0")
	// PXELINUX gives the name of what failed to the command of ONERROR, and
	// CONFIG takes it for the folder to go on in. So the name is the folder:
	// "::" makes it a path from the TFTP server's root.
	dir := "::" + TFTPPath(p.MAC, "")
	line("DEFAULT %s", dir)
	line("ONERROR retry")
	line("LABEL %s", dir)
	line("  KERNEL %s", p.Kernel)
	line("  INITRD %s", strings.Join(urls, ","))
	line("  APPEND %s", args)
	line("LABEL retry")
	// Below the folder that PXELINUX came from.
	line("  CONFIG pxelinux.cfg/%s", ConfigName{Attempt: attempt, Wait: true, Role: p.Pick})
	return b.String()
}

// PXELINUXWait writes the configuration that waits (1 s, doubling to 64 s) and
// then asks for the next one: what waits at PXELINUX's prompt boots nothing by
// itself, so that a new boot begins only after the wait.
func PXELINUXWait(mac dsas.MAC, at ConfigName) string {
	return pxelinuxWait(mac, "kernel or initramfs could not be loaded", at)
}

func pxelinuxWait(mac dsas.MAC, why string, at ConfigName) string {
	attempt := max(at.Attempt, 0)
	wait := 1 << min(attempt, 6) // seconds
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("SAY dsas: %s: %s", mac, say(why))
	line("SAY dsas: %s: trying again in %d s", mac, wait)
	line("PROMPT 1")
	line("TIMEOUT %d", 10*wait) // tenths of a second, until a key is pressed
	line("TOTALTIMEOUT %d", max(menuTotal, time.Duration(wait)*time.Second).Milliseconds()/100)
	line("DEFAULT again")
	line("LABEL again")
	line("  CONFIG pxelinux.cfg/%s", ConfigName{Attempt: attempt + 1, Role: at.Role})
	return b.String()
}
