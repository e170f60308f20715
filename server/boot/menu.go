package boot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"dsas"
)

// Menu: the loader shows a menu, of the roles in Plan.Menu. What is picked
// travels as a name in the next request, and is decided on anew there: anyone
// on the wire can ask for any name.
const Menu Action = "menu"

// DefaultMenuTimeout is how long a menu waits before the assigned role boots.
const DefaultMenuTimeout = 10 * time.Second

// menuTotal bounds a menu at which a key was pressed: noise on a serial line
// must not hold up a boot for ever.
const menuTotal = 5 * time.Minute

// offers tells whether the loader is to show a menu: there is something to
// choose, and nothing was chosen yet.
func (r *Request) offers() bool {
	return r.Pick == "" && r.Node != nil && r.Node.Role != "" &&
		slices.ContainsFunc(r.Menu, func(m string) bool { return m != r.Node.Role })
}

// picked tells whether the role asked for by name may be had: the assigned
// one, or one of the menu.
func (r *Request) picked() bool {
	return r.Pick != "" && r.Node != nil && r.Node.Role != "" && (r.Pick == r.Node.Role || slices.Contains(r.Menu, r.Pick))
}

// atLoader answers a loader's request for its script or configuration.
func (p Plan) atLoader(r Request, why string) Plan {
	switch {
	case r.Pick != "" && !r.picked():
		p.noContent()
		p.Refused = true
		return p.end(Script, fmt.Sprintf("Role %s was asked for, and %s may not pick it at its loader now.", r.Pick, p.who()))
	case r.offers():
		return p.menu(r)
	}
	if r.picked() {
		p.Pick = r.Pick
		if why == "" && r.Pick != r.Node.Role {
			return p.end(Script, fmt.Sprintf("%s boots as %s, picked at its loader for this boot; its assigned role is %s.", p.who(), p.Role, r.Node.Role))
		}
	}
	return p.script(why)
}

func (p Plan) menu(r Request) Plan {
	p.Menu = []string{r.Node.Role}
	for _, m := range r.Menu {
		if !slices.Contains(p.Menu, m) && len(p.Menu) <= dsas.MaxMenu {
			p.Menu = append(p.Menu, m)
		}
	}
	p.MenuTimeout = r.MenuTimeout
	if p.MenuTimeout <= 0 {
		p.MenuTimeout = DefaultMenuTimeout
	}
	p.Release, p.ReleaseName = "", ""
	return p.end(Menu, fmt.Sprintf("%s may pick a role for this boot at its loader: %s; after %s without a key its assigned role %s boots.",
		p.who(), strings.Join(p.Menu, ", "), p.MenuTimeout, r.Node.Role))
}

// menuKey is what an item of a menu is picked by: 1 to 9, then letters.
func menuKey(i int) string { return string("123456789abcdefghijk"[min(i, 19)]) }

// menuText says of a role what stands beside it.
func (p *Plan) menuText(i int) string {
	if i == 0 {
		return fmt.Sprintf("%s (assigned, boots by itself after %d s)", p.Menu[0], int(p.MenuTimeout.Seconds()))
	}
	return p.Menu[i] + " (for this boot only)"
}

// ipxeMenu shows the menu by iPXE's own commands (ipxe.org/cmd/menu, item,
// choose). An iPXE without them, or a menu that is left, boots as assigned.
func (p *Plan) ipxeMenu() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("#!ipxe")
	line("isset ${dsas-wait} || set dsas-wait 1")
	line(":start")
	line("set dsas-role %s", say(p.Menu[0]))
	line("menu dsas: %s ||", say(p.who()))
	for i, m := range p.Menu {
		line("item --key %s %s %s ||", menuKey(i), say(m), say(p.menuText(i)))
	}
	line("choose --default %s --timeout %d dsas-role || set dsas-role %s", say(p.Menu[0]), p.MenuTimeout.Milliseconds(), say(p.Menu[0]))
	line("echo dsas: %s: role ${dsas-role}", p.MAC)
	line("chain --replace --autofree %s?role=${dsas-role} ||", ScriptURL(p.Server.URL, p.MAC))
	line("echo dsas: %s: no script from %s: ${errno}; again in ${dsas-wait} s", p.MAC, p.Server.URL)
	line("sleep ${dsas-wait}")
	ipxeBackOff(line)
	line("goto start")
	return b.String()
}

