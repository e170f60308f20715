package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"dsas"
	"dsas/server/api"
)

// TestConfChecked: a node's own lines are looked at when they are set, and at no
// other change of the node.
func TestConfChecked(t *testing.T) {
	asked := 0
	f := newFixture(t, func(d *api.Deps) {
		d.CheckConf = func(n dsas.Node) error {
			asked++
			if strings.Contains(n.Conf, "wrong") {
				return fmt.Errorf("conf: line 1: of %s: %w", n.Name, dsas.ErrInvalid)
			}
			return nil
		}
	})
	do := func(method, path, body string, status, looks int, want string) {
		t.Helper()
		before := asked
		got, text := f.do(method, path, body)
		if got != status || asked-before != looks || !strings.Contains(text, want) {
			t.Errorf("%s %s %s = %d %s, looked at %d times; want %d, %d times, %q", method, path, body, got, text, asked-before, status, looks, want)
		}
	}
	do("POST", "/nodes", nodeJSON("w101", "52:54:00:00:00:01", `,"conf":"wrong"`), http.StatusBadRequest, 1, "node w101: conf: line 1")
	do("POST", "/nodes", nodeJSON("w101", "52:54:00:00:00:01", `,"conf":"A=1"`), http.StatusCreated, 1, "")
	do("POST", "/nodes", nodeJSON("w102", "52:54:00:00:00:02", ``), http.StatusCreated, 0, "")
	do("PATCH", "/nodes/w101", `{"conf":"wrong"}`, http.StatusBadRequest, 1, "node w101: conf: line 1")
	do("PATCH", "/nodes/w101", `{"role":"web"}`, http.StatusOK, 0, "")
	do("PATCH", "/nodes/w101", `{"conf":null}`, http.StatusOK, 0, "")
	// What was stored before the check was there keeps nobody from a change.
	if _, err := f.store.UpdateNode(t.Context(), "w102", func(n *dsas.Node) error { n.Conf = "wrong"; return nil }); err != nil {
		t.Fatal(err)
	}
	do("PATCH", "/nodes/w102", `{"role":"db","conf":"wrong"}`, http.StatusOK, 0, "")
}
