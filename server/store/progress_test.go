package store_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dsas"
)

// TestProgress follows a node through what may happen to it. A step is a kind
// of event, ":boot" where it has one, "=message"; "+boot" begins a boot and "!boot"
// says that it proved itself. What is wanted is "phase boot serving".
func TestProgress(t *testing.T) {
	// As an operator's power cycle goes.
	const cycled = "power=cycle dhcp.ack tftp.nbp dhcp.ack +b1 boot.script:b1 boot.kernel:b1 boot.initramfs:b1 boot.config:b1 "
	const ready = cycled + "!b1 node.init:b1 node.fetch:b1 node.fetched:b1 node.conf:b1 node.switched:b1 node.service:b1 node.ready:b1 "
	for _, c := range []struct{ name, steps, want string }{
		{"new", "", "new - -"},
		{"told to cycle", "power=cycle", "power - -"},
		{"firmware", "power=cycle dhcp.ack", "dhcp - -"},
		{"loader", "power=cycle dhcp.ack tftp.nbp", "loader - -"},
		{"boot begun", "power=cycle dhcp.ack +b1", "dhcp b1 -"},
		{"kernel", "power=cycle dhcp.ack +b1 boot.script:b1 boot.kernel:b1", "kernel b1 -"},
		{"config", cycled, "init b1 -"},
		{"fetch", cycled + "!b1 node.init:b1 node.fetch:b1 node.fetched:b1", "fetch b1 -"},
		{"a warning before init", cycled + "!b1 node.warning:b1", "init b1 -"},
		{"switched", cycled + "!b1 node.init:b1 node.switched:b1", "services b1 -"},
		{"ready", ready, "ready b1 b1"},
		{"a service fell ill", ready + "node.failed:b1", "failed b1 -"},
		{"and the role is up again", ready + "node.failed:b1 node.ready:b1", "ready b1 b1"},

		{"anybody asks for an address", ready + "dhcp.ack", "ready b1 b1"},
		{"anybody takes a loader", ready + "tftp.nbp", "ready b1 b1"},
		{"anybody asks for a script", ready + "+b2 boot.script:b2", "ready b1 b1"},
		{"the node fetches its kernel", ready + "boot.kernel:b1 boot.initramfs:b1", "ready b1 b1"},
		{"anybody says the loader failed", ready + "boot.loader-failed", "ready b1 b1"},
		{"a config was given, or refused", ready + "+b2 boot.script:b2 boot.config:b2 node.warning node.failed", "ready b1 b1"},
		{"what it says after that counts", ready + "+b2 boot.script:b2 node.failed:b1", "failed b1 -"},
		{"a spoof while services start", cycled + "!b1 node.init:b1 node.switched:b1 +b2 boot.script:b2 node.ready:b1", "ready b1 b1"},
		{"a spoof while it fetches", cycled + "!b1 node.init:b1 node.fetch:b1 +b2 boot.script:b2", "loader b2 -"},
		{"and it goes on", cycled + "!b1 node.init:b1 node.fetch:b1 +b2 boot.script:b2 node.fetched:b1", "fetch b1 -"},
		{"until ready", cycled + "!b1 node.init:b1 node.fetch:b1 +b2 boot.script:b2 node.switched:b1 node.ready:b1", "ready b1 b1"},

		{"reset by hand, proven by the new init", ready + "dhcp.ack +b2 boot.script:b2 boot.kernel:b2 boot.config:b2 !b2 node.init:b2", "init b2 -"},
		{"already by the first signature", ready + "dhcp.ack +b2 boot.script:b2 !b2", "ready b2 -"},
		{"old events are late", ready + "+b2 boot.script:b2 !b2 node.init:b2 node.failed:b1 node.ready:b1", "init b2 -"},
		{"an unknown boot's event", ready + "node.failed:bx", "ready b1 b1"},
		{"reset by hand, noticed by silence", ready + "+b2 node.lost boot.script:b2", "loader b2 b1"},
		{"silent", ready + "node.lost", "lost b1 b1"},
		{"silent, and asks for an address", ready + "node.lost dhcp.ack", "dhcp b1 b1"},
		{"silent, then heard", ready + "node.lost node.link:b1", "lost b1 b1"},
		{"silent, then back", ready + "node.lost node.link:b1 node.back", "ready b1 b1"},
		{"silent before it was ready, then back", cycled + "!b1 node.init:b1 node.switched:b1 node.lost node.back", "services b1 -"},
		{"silent, spoofed, then back", ready + "node.lost +b2 boot.script:b2 boot.loader-failed node.back", "ready b1 b1"},
		{"silent, spoofed, then heard", ready + "node.lost +b2 boot.script:b2 node.link:b1", "ready b1 b1"},
		{"silent while it boots: nothing to lose", cycled + "!b1 node.init:b1 node.lost", "init b1 -"},

		{"switched off", ready + "power=off", "off b1 -"},
		{"switched off, its last words", ready + "power=off node.service:b1 node.failed:b1", "off b1 -"},
		{"switched on by hand", ready + "power=off dhcp.ack tftp.nbp", "loader b1 -"},
		{"cycled: progress counts at once", ready + "power=cycle dhcp.ack +b2 boot.script:b2", "loader b2 -"},
		{"cycled, and a late word", ready + "power=cycle dhcp.ack node.ready:b1", "dhcp b1 -"},
		{"cycled, in its role", ready + "power=cycle +b2 boot.script:b2 boot.config:b2 !b2 node.init:b2 node.switched:b2 node.ready:b2", "ready b2 b2"},
		{"the BMC lied", ready + "power=off node.link:b1 node.back", "ready b1 b1"},

		{"the loader fails", "power=on dhcp.ack tftp.nbp +b1 boot.script:b1 boot.loader-failed", "failed b1 -"},
		{"and tries again", "power=on dhcp.ack tftp.nbp +b1 boot.script:b1 boot.loader-failed +b2 boot.script:b2 boot.kernel:b2", "kernel b2 -"},
		{"the script was asked for twice", "power=on +b1 boot.script:b1 +b2 boot.script:b2 boot.config:b1 !b1 node.init:b1", "init b1 -"},
		{"a part is bad", cycled + "!b1 node.init:b1 node.fetch:b1 node.part-bad:b1 node.failed:b1", "failed b1 -"},
		{"and it boots again by itself", cycled + "!b1 node.init:b1 node.part-bad:b1 node.failed:b1 dhcp.ack +b2 boot.script:b2", "loader b2 -"},
		{"no config to be had", cycled + "node.failed", "failed b1 -"},
		{"power is cut while it fetches", cycled + "!b1 node.init:b1 node.fetch:b1 dhcp.ack tftp.nbp", "loader b1 -"},
		{"a new role means nothing yet", ready + "node.assigned node.changed", "ready b1 b1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := open(t)
			must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
			for i, step := range strings.Fields(c.steps) {
				at := t0.Add(time.Duration(i) * time.Second)
				if id, ok := strings.CutPrefix(step, "+"); ok {
					noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: id, Node: "w1", MAC: mac(1), Role: "role-" + id, Image: "sha256:" + dsas.Digest(id), TokenHash: []byte(id), Session: []byte("s"), Created: at}))
					continue
				}
				if id, ok := strings.CutPrefix(step, "!"); ok {
					noErr(t, f.MarkFirstEvent(f.ctx, id, at))
					continue
				}
				step, message, _ := strings.Cut(step, "=")
				kind, boot, _ := strings.Cut(step, ":")
				must(f.AddEvent(f.ctx, dsas.Event{Time: at, Node: "w1", Kind: dsas.Kind(kind), Boot: boot, Message: message}))(t)
			}
			or := func(s string) string {
				if s == "" {
					return "-"
				}
				return strings.TrimPrefix(s, "role-")
			}
			st := must(f.Status(f.ctx, "w1"))(t)
			if got := fmt.Sprintf("%s %s %s", st.Phase, or(st.Boot), or(st.Serving)); got != c.want {
				t.Errorf("after %s: %s; want %s", c.steps, got, c.want)
			}
			if st.Boot != "" && (st.Running != "role-"+st.Boot || st.Image != "sha256:"+dsas.Digest(st.Boot)) {
				t.Errorf("boot %s is shown with role %s and image %s; want its own", st.Boot, st.Running, st.Image)
			}
			if all := must(f.Statuses(f.ctx))(t)["w1"]; all.Phase != st.Phase || all.Serving != st.Serving {
				t.Errorf("Statuses says %s %s, Status %s %s", all.Phase, all.Serving, st.Phase, st.Serving)
			}
		})
	}
}

