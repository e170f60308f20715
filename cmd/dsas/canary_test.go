package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dsas"
)

func TestCanaryCommands(t *testing.T) {
	c := newCLI(t)
	for _, content := range []string{"one", "two"} {
		addRelease(t, c.releases.Store, "web", content)
	}
	for _, n := range []string{"1", "2", "3"} {
		c.ok(words("node add w10" + n + " --role web --bmc ipmi://admin@10.0.9." + n + " --mac 52:54:00:00:01:0" + n)...)
	}
	c.ok(words("image publish web:1")...)
	for _, args := range []string{"--canary 0%", "--canary 101%", "--canary w101 --canary 10%", "--canary x%", "--cycle"} {
		c.fails(2, words("image publish web:2 "+args), "--c")
	}
	c.fails(2, words("image build web db --canary w101"), "one role")
	c.fails(1, words("image publish web:2 --canary 10%"), "none is ready", "--canary w101")
	c.fails(1, words("image publish web:2 --canary w109"), "w109")
	c.wantLine(c.ok(words("image publish web:2 --canary w[101,103] --dry-run")...), "w101 w103 would try release web:2")
	if p := c.store.Published("web"); p.Canary != nil {
		t.Errorf("a dry run began a canary: %+v", p.Canary)
	}
	c.wantLine(c.ok(words("image publish web:2 --canary w102 --dry-run")...), "w102 would try release web:2 from its next boot on", "when it was ready")
	c.wantLine(c.ok(words("image publish web:2 --canary w102")...), "w102 tries release web:2 from its next boot on", "when it was ready")
	out := c.ok(words("image publish web:2 --canary w[101,103] --cycle")...)
	c.wantLine(out, "w101 w103 try release web:2 from their next boot on")
	c.wantLine(out, "w103", "on")
	slices.Sort(c.power.done)
	if !slices.Equal(c.power.done, []string{"w101 cycle", "w103 cycle"}) {
		t.Errorf("power commands: %q; want w101 and w103 cycled", c.power.done)
	}
	c.wantLine(c.ok("image", "ls"), "web:2", "canary 0/2 ready")
	c.wantLine(c.ok("image", "show", "web:2"), "canary", "w101 w103")
	c.wantLine(c.ok("node", "ls"), "w101", "next web:2 (canary)")
	c.wantLine(c.ok("node", "ls"), "w102", "next web:1")
	c.wantLine(c.ok("node", "show", "w103"), "release", "next web:2 (canary)")
	c.wantLine(c.ok("role", "ls"), "web", "web:1, canary web:2")
	out = c.ok("image", "rollback", "web")
	c.wantLine(out, "canary on w101 w103 is ended")
	c.wantLine(out, "nodes boot release web:1")
	c.fails(1, words("image rollback web"), "no release was published before")
}

