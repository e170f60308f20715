package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dsas"
)

// testCanary has a node try a release whose nginx cannot start, with the server
// killed in the middle: it is rolled back by itself and the node comes back with
// what it had. What is published during that boot is for the next one, which is
// good and is promoted.
func testCanary(t *testing.T, r *rack, b *box) {
	old := r.node(t, b.Name()).Release.Running
	if old == "" {
		t.Fatalf("%s runs no release", b.Name())
	}
	begin := r.mark(t, "")
	role := filepath.Join(r.state, "roles", "web")
	if err := os.RemoveAll(role); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(role, os.DirFS(filepath.Join(r.root, "roles", "web"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(role); err != nil {
			t.Error(err)
		}
		r.stopServer()
		r.startServer()
		r.dsas(t, "image", "publish", old)
	})
	change := func(file, was, now string) {
		t.Helper()
		file = filepath.Join(role, file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(text), was, now, 1)
		if changed == string(text) {
			t.Fatalf("%s has no %q", file, was)
		}
		if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func() {
		t.Helper()
		r.dsas(t, "image", "build", "web", "--config", r.conf, "--canary", b.Name())
	}
	change("role.yaml", "  - name: nginx\n", "  - name: nginx\n    timeout: 45s\n")
	change("role.yaml", "memory:", "bootTime: 7m\nmemory:")
	r.stopServer()
	r.startServer() // it reads definitions when it starts

	// A bad one.
	const conf = "files/etc/nginx/nginx.conf"
	mark := r.mark(t, b.Name())
	change(conf, "http {", "no_such_directive on;\nhttp {")
	r.dsas(t, "image", "build", "web", "--config", r.conf, "--canary", b.Name(), "--cycle")
	bad := r.node(t, b.Name()).Release
	if !bad.Canary || bad.Assigned == old {
		t.Errorf("its release is %+v; want another than %s, as a canary", bad, old)
	}
	switched := b.wait(t, mark, "its services to start", kind(dsas.KindSwitched))
	r.killServer()
	r.startServer()
	failed := b.wait(t, switched.ID, "the failure", kind(dsas.KindFailed))
	rolled := b.wait(t, failed.ID, "the roll-back", kind(dsas.KindRolledBack))
	for _, want := range []string{bad.Assigned + " is given up", "nodes boot " + old, b.Name() + " failed: ", "nginx"} {
		if !strings.Contains(rolled.Message, want) {
			t.Errorf("the roll-back says %q; want %q in it", rolled.Message, want)
		}
	}

	// The server power-cycles it. During that boot another release is published for it.
	b.wait(t, rolled.ID, "its next boot", kind(dsas.KindScript))
	change(conf, "no_such_directive on;\nhttp {", "# changed\nhttp {")
	build()
	b.ready(t, rolled.ID)
	v := r.node(t, b.Name()).Release
	if v.Running != old || v.Assigned == old || v.Assigned == bad.Assigned || !v.Canary || !v.Changes {
		t.Errorf("after the roll-back it has %+v; want that it runs %s, and would boot a third release as a canary", v, old)
	}
	if out := r.dsas(t, "image", "ls", "web"); !strings.Contains(out, "canary 0/1 ready") {
		t.Errorf("image ls shows no canary:\n%s", out)
	}

	// The good one.
	mark = r.mark(t, b.Name())
	b.boot(t)
	b.wait(t, mark, "being told as ready", kind(dsas.KindCanary))
	if got := r.node(t, b.Name()).Release; got.Running != v.Assigned || got.Canary || got.Changes {
		t.Errorf("after a good canary it has %+v; want it to run %s, which is what its role boots", got, v.Assigned)
	}
	if out := b.ssh(t, "grep -c '^# changed' /etc/nginx/nginx.conf"); out != "1" {
		t.Errorf("its nginx.conf has %q lines of the good release; want 1", out)
	}
	var story []dsas.Kind
	for _, e := range r.events(t, "", begin) {
		if strings.HasPrefix(string(e.Kind), "image.") {
			story = append(story, e.Kind)
		}
	}
	if want := []dsas.Kind{dsas.KindCanary, dsas.KindRolledBack, dsas.KindCanary, dsas.KindCanary, dsas.KindPromoted, dsas.KindPublished}; !slices.Equal(story, want) {
		t.Errorf("the events tell %v; want %v", story, want)
	}
}