// TestUnprovenIsNoSignOfLife: what anybody may bring about, and what the server
// says of a node, does not keep a dead one alive.
func TestUnprovenIsNoSignOfLife(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	for _, k := range []dsas.Kind{dsas.KindDHCP, dsas.KindNBP, dsas.KindScript, dsas.KindKernel, dsas.KindConfigTaken, dsas.KindLoaderFailed,
		dsas.KindWarning, dsas.KindFailed, dsas.KindLost, dsas.KindBack, dsas.KindPower, dsas.KindAssigned} {
		must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Kind: k}))(t)
		if st := must(f.Status(f.ctx, "w1"))(t); !st.LastSeen.IsZero() {
			t.Fatalf("after %s: last seen %s; want never", k, st.LastSeen)
		}
	}
}

func TestBootAt(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	for i, n := range []string{"w1", "w1", ""} {
		id := fmt.Sprintf("b%d", i)
		noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: id, Node: n, MAC: mac(1), Address: addr("10.0.0.7"), TokenHash: []byte(id), Session: []byte("s")}))
		got := must(f.BootAt(f.ctx, addr("10.0.0.7")))(t)
		if got.ID != id || got.Node != n || got.Address != addr("10.0.0.7") {
			t.Errorf("BootAt = %s of %q at %s; want %s of %q at 10.0.0.7", got.ID, got.Node, got.Address, id, n)
		}
	}
	_, err := f.BootAt(f.ctx, addr("10.0.0.8"))
	wantErr(t, "BootAt(nobody's)", err, dsas.ErrNotFound, "10.0.0.8")
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestPruneUnknownBoots: the boots of one unknown MAC do not push out those of
// another, and all of them go in the end.
func TestPruneUnknownBoots(t *testing.T) {
	f := open(t)
	begin := func(id string, m int) {
		noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: id, MAC: mac(m), Role: "inventory", TokenHash: []byte(id), Session: []byte("s"), Created: f.time}))
	}
	begin("quiet", 1)
	begin("runs", 2)
	noErr(t, f.MarkFirstEvent(f.ctx, "runs", t0))
	for i := range 30 {
		begin(fmt.Sprintf("busy-%d", i), 2)
	}
	there := func(id string) bool { _, err := f.Boot(f.ctx, id); return err == nil }
	noErr(t, f.PruneBoots(f.ctx))
	for id, want := range map[string]bool{"quiet": true, "runs": true, "busy-9": false, "busy-10": true, "busy-29": true} {
		if got := there(id); got != want {
			t.Errorf("boot %s is kept: %v; want %v", id, got, want)
		}
	}
	f.time = t0.Add(31 * 24 * time.Hour)
	noErr(t, f.PruneBoots(f.ctx))
	for _, id := range []string{"quiet", "runs", "busy-29"} {
		if there(id) {
			t.Errorf("boot %s of an unknown MAC is kept after 31 days", id)
		}
	}
}
