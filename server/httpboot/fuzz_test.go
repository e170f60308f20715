package httpboot_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"dsas"
	"dsas/client/sign"
)

// FuzzPath: whatever path and query the boot network asks for, nothing outside
// of what is served comes back, and nothing panics.
func FuzzPath(f *testing.F) {
	fix := open(f, nil)
	fix.setMenu("rescue")
	blob := "/v2/dsas/boot/blobs/" + string(fix.boot.Kernel.Digest)
	for _, p := range []string{"/boot/script.ipxe", scriptPath(mac101), scriptPath(mac101) + "?role=rescue", "/boot/52-54-00-00-01-01/failed?why=%ff", blob,
		"/v2/dsas/x/blobs/sha256:..%2f..%2fkey", "/nbp/snponly.efi", "/nbp/52-54-00-00-01-01/..%2f..%2fkey", "/node/config", "/node/files?wait=0s", "//", "/%00"} {
		f.Add("GET", p)
	}
	f.Add("HEAD", blob)
	f.Add("POST", "/node/events")
	f.Fuzz(func(t *testing.T, method, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		r, err := http.NewRequest(method, "http://h/", nil)
		if err != nil {
			return
		}
		r.Body = http.NoBody // never nil at a server
		r.URL, r.RequestURI, r.RemoteAddr = u, path, netip.AddrPortFrom(w101, 1).String()
		w := httptest.NewRecorder()
		fix.srv.Handler().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%s %q = %d %s; want no failure of ours", method, path, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), fix.dir) {
			t.Errorf("%s %q tells of the server's files: %.200q", method, path, w.Body)
		}
		if n, err := fix.Node(t.Context(), "w101"); err != nil || n.Role != "web" {
			t.Errorf("%s %q changed the node: %+v, %v", method, path, n, err)
		}
	})
}

// FuzzEvents: whatever a node that holds its key posts, what is stored is about
// itself and of the kinds that are its to say.
func FuzzEvents(f *testing.F) {
	fix := open(f, nil)
	id, token := fix.begin(w101, mac101)
	cfg, err := fix.node(w101, id).Config(f.Context(), token)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range []string{`[]`, `[{"kind":"node.ready"}]`, `[{"kind":"node.inventory","detail":"{}"}]`, `[{"kind":"node.failed","node":"w102","mac":"00:00:00:00:00:01","boot":"x","id":7,"time":"0001-01-01T00:00:00Z"}]`,
		`[{"kind":"power"}]`, `{}`, `[[[[[[`, `[{"kind":"node.ready","duration":-1,"bytes":-1}]`, "[{\"kind\":\"node.warning\",\"message\":\"\xff\"}]"} {
		f.Add([]byte(b))
	}
	var last int64
	f.Fuzz(func(t *testing.T, body []byte) {
		fix.t = t
		code := fix.signed(w101, id, cfg.SessionKey, fix.now(), sign.NewNonce(), "POST", "/node/events", string(body), nil)
		if code != http.StatusNoContent && code != http.StatusBadRequest {
			t.Fatalf("%q = %d; want 204 or 400", body, code)
		}
		list, err := fix.Events(t.Context(), dsas.EventFilter{After: last})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			last = e.ID
			if e.Node != "w101" || e.MAC != mac101 || !strings.HasPrefix(string(e.Kind), "node.") && !strings.HasPrefix(string(e.Kind), "boot.") || e.Kind == dsas.KindAssigned || len(e.Message) > 2<<10 || len(e.Detail) > 16<<10 {
				t.Errorf("%q was stored as %+v", body, e)
			}
		}
	})
}
