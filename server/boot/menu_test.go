package boot

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestMenu(t *testing.T) {
	noRole := node("")
	noRole.Role = ""
	menu := []string{"rescue", "inventory"}
	for _, tt := range []struct {
		name   string
		r      Request
		action Action
		role   string // of a boot
		menu   string
		reason string
	}{
		{"no menu", Request{Node: node("")}, Script, "web", "", "boots as web"},
		{"nothing picked yet", Request{Node: node(""), Menu: menu}, Menu, "", "web rescue inventory", "rescue, inventory; after 10s without a key its assigned role web boots"},
		{"its own time", Request{Node: node(""), Menu: menu, MenuTimeout: time.Minute}, Menu, "", "web rescue inventory", "after 1m0s"},
		{"the assigned role alone is no choice", Request{Node: node(""), Menu: []string{"web"}}, Script, "web", "", "boots as web"},
		{"the assigned role among others", Request{Node: node(""), Menu: []string{"rescue", "web"}}, Menu, "", "web rescue", ""},
		{"picked", Request{Node: node(""), Menu: menu, Pick: "rescue"}, Script, "rescue", "", "boots as rescue, picked at its loader for this boot; its assigned role is web"},
		{"picked as assigned", Request{Node: node(""), Menu: menu, Pick: "web"}, Script, "web", "", "boots as web"},
		{"the menu went meanwhile, assigned", Request{Node: node(""), Pick: "web"}, Script, "web", "", "boots as web"},
		{"not on the list", Request{Node: node(""), Menu: menu, Pick: "db"}, Script, "", "", "Role db was asked for, and node w101 may not pick it"},
		{"without a menu", Request{Node: node(""), Pick: "rescue"}, Script, "", "", "may not pick it"},
		{"wipe", Request{Node: node(""), Menu: menu, Pick: "wipe"}, Script, "", "", "may not pick it"},
		{"no role: no menu", Request{Node: noRole, Menu: menu}, Script, "", "", "has no role"},
		{"no role: no pick", Request{Node: noRole, Menu: menu, Pick: "rescue"}, Script, "", "", "may not pick it"},
		{"unknown box", Request{Menu: menu, Pick: "rescue"}, Script, "", "", "may not pick it"},
		{"discovered box", Request{Discovery: true, Menu: menu, Pick: "rescue"}, Script, "", "", "may not pick it"},
		{"discovered box without a pick", Request{Discovery: true, Menu: menu}, Script, "inventory", "", "boots as inventory"},
	} {
		for _, step := range []Step{StepScript, StepTFTPConfig, StepGRUBConfig} {
			r := tt.r
			r.Step, r.MAC, r.Server, r.Release = step, mac, server, rel
			p := Decide(r)
			if p.Action != tt.action || strings.Join(p.Menu, " ") != tt.menu || !strings.Contains(p.Reason, tt.reason) {
				t.Errorf("%s: Decide = %s menu %v (%s); want %s %s (...%s...)", tt.name, p.Action, p.Menu, p.Reason, tt.action, tt.menu, tt.reason)
			}
			if p.Boots() != (tt.role != "") || p.Boots() && p.Role != tt.role || (p.Release != "") != p.Boots() {
				t.Errorf("%s: Decide boots %v as %s, image %v; want %q", tt.name, p.Boots(), p.Role, p.ReleaseName, tt.role)
			}
		}
		// DHCP's answer hangs on no pick: it comes before.
		r := tt.r
		r.Step, r.MAC, r.Server, r.Release, r.HasArch = StepDHCP, mac, server, rel, true
		if p := Decide(r); p.Action == Menu {
			t.Errorf("%s: a menu in answer to DHCP", tt.name)
		}
	}
}

