package store_test

import (
	"testing"
	"time"

	"dsas"
)

// TestFleetVersion: it changes with what nodes' files are made from, and with
// nothing else: each change makes every running node's long poll look again.
func TestFleetVersion(t *testing.T) {
	f := open(t)
	last := must(f.FleetVersion(f.ctx))(t)
	changed := func() bool {
		t.Helper()
		v := must(f.FleetVersion(f.ctx))(t)
		was := v != last
		last = v
		return was
	}
	event := func(k dsas.Kind, boot string) func() {
		return func() {
			must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Boot: boot, Kind: k, Message: dsas.PowerCycle}))(t)
		}
	}
	boot := func(id string) func() {
		return func() {
			b := dsas.Boot{ID: id, Node: "w1", Role: "web", TokenHash: []byte(id), Session: []byte("k")}
			if err := f.CreateBoot(f.ctx, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		do   func()
		want bool
	}{
		{"a node is added", func() { must(f.CreateNode(f.ctx, node("w1", "10.0.0.11/24", 1)))(t) }, true},
		{"a boot begins", boot("b1"), false},
		{"it proves itself", func() {
			if err := f.MarkFirstEvent(f.ctx, "b1", time.Now()); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"init", event(dsas.KindInit, "b1"), false},
		{"ready", event(dsas.KindReady, "b1"), true},
		{"ready again", event(dsas.KindReady, "b1"), false},
		{"a heartbeat", func() {
			if err := f.Seen(f.ctx, "w1", time.Now()); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"somebody asks for its script", boot("b2"), false},
		{"a service fails", event(dsas.KindFailed, "b1"), true},
		{"and is back", event(dsas.KindReady, "b1"), true},
		{"the power is cycled", event(dsas.KindPower, ""), true},
		{"the next boot", event(dsas.KindInit, "b2"), false},
		{"is ready", event(dsas.KindReady, "b2"), true},
		{"a node changes", func() {
			must(f.UpdateNode(f.ctx, "w1", func(n *dsas.Node) error { n.Role = "web"; return nil }))(t)
		}, true},
		{"a site is added", func() { must(f.CreateSite(f.ctx, dsas.Site{Name: "www", Address: addr("10.0.0.80"), Role: "web"}))(t) }, true},
		{"a site is removed", func() {
			if err := f.DeleteSite(f.ctx, "www"); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a node is removed", func() {
			if err := f.DeleteNode(f.ctx, "w1"); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		before := ""
		if serves := must(f.Serving(f.ctx))(t); len(serves) > 0 {
			before = serves["w1"]
		}
		c.do()
		if got := changed(); got != c.want {
			t.Errorf("%s: the version changed %v; want %v", c.name, got, c.want)
		}
		st, err := f.Status(f.ctx, "w1")
		if now := must(f.Serving(f.ctx))(t)["w1"]; err == nil && now != st.Serving {
			t.Errorf("%s: Serving = %q (before: %q); the status says %q", c.name, now, before, st.Serving)
		}
	}
}
