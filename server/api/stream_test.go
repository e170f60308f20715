package api_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/api"
)

// listener reads a stream line by line.
type listener struct {
	t     *testing.T
	lines chan string
	stop  func()
}

func (f *fixture) listen(query, lastID string) *listener {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), 60*time.Second)
	f.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", f.srv.URL+api.Prefix+"/events/stream"+query, nil)
	if err != nil {
		f.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" {
		f.Fatalf("stream = %d, %s", resp.StatusCode, got)
	}
	l := &listener{t: f.T, lines: make(chan string), stop: cancel}
	go func() {
		defer close(l.lines)
		defer resp.Body.Close()
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			l.lines <- s.Text()
		}
	}()
	return l
}

// next gives the next line that begins with prefix; "" when the stream ends.
func (l *listener) next(prefix string) string {
	l.t.Helper()
	for line := range l.lines {
		if strings.HasPrefix(line, prefix) {
			return line
		}
	}
	return ""
}

func (f *fixture) event(message string) int64 {
	f.Helper()
	e, err := f.store.AddEvent(f.Context(), dsas.Event{Kind: dsas.KindServer, Message: message})
	if err != nil {
		f.Fatal(err)
	}
	return e.ID
}

func TestStream(t *testing.T) {
	f := newFixture(t, func(d *api.Deps) { d.KeepAlive = 20 * time.Millisecond })
	first := f.event("one")
	f.event("two")

	live := f.listen("", "")
	if got, want := live.next("id:"), "id: 2"; got != want {
		t.Errorf("stream begins with %q; want %q, where it stands", got, want)
	}
	if got := live.next(":"); got != ": keep-alive" {
		t.Errorf("silent stream = %q; want a comment", got)
	}
	f.event("three")
	if got := live.next("data:"); !strings.Contains(got, `"three"`) {
		t.Errorf("live event = %q; want three", got)
	}
	live.stop()

	resumed := f.listen(fmt.Sprintf("?after=%d", first), "")
	for _, want := range []string{"two", "three"} {
		if got := resumed.next("data:"); !strings.Contains(got, want) {
			t.Errorf("event after the first = %q; want %s", got, want)
		}
	}
	// What a browser says of itself goes before the URL it began with.
	again := f.listen("?after=0", "2")
	if got := again.next("data:"); !strings.Contains(got, "three") {
		t.Errorf("event after Last-Event-ID 2 = %q; want three", got)
	}
	f.refused(400, "GET", "/events/stream?after=x", "", "after")

	close(f.done)
	if got := resumed.next("never"); got != "" {
		t.Errorf("stream goes on after the server's end: %q", got)
	}
}

// A reader that was away for longer than any buffer loses nothing.
func TestStreamBacklog(t *testing.T) {
	f := newFixture(t)
	l := f.listen("?after=0", "")
	const n = 1200
	for i := range n {
		f.event(fmt.Sprint("event ", i))
	}
	for i := range n + 1 { // 0 is where the stream begins
		if got, want := l.next("id:"), fmt.Sprintf("id: %d", i); got != want {
			t.Fatalf("stream gives %q; want %q", got, want)
		}
	}
}

func TestListEvents(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		f.event(fmt.Sprint(i))
	}
	for query, want := range map[string]string{
		"":                  "01234",
		"?limit=2":          "34", // the last ones
		"?after=1&limit=2":  "12",
		"?after=0":          "01234",
		"?node=w1":          "",
		"?boot=x":           "",
		"?after=99":         "",
		"?limit=2&after=4":  "4",
		"?limit=5000&node=": "01234",
	} {
		var events []dsas.Event
		f.want(200, "GET", "/events"+query, "", &events)
		got := ""
		for _, e := range events {
			got += e.Message
		}
		if got != want {
			t.Errorf("GET /events%s = %q; want %q", query, got, want)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=x", "?limit=5001", "?after=-1", "?after=x"} {
		f.refused(400, "GET", "/events"+query, "", "want ")
	}
}
