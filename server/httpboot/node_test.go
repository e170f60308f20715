package httpboot_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dsas"
	"dsas/client/sign"
	"dsas/server/httpboot"
)

func TestNodeConfig(t *testing.T) {
	f := open(t, nil)
	id, token := f.begin(w101, mac101)
	n := f.node(w101, id)
	first, err := n.Config(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := f.blobs.Assigned(nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	m := rel.Manifest
	if first.Node != "w101" || first.Boot != id || first.Role.Name != "web" || !reflect.DeepEqual(first.Manifest, m) || len(first.SessionKey) != 32 || first.Heartbeat != time.Second {
		t.Errorf("node config = %+v; want w101's, as web, with a session key", first)
	}
	if !strings.Contains(first.Conf, "SYSTEMNAME=w101") || !strings.Contains(first.Conf, "IPADDRESS0=127.77.0.101/24") {
		t.Errorf("dsas.conf:\n%s\nwant the name and the address in it", first.Conf)
	}
	secrets := 0
	for _, file := range first.Files {
		if file.Path == "/etc/ssh/ssh_host_ed25519_key" {
			secrets++
		}
	}
	if secrets != 1 {
		t.Errorf("%d host keys among %d files; want 1", secrets, len(first.Files))
	}
	same := func(when string) {
		t.Helper()
		again, err := f.node(w101, id).Config(t.Context(), token)
		again.Time = first.Time
		if err != nil || !reflect.DeepEqual(again, first) {
			t.Errorf("%s: node config = %+v, %v; want the same again", when, again, err)
		}
	}
	same("the reply was lost")
	// A SIGKILL leaves the store as it is: no Close.
	f.openStore()
	f.restart()
	same("the server was killed and started again")
	if _, err := f.node(w102, id).Config(t.Context(), token); !errors.Is(err, dsas.ErrDenied) {
		t.Errorf("node config for another node's address: %v; want ErrDenied", err)
	}
	same("somebody else asked")
	f.later(14 * time.Minute)
	same("14 minutes later")
	if st := f.status("w101"); st.Phase != dsas.PhaseInit {
		t.Errorf("phase = %s; want init", st.Phase)
	}

	f.later(2 * time.Minute)
	if _, err := f.node(w101, id).Config(t.Context(), token); !errors.Is(err, dsas.ErrDenied) || !strings.Contains(err.Error(), "older than 15m") {
		t.Errorf("node config after 16 minutes: %v; want ErrDenied, naming 15 minutes", err)
	}
}

func TestTokenEndsWithFirstSignature(t *testing.T) {
	for name, prove := range map[string]func(*fixture, string, []byte){
		"event": func(f *fixture, id string, key []byte) {
			f.signed(w101, id, key, f.now(), sign.NewNonce(), "POST", "/node/events", `[{"kind":"node.init"}]`, nil)
		},
		"heartbeat": func(f *fixture, id string, key []byte) {
			f.signed(w101, id, key, f.now(), sign.NewNonce(), "POST", "/node/heartbeat", "", nil)
		},
		"files": func(f *fixture, id string, key []byte) {
			f.signed(w101, id, key, f.now(), sign.NewNonce(), "GET", "/node/files?wait=0s", "", nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := open(t, nil)
			id, token := f.begin(w101, mac101)
			cfg, err := f.node(w101, id).Config(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			// A bad signature does not end it.
			f.signed(w101, id, []byte("not the key"), f.now(), sign.NewNonce(), "POST", "/node/heartbeat", "", nil)
			if _, err := f.node(w101, id).Config(t.Context(), token); err != nil {
				t.Errorf("node config after a forged request: %v; want it once more", err)
			}
			prove(f, id, cfg.SessionKey)
			for range 3 {
				if _, err := f.node(w101, id).Config(t.Context(), token); !errors.Is(err, dsas.ErrDenied) {
					t.Errorf("node config after a signed request: %v; want ErrDenied", err)
				}
			}
			// Said once, by the server, of no boot: it is not the node's word.
			if e := f.events(dsas.KindWarning); len(e) != 1 || e[0].Boot != "" || e[0].Node != "w101" || !strings.Contains(e[0].Message, "used already") {
				t.Errorf("warnings = %+v; want one", e)
			}
			f.openStore()
			f.restart()
			if _, err := f.node(w101, id).Config(t.Context(), token); !errors.Is(err, dsas.ErrDenied) {
				t.Errorf("node config from a restarted server: %v; want ErrDenied", err)
			}
		})
	}
}

func TestNodeConfigRefuses(t *testing.T) {
	f := open(t, nil)
	_, token := f.begin(w101, mac101)
	for name, header := range map[string]string{"none": "", "basic": "Basic " + token, "empty": "Bearer ", "unknown": "Bearer " + strings.Repeat("0", 32), "long": "Bearer " + strings.Repeat("0", 4000)} {
		if a := f.get(w101, "/node/config", "Authorization", header); a.code != http.StatusForbidden || strings.Contains(a.body, token) {
			t.Errorf("%s: GET /node/config = %d %q; want 403", name, a.code, a.body)
		}
	}
	// The server's own failure: told once a minute, and the token stays good.
	id, token := f.begin(w101, mac101)
	f.rend.fail(errors.New("open /var/lib/dsas/secret-path"))
	for range 3 {
		a := f.get(w101, "/node/config", "Authorization", "Bearer "+token)
		if a.code != http.StatusInternalServerError || strings.Contains(a.body, "secret-path") {
			t.Errorf("GET /node/config = %d %q; want 500 without what is only for the log", a.code, a.body)
		}
	}
	if e := f.events(dsas.KindFailed); len(e) != 1 || e[0].Boot != "" || !strings.Contains(e[0].Message, "render role web") {
		t.Errorf("events = %+v; want one that says what failed", e)
	}
	if st := f.status("w101"); st.Phase != dsas.PhaseFailed || !st.LastSeen.IsZero() {
		t.Errorf("status = %+v; want failed, never seen", st)
	}
	f.rend.fail(nil)
	if _, err := f.node(w101, id).Config(t.Context(), token); err != nil {
		t.Errorf("node config when it can be made again: %v", err)
	}
}

// TestImagePublishedDuringBoot: a booting node keeps the image it began with.
func TestImagePublishedDuringBoot(t *testing.T) {
	f := open(t, nil)
	rel, err := f.blobs.Assigned(nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	before := rel.Manifest
	id, token := f.begin(w101, mac101)
	after := f.publish("web", "second").Manifest
	if before.Digest == after.Digest {
		t.Fatal("both images have the same digest")
	}
	f.restart()
	cfg, err := f.node(w101, id).Config(t.Context(), token)
	if err != nil || cfg.Manifest.Digest != before.Digest {
		t.Fatalf("image of the boot = %s, %v; want %s", cfg.Manifest.Digest.Short(), err, before.Digest.Short())
	}
	for _, p := range cfg.Manifest.Parts {
		if a := f.get(w101, "/v2/dsas/web/blobs/"+string(p.Digest)); a.code != 200 || a.body != "web first" {
			t.Errorf("its part = %d %q; want the first image's", a.code, a.body)
		}
	}
	id, token = f.begin(w101, mac101)
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Manifest.Digest != after.Digest {
		t.Errorf("image of the next boot = %s, %v; want %s", cfg.Manifest.Digest.Short(), err, after.Digest.Short())
	}
	// So with the role.
	id, token = f.begin(w101, mac101)
	if _, err := f.UpdateNode(t.Context(), "w101", func(n *dsas.Node) error { n.Role = "lb"; return nil }); err != nil {
		t.Fatal(err)
	}
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Role.Name != "web" {
		t.Errorf("role of a boot begun as web = %q, %v; want web", cfg.Role.Name, err)
	}
}

func TestSignedRequests(t *testing.T) {
	f := open(t, nil)
	id, token := f.begin(w101, mac101)
	cfg, err := f.node(w101, id).Config(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	other, otherToken := f.begin(w102, mac102)
	otherCfg, err := f.node(w102, other).Config(t.Context(), otherToken)
	if err != nil {
		t.Fatal(err)
	}
	const body = `[{"kind":"node.warning","message":"m"}]`
	count := func() int { return len(f.events(dsas.KindWarning)) }
	for _, c := range []struct {
		name   string
		boot   string
		key    []byte
		at     time.Time
		change func(*http.Request)
		want   int
	}{
		{"bad key", id, []byte("guess"), f.now(), nil, 403},
		{"no key", id, nil, f.now(), nil, 403},
		{"another node's key", id, otherCfg.SessionKey, f.now(), nil, 403},
		{"another node's boot", other, cfg.SessionKey, f.now(), nil, 403},
		{"forged boot", "000000000000", cfg.SessionKey, f.now(), nil, 403},
		{"boot that is no id", "' OR 1=1 --", cfg.SessionKey, f.now(), nil, 403},
		{"no boot", "", cfg.SessionKey, f.now(), nil, 403},
		{"long ago", id, cfg.SessionKey, f.now().Add(-sign.MaxSkew - time.Minute), nil, 403},
		{"in the future", id, cfg.SessionKey, f.now().Add(sign.MaxSkew + time.Minute), nil, 403},
		{"boot changed after", id, cfg.SessionKey, f.now(), func(r *http.Request) { r.Header.Set(sign.HeaderBoot, other) }, 403},
		{"time changed after", id, cfg.SessionKey, f.now(), func(r *http.Request) { r.Header.Set(sign.HeaderTime, "1") }, 403},
		{"query added after", id, cfg.SessionKey, f.now(), func(r *http.Request) { r.URL.RawQuery = "x=1" }, 403},
		{"signature gone", id, cfg.SessionKey, f.now(), func(r *http.Request) { r.Header.Del(sign.HeaderSignature) }, 403},
		{"nonce gone", id, cfg.SessionKey, f.now(), func(r *http.Request) { r.Header.Del(sign.HeaderNonce) }, 403},
		{"good", id, cfg.SessionKey, f.now(), nil, 204},
		{"a clock that is off", id, cfg.SessionKey, f.now().Add(-sign.MaxSkew + time.Minute), nil, 204},
	} {
		before := count()
		got := f.signed(w101, c.boot, c.key, c.at, sign.NewNonce(), "POST", "/node/events", body, c.change)
		if got != c.want || (count() > before) != (c.want == 204) {
			t.Errorf("%s: %d, %d events recorded; want %d", c.name, got, count()-before, c.want)
		}
	}
	before := count()
	nonce := sign.NewNonce()
	for range 3 {
		if got := f.signed(w101, id, cfg.SessionKey, f.now(), nonce, "POST", "/node/events", body, nil); got != 204 {
			t.Errorf("the same request again = %d; want 204: its first answer was lost", got)
		}
	}
	if n := count() - before; n != 1 {
		t.Errorf("a request sent three times recorded %d events; want 1", n)
	}
	// One that could not be carried out may come again as it was.
	nonce = sign.NewNonce()
	real := f.Store
	f.cfg.Store = failing{f.Store}
	f.setServer()
	if got := f.signed(w101, id, cfg.SessionKey, f.now(), nonce, "POST", "/node/events", body, nil); got != 500 {
		t.Errorf("events with a failing store = %d; want 500", got)
	}
	f.cfg.Store = real
	f.setServer()
	before = count()
	if got := f.signed(w101, id, cfg.SessionKey, f.now(), nonce, "POST", "/node/events", body, nil); got != 204 || count()-before != 1 {
		t.Errorf("the same when the store works again = %d, %d events; want 204 and 1", got, count()-before)
	}
}

// failing is a store whose disk is full.
type failing struct{ httpboot.Store }

func (failing) AddEvent(context.Context, dsas.Event) (dsas.Event, error) {
	return dsas.Event{}, errors.New("disk full")
}

func (failing) AddEvents(context.Context, []dsas.Event) ([]dsas.Event, error) {
	return nil, errors.New("disk full")
}

// setServer changes the store under the same Server, whose nonces stay.
func (f *fixture) setServer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.srv.Store = f.cfg.Store
}

func TestEvents(t *testing.T) {
	f := open(t, nil)
	n := f.run(w101, mac101)
	boot := f.status("w101").Boot
	post := func(e dsas.Event) error { return n.PostEvents(t.Context(), []dsas.Event{e}) }
	// Always about itself, whatever it writes.
	if err := post(dsas.Event{ID: 1, Node: "w102", MAC: mac102, Boot: "other", Kind: dsas.KindWarning, Message: "who am I"}); err != nil {
		t.Fatal(err)
	}
	if e := f.events(dsas.KindWarning); len(e) != 1 || e[0].Node != "w101" || e[0].MAC != mac101 || e[0].Boot != boot || e[0].ID == 1 {
		t.Errorf("event = %+v; want w101's own", e)
	}
	for _, k := range []dsas.Kind{dsas.KindPower, dsas.KindLost, dsas.KindBack, dsas.KindAssigned, dsas.KindChanged, dsas.KindScript, dsas.KindDHCP,
		dsas.KindSiteChanged, dsas.KindServer, dsas.KindPublished, "", "node.other"} {
		if err := post(dsas.Event{Kind: k}); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("a node said %q: %v; want ErrInvalid", k, err)
		}
	}
	// Texts are bounded: of a message the beginning stays, of a log the end.
	if err := post(dsas.Event{Kind: dsas.KindFiles, Message: "begin" + strings.Repeat("x", 10_000), Detail: strings.Repeat("x", 100_000) + "end"}); err != nil {
		t.Fatal(err)
	}
	if e := f.events(dsas.KindFiles)[0]; len(e.Message) > 4<<10 || !strings.HasPrefix(e.Message, "begin") || len(e.Detail) > 16<<10 || !strings.HasSuffix(e.Detail, "end") {
		t.Errorf("kept %d bytes of message and %d of detail; want them clipped", len(e.Message), len(e.Detail))
	}
	for _, c := range []struct {
		name string
		at   time.Duration // from now
		kept bool
	}{{"a while ago", -time.Hour, true}, {"before its clock was set", -30 * 24 * time.Hour, false}, {"never", -1 << 62, false}, {"in the future", time.Hour, false}} {
		at := f.now().Add(c.at)
		if err := post(dsas.Event{Kind: dsas.KindConf, Time: at}); err != nil {
			t.Fatal(err)
		}
		list := f.events(dsas.KindConf)
		got := list[len(list)-1].Time
		if kept := got.Equal(at); kept != c.kept || !kept && f.now().Sub(got).Abs() > time.Minute {
			t.Errorf("%s: time %s became %s; want it kept: %v, else now", c.name, at, got, c.kept)
		}
	}
	for name, body := range map[string]string{"no JSON": "nonsense", "an object": "{}", "too many": "[" + strings.Repeat(`{"kind":"node.warning"},`, 1000) + `{"kind":"node.warning"}]`} {
		key := f.key(boot)
		if got := f.signed(w101, boot, key, f.now(), sign.NewNonce(), "POST", "/node/events", body, nil); got != 400 {
			t.Errorf("%s: %d; want 400", name, got)
		}
	}
	if n := len(f.events(dsas.KindWarning)); n != 1 {
		t.Errorf("%d warnings; want 1: a batch that is too large is not taken in part", n)
	}
	big := `[{"kind":"node.warning","detail":"` + strings.Repeat("x", 1<<20) + `"}]`
	if got := f.signed(w101, boot, f.key(boot), f.now(), sign.NewNonce(), "POST", "/node/events", big, nil); got != 400 {
		t.Errorf("a body over 1 MiB: %d; want 400", got)
	}
}

func (f *fixture) key(boot string) []byte {
	f.t.Helper()
	b, err := f.Boot(context.Background(), boot)
	if err != nil {
		f.t.Fatal(err)
	}
	return b.Session
}

func TestHeartbeat(t *testing.T) {
	f := open(t, nil)
	n := f.run(w101, mac101)
	f.later(time.Hour)
	at := f.now()
	if err := n.Heartbeat(t.Context()); err != nil {
		// The node's idea of the time is an hour old; the refusal tells it.
		if err = n.Heartbeat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if st := f.status("w101"); st.LastSeen.Before(at) || st.Phase != dsas.PhaseReady {
		t.Errorf("after a heartbeat: last seen %s, %s; want not before %s, ready", st.LastSeen, st.Phase, at)
	}
}

func TestFiles(t *testing.T) {
	f := open(t, nil)
	n := f.run(w102, mac102) // a balancer: its files hold the sites
	first, changed, err := n.Files(t.Context(), "", 0)
	tag, files := first.Tag, first.Files
	if first.Conf == "" {
		t.Error("Files(no tag) brings no dsas.conf")
	}
	if err != nil || !changed || tag == "" || len(files) == 0 {
		t.Fatalf("Files(no tag) = %q, %d files, changed %v, %v; want them all", tag, len(files), changed, err)
	}
	for _, file := range files {
		if strings.Contains(string(file.Content), "host key") {
			t.Errorf("%s is among the files; want secrets in the node config alone", file.Path)
		}
	}
	if got, changed, err := n.Files(t.Context(), tag, 0); err != nil || changed {
		t.Errorf("Files(the tag) = %q, changed %v, %v; want the same", got.Tag, changed, err)
	}
	// A change answers a poll that waits; one that changes nothing of this
	// node's does not.
	type result struct {
		tag     string
		files   []dsas.File
		changed bool
		err     error
	}
	done := make(chan result)
	go func() {
		var r result
		got, changed, err := n.Files(t.Context(), tag, 30*time.Second)
		r = result{got.Tag, got.Files, changed, err}
		done <- r
	}()
	f.rend.change()
	f.rend.change(site)
	r := <-done
	if r.err != nil || !r.changed || r.tag == tag {
		t.Fatalf("Files over a change = %q, changed %v, %v; want another tag", r.tag, r.changed, r.err)
	}
	found := false
	for _, file := range r.files {
		found = found || strings.Contains(string(file.Content), "127.77.0.80")
	}
	if !found {
		t.Error("no file names the new site's address")
	}
	// It is answered at once when it differs already.
	if _, changed, err := n.Files(t.Context(), tag, 30*time.Second); err != nil || !changed {
		t.Errorf("Files(old tag) = changed %v, %v; want the new ones", changed, err)
	}
	// A caller that goes away ends it.
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, _, err := n.Files(ctx, r.tag, 30*time.Second); gone <- err }()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("Files with its context ended = %v; want context.Canceled", err)
	}
}

// TestFilesWait has the long poll's times, on a clock that jumps.
func TestFilesWait(t *testing.T) {
	f := open(t, nil)
	n := f.run(w102, mac102)
	first, _, err := n.Files(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	tag := first.Tag
	boot := f.status("w102").Boot
	key := f.key(boot)
	synctest.Test(t, func(t *testing.T) {
		cfg := f.cfg
		cfg.Now = time.Now
		cfg.Store = bubble{cfg.Store, boot, key}
		cfg.Renderer = still{tag}
		h := httpboot.New(cfg).Handler()
		for _, c := range []struct {
			query string
			want  time.Duration
		}{{"wait=10s", 10 * time.Second}, {"wait=0s", 0}, {"wait=1h", 30 * time.Second}, {"wait=-1s", 30 * time.Second}, {"", 30 * time.Second}, {"wait=x", 30 * time.Second}} {
			req := httptest.NewRequest("GET", "/node/files?tag="+tag+"&"+c.query, nil)
			req.Header.Set(sign.HeaderBoot, boot)
			sign.Sign(req, key, nil, time.Now(), sign.NewNonce())
			w := httptest.NewRecorder()
			start := time.Now()
			h.ServeHTTP(w, req)
			if took := time.Since(start); w.Code != http.StatusNotModified || took != c.want {
				t.Errorf("files?%s = %d after %s; want 304 after %s", c.query, w.Code, took, c.want)
			}
		}
	})
}

// bubble answers without a database, whose goroutines live outside of it.
type bubble struct {
	httpboot.Store
	boot string
	key  []byte
}

func (b bubble) Boot(context.Context, string) (dsas.Boot, error) {
	return dsas.Boot{ID: b.boot, Node: "w102", Role: "lb", Session: b.key, FirstEvent: time.Now()}, nil
}

func (bubble) Node(context.Context, string) (dsas.Node, error) { return dsas.Node{Name: "w102"}, nil }

// still is a renderer to which nothing happens.
type still struct{ tag string }

func (s still) Render(context.Context, dsas.Node, string, dsas.Digest) (httpboot.Rendered, error) {
	return httpboot.Rendered{Tag: s.tag}, nil
}
func (s still) Tag(context.Context, string, string, dsas.Digest) (string, error) { return s.tag, nil }
func (still) Secrets(context.Context, dsas.Node, bool) ([]dsas.File, error)      { return nil, nil }
func (still) Changed() <-chan struct{}                                           { return nil }

// TestRun serves on a listener and ends with its context, long polls included.
func TestRun(t *testing.T) {
	f := open(t, nil)
	n := f.run(w102, mac102)
	first, _, err := n.Files(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	tag := first.Tag
	l, err := net.Listen("tcp4", "127.77.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.srv.Run(ctx, l) }()
	state := n.State()
	state.Server = "http://" + l.Addr().String()
	polled := make(chan error)
	boot := state.Boot
	go func() {
		req, err := http.NewRequest("GET", state.Server+"/node/files?wait=30s&tag="+tag, nil)
		if err != nil {
			polled <- err
			return
		}
		req.Header.Set(sign.HeaderBoot, boot)
		sign.Sign(req, state.Key, nil, f.now(), sign.NewNonce())
		resp, err := from(w102).Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusNotModified {
				err = errors.New("304: it waited to its end")
			}
		}
		polled <- err
	}()
	resp, err := from(w102).Get(state.Server + "/boot/script.ipxe")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v; want nil after its context ended", err)
	}
	if err := <-polled; err != nil && strings.Contains(err.Error(), "304") {
		t.Error(err)
	}
	if err := f.srv.Run(t.Context(), l); err == nil {
		t.Error("Run on a closed listener = nil; want an error")
	}
}
