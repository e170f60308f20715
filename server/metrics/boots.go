package metrics

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"dsas"
)

// Events are where boots are read from.
type Events interface {
	Events(ctx context.Context, f dsas.EventFilter) ([]dsas.Event, error)
	// Subscribe gives events as they come; one that is too slow has gaps in
	// their IDs.
	Subscribe() (events <-chan dsas.Event, cancel func())
}

// kinds are all that are counted by name: what else there is counts as "other".
var kinds = []dsas.Kind{
	dsas.KindDHCP, dsas.KindRefused, dsas.KindNBP, dsas.KindScript, dsas.KindKernel, dsas.KindInitramfs, dsas.KindConfigTaken,
	dsas.KindLoaderFailed, dsas.KindInit, dsas.KindFetch, dsas.KindFetched, dsas.KindPartBad, dsas.KindConf, dsas.KindConfError,
	dsas.KindSwitched, dsas.KindService, dsas.KindReady, dsas.KindFailed, dsas.KindLink, dsas.KindFiles, dsas.KindWarning,
	dsas.KindLost, dsas.KindBack, dsas.KindInventory, dsas.KindPower, dsas.KindAssigned, dsas.KindChanged, dsas.KindSiteChanged,
	dsas.KindUnknown, dsas.KindPublished, dsas.KindCanary, dsas.KindPromoted, dsas.KindRolledBack, dsas.KindCanaryEnded, dsas.KindServer,
}

// steps are the parts of a boot whose duration its event has.
var steps = map[dsas.Kind]string{
	dsas.KindNBP: "nbp", dsas.KindKernel: "kernel", dsas.KindInitramfs: "initramfs", dsas.KindInit: "init", dsas.KindFetched: "fetch",
}

// boots counts events, and times boots.
type boots struct {
	events Events
	log    *slog.Logger
	known  map[dsas.Kind]bool
	last   int64 // ID of the last event counted

	seen    *prometheus.CounterVec
	took    prometheus.Histogram
	step    *prometheus.HistogramVec
	fetched prometheus.Counter
}

// Follow registers the boots' metrics, and gives what keeps them up to date with
// every event from now on.
func (r *Registry) Follow(ctx context.Context, events Events) (run func(context.Context) error, err error) {
	newest, err := events.Events(ctx, dsas.EventFilter{Last: true, Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("count boots: %w", err)
	}
	b := &boots{events: events, log: r.log, known: map[dsas.Kind]bool{},
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dsas_events_total", Help: "Events since the server started, by kind."}, []string{"kind"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "dsas_boot_duration_seconds",
			Help:    "From a boot's script to all services ready.",
			Buckets: []float64{5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600}}),
		step: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "dsas_boot_step_duration_seconds",
			Help:    "What one step of a boot takes: the loader by TFTP, kernel and initramfs by HTTP, the network in init, fetching the image.",
			Buckets: []float64{0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 180}}, []string{"step"}),
		fetched: prometheus.NewCounter(prometheus.CounterOpts{Name: "dsas_image_fetched_bytes_total", Help: "Of images, as nodes said they fetched them."}),
	}
	for _, e := range newest {
		b.last = e.ID
	}
	for _, k := range kinds {
		b.known[k] = true
		b.seen.WithLabelValues(string(k))
	}
	b.seen.WithLabelValues("other")
	for _, s := range steps {
		b.step.WithLabelValues(s)
	}
	r.reg.MustRegister(b.seen, b.took, b.step, b.fetched)
	return b.run, nil
}

// run counts every event once: where some were lost on the way here, they are
// read from the store.
func (b *boots) run(ctx context.Context) error {
	events, cancel := b.events.Subscribe()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				<-ctx.Done() // the store was closed: the end is near
				return ctx.Err()
			}
			switch {
			case e.ID <= b.last: // counted with a gap before it
			case e.ID == b.last+1:
				b.count(ctx, e)
			default:
				b.catchUp(ctx, e.ID)
			}
		}
	}
}

func (b *boots) catchUp(ctx context.Context, to int64) {
	for b.last < to {
		missed, err := b.events.Events(ctx, dsas.EventFilter{After: b.last})
		if err != nil {
			if ctx.Err() == nil {
				b.log.Error("count events", "err", err)
			}
			return // the next event tries again
		}
		if len(missed) == 0 {
			b.last = to // removed meanwhile
		}
		for _, e := range missed {
			b.count(ctx, e)
		}
	}
}

func (b *boots) count(ctx context.Context, e dsas.Event) {
	b.last = e.ID
	kind := string(e.Kind)
	if !b.known[e.Kind] {
		kind = "other"
	}
	b.seen.WithLabelValues(kind).Inc()
	if step, ok := steps[e.Kind]; ok && e.Duration > 0 {
		b.step.WithLabelValues(step).Observe(e.Duration.Seconds())
	}
	switch e.Kind {
	case dsas.KindFetched:
		b.fetched.Add(max(0, float64(e.Bytes)))
	case dsas.KindReady:
		b.ready(ctx, e)
	}
}

// ready times a boot, the first time that it is ready.
func (b *boots) ready(ctx context.Context, e dsas.Event) {
	if e.Boot == "" {
		return
	}
	all, err := b.events.Events(ctx, dsas.EventFilter{Boot: e.Boot})
	if err != nil {
		if ctx.Err() == nil {
			b.log.Error("time boot", "boot", e.Boot, "err", err)
		}
		return
	}
	for _, before := range all {
		if before.ID == e.ID {
			break
		}
		if before.Kind == dsas.KindReady {
			return
		}
	}
	// A script of a boot that is too long ago for its events to be kept, or a
	// clock that was set: no figure is better than a wrong one.
	if len(all) > 0 && all[0].Kind == dsas.KindScript {
		if took := e.Time.Sub(all[0].Time); took > 0 {
			b.took.Observe(took.Seconds())
		}
	}
}
