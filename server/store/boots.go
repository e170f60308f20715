package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"dsas"
)

// keepBoots is how many boots of a node PruneBoots leaves.
const keepBoots = 20

const bootColumns = `b.id, coalesce(n.name, ''), b.mac, b.role, b.image, b.token_hash, b.session, b.created, coalesce(b.first_event, 0)
	FROM boots b LEFT JOIN nodes n ON n.id = b.node_id`

// CreateBoot records a boot and makes it its node's latest: the status gets its
// id, role and image. Node may be empty (an unknown MAC boots the inventory).
func (s *Store) CreateBoot(ctx context.Context, b dsas.Boot) error {
	if b.ID == "" || len(b.TokenHash) == 0 || len(b.Session) == 0 {
		return fmt.Errorf("create boot: id, token hash and session key must be set: %w", dsas.ErrInvalid)
	}
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var node sql.NullInt64
		if b.Node != "" {
			id, err := nodeID(ctx, tx, b.Node)
			if err != nil {
				return err
			}
			node = sql.NullInt64{Int64: id, Valid: true}
		}
		var there int
		err := tx.QueryRowContext(ctx, `SELECT 1 FROM boots WHERE id = ? OR token_hash = ?`, b.ID, b.TokenHash).Scan(&there)
		if err == nil {
			return fmt.Errorf("boot %s, or its token, exists already: %w", b.ID, dsas.ErrConflict)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO boots (id, node_id, mac, role, image, token_hash, session, created, first_event) VALUES (?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0))`,
			b.ID, node, macText(b.MAC), b.Role, b.Image, b.TokenHash, s.box.seal(sessionOwner(b.ID), b.Session), toNanos(s.orNow(b.Created)), toNanos(b.FirstEvent))
		if err != nil || !node.Valid {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE statuses SET boot = ?, running = ?, image = ? WHERE node_id = ?`, b.ID, b.Role, b.Image, node.Int64)
		return err
	})
	if err != nil {
		return fmt.Errorf("create boot: %w", err)
	}
	return nil
}

func sessionOwner(boot string) string { return "boot/" + boot + "/session" }

// Boot gives a boot by its id, its session key decrypted.
func (s *Store) Boot(ctx context.Context, id string) (dsas.Boot, error) {
	return s.boot(ctx, "boot", id, `SELECT `+bootColumns+` WHERE b.id = ?`, id)
}

// BootByToken gives the boot whose token has this SHA-256, its session key
// decrypted. For how long a token is good is the caller's to say.
func (s *Store) BootByToken(ctx context.Context, hash []byte) (dsas.Boot, error) {
	return s.boot(ctx, "boot", "with this token", `SELECT `+bootColumns+` WHERE b.token_hash = ?`, hash)
}

func (s *Store) boot(ctx context.Context, what, name, query string, arg any) (b dsas.Boot, err error) {
	var mac string
	var sealed []byte
	var created, first int64
	err = s.read.QueryRowContext(ctx, query, arg).Scan(&b.ID, &b.Node, &mac, &b.Role, &b.Image, &b.TokenHash, &sealed, &created, &first)
	if err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", orNotFound(err, what, name))
	}
	b.Created, b.FirstEvent = fromNanos(created), fromNanos(first)
	if b.MAC, err = fromMACText(mac); err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", err)
	}
	if b.Session, err = s.box.open(sessionOwner(b.ID), sealed); err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", err)
	}
	return b, nil
}

// MarkFirstEvent records when a boot's node first proved to have its session
// key. Only the first call counts.
func (s *Store) MarkFirstEvent(ctx context.Context, id string, at time.Time) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE boots SET first_event = coalesce(first_event, ?) WHERE id = ?`, toNanos(s.orNow(at)), id)
		return must1(res, err, "boot", id)
	})
	if err != nil {
		return fmt.Errorf("mark first event: %w", err)
	}
	return nil
}

// PruneBoots keeps the last 20 boots of each node (and of all unknown MACs
// together), and the last one that proved itself: anyone on the boot network
// can begin boots, and must not push out the key of the box that runs.
func (s *Store) PruneBoots(ctx context.Context) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM boots WHERE seq IN (
			SELECT seq FROM (SELECT seq, row_number() OVER (PARTITION BY node_id ORDER BY seq DESC) AS nth FROM boots) WHERE nth > ?)
			AND seq NOT IN (SELECT max(seq) FROM boots WHERE first_event IS NOT NULL GROUP BY node_id)`, keepBoots)
		return err
	})
	if err != nil {
		return fmt.Errorf("prune boots: %w", err)
	}
	return nil
}
