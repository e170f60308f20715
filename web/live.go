package web

import (
	"fmt"
	"net/http"
	"time"

	"dsas"
)

const (
	// settle gathers a burst of events (a rack that boots) into one line.
	settle = 200 * time.Millisecond
	// tick is how often a silent page looks all the same: heartbeats make no
	// events; and proxies cut silence.
	tick = 20 * time.Second
	// writeTime is how long a line may take before the reader counts as gone.
	writeTime = 30 * time.Second
)

// live sends a line for each burst of events; the script then fetches the
// page's live part anew. The page is right even when a line is lost.
func (w *web) live(rw http.ResponseWriter, r *http.Request) {
	events, cancel := w.Subscribe()
	defer cancel()
	rc := http.NewResponseController(rw)
	rw.Header().Set("Content-Type", "text/event-stream")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Header().Set("X-Accel-Buffering", "no") // nginx in front would hold lines back
	_ = rc.SetReadDeadline(time.Time{})        // the server's limits are not a stream's
	line := "retry: 2000\n\n"
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTime)) // not every writer can
		if _, err := fmt.Fprint(rw, line); err != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-w.Done:
			return
		case <-ticker.C:
			line = "data: tick\n\n"
		case e, ok := <-events:
			if !ok {
				return // the store closes
			}
			line = fmt.Sprintf("data: %d\n\n", w.gather(r, events, e.ID))
		}
	}
}

// gather takes what else comes within settle, and gives the last event's ID.
func (w *web) gather(r *http.Request, events <-chan dsas.Event, last int64) int64 {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return last
		case <-r.Context().Done():
			return last
		case e, ok := <-events:
			if !ok {
				return last
			}
			last = e.ID
		}
	}
}
