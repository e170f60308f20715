package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"dsas"
)

const statusColumns = `n.name, s.phase, s.since, s.last_seen, s.boot, s.running, coalesce(b.picked, 0), s.image,
	iif(s.proven_phase = 'ready' AND s.ended = 0, coalesce(p.role, s.running), ''),
	e.id, e.time, e.node, e.mac, e.boot, e.kind, e.message, e.duration, e.bytes, e.detail
	FROM nodes n JOIN statuses s ON s.node_id = n.id LEFT JOIN events e ON e.id = s.last_event
	LEFT JOIN boots p ON p.id = s.proven_boot AND p.node_id = n.id
	LEFT JOIN boots b ON b.id = s.boot AND b.node_id = n.id`

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
	if err := scan(&st.name, &st.Phase, &since, &seen, &st.Boot, &st.Running, &st.Picked, &st.Image, &st.Serving,
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
	err := s.writeLax(ctx, func(ctx context.Context, tx *txn) error {
		res, err := tx.ExecContext(ctx, `UPDATE statuses SET last_seen = max(last_seen, ?)
			WHERE node_id = (SELECT id FROM nodes WHERE name = ?)`, toNanos(at), name)
		return must1(res, err, "node", name)
	})
	if err != nil {
		return fmt.Errorf("record heartbeat: %w", err)
	}
	return nil
}
