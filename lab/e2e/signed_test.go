package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dsas"
)

// TestSigned boots one node, for work on this alone; TestRack does the same with
// a node that it has.
func TestSigned(t *testing.T) {
	r, w := alone(t)
	testSigned(t, r, w)
}

// testSigned: a release without a signature and one whose manifest was changed
// are refused by the node, which says so and comes up when they are mended.
func testSigned(t *testing.T, r *rack, b *box) {
	var v dsas.ReleaseView
	decode(t, r.dsas(t, "image", "show", r.node(t, b.Name()).Release.Assigned, "--json"), &v) // not the role's latest: that is what was captured
	for _, e := range r.events(t, b.Name(), 0) {
		if e.Kind == dsas.KindFetch && !regexp.MustCompile(`release [a-z]+:\d+, signed .* by key [0-9A-F]{16}`).MatchString(e.Message) {
			t.Errorf("%s: %s; want the release's name and the key, as they are signed", e.Kind, e.Message)
		}
	}
	refused := func(what, reason string) (mark int64) {
		t.Helper()
		mark = r.mark(t, b.Name())
		r.dsas(t, "power", "cycle", b.Name())
		e := b.wait(t, mark, "the refusal of "+what, kind(dsas.KindFailed))
		for _, want := range []string{"release refused", v.Name, reason, "dsas image sign " + v.Name} {
			if !strings.Contains(e.Message, want) {
				t.Errorf("%s: the refusal says %q; want %q in it", what, e.Message, want)
			}
		}
		b.saw(t, mark, dsas.KindConfigTaken, dsas.KindPartBad, dsas.KindFailed)
		for _, e := range r.events(t, b.Name(), mark) {
			if e.Kind == dsas.KindFetch || e.Kind == dsas.KindReady {
				t.Errorf("%s: %s %s; want nothing fetched", what, e.Kind, e.Message)
			}
		}
		if _, err := b.WaitSerial(t.Context(), regexp.MustCompile(`dsas: FAILED: release refused: .*`+regexp.QuoteMeta(reason))); err != nil {
			t.Errorf("%s: console: %v", what, err)
		}
		return e.ID
	}

	index := filepath.Join(r.state, "images", "index.json")
	unsign(t, index, v.Manifest.Digest)
	eventually(t, "the server sees it", func() error { // it looks ten times a second
		var now dsas.ReleaseView
		decode(t, r.dsas(t, "image", "show", v.Name, "--json"), &now)
		if !strings.Contains(now.Refused, v.Name+" is not signed") {
			return fmt.Errorf("image show: refused %q", now.Refused)
		}
		return nil
	})
	if out, err := r.try("image", "pin", v.Name, b.Name()); err == nil || !strings.Contains(err.Error(), "dsas image sign "+v.Name) {
		t.Errorf("image pin of what is not signed = %q, %v; want it refused with the way out", out, err)
	}
	refused("an unsigned release", v.Name+" is not signed")
	r.dsas(t, "image", "sign", v.Name, "--config", r.conf)

	// The server keeps what it has read: started anew, it reads the changed one.
	manifest := filepath.Join(r.state, "images", "blobs", "sha256", v.Manifest.Digest.Hex())
	good, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(good, []byte(`"dsas.title":"base"`), []byte(`"dsas.title":"bash"`), 1)
	if bytes.Equal(bad, good) {
		t.Fatalf("no layer is called base: %s", good)
	}
	write := func(content []byte) {
		t.Helper()
		r.stopServer()
		if err := os.WriteFile(manifest, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r.startServer()
	}
	write(bad)
	mark := refused("a changed manifest", "is not of this manifest")
	write(good)
	eventuallyReady(t, b, mark)
}

// unsign takes the lines of a manifest's signatures out of the index.
func unsign(t *testing.T, index string, manifest dsas.Digest) {
	t.Helper()
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	var x map[string]any
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	var kept []any
	lines, _ := x["manifests"].([]any)
	for _, l := range lines {
		notes, _ := l.(map[string]any)["annotations"].(map[string]any)
		if notes["dsas.subject"] != string(manifest) {
			kept = append(kept, l)
		}
	}
	if len(kept) == len(lines) {
		t.Fatalf("the index has no signature of %s", manifest)
	}
	x["manifests"] = kept
	if b, err = json.Marshal(x); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index+".test", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(index+".test", index); err != nil {
		t.Fatal(err)
	}
}
