package httpboot_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/boot"
	"dsas/server/httpboot"
)

// menus makes a fixture whose roles rescue and lb may be picked, and db and
// wipe never; w101 (web) has them all on its list, as a list made before the
// definitions changed would.
func menus(t *testing.T) *fixture {
	t.Helper()
	f := open(t, func(c *httpboot.Config) {
		c.Role = func(name string, _ dsas.Digest) (dsas.Role, error) {
			r := dsas.Role{Name: name}
			switch name {
			case "gone":
				return r, fmt.Errorf("role %s: %w", name, dsas.ErrNotFound)
			case "db":
				r.Devices = []dsas.Device{{Key: "DBDEVICE", Format: true}}
			case "scrub":
				r.Erases = true
			}
			return r, nil
		}
	})
	for _, role := range []string{"rescue", "db", "scrub"} {
		f.publish(role, "first")
	}
	f.setMenu("rescue", "db", "scrub", "gone", "unbuilt")
	return f
}

func (f *fixture) setMenu(roles ...string) {
	f.t.Helper()
	if _, err := f.UpdateNode(f.t.Context(), "w101", func(n *dsas.Node) error { n.Menu = roles; return nil }); err != nil {
		f.t.Fatal(err)
	}
}

func TestMenu(t *testing.T) {
	f := menus(t)
	a := f.get(w101, scriptPath(mac101))
	if !strings.Contains(a.body, "item --key 2 rescue") || strings.Contains(a.body, "token") {
		t.Fatalf("script = %d; want a menu with rescue, and no token yet:\n%s", a.code, a.body)
	}
	for _, never := range []string{"db", "scrub", "gone", "unbuilt"} {
		if strings.Contains(a.body, " "+never+" ") {
			t.Errorf("the menu offers %s:\n%s", never, a.body)
		}
	}
	if e := f.events(dsas.KindScript); len(e) != 0 {
		t.Errorf("a menu began a boot: %+v", e)
	}
	// The pick boots, once.
	a = f.get(w101, scriptPath(mac101)+"?role=rescue")
	id, token := tokenIn(a.body)
	if token == "" {
		t.Fatalf("a picked role does not boot:\n%s", a.body)
	}
	b, err := f.Boot(t.Context(), id)
	if err != nil || b.Role != "rescue" || !b.Picked {
		t.Errorf("boot = %+v, %v; want role rescue, picked", b, err)
	}
	if e := f.events(dsas.KindMenu); len(e) != 1 || e[0].Boot != id || e[0].Node != "w101" || !strings.Contains(e[0].Message, "role rescue picked at the loader (ipxe, 127.77.0.101) for this boot; assigned is web") {
		t.Errorf("events %s = %+v; want one of boot %s", dsas.KindMenu, e, id)
	}
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Role.Name != "rescue" || cfg.Manifest.Role != "rescue" {
		t.Errorf("node config = role %q, image of %q, %v; want rescue's", cfg.Role.Name, cfg.Manifest.Role, err)
	}
	if st := f.status("w101"); st.Running != "rescue" || !st.Picked {
		t.Errorf("status = runs %q, picked %v; want rescue, true", st.Running, st.Picked)
	}
	if n, err := f.Node(t.Context(), "w101"); err != nil || n.Role != "web" {
		t.Errorf("assigned = %q, %v; want web: nothing on the boot network changes that", n.Role, err)
	}
	// Picking the assigned role, or not picking at all, is no pick.
	id, _ = tokenIn(f.get(w101, scriptPath(mac101)+"?role=web").body)
	if b, err := f.Boot(t.Context(), id); err != nil || b.Role != "web" || b.Picked {
		t.Errorf("boot = %+v, %v; want role web, not picked", b, err)
	}
	if e := f.events(dsas.KindMenu); len(e) != 1 {
		t.Errorf("events %s = %+v; want the one of before", dsas.KindMenu, e)
	}
}

