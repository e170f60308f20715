package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"dsas"
)

// fakeEvents is a store's events, whose subscribers miss some.
type fakeEvents struct {
	mu   sync.Mutex
	list []dsas.Event
	ch   chan dsas.Event
}

func (f *fakeEvents) Events(_ context.Context, q dsas.EventFilter) (out []dsas.Event, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.list {
		if e.ID > q.After && (q.Boot == "" || e.Boot == q.Boot) {
			out = append(out, e)
		}
	}
	if q.Last && len(out) > q.Limit {
		out = out[len(out)-q.Limit:]
	}
	return out, nil
}

func (f *fakeEvents) Subscribe() (<-chan dsas.Event, func()) { return f.ch, func() {} }

func (f *fakeEvents) add(told bool, e dsas.Event) {
	f.mu.Lock()
	e.ID = int64(len(f.list) + 1)
	f.list = append(f.list, e)
	f.mu.Unlock()
	if told {
		f.ch <- e
	}
}

func scrape(t *testing.T, r *Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("GET /metrics = %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wants(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			key, _, _ := strings.Cut(line, " ")
			for l := range strings.SplitSeq(text, "\n") {
				if strings.HasPrefix(l, key) {
					t.Logf("there is %s", l)
				}
			}
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestBoots(t *testing.T) {
	f := &fakeEvents{ch: make(chan dsas.Event)}
	t0 := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	f.add(false, dsas.Event{Kind: dsas.KindServer}) // before we follow
	r := New("1", t0, nil, slog.New(slog.DiscardHandler))
	follow, err := r.Follow(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- follow(ctx) }()

	f.add(true, dsas.Event{Kind: dsas.KindScript, Boot: "a", Time: t0})
	f.add(false, dsas.Event{Kind: dsas.KindFetched, Boot: "a", Bytes: 1000, Duration: 1500 * time.Millisecond}) // lost on the way
	f.add(true, dsas.Event{Kind: dsas.KindReady, Boot: "a", Time: t0.Add(12 * time.Second)})
	f.add(true, dsas.Event{Kind: dsas.KindReady, Boot: "a", Time: t0.Add(time.Hour)}) // again: no boot
	f.add(true, dsas.Event{Kind: "made.up-by-a-stranger"})
	f.add(true, dsas.Event{Kind: dsas.KindReady, Boot: "pruned", Time: t0})
	f.add(true, dsas.Event{Kind: dsas.KindServer}) // taken: all before it is counted
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow = %v; want context.Canceled", err)
	}
	wants(t, scrape(t, r),
		`dsas_events_total{kind="boot.script"} 1`, `dsas_events_total{kind="node.ready"} 3`, `dsas_events_total{kind="node.fetched"} 1`,
		`dsas_events_total{kind="other"} 1`, `dsas_events_total{kind="power"} 0`,
		`dsas_boot_duration_seconds_count 1`, `dsas_boot_duration_seconds_sum 12`, `dsas_boot_duration_seconds_bucket{le="10"} 0`,
		`dsas_boot_step_duration_seconds_sum{step="fetch"} 1.5`, `dsas_image_fetched_bytes_total 1000`)
	if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) > 0 {
		t.Errorf("lint of the metrics = %v, %v; want none", problems, err)
	}
}

func TestSource(t *testing.T) {
	var fail error
	r := New("1.2", time.Unix(1000, 0), func(ctx context.Context) ([]Metric, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the source has no deadline; want one")
		}
		return []Metric{
			{Name: "dsas_nodes", Help: "h", Labels: []string{"phase"}, Samples: []Sample{{[]string{"ready"}, 3}}},
			{Name: "dsas_a_total", Help: "h", Counter: true, Samples: []Sample{{nil, 4}}},
		}, fail
	}, slog.New(slog.DiscardHandler))
	wants(t, scrape(t, r), `dsas_nodes{phase="ready"} 3`, "# TYPE dsas_a_total counter", "dsas_a_total 4",
		`dsas_build_info{version="1.2"} 1`, "dsas_start_time_seconds 1000", "dsas_metrics_failures_total 0")
	// What could be had is shown still.
	fail = fmt.Errorf("the store is away")
	wants(t, scrape(t, r), `dsas_nodes{phase="ready"} 3`)
	fail = nil
	wants(t, scrape(t, r), "dsas_metrics_failures_total 1")
}
