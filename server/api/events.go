package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"dsas"
)

const (
	defaultEvents = 200
	maxEvents     = 5000
	// streamWrite is how long one write to a stream may take before the
	// reader counts as gone.
	streamWrite = 30 * time.Second
	streamRetry = time.Second // what a browser waits before it connects again
	streamPage  = 500
)

// listEvents answers the first events after an ID, or the last ones when no ID
// is given; ascending.
func (a *api) listEvents(r *http.Request) (answer, error) {
	q := r.URL.Query()
	f := dsas.EventFilter{Node: q.Get("node"), Boot: q.Get("boot"), Limit: defaultEvents, Last: !q.Has("after")}
	var err error
	if q.Has("after") {
		if f.After, err = eventID("after", q.Get("after")); err != nil {
			return answer{}, err
		}
	}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxEvents {
			return answer{}, fmt.Errorf("limit %q: want a number from 1 to %d: %w", v, maxEvents, dsas.ErrInvalid)
		}
		f.Limit = n
	}
	events, err := a.Store.Events(r.Context(), f)
	return answer{body: list(events)}, err
}

func eventID(what, v string) (int64, error) {
	id, err := strconv.ParseInt(v, 10, 64)
	if err != nil || id < 0 {
		return 0, fmt.Errorf("%s %q: want the number of an event: %w", what, v, dsas.ErrInvalid)
	}
	return id, nil
}

// streamEvents sends events as they come (server-sent events, HTML standard
// section 9.2), from after=ID or Last-Event-ID on; without either, new ones
// only.
func (a *api) streamEvents(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	// Subscribed before the look back, so that nothing falls between.
	woken, stop := a.Store.Subscribe()
	defer stop()
	last, err := a.streamStart(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	out := newStream(w)
	out.printf("retry: %d\nid: %d\n\n", streamRetry.Milliseconds(), last)

	tick := time.NewTicker(a.KeepAlive)
	defer tick.Stop()
	for out.err == nil {
		// What comes by the channel only says that there is something new:
		// a slow reader may have lost some of it, the store has all.
		if last, err = a.sendAfter(ctx, out, last); err != nil {
			if ctx.Err() == nil {
				a.Log.ErrorContext(ctx, "event stream", "err", err)
			}
			return
		}
		out.flush()
		select {
		case <-ctx.Done():
			return
		case <-a.Done:
			return
		case _, ok := <-woken:
			if !ok {
				return // the store closes
			}
			drain(woken)
		case <-tick.C:
			out.printf(": keep-alive\n\n")
		}
	}
}

// streamStart gives the ID of the event after which the stream begins.
func (a *api) streamStart(r *http.Request) (int64, error) {
	// A browser that connects again asks for the same URL, and says in the
	// header how far it came.
	if v := r.Header.Get("Last-Event-ID"); v != "" {
		return eventID("Last-Event-ID", v)
	}
	if q := r.URL.Query(); q.Has("after") {
		return eventID("after", q.Get("after"))
	}
	events, err := a.Store.Events(r.Context(), dsas.EventFilter{Last: true, Limit: 1})
	if err != nil || len(events) == 0 {
		return 0, err
	}
	return events[0].ID, nil
}

// sendAfter sends all events after last, and gives the ID of the last one sent.
func (a *api) sendAfter(ctx context.Context, out *stream, last int64) (int64, error) {
	for {
		events, err := a.Store.Events(ctx, dsas.EventFilter{After: last, Limit: streamPage})
		if err != nil {
			return last, err
		}
		for _, e := range events {
			b, err := json.Marshal(e)
			if err != nil {
				return last, fmt.Errorf("event %d: %w", e.ID, err)
			}
			out.printf("id: %d\ndata: %s\n\n", e.ID, b)
			last = e.ID
		}
		if len(events) < streamPage || out.err != nil {
			return last, nil
		}
	}
}

// drain empties the channel: one look at the store answers all of it.
func drain(c <-chan dsas.Event) {
	for {
		select {
		case _, ok := <-c:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// stream writes server-sent events and keeps the first error.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	err error
}

func newStream(w http.ResponseWriter) *stream {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx in front would hold events back
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	s := &stream{w: w, rc: http.NewResponseController(w)}
	_ = s.rc.SetReadDeadline(time.Time{}) // the server's limits are not a stream's
	return s
}

func (s *stream) printf(format string, args ...any) {
	if s.err != nil {
		return
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(streamWrite)) // not every test's writer can
	_, s.err = fmt.Fprintf(s.w, format, args...)
}

func (s *stream) flush() {
	if s.err == nil {
		s.err = s.rc.Flush()
	}
}
