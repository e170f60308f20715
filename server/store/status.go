package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"dsas"
)

const statusColumns = `n.name, s.phase, s.since, s.last_seen, s.boot, s.running, s.image,
	e.id, e.time, e.node, e.mac, e.boot, e.kind, e.message, e.duration, e.bytes, e.detail
	FROM nodes n JOIN statuses s ON s.node_id = n.id LEFT JOIN events e ON e.id = s.last_event`

type namedStatus struct {
	name string
	dsas.NodeStatus
}

// Statuses gives every node's status by node name.
func (s *Store) Statuses(ctx context.Context) (map[string]dsas.NodeStatus, error) {
	list, err := collect(ctx, s.read, scanStatus, `SELECT `+statusColumns)
	if err != nil {
		return nil, fmt.Errorf("list statuses: %w", err)
	}
	out := make(map[string]dsas.NodeStatus, len(list))
	for _, st := range list {
		out[st.name] = st.NodeStatus
	}
	return out, nil
}

// Status gives one node's status, or dsas.ErrNotFound.
func (s *Store) Status(ctx context.Context, name string) (dsas.NodeStatus, error) {
	st, err := scanStatus(s.read.QueryRowContext(ctx, `SELECT `+statusColumns+` WHERE n.name = ?`, name).Scan)
	if err != nil {
		return dsas.NodeStatus{}, fmt.Errorf("get status: %w", orNotFound(err, "node", name))
	}
	return st.NodeStatus, nil
}

func scanStatus(scan func(...any) error) (st namedStatus, err error) {
	var since, seen int64
	var id, at, dur, size sql.NullInt64
	var node, mac, boot, kind, msg, detail sql.NullString
	if err := scan(&st.name, &st.Phase, &since, &seen, &st.Boot, &st.Running, &st.Image,
		&id, &at, &node, &mac, &boot, &kind, &msg, &dur, &size, &detail); err != nil {
		return st, err
	}
	st.Since, st.LastSeen = fromNanos(since), fromNanos(seen)
	if !id.Valid {
		return st, nil
	}
	m, err := fromMACText(mac.String)
	st.LastEvent = &dsas.Event{
		ID: id.Int64, Time: fromNanos(at.Int64), Node: node.String, MAC: m, Boot: boot.String,
		Kind: dsas.Kind(kind.String), Message: msg.String,
		Duration: time.Duration(dur.Int64), Bytes: size.Int64, Detail: detail.String,
	}
	return st, err
}

// Seen records a heartbeat. It is cheap: it does not wait for the disk.
func (s *Store) Seen(ctx context.Context, name string, at time.Time) error {
	err := s.writeLax(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE statuses SET last_seen = max(last_seen, ?)
			WHERE node_id = (SELECT id FROM nodes WHERE name = ?)`, toNanos(at), name)
		return must1(res, err, "node", name)
	})
	if err != nil {
		return fmt.Errorf("record heartbeat: %w", err)
	}
	return nil
}

// applyEvent changes the status of e's node, where it has one.
func (s *Store) applyEvent(ctx context.Context, tx *sql.Tx, e dsas.Event) error {
	var id, since, seen int64
	var phase dsas.Phase
	var latest string
	err := tx.QueryRowContext(ctx, `SELECT node_id, phase, since, last_seen, boot FROM statuses JOIN nodes ON id = node_id WHERE name = ?`, e.Node).
		Scan(&id, &phase, &since, &seen, &latest)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	} else if err != nil {
		return err
	}
	stale, err := isStale(ctx, tx, id, latest, e)
	if err != nil {
		return err
	}
	if !stale {
		if e.Boot != "" {
			latest = e.Boot
		}
		if p := dsas.PhaseAfter(phase, e); p != phase {
			phase, since = p, toNanos(e.Time)
		}
	}
	if fromNode(e.Kind) {
		// A node's clock may run ahead; it must not be seen in the future,
		// or it would not be missed for as long.
		t := e.Time
		if now := s.now(); t.After(now) {
			t = now
		}
		seen = max(seen, toNanos(t))
	}
	_, err = tx.ExecContext(ctx, `UPDATE statuses SET phase = ?, since = ?, last_seen = ?, last_event = ?, boot = ? WHERE node_id = ?`,
		phase, since, seen, e.ID, latest, id)
	return err
}

// isStale tells whether e belongs to an older boot than the node's latest: a
// box that hung and was power-cycled may still have had events on the way.
func isStale(ctx context.Context, tx *sql.Tx, node int64, latest string, e dsas.Event) (bool, error) {
	if e.Boot == "" || latest == "" || e.Boot == latest {
		return false, nil
	}
	seq := func(boot string) (n int64, err error) {
		err = tx.QueryRowContext(ctx, `SELECT seq FROM boots WHERE id = ? AND node_id = ?`, boot, node).Scan(&n)
		if errors.Is(err, sql.ErrNoRows) {
			return 0, nil
		}
		return n, err
	}
	its, err := seq(e.Boot)
	if err != nil {
		return false, err
	}
	if its == 0 {
		// A boot no longer known. Only a loader may speak of one that is
		// not recorded yet.
		return strings.HasPrefix(string(e.Kind), "node."), nil
	}
	newest, err := seq(latest)
	return its < newest, err
}

// fromNode tells whether a kind is a sign of life, said by the node itself.
func fromNode(k dsas.Kind) bool {
	switch k {
	case dsas.KindLost, dsas.KindAssigned, dsas.KindChanged:
		return false
	}
	return strings.HasPrefix(string(k), "node.")
}