// TestMenuGRUB: by TFTP and GRUB's own names it is the same menu.
func TestMenuGRUB(t *testing.T) {
	f := menus(t)
	ask := func(name string, from netip.Addr) string {
		t.Helper()
		text, _, err := f.srv.GRUB(t.Context(), "grub/"+mac101.String()+"/"+name, from)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := ask("boot-x86_64.cfg", w101)
	if strings.Count(text, "menuentry ") != 2 || !strings.Contains(text, `dsas_boot "-rescue"`) || !strings.Contains(text, `dsas_boot "-web"`) || strings.Contains(text, "token") {
		t.Fatalf("GRUB's menu = %s\nwant web and rescue alone, and no token yet", text)
	}
	if e := f.events(dsas.KindScript); len(e) != 0 {
		t.Errorf("a menu began a boot: %+v", e)
	}
	if text := ask("boot-x86_64-rescue.cfg", w102); strings.Contains(text, "token") {
		t.Errorf("a token was given to another address:\n%s", text)
	}
	if text := ask("boot-arm64-rescue.cfg", w101); strings.Contains(text, "linux") || !strings.Contains(text, "no kernel for uefi-arm64") {
		t.Errorf("arm64's pick = %s\nwant the reason why nothing boots", text)
	}
	m := grubToken.FindStringSubmatch(ask("boot-x86_64-rescue.cfg", w101))
	if m == nil {
		t.Fatal("a picked role does not boot")
	}
	if b, err := f.Boot(t.Context(), m[1]); err != nil || b.Role != "rescue" || !b.Picked {
		t.Errorf("boot = %+v, %v; want role rescue, picked", b, err)
	}
	if e := f.events(dsas.KindMenu); len(e) != 1 || e[0].Boot != m[1] || !strings.Contains(e[0].Message, "role rescue picked at the loader (grub, 127.77.0.101) for this boot; assigned is web") {
		t.Errorf("events %s = %+v; want one of boot %s", dsas.KindMenu, e, m[1])
	}
	m = grubToken.FindStringSubmatch(ask("boot-x86_64-web.cfg", w101))
	if m == nil {
		t.Fatal("the assigned role does not boot from the menu")
	}
	if b, err := f.Boot(t.Context(), m[1]); err != nil || b.Role != "web" || b.Picked {
		t.Errorf("boot = %+v, %v; want role web, not picked", b, err)
	}
}

// TestMenuRefuses: anyone on the wire can ask for any role.
func TestMenuRefuses(t *testing.T) {
	f := menus(t)
	for _, role := range []string{"db", "scrub", "gone", "unbuilt", "lb", "wipe", "..%2f..", "%00", "a%0ab", "inventory"} {
		a := f.get(w101, scriptPath(mac101)+"?role="+role)
		if _, token := tokenIn(a.body); token != "" || a.code != 200 || !strings.Contains(a.body, "may not pick it") {
			t.Errorf("role %s: %d; want a script that waits and says why:\n%s", role, a.code, a.body)
		}
		text, err := f.srv.PXELINUXConfig(t.Context(), mac101, w101, boot.ConfigName{Role: role})
		if _, token := tokenIn(text); token != "" || err != nil {
			t.Errorf("role %s by TFTP: %v; want one that waits:\n%s", role, err, text)
		}
		// GRUB's names are parsed first: what is no role's name is not found.
		text, file, err := f.srv.GRUB(t.Context(), "grub/"+mac101.String()+"/boot-x86_64-"+role+".cfg", w101)
		if _, token := tokenIn(text); token != "" || file != nil || err == nil && !strings.Contains(text, "may not pick it") || err != nil && dsas.CheckName("role", role) == nil {
			t.Errorf("role %s at GRUB: %v; want one that waits:\n%s", role, err, text)
		}
	}
	if e := f.events(dsas.KindScript, dsas.KindMenu); len(e) != 0 {
		t.Errorf("refused picks began boots: %+v", e)
	}
	if e := f.events(dsas.KindWarning); len(e) != 1 || !strings.Contains(e[0].Message, `role "db" was asked for at the loader, from 127.77.0.101`) {
		t.Errorf("warnings = %+v; want one a minute", e)
	}
	f.later(time.Minute)
	f.get(w101, scriptPath(mac101)+"?role=db")
	if n := len(f.events(dsas.KindWarning)); n != 2 {
		t.Errorf("%d warnings after a minute and another; want 2", n)
	}
	// A pick on the list, but from somebody else's address.
	if _, token := tokenIn(f.get(w102, scriptPath(mac101)+"?role=rescue").body); token != "" {
		t.Error("a token was given to another address")
	}
	// The list goes: what was on it a moment ago is refused.
	f.setMenu()
	if _, token := tokenIn(f.get(w101, scriptPath(mac101)+"?role=rescue").body); token != "" {
		t.Error("a role boots that is on the list no more")
	}
	f.begin(w101, mac101) // and there is no menu
	// A box that has another node's list, or none, has none of it.
	if _, token := tokenIn(f.get(w102, scriptPath(mac102)+"?role=rescue").body); token != "" {
		t.Error("another node's pick boots")
	}
}
