package httpboot_test

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/boot"
	"dsas/server/httpboot"
)

func TestScript(t *testing.T) {
	f := open(t, nil)
	a := f.get(w101, scriptPath(mac101))
	id, token := tokenIn(a.body)
	if a.code != 200 || len(id) != 12 || len(token) != 32 {
		t.Fatalf("script = %d, boot %q, token of %d digits; want 200, 12, 32 digits:\n%s", a.code, id, len(token), a.body)
	}
	for _, want := range []string{"#!ipxe", "dsas.node=w101 ", "dsas.server=" + f.base + " ", "dsas.ip=127.77.0.101/24 ", "dsas.gw=127.77.0.254 ",
		"dsas.ports=52:54:00:00:01:01 ", string(f.boot.Kernel.Digest), string(f.boot.Initramfs.Digest)} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the script lacks %q:\n%s", want, a.body)
		}
	}
	if got := a.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q; want no-store: it holds a token", got)
	}
	b, err := f.Boot(t.Context(), id)
	if err != nil || b.Node != "w101" || b.MAC != mac101 || b.Role != "web" || b.Address != w101 || len(b.Session) != 32 {
		t.Errorf("the boot on record = %+v, %v; want w101's, with a session key", b, err)
	}
	if e := f.events(dsas.KindScript); len(e) != 1 || e[0].Boot != id || e[0].Node != "w101" {
		t.Errorf("events %s = %+v; want one of boot %s", dsas.KindScript, e, id)
	}
	if again, _ := f.begin(w101, mac101); again == id {
		t.Errorf("a second script has the same boot %s; want another", id)
	}
}

