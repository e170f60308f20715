package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/client"
	"dsas/client/sign"
)

const nodePatience = 30 * time.Second

func nodeCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), nodePatience)
	t.Cleanup(cancel)
	return ctx
}

// listener is the boot listener as the contract has it, with a clock of its own.
type listener struct {
	forge bool // answers are signed with another key
	*httptest.Server
	t     *testing.T
	ahead time.Duration // its clock against ours
	key   []byte

	mu     sync.Mutex
	events []dsas.Event
	beats  int
	nonces map[string]bool
	tag    string
	refuse func(r *http.Request, body []byte) int // a status other than 0 is the answer
}

func newListener(t *testing.T) *listener {
	l := &listener{t: t, key: []byte("session-key"), nonces: map[string]bool{}, tag: "one"}
	l.Server = httptest.NewServer(l)
	t.Cleanup(l.Close)
	return l
}

func (l *listener) now() time.Time { return time.Now().Add(l.ahead) }

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.Header().Set("Date", l.now().UTC().Format(http.TimeFormat))
	body, _ := io.ReadAll(r.Body)
	if l.refuse != nil {
		if status := l.refuse(r, body); status != 0 {
			w.WriteHeader(status)
			io.WriteString(w, `{"error": "refused for the test"}`)
			return
		}
	}
	if r.URL.Path == "/node/config" {
		if r.Header.Get("Authorization") != "Bearer good" {
			http.Error(w, `{"error":"this token is worth nothing"}`, http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(dsas.NodeConfig{Node: "w101", Boot: "b1", SessionKey: l.key, Time: l.now(), Conf: "SYSTEMNAME=w101\n"})
		return
	}
	nonce := r.Header.Get(sign.HeaderNonce)
	if err := sign.Verify(r, l.key, body, l.now()); err != nil || r.Header.Get(sign.HeaderBoot) != "b1" || l.nonces[nonce] {
		http.Error(w, fmt.Sprintf(`{"error":%q}`, fmt.Sprint(err)), http.StatusUnauthorized)
		return
	}
	l.nonces[nonce] = true
	switch r.Method + " " + r.URL.Path {
	case "POST /node/events":
		var events []dsas.Event
		if err := json.Unmarshal(body, &events); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		l.events = append(l.events, events...)
		w.WriteHeader(http.StatusNoContent)
	case "POST /node/heartbeat":
		l.beats++
		w.WriteHeader(http.StatusNoContent)
	case "GET /node/files":
		if _, err := time.ParseDuration(r.URL.Query().Get("wait")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.URL.Query().Get("tag") == l.tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		answer := fmt.Appendf(nil, `{"tag":%q,"files":[{"path":"/etc/x","mode":420,"content":"aGk="}],"conf":"A=1\n"}`, l.tag)
		key := l.key
		if l.forge {
			key = []byte("somebody else's")
		}
		w.Header().Set(sign.HeaderReply, sign.Reply(key, nonce, answer))
		w.Write(answer)
	default:
		http.NotFound(w, r)
	}
}

func (l *listener) heard() []dsas.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func (l *listener) setForge(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forge = on
}

func (l *listener) setRefuse(f func(*http.Request, []byte) int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = f
}

func ready(t *testing.T, l *listener) *client.Node {
	t.Helper()
	n := client.NewNode(l.URL+"/", "b1")
	if _, err := n.Config(nodeCtx(t), "good"); err != nil {
		t.Fatalf("Config() = %v; want nil", err)
	}
	return n
}

func TestNodeRequests(t *testing.T) {
	// The server's clock is years away from the node's, as with an empty battery.
	for _, ahead := range []time.Duration{0, 9 * 365 * 24 * time.Hour, -9 * 365 * 24 * time.Hour} {
		l := newListener(t)
		l.ahead = ahead
		ctx := nodeCtx(t)
		n := client.NewNode(l.URL, "b1")
		if err := n.Heartbeat(ctx); !errors.Is(err, client.ErrNoKey) {
			t.Errorf("Heartbeat() before Config() = %v; want ErrNoKey", err)
		}
		if _, err := n.Config(ctx, "bad"); !errors.Is(err, dsas.ErrDenied) || !strings.Contains(err.Error(), "worth nothing") {
			t.Errorf("Config(bad token) = %v; want ErrDenied with the server's words", err)
		}
		cfg, err := n.Config(ctx, "good")
		if err != nil || cfg.Node != "w101" {
			t.Fatalf("Config() = %+v, %v; want w101's", cfg.Node, err)
		}
		if err := n.Heartbeat(ctx); err != nil || l.beats != 1 {
			t.Errorf("Heartbeat() = %v, %d heard; want nil and 1", err, l.beats)
		}
		if err := n.PostEvents(ctx, []dsas.Event{{Kind: dsas.KindInit}, {Kind: dsas.KindFetch}}); err != nil || len(l.heard()) != 2 {
			t.Errorf("PostEvents() = %v, heard %v; want both", err, l.heard())
		}
		got, changed, err := n.Files(ctx, "zero & more", time.Second)
		if err != nil || !changed || got.Tag != "one" || got.Conf != "A=1\n" || len(got.Files) != 1 || string(got.Files[0].Content) != "hi" {
			t.Errorf("Files() = %+v, %t, %v; want the new ones", got, changed, err)
		}
		if got, changed, err = n.Files(ctx, "one", time.Second); err != nil || changed {
			t.Errorf("Files(same tag) = %+v, %t, %v; want no change", got, changed, err)
		}
		l.setForge(true)
		if got, changed, err = n.Files(ctx, "zero", time.Second); !errors.Is(err, sign.ErrSignature) || changed || got.Files != nil {
			t.Errorf("Files() from who does not know the key = %+v, %t, %v; want ErrSignature and nothing", got, changed, err)
		}
		l.setForge(false)
		// Over an exec.
		b, err := json.Marshal(n.State())
		if err != nil {
			t.Fatal(err)
		}
		var s client.NodeState
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		if err := client.RestoreNode(s).Heartbeat(ctx); err != nil {
			t.Errorf("Heartbeat() after RestoreNode, clock %s ahead = %v; want nil", ahead, err)
		}
		// The server's clock is set: the Date of one refusal puts it right.
		l.mu.Lock()
		l.ahead += 3 * time.Hour
		l.mu.Unlock()
		if err := n.Heartbeat(ctx); !errors.Is(err, dsas.ErrDenied) {
			t.Errorf("Heartbeat() after the server's clock was set = %v; want ErrDenied", err)
		}
		if err := n.Heartbeat(ctx); err != nil {
			t.Errorf("the next Heartbeat() = %v; want nil", err)
		}
	}
}

func TestNodeFollowsNoRedirect(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed, token and all") }))
	defer other.Close()
	s := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer s.Close()
	if _, err := client.NewNode(s.URL, "b1").Config(nodeCtx(t), "good"); err == nil {
		t.Error("Config() through a redirect = nil; want an error")
	}
}

// patient runs the outbox without waiting between tries.
func patient(o *client.Outbox) *client.Outbox {
	o.Wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	return o
}

func messages(events []dsas.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Message)
	}
	return out
}

