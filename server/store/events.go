package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
)

// What is kept of an event's texts, in bytes. They come from the boot network.
const (
	maxMessage = 2 << 10
	maxDetail  = 16 << 10 // its end: it is mostly a log
	maxWord    = 128      // node, boot and kind
)

const (
	defaultEvents = 1000
	maxEvents     = 10_000
	// subscriberBuffer is how far a subscriber may fall behind.
	subscriberBuffer = 256
)

// EventFilter chooses events. A Limit of 0 means 1000; at most 10000 are given.
type EventFilter = dsas.EventFilter

const eventColumns = `id, time, node, mac, boot, kind, message, duration, bytes, detail`

func scanEvent(scan func(...any) error) (e dsas.Event, err error) {
	var at, dur int64
	var mac string
	if err := scan(&e.ID, &at, &e.Node, &mac, &e.Boot, &e.Kind, &e.Message, &dur, &e.Bytes, &e.Detail); err != nil {
		return e, err
	}
	e.Time, e.Duration = fromNanos(at), time.Duration(dur)
	e.MAC, err = fromMACText(mac)
	return e, err
}

// AddEvent stores e and changes its node's status in one transaction, then
// tells the subscribers. The answer has its ID, its time (now, where it had
// none) and its texts as they were kept.
func (s *Store) AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error) {
	err := s.checkEvent(&e)
	if err == nil {
		err = s.write(ctx, func(ctx context.Context, tx *txn) error { return s.addEvent(ctx, tx, &e) })
	}
	if err != nil {
		return dsas.Event{}, fmt.Errorf("add event: %w", err)
	}
	return e, nil
}

// AddEvents is AddEvent for several, in their order: all are stored, or none.
func (s *Store) AddEvents(ctx context.Context, list []dsas.Event) ([]dsas.Event, error) {
	list = slices.Clone(list)
	for i := range list {
		if err := s.checkEvent(&list[i]); err != nil {
			return nil, fmt.Errorf("add events: %w", err)
		}
	}
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		for i := range list {
			if err := s.addEvent(ctx, tx, &list[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add events: %w", err)
	}
	return list, nil
}

// checkEvent refuses what cannot be stored, and cuts what is too long.
func (s *Store) checkEvent(e *dsas.Event) error {
	if e.Kind == "" {
		return fmt.Errorf("it has no kind: %w", dsas.ErrInvalid)
	}
	for _, f := range [...]struct{ what, word string }{{"node", e.Node}, {"boot", e.Boot}, {"kind", string(e.Kind)}} {
		if len(f.word) > maxWord {
			return fmt.Errorf("%s is %d bytes long, at most %d: %w", f.what, len(f.word), maxWord, dsas.ErrInvalid)
		}
	}
	e.Time = s.orNow(e.Time)
	e.Message = head(e.Message, maxMessage)
	e.Detail = tail(e.Detail, maxDetail)
	return nil
}

// addEvent is the job of one event.
func (s *Store) addEvent(ctx context.Context, tx *txn, e *dsas.Event) error {
	res, err := tx.ExecContext(ctx, `INSERT INTO events (time, node, mac, boot, kind, message, duration, bytes, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		toNanos(e.Time), e.Node, macText(e.MAC), e.Boot, e.Kind, e.Message, int64(e.Duration), e.Bytes, e.Detail)
	if err != nil {
		return err
	}
	if e.ID, err = res.LastInsertId(); err != nil {
		return err
	}
	s.noteHardware(tx, e)
	tx.onCommit(func() { s.notify(*e) })
	return s.applyEvent(ctx, tx, *e)
}

// addEvents is the part of a job that adds checked events.
func (s *Store) addEvents(ctx context.Context, tx *txn, events []dsas.Event) error {
	for _, e := range events {
		if err := s.addEvent(ctx, tx, &e); err != nil {
			return err
		}
	}
	return nil
}

// NoteEvent is AddEvent without the wait: e is stored within a moment, together
// with whatever else is written then. It is for what the boot network brings
// about. An error says that e will not be stored: it is not right, or too many
// wait already. What was noted last is lost with the process.
func (s *Store) NoteEvent(e dsas.Event) error {
	if err := s.checkEvent(&e); err != nil {
		return fmt.Errorf("note event: %w", err)
	}
	if err := s.later(func(ctx context.Context, tx *txn) error { return s.addEvent(ctx, tx, &e) }); err != nil {
		return fmt.Errorf("note event: %w", err)
	}
	return nil
}

// Events lists events in ascending order of their IDs.
func (s *Store) Events(ctx context.Context, f EventFilter) ([]dsas.Event, error) {
	where := []string{"id > ?"}
	args := []any{f.After}
	if f.Node != "" {
		where, args = append(where, "node = ?"), append(args, f.Node)
	}
	if f.Boot != "" {
		// "boot <> ''" is what the partial index asks for.
		where, args = append(where, "boot = ? AND boot <> ''"), append(args, f.Boot)
	}
	if f.Limit <= 0 {
		f.Limit = defaultEvents
	}
	args = append(args, min(f.Limit, maxEvents))
	query := `SELECT ` + eventColumns + ` FROM events WHERE ` + strings.Join(where, " AND ")
	if f.Last {
		query = `SELECT * FROM (` + query + ` ORDER BY id DESC LIMIT ?) ORDER BY id`
	} else {
		query += ` ORDER BY id LIMIT ?`
	}
	events, err := collect(ctx, s.read, scanEvent, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return events, nil
}

// PruneEvents keeps the newest keep events, and each node's last one.
func (s *Store) PruneEvents(ctx context.Context, keep int) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM events
			WHERE id <= (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?)
			AND id NOT IN (SELECT last_event FROM statuses WHERE last_event IS NOT NULL)`, max(keep, 0))
		return err
	})
	if err != nil {
		return fmt.Errorf("prune events: %w", err)
	}
	return nil
}

// Subscribe gives every event added from now on, in order of their IDs, until
// cancel is called or the store closes, which close the channel. A subscriber
// that falls behind by more than the buffer loses events: a gap in the IDs
// shows it, and Events has what is missing.
func (s *Store) Subscribe() (events <-chan dsas.Event, cancel func()) {
	c := make(chan dsas.Event, subscriberBuffer)
	s.mu.Lock()
	s.subs[c] = struct{}{}
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.subs[c]; ok {
			delete(s.subs, c)
			close(c)
		}
	}
}

func (s *Store) notify(e dsas.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.subs {
		select {
		case c <- e:
		default:
		}
	}
}

// head cuts t to at most n bytes of valid UTF-8.
func head(t string, n int) string {
	if len(t) > n {
		t = t[:n]
	}
	return strings.ToValidUTF8(t, "")
}

// tail keeps at most the last n bytes of t, as valid UTF-8.
func tail(t string, n int) string {
	if len(t) > n {
		t = t[len(t)-n:]
	}
	return strings.ToValidUTF8(t, "")
}
