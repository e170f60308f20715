package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestCanary(t *testing.T) {
	f := newFixture(t)
	one, two := f.release("web", "one"), f.release("web", "two")
	for i := 1; i <= 4; i++ {
		role := "web"
		if i == 4 {
			role = "db"
		}
		f.want(201, "POST", "/nodes", fmt.Sprintf(`{"name": "w10%d", "nics": [{"mac": "52:54:00:00:01:0%d"}], "role": "%s"}`, i, i, role), nil)
	}
	try := func(canary string) string { return `{"release": "web:2", "canary": ` + canary + `}` }
	f.refused(409, "POST", "/roles/web/publish", try(`{"nodes": ["w101"]}`), "web", "nothing is published")
	f.publish(one)
	f.want(200, "PATCH", "/nodes/w103", `{"release": "web:1"}`, nil)
	f.refused(409, "POST", "/roles/web/publish", `{"release": "web:1", "canary": {"nodes": ["w101"]}}`, "web:1 already")
	f.refused(404, "POST", "/roles/web/publish", try(`{"nodes": ["w109"]}`), "w109")
	f.refused(400, "POST", "/roles/web/publish", try(`{"nodes": ["w104"]}`), "w104", "role of node w104 is db")
	f.refused(409, "POST", "/roles/web/publish", try(`{"nodes": ["w103"]}`), "w103 is pinned", "dsas image unpin w103")
	f.refused(400, "POST", "/roles/web/publish", try(`{}`), "either its nodes or a percentage")
	f.refused(400, "POST", "/roles/web/publish", try(`{"nodes": ["w101"], "percent": 10}`), "either its nodes or a percentage")
	f.refused(400, "POST", "/roles/web/publish", try(`{"percent": 101}`), "101%")
	f.refused(409, "POST", "/roles/web/publish", try(`{"percent": 10}`), "not pinned (2) none is ready")

	var p dsas.Published
	f.want(200, "POST", "/roles/web/publish?dryRun=1", try(`{"nodes": ["w101"]}`), &p)
	if p.Canary == nil || f.store.Published("web").Canary != nil {
		t.Errorf("a dry run = %+v, and %+v is stored; want a canary, and none stored", p, f.store.Published("web"))
	}
	f.want(200, "POST", "/roles/web/publish", try(`{"nodes": ["w102", "w101"], "cycle": true}`), &p)
	if p.Current != one.ID || p.Canary == nil || p.Canary.Release != two.ID || !slices.Equal(p.Canary.Nodes, []string{"w101", "w102"}) || p.Canary.By != "operator" || !p.Canary.Cycle {
		t.Errorf("published = %+v, canary %+v; want web:1, and web:2 on w101 and w102, by operator", p, p.Canary)
	}
	var v dsas.ReleaseView
	f.want(200, "GET", "/releases/web:2", "", &v)
	if !slices.Equal(v.Canary, []string{"w101", "w102"}) || !slices.Equal(v.Assigned, []string{"w101", "w102"}) || len(v.Ready) != 0 || v.Current {
		t.Errorf("release web:2 = %+v; want it to be tried by w101 and w102", v)
	}
	var n dsas.NodeView
	f.want(200, "GET", "/nodes/w101", "", &n)
	if n.Release == nil || !n.Release.Canary || n.Release.Assigned != "web:2" {
		t.Errorf("release of w101 = %+v; want web:2, as a canary", n.Release)
	}
	n = dsas.NodeView{}
	f.want(200, "GET", "/nodes/w103", "", &n)
	if n.Release == nil || n.Release.Canary {
		t.Errorf("release of w103 = %+v; want no canary", n.Release)
	}
	// A roll-back ends the canary and nothing else, though nothing was before.
	f.want(200, "POST", "/roles/web/rollback", "", &p)
	if got := f.store.Published("web"); got.Canary != nil || got.Current != one.ID {
		t.Errorf("after a roll-back = %+v; want web:1 and no canary", got)
	}
	f.want(200, "POST", "/roles/web/publish", try(`{"nodes": ["w101"]}`), nil)
	f.publish(two)
	if got := f.store.Published("web"); got.Canary != nil || got.Current != two.ID {
		t.Errorf("after publishing it = %+v; want web:2 and no canary", got)
	}
	events, err := f.store.Events(t.Context(), dsas.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range events {
		if strings.HasPrefix(string(e.Kind), "image.") {
			kinds = append(kinds, string(e.Kind))
		}
	}
	if want := []string{"image.published", "image.canary", "image.canary-ended", "image.canary", "image.promoted", "image.published"}; !slices.Equal(kinds, want) {
		t.Errorf("the events tell of %q; want %q", kinds, want)
	}
}

// TestCanaryPercent: of the nodes that are ready.
func TestCanaryPercent(t *testing.T) {
	f := newFixture(t)
	one, two := f.release("web", "one"), f.release("web", "two")
	f.publish(one)
	for i := 1; i <= 3; i++ {
		f.want(201, "POST", "/nodes", fmt.Sprintf(`{"name": "w10%d", "nics": [{"mac": "52:54:00:00:01:0%d"}], "role": "web"}`, i, i), nil)
	}
	mac, _ := dsas.ParseMAC("52:54:00:00:01:02")
	if err := f.store.CreateBoot(t.Context(), dsas.Boot{ID: "b1", Node: "w102", MAC: mac, Role: "web", Image: one.ID, TokenHash: []byte("b1"), Session: []byte("s")}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.AddEvent(t.Context(), dsas.Event{Node: "w102", Boot: "b1", Kind: dsas.KindReady}); err != nil {
		t.Fatal(err)
	}
	var p dsas.Published
	f.want(200, "POST", "/roles/web/publish", `{"release": "`+string(two.ID)+`", "canary": {"percent": 50}}`, &p)
	if p.Canary == nil || !slices.Equal(p.Canary.Nodes, []string{"w102"}) {
		t.Errorf("canary = %+v; want w102, the only one that is ready", p.Canary)
	}
	var booted []dsas.Digest
	f.want(200, "GET", "/boots/releases", "", &booted)
	if !slices.Equal(booted, []dsas.Digest{one.ID}) {
		t.Errorf("boots may fetch %v; want web:1", booted)
	}
	// A boot of long ago still counts while its node runs on with it.
	late, err := f.store.BootReleases(context.Background(), time.Now().Add(time.Hour))
	if err != nil || !slices.Equal(late, []dsas.Digest{one.ID}) {
		t.Errorf("BootReleases(later) = %v, %v; want web:1, which w102 runs", late, err)
	}
}