func TestOutboxOrderAndRetry(t *testing.T) {
	l := newListener(t)
	n := ready(t, l)
	tries := 0
	l.setRefuse(func(r *http.Request, _ []byte) int {
		if tries++; tries%3 != 0 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	o := patient(client.NewOutbox(n, nil))
	ctx, cancel := context.WithCancel(nodeCtx(t))
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx) }()
	var want []string
	for i := range 350 {
		want = append(want, fmt.Sprint(i))
		o.Add(dsas.Event{Kind: dsas.KindService, Message: fmt.Sprint(i)})
	}
	if err := o.Flush(ctx); err != nil {
		t.Fatalf("Flush() = %v; want nil", err)
	}
	if got := messages(l.heard()); !slices.Equal(got, want) {
		t.Errorf("heard %d events %v; want 0 to 349 in order", len(got), got)
	}
	if o.Len() != 0 {
		t.Errorf("Len() = %d; want 0", o.Len())
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run() = %v; want context.Canceled", err)
	}
}

func TestOutboxDropsOldest(t *testing.T) {
	l := newListener(t)
	n := ready(t, l)
	o := patient(client.NewOutbox(n, nil))
	for i := range 1234 {
		o.Add(dsas.Event{Kind: dsas.KindService, Message: fmt.Sprint(i)})
	}
	if o.Len() != 1000 {
		t.Errorf("Len() = %d; want 1000", o.Len())
	}
	if err := o.Flush(nodeCtx(t)); err != nil {
		t.Fatal(err)
	}
	got := l.heard()
	if len(got) != 1001 || got[0].Kind != dsas.KindWarning || !strings.Contains(got[0].Message, "234") || got[1].Message != "234" || got[1000].Message != "1233" {
		t.Errorf("heard %d events, first %+v; want a warning of 234 lost and then 1000 events", len(got), got[0])
	}
	o.Add(dsas.Event{Message: "later"})
	if err := o.Flush(nodeCtx(t)); err != nil || len(l.heard()) != 1002 {
		t.Errorf("heard %d events, %v; want the warning once", len(l.heard()), err)
	}
}