// ipxeBackOff doubles ${dsas-wait} up to 64 s.
func ipxeBackOff(line func(string, ...any)) {
	for w := 32; w >= 1; w /= 2 { // from the top, so that one step is taken
		line("iseq ${dsas-wait} %d && set dsas-wait %d ||", w, 2*w)
	}
}

// pxelinuxMenu shows the menu at PXELINUX's own prompt, where a name is typed:
// "boot: rescue". Nothing but the names can be typed there (IMPLICIT,
// ALLOWOPTIONS; syslinux's doc/syslinux.txt).
func (p *Plan) pxelinuxMenu() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("SAY dsas: %s: type a role and Enter:", say(p.who()))
	for i := range p.Menu {
		line("SAY   %s", say(p.menuText(i)))
	}
	line("PROMPT 1")
	line("IMPLICIT 0")
	line("ALLOWOPTIONS 0")
	line("TIMEOUT %d", p.MenuTimeout.Milliseconds()/100) // tenths of a second, until a key is pressed
	line("TOTALTIMEOUT %d", max(menuTotal, p.MenuTimeout).Milliseconds()/100)
	line("DEFAULT %s", say(p.Menu[0]))
	for _, m := range p.Menu {
		line("LABEL %s", say(m))
		line("  CONFIG pxelinux.cfg/%s", ConfigName{Role: say(m)})
	}
	return b.String()
}

// grubMenu shows the menu by GRUB's own menuentry (GNU GRUB manual 2.06,
// section 16.1.1): what defines it ends, and GRUB shows it then. A superuser
// without a password is nobody: the menu can be used, and neither be edited
// nor left for GRUB's command line (section 18.1).
func (p *Plan) grubMenu() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("set superusers=nobody")
	for i, m := range p.Menu {
		line("menuentry \"%s\" --unrestricted --hotkey=%s {", say(p.menuText(i)), grubKey(i))
		line("  dsas_boot \"-%s\"", say(m))
		line("}")
	}
	line("set default=0")
	line("set timeout_style=menu")
	line("set timeout=%d", max(int(p.MenuTimeout.Seconds()), 1)) // until a key is pressed; 0 would show nothing
	line("set dsas_why=menu")
	return b.String()
}

// grubKey is menuKey without c and e, which are GRUB's own in a menu.
func grubKey(i int) string { return string("123456789abdfghijklm"[min(i, 19)]) }

// ConfigName is what PXELINUX asks for below pxelinux.cfg/, as far as it is
// ours to answer. PXELINUX keeps no state of its own: its names do.
type ConfigName struct {
	Attempt int    // 0 for the first of a boot; counts the retries
	Wait    bool   // the configuration that waits, before the next attempt
	Role    string // picked at the menu; "": none was
}

const configDir = "pxelinux.cfg/"

// maxAttempt is as far as attempts are counted.
const maxAttempt = 99

// String gives the name below pxelinux.cfg/; the first attempt without a role
// has none of its own.
func (c ConfigName) String() string {
	n := strconv.Itoa(min(max(c.Attempt, 0), maxAttempt))
	switch {
	case c.Role != "" && c.Wait:
		return "rolewait-" + c.Role + "-" + n
	case c.Role != "":
		return "role-" + c.Role + "-" + n
	case c.Wait:
		return WaitPrefix + n
	}
	return AgainPrefix + n
}

// ParseConfigName reads a name below pxelinux.cfg/. PXELINUX asks for the box's
// UUID, then 01-MAC, then its address in hex, shortened digit by digit, then
// "default": it is answered at the MAC.
func ParseConfigName(mac dsas.MAC, name string) (c ConfigName, ok bool) {
	if name == "01-"+mac.Dashed() || name == "default" {
		return c, true
	}
	var rest string
	if rest, ok = strings.CutPrefix(name, WaitPrefix); ok {
		c.Wait = true
	} else if rest, ok = strings.CutPrefix(name, AgainPrefix); !ok {
		if rest, ok = strings.CutPrefix(name, "rolewait-"); ok {
			c.Wait = true
		} else if rest, ok = strings.CutPrefix(name, "role-"); !ok {
			return c, false
		}
		i := strings.LastIndexByte(rest, '-')
		if i < 0 || dsas.CheckName("role", rest[:i]) != nil {
			return ConfigName{}, false
		}
		c.Role, rest = rest[:i], rest[i+1:]
	}
	n, err := strconv.ParseUint(rest, 10, 8)
	if err != nil || n > maxAttempt || len(rest) > 2 {
		return ConfigName{}, false
	}
	c.Attempt = int(n)
	return c, true
}