// TestScriptWaits: what cannot boot gets a script that says why and asks
// again, never an error, at which firmware would go on to its disk.
func TestScriptWaits(t *testing.T) {
	f := open(t, nil)
	set := func(change func(*dsas.Node)) {
		t.Helper()
		if _, err := f.UpdateNode(t.Context(), "w101", func(n *dsas.Node) error { change(n); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		src    netip.Addr
		mac    dsas.MAC
		change func(*dsas.Node)
		want   string // in the script
	}{
		{"unknown MAC", addr("127.77.0.200"), macNew, nil, "belongs to no node and discovery is off"},
		{"no role", w101, mac101, func(n *dsas.Node) { n.Role = "" }, "has no role"},
		{"image not built", w101, mac101, func(n *dsas.Node) { n.Role = "db" }, "Role db has no release to boot"},
		{"from another address", addr("127.77.0.9"), mac101, func(n *dsas.Node) { n.Role = "web" }, "Node w101 has address 127.77.0.101, and 127.77.0.9 asks"},
	} {
		if c.change != nil {
			set(c.change)
		}
		a := f.get(c.src, scriptPath(c.mac))
		if a.code != 200 || !strings.Contains(a.body, c.want) || !strings.Contains(a.body, "chain --replace") {
			t.Errorf("%s: %d; want 200, %q and a chain to itself:\n%s", c.name, a.code, c.want, a.body)
		}
		if strings.Contains(a.body, "token") || strings.Contains(a.body, "\nkernel") {
			t.Errorf("%s: the script boots:\n%s", c.name, a.body)
		}
	}
	if e := f.events(dsas.KindScript); len(e) != 0 {
		t.Errorf("boots begun: %+v; want none", e)
	}
	for _, path := range []string{"/boot/xx/script.ipxe", "/boot/01-00-5e-00-00-01/script.ipxe", "/boot/00-00-00-00-00-00/script.ipxe"} {
		if a := f.get(w101, path); a.code != http.StatusBadRequest {
			t.Errorf("GET %s = %d; want 400", path, a.code)
		}
	}
	if a := f.get(addr("127.77.0.9"), "/boot/script.ipxe"); a.code != 200 || !strings.Contains(a.body, "chain --replace --autofree ${netX/mac:hexhyp}/script.ipxe") {
		t.Errorf("GET /boot/script.ipxe = %d %s; want a chain to each box's own", a.code, a.body)
	}
}

func TestScriptNoRelease(t *testing.T) {
	f := open(t, nil)
	f.blobs.mu.Lock()
	delete(f.blobs.current, "web")
	f.blobs.mu.Unlock()
	if a := f.get(w101, scriptPath(mac101)); a.code != 200 || !strings.Contains(a.body, "Role web has no release to boot") {
		t.Errorf("script without a release = %d:\n%s", a.code, a.body)
	}
}

// TestRefusedAddress: who asks from an address that is not the node's gets
// nothing, and the event log is not his to fill.
func TestRefusedAddress(t *testing.T) {
	f := open(t, nil)
	other := addr("127.77.0.66")
	for range 10 {
		if _, token := tokenIn(f.get(other, scriptPath(mac101)).body); token != "" {
			t.Fatal("a token was given to another address")
		}
	}
	warned := func() int { return len(f.events(dsas.KindWarning)) }
	if n := warned(); n != 1 {
		t.Errorf("10 refused requests made %d events; want 1", n)
	}
	if e := f.events(dsas.KindWarning); !strings.Contains(e[0].Message, "127.77.0.66") || e[0].Node != "w101" || e[0].Boot != "" {
		t.Errorf("event = %+v; want w101's, naming who asked, of no boot", e[0])
	}
	f.later(time.Minute)
	f.get(other, scriptPath(mac101))
	if n := warned(); n != 2 {
		t.Errorf("after a minute there are %d events; want 2", n)
	}
	if st := f.status("w101"); st.Phase != dsas.PhaseNew || st.Boot != "" || !st.LastSeen.IsZero() {
		t.Errorf("status = %+v; want a node that was never heard of", st)
	}
	// By TFTP too.
	text, err := f.srv.PXELINUXConfig(t.Context(), mac101, other, boot.ConfigName{})
	if err != nil || strings.Contains(text, "token") || !strings.Contains(text, "127.77.0.66 asks") {
		t.Errorf("PXELINUXConfig(%s) = %v, %s; want one that waits and says why", other, err, text)
	}
}

func TestOtherDHCP(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.OtherDHCP, c.Discovery = true, true })
	id, token := f.begin(addr("127.77.0.66"), mac101)
	// The token is the node's all the same.
	if _, err := f.node(addr("127.77.0.66"), id).Config(t.Context(), token); err == nil {
		t.Error("node config for the address that the other server gave; want it for the reserved one alone")
	}
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Node != "w101" {
		t.Errorf("node config = %q, %v; want w101's", cfg.Node, err)
	}
	// A MAC that is unknown boots with the address it has.
	id, token = f.begin(addr("127.77.0.67"), macNew)
	if cfg, err := f.node(addr("127.77.0.67"), id).Config(t.Context(), token); err != nil || cfg.Node != "new-525400aabbcc" {
		t.Errorf("node config = %q, %v; want new-525400aabbcc's", cfg.Node, err)
	}
	if _, token := tokenIn(f.get(addr("127.66.0.1"), scriptPath(macNew)).body); token != "" {
		t.Error("a token was given to an address of no subnet")
	}
}

