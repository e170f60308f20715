package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"dsas"
)

// release stores a release of role.
func (f *fixture) release(role, content string) dsas.Release {
	f.Helper()
	part := func(content string) dsas.Part {
		d, n, err := f.images.Put(f.Context(), strings.NewReader(content))
		if err != nil {
			f.Fatal(err)
		}
		return dsas.Part{Digest: d, DiffID: d, Size: n, MediaType: dsas.MediaTarZstd, Title: "base"}
	}
	r, err := f.images.AddRelease(f.Context(), dsas.Release{Role: role, Boot: dsas.BootSet{Release: "6.1", Kernel: part("k"), Initramfs: part("i")},
		Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{part(content)}}})
	if err != nil {
		f.Fatal(err)
	}
	return r
}

func (f *fixture) publish(r dsas.Release) {
	f.Helper()
	f.want(200, "POST", "/roles/"+r.Role+"/publish", `{"release": "`+r.Name()+`"}`, nil)
}

func TestPublishAndRollBack(t *testing.T) {
	f := newFixture(t)
	one, two := f.release("web", "one"), f.release("web", "two")
	f.release("db", "one")
	f.refused(404, "POST", "/roles/web/publish", `{"release": "web:9"}`, "web:9", "dsas image ls web")
	f.refused(400, "POST", "/roles/web/publish", `{"release": "db:1"}`, "db:1", "role db")
	f.refused(400, "POST", "/roles/web/publish", `{"release": "web:x"}`, "web:7")
	f.refused(409, "POST", "/roles/web/rollback", "", "role web: nothing is published", "dsas image ls web")
	for _, role := range []string{"wbe", "nope"} {
		f.refused(404, "POST", "/roles/"+role+"/rollback", "", `role "`+role+`": does not exist`, "db, lb, web")
		f.refused(404, "GET", "/releases?role="+role, "", `role "`+role+`": does not exist`)
		f.refused(404, "GET", "/releases/"+role, "", `role "`+role+`": does not exist`)
	}
	f.refused(404, "GET", "/releases/wbe:1", "", `did you mean "web"?`)
	f.refused(404, "GET", "/releases/lb", "", "role lb has no release", "dsas image build lb")
	f.release("later", "one") // its definition came after the server's start
	f.want(200, "GET", "/releases?role=later", "", nil)

	var p dsas.Published
	f.want(200, "POST", "/roles/web/publish?dryRun=1", `{"release": "web:1"}`, &p)
	if p.Current != one.ID {
		t.Errorf("dry run = %+v; want web:1 to be current", p)
	}
	if got := f.store.Published("web"); got.Current != "" {
		t.Errorf("after a dry run %+v is published; want nothing", got)
	}
	f.publish(one)
	f.refused(409, "POST", "/roles/web/rollback", "", "role web: no release was published before", "dsas image publish")
	f.publish(two)
	f.want(200, "POST", "/roles/web/rollback", "", &p)
	if p.Current != one.ID || p.By != "operator" {
		t.Errorf("rolled back to %+v; want web:1, by operator", p)
	}
	var list []dsas.ReleaseView
	f.want(200, "GET", "/releases?role=web", "", &list)
	if len(list) != 2 || !list[0].Current || list[1].Current || list[1].Name != "web:2" {
		t.Errorf("releases = %+v; want web:1, current, and web:2", list)
	}
	events, err := f.store.Events(t.Context(), dsas.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, e := range events {
		if e.Kind == dsas.KindPublished {
			texts = append(texts, e.Message)
		}
	}
	want := []string{"role web: nodes boot release web:1, by operator", "role web: nodes boot release web:2, before web:1, by operator", "role web: nodes boot release web:1, before web:2, by operator"}
	if !slices.Equal(texts, want) {
		t.Errorf("events say %q; want %q", texts, want)
	}
}

func TestPin(t *testing.T) {
	f := newFixture(t)
	one, two := f.release("web", "one"), f.release("web", "two")
	f.release("db", "one")
	f.publish(two)
	node := func(name, mac, role string) string {
		b, _ := json.Marshal(map[string]any{"name": name, "nics": []map[string]string{{"mac": mac}}, "role": role})
		return string(b)
	}
	f.want(201, "POST", "/nodes", node("w101", "52:54:00:00:01:01", "web"), nil)
	f.want(201, "POST", "/nodes", node("w102", "52:54:00:00:01:02", "web"), nil)
	release := func(name string) (dsas.Node, dsas.NodeRelease) {
		t.Helper()
		var v dsas.NodeView
		f.want(200, "GET", "/nodes/"+name, "", &v)
		if v.Release == nil {
			t.Fatalf("node %s has no release in its view", name)
		}
		return v.Node, *v.Release
	}
	f.refused(404, "PATCH", "/nodes/w101", `{"release": "web:9"}`, "w101", "web:9")
	f.refused(400, "PATCH", "/nodes/w101", `{"release": "db:1"}`, "w101", "db:1", "role is web")
	f.want(200, "PATCH", "/nodes", `{"nodes": ["w101"], "patch": {"release": "web:1"}}`, nil)
	if n, r := release("w101"); n.Release != one.ID || r.Assigned != "web:1" || !r.Changes {
		t.Errorf("pinned node = %s, %+v; want web:1 at its next boot", n.Release, r)
	}
	if _, r := release("w102"); r.Assigned != "web:2" {
		t.Errorf("another node = %+v; want web:2", r)
	}
	var v dsas.ReleaseView
	f.want(200, "GET", "/releases/web:1", "", &v)
	if !slices.Equal(v.Pinned, []string{"w101"}) || !slices.Equal(v.Assigned, []string{"w101"}) {
		t.Errorf("release web:1 = pinned %q, assigned %q; want w101", v.Pinned, v.Assigned)
	}
	// What is pinned stays editable where its release was removed by hand.
	if _, err := f.store.UpdateNode(t.Context(), "w102", func(n *dsas.Node) error { n.Release = "sha256:" + dsas.Digest(strings.Repeat("a", 64)); return nil }); err != nil {
		t.Fatal(err)
	}
	f.want(200, "PATCH", "/nodes/w102", `{"loader": "ipxe"}`, nil)
	// Another role ends the pin.
	f.want(200, "PATCH", "/nodes/w101", `{"role": "db"}`, nil)
	if n, r := release("w101"); n.Release != "" || r.Assigned != "" {
		t.Errorf("after a change of role: %s, %+v; want no pin, and nothing published for db", n.Release, r)
	}
	f.want(200, "PATCH", "/nodes/w101", `{"role": "web", "release": "web:1"}`, nil)
	f.want(200, "PATCH", "/nodes/w101", `{"release": null}`, nil)
	if n, r := release("w101"); n.Release != "" || r.Assigned != "web:2" {
		t.Errorf("unpinned: %s, %+v; want web:2", n.Release, r)
	}
}

// TestUnsigned: what is not signed is published, pinned and rolled back to by
// nobody; what nodes boot already stays.
func TestUnsigned(t *testing.T) {
	f := newFixture(t)
	one, two := f.release("web", "one"), f.release("web", "two")
	f.publish(one)
	f.publish(two)
	f.unsigned["web:1"] = true
	f.refused(409, "POST", "/roles/web/publish", `{"release": "web:1"}`, "web:1 is not signed", "dsas image sign web:1")
	f.refused(409, "POST", "/roles/web/publish?dryRun=1", `{"release": "web:1"}`, "web:1 is not signed")
	f.refused(409, "POST", "/roles/web/rollback", "", "web:1 is not signed")
	f.want(201, "POST", "/nodes", nodeJSON("w101", "52:54:00:00:00:01", `,"role":"web"`), nil)
	f.refused(409, "PATCH", "/nodes/w101", `{"release": "web:1"}`, "w101", "web:1 is not signed")
	if p := f.store.Published("web"); p.Current != two.ID {
		t.Errorf("published = %+v; want web:2, as before", p)
	}
	f.unsigned["web:2"] = true
	f.publish(two) // nothing changes by it
	var list []dsas.ReleaseView
	f.want(200, "GET", "/releases?role=web", "", &list)
	if len(list) != 2 || !strings.Contains(list[1].Refused, "dsas image sign web:2") || !list[1].Current {
		t.Errorf("releases = %+v; want web:2 current, and why it is refused", list)
	}
}