// TestSyncEndsCanary: what a build proposes is published, also while another
// release is tried.
func TestSyncEndsCanary(t *testing.T) {
	r := openReleases(t)
	one, two, three := addRelease(t, r.Store, "web", "one"), addRelease(t, r.Store, "web", "two"), addRelease(t, r.Store, "web", "three")
	if _, err := r.state.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
		p.Publish(one.ID, "ann", p.Since)
		p.StartCanary(dsas.Canary{Release: two.ID, Nodes: []string{"w101"}})
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.Propose(three.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := r.state.Published("web"); p.Canary != nil || p.Current != three.ID {
		t.Errorf("published = %+v; want web:3 and no canary", p)
	}
	events, err := r.state.Events(t.Context(), dsas.EventFilter{})
	if err != nil || len(events) != 2 || events[0].Kind != dsas.KindCanaryEnded || !strings.Contains(events[0].Message, "release web:2 on w101 was ended by dsas image build") || events[1].Kind != dsas.KindPublished {
		t.Errorf("events = %+v, %v; want the canary's end and web:3", events, err)
	}
}

// TestSyncGivenUp: a build that changes nothing does not publish what was
// rolled back as a canary, nor does it when another is.
func TestSyncGivenUp(t *testing.T) {
	r := openReleases(t)
	one, two, three := addRelease(t, r.Store, "web", "one"), addRelease(t, r.Store, "web", "two"), addRelease(t, r.Store, "web", "three")
	tryAndGiveUp := func(id dsas.Digest) {
		t.Helper()
		if _, err := r.state.Publish(t.Context(), "web", func(p *dsas.Published) ([]dsas.Event, error) {
			p.StartCanary(dsas.Canary{Release: id, Nodes: []string{"w101"}})
			return nil, p.RollBack("ann", p.Since)
		}); err != nil {
			t.Fatal(err)
		}
	}
	sync := func() {
		t.Helper()
		if _, err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := r.state.Published("web"); p.Current != one.ID {
			t.Errorf("published = %+v; want web:1 still", p)
		}
	}
	if err := r.Propose(one.ID); err != nil {
		t.Fatal(err)
	}
	sync()
	tryAndGiveUp(two.ID)
	if err := r.Propose(two.ID); err != nil {
		t.Fatal(err)
	}
	sync()
	tryAndGiveUp(three.ID)
	sync()
}

func TestGCCommand(t *testing.T) {
	c := newCLI(t)
	for _, content := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"} {
		addRelease(t, c.releases.Store, "web", content)
	}
	addRelease(t, c.releases.Store, "db", "1")
	c.ok(words("node add w101 --role web --mac 52:54:00:00:01:01")...)
	c.ok(words("node add w102 --role web --mac 52:54:00:00:01:02")...)
	c.ok(words("image pin web:2 w102")...)
	for _, r := range []string{"4", "5", "7"} { // a roll-back goes to 5, the next to 4
		c.ok(words("image publish web:" + r)...)
	}
	c.ok(words("image publish web:6 --canary w101")...)
	three, err := c.releases.Find(dsas.ReleaseRef{Role: "web", Number: 3})
	if err != nil {
		t.Fatal(err)
	}
	mac, _ := dsas.ParseMAC("52:54:00:00:01:01")
	if err := c.store.CreateBoot(t.Context(), dsas.Boot{ID: "b1", Node: "w101", MAC: mac, Role: "web", Image: three.ID, TokenHash: []byte("b1"), Session: []byte("s")}); err != nil {
		t.Fatal(err)
	}
	state := filepath.Dir(c.socket)
	gc := func(args ...string) []string { return append([]string{"image", "gc", "--state", state}, args...) }
	c.fails(2, gc("--keep", "0"), "--keep 0")
	c.wantLine(c.ok(gc("--keep", "1", "--dry-run")...), "would remove web:1 web:4 web:8")
	c.wantLine(c.ok(gc("--dry-run")...), "would remove web:1")
	c.wantLine(c.ok("image", "ls"), "web:1")
	out := c.ok(gc("--keep", "1")...)
	c.wantLine(out, "removed web:1 web:4 web:8")
	c.wantLine(out, "freed", "newer than an hour")
	c.wantLine(c.ok(gc("--keep", "1", "--json")...), `"releases": []`)
	list := c.ok("image", "ls")
	for _, name := range []string{"db:1", "web:2", "web:3", "web:5", "web:6", "web:7", "web:9"} {
		c.wantLine(list, name)
	}
	for _, name := range []string{"web:1 ", "web:4 ", "web:8 "} {
		if strings.Contains(list, name) {
			t.Errorf("%sis still there:\n%s", name, list)
		}
	}
	// What can boot no node is not kept, nor does it take the place of what can.
	nine, err := c.releases.Find(dsas.ReleaseRef{Role: "web", Number: 9})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(state, "images", "blobs", "sha256", nine.Manifest.Digest.Hex()), 0); err != nil {
		t.Fatal(err)
	}
	c.wantLine(c.ok(gc("--keep", "1")...), "removed web:9")
	c.wantLine(c.ok("image", "ls"), "web:7", "current")
	// Another store than the server's, and no server.
	other := t.TempDir()
	c.fails(1, []string{"image", "gc", "--state", other}, "there is no image store", "--state")
	if entries, err := os.ReadDir(other); err != nil || len(entries) > 0 {
		t.Errorf("gc of a folder without a store made %v, %v", entries, err)
	}
	if err := os.Mkdir(filepath.Join(other, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.fails(1, []string{"image", "gc", "--state", other}, "other releases", "--state")
	c.socket = filepath.Join(state, "none")
	c.fails(1, gc(), "systemctl start dsas")
}