// TestOtherDHCPNeighbour: where another server gives the addresses, ARP says who
// asks: a node's script is for one of its NICs, whatever address that has.
func TestOtherDHCPNeighbour(t *testing.T) {
	at := map[netip.Addr]dsas.MAC{addr("127.77.0.66"): macNew, addr("127.77.0.67"): mac101}
	f := open(t, func(c *httpboot.Config) {
		c.OtherDHCP, c.Discovery = true, true
		c.Neighbour = func(a netip.Addr) (dsas.MAC, bool) { m, ok := at[a]; return m, ok }
	})
	if a := f.get(addr("127.77.0.66"), scriptPath(mac101)); strings.Contains(a.body, "dsas.token") || !strings.Contains(a.body, "is another box") {
		t.Errorf("script for another box = %s; want one that waits and says why", a.body)
	}
	if e := f.events(dsas.KindWarning); len(e) != 1 || !strings.Contains(e[0].Message, macNew.String()) {
		t.Errorf("events = %+v; want a warning that names who asked", e)
	}
	if _, token := tokenIn(f.get(addr("127.77.0.67"), scriptPath(macNew)).body); token != "" {
		t.Error("an unknown box's script was given to another box")
	}
	// Its own NIC, with an address of the other server: told, and its kernel is
	// its boot's although it comes from that address.
	id, token := f.begin(addr("127.77.0.67"), mac101)
	f.get(addr("127.77.0.67"), "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest))
	if e := f.events(dsas.KindScript); len(e) != 1 || !strings.Contains(e[0].Message, "127.77.0.67 of another DHCP server") || !strings.Contains(e[0].Message, "127.77.0.101") {
		t.Errorf("events = %+v; want both addresses", e)
	}
	if e := f.events(dsas.KindKernel); len(e) != 1 || e[0].Boot != id {
		t.Errorf("events = %+v; want the kernel of boot %s", e, id)
	}
	if _, err := f.node(w101, id).Config(t.Context(), token); err != nil {
		t.Errorf("node config from the node's own address: %v", err)
	}
	// Behind a router ARP knows nothing.
	f.begin(addr("127.77.0.99"), mac102)
}

func TestBootsPerMinute(t *testing.T) {
	f := open(t, nil)
	begun := func() (n int) {
		for range 40 {
			a := f.get(w101, scriptPath(mac101))
			if _, token := tokenIn(a.body); token != "" {
				n++
			} else if a.code != 200 || !strings.Contains(a.body, "more than 30 boots within a minute") {
				t.Fatalf("a script over the limit = %d; want 200 and the reason:\n%s", a.code, a.body)
			}
		}
		return n
	}
	if n := begun(); n != 30 {
		t.Errorf("of 40 requests %d began a boot; want 30", n)
	}
	f.begin(w102, mac102) // another node has its own
	text, err := f.srv.PXELINUXConfig(t.Context(), mac101, w101, boot.ConfigName{})
	if _, token := tokenIn(text); err != nil || token == "" {
		t.Errorf("PXELINUXConfig = %v, %s; want a boot: TFTP's source is anybody's to write, and its limit a separate one", err, text)
	}
	f.later(time.Minute)
	if n := begun(); n != 30 {
		t.Errorf("a minute later %d of 40 began a boot; want 30", n)
	}
}

func TestPXELINUXConfig(t *testing.T) {
	f := open(t, nil)
	text, err := f.srv.PXELINUXConfig(t.Context(), mac101, w101, boot.ConfigName{Attempt: 2})
	if err != nil {
		t.Fatal(err)
	}
	id, token := tokenIn(text)
	if !strings.Contains(text, "CONFIG pxelinux.cfg/wait-2") || token == "" {
		t.Fatalf("PXELINUXConfig = %s; want a boot, and the wait of the second retry", text)
	}
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Role.Name != "web" {
		t.Errorf("node config = role %q, %v; want web", cfg.Role.Name, err)
	}
}

// TestRunningNodeIsNotDisturbed: what anybody can ask for while a node runs
// changes nothing of it; its next real boot does.
func TestRunningNodeIsNotDisturbed(t *testing.T) {
	f := open(t, nil)
	n := f.run(w101, mac101)
	before := f.status("w101")
	if before.Phase != dsas.PhaseReady || before.Serving != "web" {
		t.Fatalf("after its boot: %+v; want ready, serving web", before)
	}
	same := func(when string) {
		t.Helper()
		if st := f.status("w101"); st.Phase != before.Phase || st.Boot != before.Boot || st.Running != before.Running || st.Image != before.Image || st.Serving != "web" {
			t.Errorf("%s: %+v; want %+v", when, st, before)
		}
	}
	f.get(addr("127.77.0.66"), scriptPath(mac101))
	same("a stranger asked for its script")
	f.get(addr("127.77.0.66"), "/boot/"+mac101.Dashed()+"/failed?why=boot")
	same("a stranger said that its loader failed")
	f.get(w101, "/boot/"+mac101.Dashed()+"/failed?why=boot")
	same("it said that its own loader failed")
	f.get(w101, "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest))
	same("it fetched its kernel")
	if e := f.events(dsas.KindKernel); len(e) != 0 {
		t.Errorf("a running node's download is recorded as %+v; want nothing", e)
	}
	id, token := f.begin(w101, mac101) // a user on the node
	same("its script was asked for from its own address")
	f.get(w101, "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest))
	same("and the kernel was taken")
	next := f.node(w101, id)
	if _, err := next.Config(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	same("and the node config was taken")
	if err := n.Heartbeat(t.Context()); err != nil {
		t.Errorf("heartbeat of the boot that runs: %v", err)
	}
	f.say(n, dsas.KindLink, dsas.KindService)
	same("it went on reporting")
	// It was a boot after all.
	f.say(next, dsas.KindInit)
	if st := f.status("w101"); st.Phase != dsas.PhaseInit || st.Boot != id || st.Serving != "" {
		t.Errorf("after the new boot's first word: %+v; want init of %s, serving nothing", st, id)
	}
	f.say(n, dsas.KindReady)
	if st := f.status("w101"); st.Phase != dsas.PhaseInit || st.Boot != id {
		t.Errorf("after a late word of the old boot: %+v; want init of %s", st, id)
	}
}

func TestLoaderFailed(t *testing.T) {
	f := open(t, nil)
	path := "/boot/" + mac101.Dashed() + "/failed?why=kernel"
	failed := func() []dsas.Event { return f.events(dsas.KindLoaderFailed) }
	if a := f.get(addr("127.77.0.66"), path); a.code != 200 || a.body == "" || len(failed()) != 0 {
		t.Errorf("from another address: %d %q, %d events; want 200, a body, none", a.code, a.body, len(failed()))
	}
	if a := f.get(w101, "/boot/"+macNew.Dashed()+"/failed?why=kernel"); a.code != 200 || len(failed()) != 0 {
		t.Errorf("of an unknown MAC: %d, %d events; want 200, none", a.code, len(failed()))
	}
	if a := f.get(w101, "/boot/x/failed"); a.code != 400 {
		t.Errorf("of no MAC: %d; want 400", a.code)
	}
	f.begin(w101, mac101)
	for range 5 {
		// An empty body would be an error to iPXE.
		if a := f.get(w101, path); a.code != 200 || a.body == "" {
			t.Errorf("GET %s = %d %q; want 200 and a body", path, a.code, a.body)
		}
	}
	if e := failed(); len(e) != 1 || e[0].Node != "w101" || !strings.HasSuffix(e[0].Message, "kernel") {
		t.Errorf("events = %+v; want one within a minute, with the reason", e)
	}
	if st := f.status("w101"); st.Phase != dsas.PhaseFailed {
		t.Errorf("phase = %s; want failed", st.Phase)
	}
	f.later(time.Minute)
	f.get(w101, "/boot/"+mac101.Dashed()+"/failed?why="+strings.Repeat("x", 5000))
	if e := failed(); len(e) != 2 || len(e[1].Message) > 200 {
		t.Errorf("a minute later there are %d events, the last of %d bytes; want 2, a short one", len(e), len(e[len(e)-1].Message))
	}
}

// TestDiscovery boots a MAC that belongs to no node into the inventory.
func TestDiscovery(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.Discovery = true })
	pool := addr("127.77.0.200")
	if a := f.get(pool, scriptPath(macNew)); a.code != 200 || !strings.Contains(a.body, "127.77.0.200 is not leased to "+macNew.String()) {
		t.Errorf("script without a lease = %d:\n%s", a.code, a.body)
	}
	l, _, err := f.Bind(t.Context(), subnet, macNew, "", pool, f.now())
	if err != nil || l.Address != pool {
		t.Fatalf("Bind = %+v, %v", l, err)
	}
	if _, token := tokenIn(f.get(pool, scriptPath(mac101)).body); token != "" {
		t.Error("a node's script was given to a pool address")
	}
	a := f.get(pool, scriptPath(macNew))
	id, token := tokenIn(a.body)
	for _, want := range []string{"dsas.node=new-525400aabbcc ", "dsas.ip=127.77.0.200/24 ", "dsas.gw=127.77.0.254 ", "dsas.ports=52:54:00:aa:bb:cc "} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the script lacks %q:\n%s", want, a.body)
		}
	}
	if e := f.events(dsas.KindScript); len(e) != 1 || e[0].Node != "" || e[0].MAC != macNew || e[0].Boot != id {
		t.Errorf("event = %+v; want one of the MAC, of no node", e)
	}
	f.get(pool, "/v2/dsas/boot/blobs/"+string(f.boot.Kernel.Digest))
	if e := f.events(dsas.KindKernel); len(e) != 1 || e[0].MAC != macNew || e[0].Boot != id {
		t.Errorf("event = %+v; want the kernel taken by the MAC", e)
	}
	if _, err := f.node(w101, id).Config(t.Context(), token); err == nil {
		t.Error("node config for another address; want it refused")
	}
	n := f.node(pool, id)
	cfg, err := n.Config(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node != "new-525400aabbcc" || cfg.Role.Name != "inventory" || !strings.Contains(cfg.Conf, "IPADDRESS0=127.77.0.200/24") || !strings.Contains(cfg.Conf, "SYSTEMNAME=new-525400aabbcc") {
		t.Errorf("node config = %s, role %s, conf:\n%s", cfg.Node, cfg.Role.Name, cfg.Conf)
	}
	report := `{"vendor":"ACME","nics":[]}`
	if err := n.PostEvents(t.Context(), []dsas.Event{{Kind: dsas.KindInit}, {Kind: dsas.KindReady}, {Kind: dsas.KindInventory, Detail: report}}); err != nil {
		t.Fatal(err)
	}
	if e := f.events(dsas.KindInventory); len(e) != 1 || e[0].Detail != report || e[0].MAC != macNew || e[0].Node != "" {
		t.Errorf("inventory events = %+v; want the report, of the MAC", e)
	}
	for _, bad := range []string{"", "{", `"` + strings.Repeat("x", 16<<10) + `"`} {
		if err := n.PostEvents(t.Context(), []dsas.Event{{Kind: dsas.KindInventory, Detail: bad}}); err == nil {
			t.Errorf("inventory %.10q (%d bytes) was taken; want it refused", bad, len(bad))
		}
	}
	if err := n.Heartbeat(t.Context()); err != nil {
		t.Errorf("heartbeat: %v", err)
	}
	if _, changed, err := n.Files(t.Context(), cfg.FilesTag, 0); err != nil || changed {
		t.Errorf("files = changed %v, %v; want 304", changed, err)
	}
	// The operator gives it a name meanwhile: what runs goes on as it is.
	if _, err := f.CreateNode(context.Background(), dsas.Node{Name: "w103", NICs: []dsas.NIC{{MAC: macNew}}, Address: netip.MustParsePrefix("127.77.0.103/24"), Role: "web"}); err != nil {
		t.Fatal(err)
	}
	f.say(n, dsas.KindWarning)
	if st := f.status("w103"); st.Phase != dsas.PhaseNew {
		t.Errorf("w103 is %s; want new: nothing has booted as w103", st.Phase)
	}
}

// TestSubnetBond: a subnet's own bond is that of its nodes, from the kernel on.
func TestSubnetBond(t *testing.T) {
	const all, own = "bond0:mode=active-backup:miimon=100", "bond0:mode=active-backup:arp_interval=500:arp_ip_target=127.77.0.254"
	for _, tt := range []struct{ bond, want string }{{"", all}, {own, own}} {
		f := open(t, func(c *httpboot.Config) {
			c.BondOptions = all
			s := subnet
			s.Bond = tt.bond
			c.Subnets = []dsas.Subnet{s}
		})
		if text := f.get(w101, scriptPath(mac101)).body; !strings.Contains(text, " dsas.bond="+tt.want+" ") {
			t.Errorf("with the subnet's bond %q the script lacks dsas.bond=%s:\n%s", tt.bond, tt.want, text)
		}
	}
}
