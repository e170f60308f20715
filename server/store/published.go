package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"dsas"
)

// publishedCache is what all roles' nodes boot, in memory as the nodes are: the
// writer changes it after a commit, before anybody hears of it.
type publishedCache struct {
	mu     sync.RWMutex
	byRole map[string]dsas.Published
}

func (c *publishedCache) load(ctx context.Context, q querier) error {
	list, err := collect(ctx, q, scanPublished, `SELECT doc FROM published`)
	if err != nil {
		return err
	}
	c.byRole = make(map[string]dsas.Published, len(list))
	for _, p := range list {
		c.byRole[p.Role] = p
	}
	return nil
}

func scanPublished(scan func(...any) error) (p dsas.Published, err error) {
	var doc []byte
	if err := scan(&doc); err != nil {
		return p, err
	}
	if err := json.Unmarshal(doc, &p); err != nil {
		return p, fmt.Errorf("decode what is published: %w", err)
	}
	return p, nil
}

func (c *publishedCache) get(role string) dsas.Published {
	c.mu.RLock()
	defer c.mu.RUnlock()
	p, ok := c.byRole[role]
	if !ok {
		p.Role = role
	}
	return p
}

func (c *publishedCache) put(p dsas.Published) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byRole[p.Role] = p
}

// Published gives what role's nodes boot; where nothing was published, it names
// the role and no release. The caller must not change its Canary.
func (s *Store) Published(role string) dsas.Published { return s.published.get(role) }

// AllPublished gives what every role's nodes boot, by role.
func (s *Store) AllPublished() []dsas.Published {
	s.published.mu.RLock()
	defer s.published.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.published.byRole), func(a, b dsas.Published) int { return strings.Compare(a.Role, b.Role) })
}

// Publish changes what role's nodes boot with change, in one transaction with
// the events that tell of it. change gets what is there; it must not call the store.
func (s *Store) Publish(ctx context.Context, role string, change func(*dsas.Published) ([]dsas.Event, error)) (dsas.Published, error) {
	var p dsas.Published
	var refused error // by change, which says what of
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		var err error // of the transaction: another job of it may have changed it
		p, err = scanPublished(tx.QueryRowContext(ctx, `SELECT doc FROM published WHERE role = ?`, role).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			p, err = dsas.Published{}, nil
		}
		if err != nil {
			return err
		}
		p.Role = role
		events, err := change(&p)
		if refused = err; err != nil {
			return err
		}
		for i := range events {
			if err := s.checkEvent(&events[i]); err != nil {
				return err
			}
		}
		doc, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("encode what is published: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO published (role, doc) VALUES (?, ?) ON CONFLICT (role) DO UPDATE SET doc = excluded.doc`, role, string(doc)); err != nil {
			return err
		}
		put := p
		tx.onCommit(func() { s.published.put(put) })
		return s.addEvents(ctx, tx, events)
	})
	if refused != nil {
		return dsas.Published{}, refused
	}
	if err != nil {
		return dsas.Published{}, fmt.Errorf("publish for role %s: %w", role, err)
	}
	return p, nil
}