// TestMenuTexts: what each item leads to is what the server answers with it.
func TestMenuTexts(t *testing.T) {
	r := Request{Node: node(""), Menu: []string{"rescue", "inventory"}, MAC: mac, Server: server, Release: rel, Step: StepScript}
	p := Decide(r)
	text := p.IPXEScript(Params{})
	for _, want := range []string{
		"\nitem --key 1 web ", "\nitem --key 2 rescue ", "\nitem --key 3 inventory ",
		"\nchoose --default web --timeout 10000 dsas-role || set dsas-role web\n",
		"\nchain --replace --autofree " + script + "?role=${dsas-role} ||\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("iPXE's menu lacks %q:\n%s", want, text)
		}
	}
	r.Step = StepTFTPConfig
	p = Decide(r)
	text = p.PXELINUXConfig(Params{}, 0)
	for _, want := range []string{"\nPROMPT 1\n", "\nTIMEOUT 100\n", "\nTOTALTIMEOUT 3000\n", "\nIMPLICIT 0\n", "\nDEFAULT web\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("PXELINUX's menu lacks %q:\n%s", want, text)
		}
	}
	for _, role := range p.Menu {
		_, rest, _ := strings.Cut(text, "\nLABEL "+role+"\n  CONFIG pxelinux.cfg/")
		file, _, _ := strings.Cut(rest, "\n")
		if c, ok := ParseConfigName(mac, file); !ok || c != (ConfigName{Role: role}) {
			t.Errorf("the label of %s leads to %q, which reads as %+v, %v", role, file, c, ok)
		}
	}
	r.Step = StepGRUBConfig
	p = Decide(r)
	text = p.GRUBConfig(Params{})
	for _, want := range []string{"set superusers=", "\nset default=0\n", "\nset timeout=10\n", "\nset dsas_why=menu\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("GRUB's menu lacks %q:\n%s", want, text)
		}
	}
	entries := strings.Split(text, "menuentry ")[1:]
	if len(entries) != len(p.Menu) {
		t.Fatalf("GRUB's menu has %d entries; want %d:\n%s", len(entries), len(p.Menu), text)
	}
	for i, role := range p.Menu {
		_, rest, _ := strings.Cut(entries[i], "dsas_boot \"")
		suffix, _, _ := strings.Cut(rest, "\"")
		// dsas_boot asks for this, with its argument in the place of $1.
		path := "grub/" + mac.String() + "/boot-x86_64" + suffix + ".cfg"
		if f, ok := ParseGRUB(path); !ok || f != (GRUBFile{MAC: mac, CPU: "x86_64", Role: role}) {
			t.Errorf("the entry of %s leads to %q, which reads as %+v, %v", role, path, f, ok)
		}
		if !strings.Contains(entries[i], " --unrestricted ") {
			t.Errorf("the entry of %s asks for a password", role)
		}
	}
	// What was picked stays picked when the kernel does not load.
	r.Step, r.Pick = StepTFTPConfig, "rescue"
	p = Decide(r)
	if text := p.PXELINUXConfig(Params{}, 2); !strings.Contains(text, "CONFIG pxelinux.cfg/rolewait-rescue-2\n") {
		t.Errorf("a failed boot of a picked role does not lead to its wait:\n%s", text)
	}
	if text := PXELINUXWait(mac, ConfigName{Role: "rescue", Attempt: 2}); !strings.Contains(text, "CONFIG pxelinux.cfg/role-rescue-3\n") {
		t.Errorf("the wait of a picked role does not lead back to it:\n%s", text)
	}
	r.Step = StepScript
	p = Decide(r)
	if text := p.IPXEScript(Params{}); !strings.Contains(text, "chain --replace --autofree "+script+"?role=rescue ||\n") {
		t.Errorf("a failed boot of a picked role does not ask for it again:\n%s", text)
	}
	// What may not be picked leads back to the menu.
	r.Pick = "db"
	r.Step = StepGRUBConfig
	p = Decide(r)
	if text := p.GRUBConfig(Params{}); !strings.Contains(text, "\nset dsas_why=refused\n") || !strings.Contains(GRUBConfig(), "$dsas_why = refused ]; then configfile $dsas_dir/boot-$grub_cpu.cfg;") {
		t.Errorf("a refused pick does not lead GRUB back to the menu:\n%s%s", text, GRUBConfig())
	}
	r.Step = StepScript
	p = Decide(r)
	if text := p.IPXEScript(Params{}); !strings.Contains(text, "chain --replace --autofree "+script+" ||\n") {
		t.Errorf("a refused pick does not lead back to the menu:\n%s", text)
	}
}

