package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"dsas"
)

// keepBoots is how many boots of a node PruneBoots leaves.
const keepBoots = 20

// keepUnknownBoots is how long the boots of MACs that belong to no node are kept.
const keepUnknownBoots = 30 * 24 * time.Hour

const bootColumns = `b.id, coalesce(n.name, ''), b.mac, b.role, b.image, b.token_hash, b.session, b.created, b.address, coalesce(b.first_event, 0), b.picked
	FROM boots b LEFT JOIN nodes n ON n.id = b.node_id`

// CreateBoot records a boot. The node's status shows its id, role and image at
// once, unless the node's services run: then only when the boot proves itself,
// since anybody on the boot network can begin one. Node may be empty (an unknown
// MAC boots the inventory).
func (s *Store) CreateBoot(ctx context.Context, b dsas.Boot) error {
	if b.ID == "" || len(b.TokenHash) == 0 || len(b.Session) == 0 {
		return fmt.Errorf("create boot: id, token hash and session key must be set: %w", dsas.ErrInvalid)
	}
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
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
		_, err = tx.ExecContext(ctx, `INSERT INTO boots (id, node_id, mac, role, image, token_hash, session, created, address, first_event, picked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0), ?)`,
			b.ID, node, macText(b.MAC), b.Role, b.Image, b.TokenHash, s.box.seal(sessionOwner(b.ID), b.Session), toNanos(s.orNow(b.Created)), addrKey(b.Address), toNanos(b.FirstEvent), b.Picked)
		if err != nil || !node.Valid {
			return err
		}
		p, err := readProgress(ctx, tx, `node_id = ?`, node.Int64)
		if err != nil {
			return err
		}
		if err := p.begun(ctx, tx, b.ID); err != nil {
			return err
		}
		return p.write(ctx, tx)
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

// BootAt gives the newest boot whose box boots with address a, or
// dsas.ErrNotFound.
func (s *Store) BootAt(ctx context.Context, a netip.Addr) (dsas.Boot, error) {
	return s.boot(ctx, "boot at", a.String(), `SELECT `+bootColumns+` WHERE b.address = ? ORDER BY b.seq DESC LIMIT 1`, addrKey(a))
}

func (s *Store) boot(ctx context.Context, what, name, query string, arg any) (b dsas.Boot, err error) {
	var mac string
	var sealed, address []byte
	var created, first int64
	err = s.read.QueryRowContext(ctx, query, arg).Scan(&b.ID, &b.Node, &mac, &b.Role, &b.Image, &b.TokenHash, &sealed, &created, &address, &first, &b.Picked)
	if err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", orNotFound(err, what, name))
	}
	b.Created, b.FirstEvent, b.Address = fromNanos(created), fromNanos(first), fromAddrKey(address)
	if b.MAC, err = fromMACText(mac); err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", err)
	}
	if b.Session, err = s.box.open(sessionOwner(b.ID), sealed); err != nil {
		return dsas.Boot{}, fmt.Errorf("get boot: %w", err)
	}
	return b, nil
}

// MarkFirstEvent records when a boot's node first proved to have its session
// key; only the first call counts. From then on this boot is the node's, and
// what an older one still has to say changes nothing.
func (s *Store) MarkFirstEvent(ctx context.Context, id string, at time.Time) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		res, err := tx.ExecContext(ctx, `UPDATE boots SET first_event = coalesce(first_event, ?) WHERE id = ?`, toNanos(s.orNow(at)), id)
		if err := must1(res, err, "boot", id); err != nil {
			return err
		}
		p, err := readProgress(ctx, tx, `node_id = (SELECT node_id FROM boots WHERE boots.id = ?)`, id)
		if errors.Is(err, errNoStatus) {
			return nil // an unknown MAC's
		} else if err != nil {
			return err
		}
		if _, _, err := p.prove(ctx, tx, id); err != nil {
			return err
		}
		return p.write(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("mark first event: %w", err)
	}
	return nil
}

// PruneBoots keeps the last 20 boots of each node and of each unknown MAC, and
// the last one that proved itself: anyone on the boot network can begin boots,
// and must not push out the key of the box that runs. What unknown MACs booted
// goes after 30 days.
func (s *Store) PruneBoots(ctx context.Context) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM boots WHERE seq IN (
			SELECT seq FROM (SELECT seq, row_number() OVER (PARTITION BY node_id, iif(node_id IS NULL, mac, '') ORDER BY seq DESC) AS nth FROM boots) WHERE nth > ?)
			AND seq NOT IN (SELECT max(seq) FROM boots WHERE first_event IS NOT NULL GROUP BY node_id, iif(node_id IS NULL, mac, ''))
			OR node_id IS NULL AND created < ?`, keepBoots, toNanos(s.now().Add(-keepUnknownBoots)))
		return err
	})
	if err != nil {
		return fmt.Errorf("prune boots: %w", err)
	}
	return nil
}