// Events may be pushed out of the full queue while they are on their way.
func TestOutboxCountsWhatArrived(t *testing.T) {
	l := newListener(t)
	n := ready(t, l)
	o := patient(client.NewOutbox(n, nil))
	for i := range 1000 {
		o.Add(dsas.Event{Message: fmt.Sprint(i)})
	}
	var once sync.Once
	l.setRefuse(func(*http.Request, []byte) int {
		once.Do(func() {
			for i := 1000; i < 1150; i++ { // 150 go: the 100 that are on their way, and 50
				o.Add(dsas.Event{Message: fmt.Sprint(i)})
			}
		})
		return 0
	})
	if err := o.Flush(nodeCtx(t)); err != nil {
		t.Fatal(err)
	}
	if err := o.Flush(nodeCtx(t)); err != nil {
		t.Fatal(err)
	}
	var warned []string
	for _, e := range l.heard() {
		if e.Kind == dsas.KindWarning {
			warned = append(warned, e.Message)
		}
	}
	if len(warned) != 1 || !strings.HasPrefix(warned[0], "50 ") {
		t.Errorf("warnings = %q; want one, of 50", warned)
	}
	if got := len(l.heard()); got != 1101 {
		t.Errorf("heard %d events; want 1100 and the warning", got)
	}
}

func TestOutboxLeavesOutWhatIsRefused(t *testing.T) {
	l := newListener(t)
	n := ready(t, l)
	l.setRefuse(func(_ *http.Request, body []byte) int {
		if strings.Contains(string(body), "poison") {
			return http.StatusBadRequest
		}
		return 0
	})
	o := patient(client.NewOutbox(n, nil))
	o.Add(dsas.Event{Message: "a"}, dsas.Event{Message: "poison"}, dsas.Event{Message: "b"})
	if err := o.Flush(nodeCtx(t)); err != nil {
		t.Fatal(err)
	}
	if got := messages(l.heard()); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("heard %v; want a and b", got)
	}
}

func TestOutboxTimesAndExec(t *testing.T) {
	l := newListener(t)
	l.ahead = 1000 * time.Hour
	n := client.NewNode(l.URL, "b1")
	before := client.NewOutbox(n, nil)
	before.Add(dsas.Event{Message: "early"}) // before the node knows the time
	if _, err := n.Config(nodeCtx(t), "good"); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(before.State())
	if err != nil {
		t.Fatal(err)
	}
	var s client.OutboxState
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	after := patient(client.NewOutbox(client.RestoreNode(n.State()), nil))
	after.Add(dsas.Event{Message: "late"})
	after.Restore(s)
	if err := after.Flush(nodeCtx(t)); err != nil {
		t.Fatal(err)
	}
	got := l.heard()
	if m := messages(got); !slices.Equal(m, []string{"early", "late"}) {
		t.Fatalf("heard %v; want early and late", m)
	}
	for _, e := range got {
		if off := e.Time.Sub(l.now()); off > time.Minute || off < -time.Minute {
			t.Errorf("%s has time %s; want the server's, %s", e.Message, e.Time, l.now())
		}
	}
}

func TestOutboxFlushEndsWithContext(t *testing.T) {
	l := newListener(t)
	n := ready(t, l)
	l.setRefuse(func(*http.Request, []byte) int { return http.StatusServiceUnavailable })
	o := client.NewOutbox(n, nil)
	o.Add(dsas.Event{Message: "a"})
	ctx, cancel := context.WithCancel(context.Background())
	o.Wait = func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() }
	if err := o.Flush(ctx); !errors.Is(err, context.Canceled) || o.Len() != 1 {
		t.Errorf("Flush() = %v with %d waiting; want context.Canceled and the event kept", err, o.Len())
	}
}