func TestConfigName(t *testing.T) {
	for _, c := range []ConfigName{{Attempt: 1}, {Wait: true}, {Wait: true, Attempt: 99}, {Role: "web"}, {Role: "web-2", Attempt: 3}, {Role: "role-0", Wait: true, Attempt: 7},
		{Role: strings.Repeat("a", 63), Attempt: 99, Wait: true}} {
		got, ok := ParseConfigName(mac, c.String())
		if !ok || got != c {
			t.Errorf("ParseConfigName(%q) = %+v, %v; want %+v", c, got, ok, c)
		}
		if n := len(TFTPPath(mac, configDir+c.String())); n >= 128 { // PXELINUX's FILENAME_MAX
			t.Errorf("the path of %s has %d bytes; want fewer than 128", c, n)
		}
	}
	for name, want := range map[string]ConfigName{"01-52-54-00-00-01-01": {}, "default": {}} {
		if got, ok := ParseConfigName(mac, name); !ok || got != want {
			t.Errorf("ParseConfigName(%q) = %+v, %v; want %+v", name, got, ok, want)
		}
	}
	for _, bad := range []string{"", "0A4D0065", "01-52-54-00-00-01-02", "again-", "again--1", "again-+1", "again-100", "again-001", "wait-x", "role-", "role-web", "role--0",
		"role-../x-0", "role-WEB-0", "role-web-100", "rolewait-web", "role-a b-0", "role-web-0\x00", "role-" + strings.Repeat("a", 64) + "-0"} {
		if got, ok := ParseConfigName(mac, bad); ok || got != (ConfigName{}) && got.Role != "" {
			t.Errorf("ParseConfigName(%q) = %+v, %v; want none", bad, got, ok)
		}
	}
}

func FuzzParseConfigName(f *testing.F) {
	for _, s := range []string{"01-52-54-00-00-01-01", "default", "again-1", "wait-0", "role-web-0", "rolewait-a-b-99", "role--", "role-\xff-0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		c, ok := ParseConfigName(mac, name)
		if !ok {
			return
		}
		if c.Role != "" && dsas.CheckName("role", c.Role) != nil || c.Attempt < 0 || c.Attempt > maxAttempt {
			t.Errorf("ParseConfigName(%q) = %+v", name, c)
		}
		if again, ok := ParseConfigName(mac, c.String()); (c != ConfigName{}) && (!ok || again != c) {
			t.Errorf("%q reads as %+v, and %q as %+v", name, c, c.String(), again)
		}
	})
}

// TestMenuNeverBreaksOut: a role's name that the store should never hold is
// shown and not obeyed.
func TestMenuNeverBreaksOut(t *testing.T) {
	for _, evil := range []string{"x\nshell", "a||shell", "${net0/mac}", "a\nLABEL b", "a\"; shell", "a\" {\nshell"} {
		n := node("")
		n.Menu = []string{evil}
		p := Decide(Request{Step: StepScript, MAC: mac, Node: n, Server: server, Release: rel, Menu: n.Menu})
		for _, line := range strings.Split(p.IPXEScript(Params{})+p.PXELINUXConfig(Params{}, 0)+p.GRUBConfig(Params{}), "\n") {
			if strings.HasPrefix(line, "shell") || strings.Contains(line, "||shell") || strings.Contains(line, "${net0") || line == "LABEL b" || strings.Count(line, `"`)%2 != 0 {
				t.Errorf("role %q broke out in line %q", evil, line)
			}
		}
	}
}

// TestMenuKeys: every item of the longest menu has a key of its own, which GRUB
// does not take for one of its own commands.
func TestMenuKeys(t *testing.T) {
	for what, key := range map[string]func(int) string{"menuKey": menuKey, "grubKey": grubKey} {
		seen := map[string]int{}
		for i := range dsas.MaxMenu + 1 {
			k := key(i)
			if j, ok := seen[k]; ok {
				t.Errorf("%s(%d) = %s, as %s(%d)", what, i, k, what, j)
			}
			seen[k] = i
			if what == "grubKey" && (k == "c" || k == "e") {
				t.Errorf("%s(%d) = %s, which leads to GRUB's command line or editor", what, i, k)
			}
		}
	}
}

func TestExplainMenu(t *testing.T) {
	for loader, last := range map[dsas.Loader]string{"": "GET " + script + "?role=web", dsas.LoaderPXELINUX: "RRQ nbp/52-54-00-00-01-01/pxelinux.cfg/role-web-0",
		dsas.LoaderGRUB: "RRQ grub/52:54:00:00:01:01/boot-x86_64-web.cfg"} {
		r := Request{Node: node(loader), Menu: []string{"rescue"}, MAC: mac, Server: server, Release: rel}
		if loader == dsas.LoaderGRUB {
			r.Arch, r.HasArch = dsas.ArchEFIX64, true
		}
		list := Explain(r)
		got := list[len(list)-2:]
		if got[0].Gets != "a menu of web, rescue; web after 10s" || got[1].Asks != last || got[1].Gets != "kernel and initramfs for role web" {
			t.Errorf("Explain(%q) ends with %s", loader, fmt.Sprint(got))
		}
	}
}
