package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"dsas"
)

const (
	outboxSize  = 1000 // events kept while the server is away
	outboxBatch = 100  // events in one request
	outboxFirst = 250 * time.Millisecond
	outboxMost  = 15 * time.Second
)

// Poster is what an Outbox needs of a Node.
type Poster interface {
	PostEvents(ctx context.Context, events []dsas.Event) error
	ServerTime(t time.Time) time.Time
}

// Outbox is a bounded, ordered queue of events on their way to the server. Run
// posts them in the background and tries again for ever; when the queue is
// full the oldest go, and a warning event says how many.
type Outbox struct {
	to  Poster
	log *slog.Logger

	// Wait sleeps between two tries; a test replaces it. Nil: real time.
	Wait func(ctx context.Context, d time.Duration) error

	sending chan struct{} // held while a batch is on its way

	mu      sync.Mutex
	queue   []outboxItem
	next    uint64 // sequence number of the next event
	dropped int    // since the last warning that arrived
	changed chan struct{}
}

type outboxItem struct {
	seq   uint64
	event dsas.Event
	// exact: the time is the server's already (it came through an exec).
	exact bool
}

// OutboxState is what an Outbox carries over an exec, as JSON.
type OutboxState struct {
	Events  []dsas.Event `json:"events"`
	Dropped int          `json:"dropped,omitempty"`
}

// NewOutbox makes an empty queue that posts to to.
func NewOutbox(to Poster, log *slog.Logger) *Outbox {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Outbox{to: to, log: log, sending: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Add queues events; a zero time becomes now. The times are read off this
// node's clock (time.Now()) and translated to the server's when they are sent:
// an event from before the node knew the time gets a right one all the same.
func (o *Outbox) Add(events ...dsas.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range events {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		o.push(outboxItem{event: e})
	}
	o.signal()
}

func (o *Outbox) push(it outboxItem) {
	it.seq = o.next
	o.next++
	o.queue = append(o.queue, it)
	if n := len(o.queue) - outboxSize; n > 0 {
		o.queue = append([]outboxItem(nil), o.queue[n:]...)
		o.dropped += n
	}
}

// signal wakes all who wait for a change. The caller holds mu.
func (o *Outbox) signal() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// Len is how many events wait.
func (o *Outbox) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue)
}

// State copies what waits, with the times translated as far as the server's
// clock is known. Stop Run first, or a batch on its way is in both places.
func (o *Outbox) State() OutboxState {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := OutboxState{Dropped: o.dropped}
	for _, it := range o.queue {
		s.Events = append(s.Events, o.final(it))
	}
	return s
}

// Restore puts what State gave in front of what is queued already.
func (o *Outbox) Restore(s OutboxState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	later := o.queue
	o.queue = nil
	o.dropped += s.Dropped
	for _, e := range s.Events {
		o.push(outboxItem{event: e, exact: true})
	}
	for _, it := range later {
		o.push(it)
	}
	o.signal()
}

func (o *Outbox) final(it outboxItem) dsas.Event {
	e := it.event
	if !it.exact {
		e.Time = o.to.ServerTime(e.Time)
	}
	e.Time = e.Time.Round(0).UTC()
	return e
}

// Run posts until ctx ends, and returns ctx's error.
func (o *Outbox) Run(ctx context.Context) error {
	for {
		o.mu.Lock()
		empty, changed := len(o.queue) == 0, o.changed
		o.mu.Unlock()
		if empty {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := o.drain(ctx, ^uint64(0)); err != nil {
			return err
		}
	}
}

// Flush returns when all that was added before it has arrived, or with ctx's
// error. It posts by itself: Run need not be running.
func (o *Outbox) Flush(ctx context.Context) error {
	o.mu.Lock()
	end := o.next
	o.mu.Unlock()
	if err := o.drain(ctx, end); err != nil {
		return fmt.Errorf("flush events: %d still wait: %w", o.Len(), err)
	}
	return nil
}

// drain posts batches until no event older than end waits.
func (o *Outbox) drain(ctx context.Context, end uint64) error {
	pause := outboxFirst
	for {
		more, err := o.send(ctx, end)
		if !more {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			pause = outboxFirst
			continue
		}
		o.log.Debug("events wait", "err", err, "again_in", pause)
		// Jitter: a rack that lost its server must not come back in step.
		if err := o.wait(ctx, pause/2+rand.N(pause)); err != nil {
			return err
		}
		pause = min(pause*2, outboxMost)
	}
}

func (o *Outbox) wait(ctx context.Context, d time.Duration) error {
	if o.Wait != nil {
		return o.Wait(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send posts one batch of the events older than end; more is false when there
// were none.
func (o *Outbox) send(ctx context.Context, end uint64) (more bool, err error) {
	select {
	case o.sending <- struct{}{}:
		defer func() { <-o.sending }()
	case <-ctx.Done():
		return true, ctx.Err()
	}
	o.mu.Lock()
	var batch []dsas.Event
	var first, last uint64
	lost := o.dropped
	if len(o.queue) > 0 {
		first = o.queue[0].seq
	}
	for _, it := range o.queue {
		if it.seq >= end || len(batch) == outboxBatch {
			break
		}
		if lost > 0 && len(batch) == 0 {
			warn := outboxItem{event: it.event, exact: it.exact}
			warn.event = dsas.Event{Time: it.event.Time, Node: it.event.Node, MAC: it.event.MAC, Boot: it.event.Boot,
				Kind: dsas.KindWarning, Message: fmt.Sprintf("%d older events were dropped: the server was away too long", lost)}
			batch = append(batch, o.final(warn))
		}
		last = it.seq
		batch = append(batch, o.final(it))
	}
	o.mu.Unlock()
	if len(batch) == 0 {
		return false, nil
	}

	err = o.to.PostEvents(ctx, batch)
	if errors.Is(err, dsas.ErrInvalid) {
		err = o.sendSingly(ctx, batch)
	}
	if err != nil {
		return true, err
	}
	o.mu.Lock()
	o.dropped -= lost
	if len(o.queue) > 0 && o.queue[0].seq > first {
		// Pushed out of the full queue while they were on their way: not lost.
		o.dropped -= int(min(o.queue[0].seq, last+1) - first)
	}
	for len(o.queue) > 0 && o.queue[0].seq <= last {
		o.queue = o.queue[1:]
	}
	o.signal()
	o.mu.Unlock()
	return true, nil
}

// sendSingly finds the event that the server will never accept, and leaves
// it out: one bad event must not hold up all that follow.
func (o *Outbox) sendSingly(ctx context.Context, batch []dsas.Event) error {
	for i := range batch {
		err := o.to.PostEvents(ctx, batch[i:i+1])
		if errors.Is(err, dsas.ErrInvalid) {
			o.log.Warn("event refused by the server and left out", "kind", batch[i].Kind, "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
