package store

import (
	"context"
	"fmt"
	"time"

	"dsas"
)

// Trials gives the nodes' boots of a role with a release that began at since or
// later, in their order, and what the nodes said in them.
func (s *Store) Trials(ctx context.Context, role string, release dsas.Digest, since time.Time) ([]dsas.Trial, error) {
	// An event's texts are the box's own; what it says first is why it failed.
	list, err := collect(ctx, s.read, func(scan func(...any) error) (t dsas.Trial, err error) {
		var began, proven int64
		err = scan(&t.Node, &t.Boot, &began, &proven, &t.Ready, &t.Failed)
		t.Began, t.Proven = fromNanos(began), fromNanos(proven)
		return t, err
	}, `SELECT n.name, b.id, b.created, coalesce(b.first_event, 0),
		EXISTS (SELECT 1 FROM events e WHERE e.boot = b.id AND e.boot <> '' AND e.kind = ?4),
		coalesce((SELECT iif(e.message = '', 'without a reason', e.message) FROM events e WHERE e.boot = b.id AND e.boot <> '' AND e.kind IN (?5, ?6) ORDER BY e.id LIMIT 1), '')
		FROM boots b JOIN nodes n ON n.id = b.node_id
		WHERE b.role = ?1 AND b.image = ?2 AND b.created >= ?3 ORDER BY b.seq`,
		role, release, toNanos(since), dsas.KindReady, dsas.KindFailed, dsas.KindPartBad)
	if err != nil {
		return nil, fmt.Errorf("list boots of a canary: %w", err)
	}
	return list, nil
}

// BootReleases gives the releases that boots may still fetch: those of boots
// begun at since or later, of the boot that each node's status shows, and of the
// last one that it has proven.
func (s *Store) BootReleases(ctx context.Context, since time.Time) ([]dsas.Digest, error) {
	list, err := collect(ctx, s.read, func(scan func(...any) error) (d dsas.Digest, err error) { return d, scan(&d) },
		`SELECT image FROM boots WHERE created >= ?1 AND image <> ''
		UNION SELECT image FROM statuses WHERE image <> ''
		UNION SELECT b.image FROM boots b JOIN statuses s ON s.proven_boot = b.id WHERE b.image <> '' ORDER BY 1`, toNanos(since))
	if err != nil {
		return nil, fmt.Errorf("list releases of boots: %w", err)
	}
	return list, nil
}
