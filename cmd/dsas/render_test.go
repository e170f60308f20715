package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"dsas"
	"dsas/roles"
	"dsas/server/blobs"
	"dsas/server/store"
)

// TestServing: a site's servers are those that said so, whatever anybody else
// says of them since.
func TestServing(t *testing.T) {
	site := dsas.Site{Role: "web"}
	nodes := []dsas.Node{
		{Name: "ready"}, {Name: "lost"}, {Name: "asked-for"}, {Name: "starting"}, {Name: "failed"}, {Name: "off"}, {Name: "db"}, {Name: "reassigned", Role: "db"}, {Name: "new"},
	}
	// "reassigned" serves until it boots.
	serves := map[string]string{"ready": "web", "lost": "web", "asked-for": "web", "db": "db", "reassigned": "web"}
	var got []string
	for _, p := range serving(site, nodes, serves) {
		got = append(got, p.Name)
	}
	if want := "ready lost asked-for reassigned"; strings.Join(got, " ") != want {
		t.Errorf("serving = %v; want %s", got, want)
	}
	if got := serving(dsas.Site{}, nodes, serves); got != nil {
		t.Errorf("serving a site without a role = %v; want nobody", got)
	}
}

type renderTest struct {
	*renderer
	t *testing.T
}

// newRenderer renders over a real store with nodes w101 (web) and w103 (lb) and
// site www.
func newRenderer(t *testing.T) *renderTest {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "db"), filepath.Join(dir, "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	set, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config{Variables: map[string]string{"LVSADDRESS": "10.77.0.1"}}
	cfg.setDefaults()
	for i, n := range []dsas.Node{{Name: "w101", Role: "web"}, {Name: "w103", Role: "lb"}} {
		n.NICs = []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 0, byte(i)}}, {MAC: dsas.MAC{0x52, 0x54, 0, 0, 1, byte(i)}}}
		n.Address = netip.MustParsePrefix(fmt.Sprintf("10.77.0.10%d/24", 2*i+1))
		if _, err := s.CreateNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	site := dsas.Site{Name: "www", Address: netip.MustParseAddr("10.77.0.80")}.WithDefaults()
	if _, err := s.CreateSite(t.Context(), site); err != nil {
		t.Fatal(err)
	}
	images, err := blobs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &renderTest{&renderer{cfg: cfg, store: s, roles: set, rel: &releases{Store: images, state: s}, changeHub: newChangeHub(), subnets: []dsas.Subnet{
		{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"), Gateway: netip.MustParseAddr("10.77.0.254")}}}, t}
}

func (r *renderTest) node(name string) dsas.Node {
	r.t.Helper()
	n, err := r.store.Node(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// balancer renders w103, and gives its tag and all its files in one.
func (r *renderTest) balancer() (tag, files string) {
	r.t.Helper()
	out, err := r.Render(r.t.Context(), r.node("w103"), "lb", "")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range out.Files {
		files += string(f.Content)
	}
	return out.Tag, files
}

func (r *renderTest) event(e dsas.Event) {
	r.t.Helper()
	if e.Kind == dsas.KindScript {
		b := dsas.Boot{ID: e.Boot, Node: e.Node, Role: "web", TokenHash: []byte(e.Boot), Session: []byte("k"), Created: time.Now()}
		if err := r.store.CreateBoot(r.t.Context(), b); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := r.store.AddEvent(r.t.Context(), e); err != nil {
		r.t.Fatal(err)
	}
}

// TestBalancerFollowsNodes: what a balancer has changes when a web node says
// that it is ready, fails, is switched or boots anew; and with nothing else.
func TestBalancerFollowsNodes(t *testing.T) {
	r := newRenderer(t)
	const real = "real_server 10.77.0.101"
	tag, files := r.balancer()
	if strings.Contains(files, real) || !strings.Contains(files, "10.77.0.80") {
		t.Fatalf("the balancer has w101, which never booted, or lacks the site:\n%s", files)
	}
	for _, step := range []struct {
		e      dsas.Event
		serves bool
	}{
		{dsas.Event{Kind: dsas.KindScript, Boot: "b1"}, false},
		{dsas.Event{Kind: dsas.KindInit, Boot: "b1"}, false},
		{dsas.Event{Kind: dsas.KindSwitched, Boot: "b1"}, false},
		{dsas.Event{Kind: dsas.KindReady, Boot: "b1"}, true},
		{dsas.Event{Kind: dsas.KindLink, Boot: "b1"}, true},
		{dsas.Event{Kind: dsas.KindScript, Boot: "b2"}, true}, // anybody's
		{dsas.Event{Kind: dsas.KindLost}, true},
		{dsas.Event{Kind: dsas.KindLoaderFailed}, true}, // anybody's, while it is silent
		{dsas.Event{Kind: dsas.KindBack}, true},
		{dsas.Event{Kind: dsas.KindFailed, Boot: "b1"}, false},
		{dsas.Event{Kind: dsas.KindReady, Boot: "b1"}, true},
		{dsas.Event{Kind: dsas.KindPower, Message: dsas.PowerCycle}, false},
		{dsas.Event{Kind: dsas.KindScript, Boot: "b3"}, false},
		{dsas.Event{Kind: dsas.KindReady, Boot: "b3"}, true},
		{dsas.Event{Kind: dsas.KindInit, Boot: "b2"}, true}, // of an older boot
		{dsas.Event{Kind: dsas.KindScript, Boot: "b4"}, true},
		{dsas.Event{Kind: dsas.KindInit, Boot: "b4"}, false},
	} {
		before := tag
		was := strings.Contains(files, real)
		step.e.Node = "w101"
		r.event(step.e)
		tag, files = r.balancer()
		if got := strings.Contains(files, real); got != step.serves {
			t.Fatalf("after %s of %q the balancer has w101: %v; want %v\n%s", step.e.Kind, step.e.Boot, got, step.serves, files)
		}
		if (tag != before) != (was != step.serves) {
			t.Errorf("after %s of %q the tag went from %s to %s, and the files changed: %v", step.e.Kind, step.e.Boot, before, tag, was != step.serves)
		}
		if was != step.serves && !mayChangeFiles(step.e.Kind) {
			t.Errorf("%s changes a balancer's files, and nobody is told", step.e.Kind)
		}
	}
}

func TestRender(t *testing.T) {
	r := newRenderer(t)
	out, err := r.Render(t.Context(), r.node("w101"), "web", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SYSTEMNAME=w101", "LVSADDRESS=10.77.0.1", "10.77.0.101/24", "10.77.0.254", "bond0 eth0 eth1", "10.77.0.80"} {
		if !strings.Contains(out.Conf, want) {
			t.Errorf("dsas.conf lacks %q:\n%s", want, out.Conf)
		}
	}
	if out.Role.Name != "web" || out.Tag == "" {
		t.Errorf("Render = role %q, tag %q; want web and a tag", out.Role.Name, out.Tag)
	}
	again, err := r.Render(t.Context(), r.node("w101"), "web", "")
	if err != nil || again.Tag != out.Tag {
		t.Errorf("rendered again: tag %s, %v; want %s", again.Tag, err, out.Tag)
	}
	// A subnet's own bond is that of its nodes.
	r.subnets[0].Bond = "bond0:mode=active-backup:arp_interval=500:arp_ip_target=10.77.0.254"
	if out, err := r.Render(t.Context(), r.node("w101"), "web", ""); err != nil || !strings.Contains(out.Conf, `"bond0 mode=active-backup arp_interval=500 arp_ip_target=10.77.0.254"`) {
		t.Errorf("dsas.conf lacks the subnet's bond (%v):\n%s", err, out.Conf)
	}
	if _, err := r.Render(t.Context(), r.node("w101"), "wbe", ""); err == nil || !strings.Contains(err.Error(), "wbe") {
		t.Errorf("Render(wbe) = %v; want an error that names it", err)
	}
}

// TestRenderRelease: a node is configured by the definition that its release was
// built with, whatever has become of it since.
func TestRenderRelease(t *testing.T) {
	r := newRenderer(t)
	def, err := r.roles.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	def.Role.Description = "as it was"
	def.Role.Services = nil
	frozen, err := roles.Freeze(def)
	if err != nil {
		t.Fatal(err)
	}
	plain := addRelease(t, r.rel.Store, "web", "without a definition")
	old := plain
	old.Definition = frozen
	if old, err = r.rel.AddRelease(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for release, want := range map[dsas.Digest]bool{old.ID: true, plain.ID: false, "": false} {
		out, err := r.Render(t.Context(), r.node("w101"), "web", release)
		if err != nil || (out.Role.Description == "as it was") != want || (len(out.Role.Services) == 0) != want {
			t.Errorf("Render for release %q = role %+v, %v; want that of the release: %t", release, out.Role, err, want)
		}
		if tag, err := r.Tag(t.Context(), "w101", "web", release); err != nil || tag != out.Tag {
			t.Errorf("Tag for release %q = %s, %v; want %s", release, tag, err, out.Tag)
		}
	}
}

func TestSecrets(t *testing.T) {
	r := newRenderer(t)
	secrets := func(n dsas.Node) map[string]dsas.File {
		t.Helper()
		list, err := r.Secrets(t.Context(), n, strings.HasPrefix(n.Name, "new-"))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]dsas.File{}
		for _, f := range list {
			out[f.Path] = f
		}
		return out
	}
	const key, keys, console = "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/authorized_keys", "/etc/dsas/console-password"
	first := secrets(r.node("w101"))
	if len(first) != 2 || first[key].Mode != 0o600 || first[key+".pub"].Mode != 0o644 {
		t.Errorf("secrets = %v; want a host key of mode 0600 and its public half", first)
	}
	signer, err := ssh.ParsePrivateKey(first[key].Content)
	if err != nil || !bytes.Equal(ssh.MarshalAuthorizedKey(signer.PublicKey()), first[key+".pub"].Content) {
		t.Errorf("the host key: %v; want a key whose public half is %s", err, first[key+".pub"].Content)
	}
	if again := secrets(r.node("w101")); !bytes.Equal(again[key].Content, first[key].Content) {
		t.Error("w101 has another host key at its next boot; want the same")
	}
	if other := secrets(r.node("w103")); bytes.Equal(other[key].Content, first[key].Content) {
		t.Error("w103 has w101's host key")
	}
	// A box that belongs to no node: a key that is not kept.
	stranger := dsas.Node{Name: "new-525400aabbcc"}
	one, two := secrets(stranger), secrets(stranger)
	if len(one[key].Content) == 0 || bytes.Equal(one[key].Content, two[key].Content) {
		t.Error("a box that belongs to no node has no host key, or the same twice")
	}

	r.cfg.AuthorizedKeys = writeFile(t, "keys", goodKey+"\n")
	r.cfg.ConsolePasswordFile = writeFile(t, "hash", "$6$salt$hash\n")
	all := secrets(r.node("w101"))
	if string(all[keys].Content) != goodKey+"\n" || all[keys].Mode != 0o600 || string(all[console].Content) != "$6$salt$hash\n" || all[console].Mode != 0o600 {
		t.Errorf("secrets = %v; want the authorized keys and the console's password, of mode 0600", all)
	}
	// A stranger may be called as a node is, whose MAC it had once.
	if got := secrets(stranger); len(got[console].Content) != 0 || len(got[keys].Content) == 0 {
		t.Errorf("a stranger's secrets = %v; want the authorized keys, and not the console's password", got)
	}
	if list, err := r.Secrets(t.Context(), r.node("w101"), true); err != nil || bytes.Equal(list[0].Content, first[key].Content) {
		t.Errorf("a stranger of a node's name has its host key, %v; want one of its own", err)
	}
	// The files are read at each boot; one that has gone is told.
	if err := os.Remove(r.cfg.AuthorizedKeys); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Secrets(t.Context(), r.node("w101"), false); err == nil || !strings.Contains(err.Error(), "authorized keys") {
		t.Errorf("Secrets without the authorized keys = %v; want an error", err)
	}
}
