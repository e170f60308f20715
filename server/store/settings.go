package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"dsas"
)

// HostKey gives node's private ssh host key, the same over all its boots. The
// first call has it made by newKey, once, and keeps it encrypted. newKey must
// not call the store.
func (s *Store) HostKey(ctx context.Context, node string, newKey func() ([]byte, error)) ([]byte, error) {
	key, err := s.hostKey(ctx, s.read, node)
	if err == nil && key == nil {
		err = s.write(ctx, func(ctx context.Context, tx *txn) (err error) {
			if key, err = s.hostKey(ctx, tx, node); err != nil || key != nil {
				return err // another was faster
			}
			id, err := nodeID(ctx, tx, node)
			if err != nil {
				return err
			}
			if key, err = newKey(); err != nil {
				return fmt.Errorf("make host key: %w", err)
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO host_keys (node_id, key) VALUES (?, ?)`, id, s.box.seal(hostKeyOwner(id), key))
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("get host key: %w", err)
	}
	return key, nil
}

// hostKey gives nil where node has no key yet.
func (s *Store) hostKey(ctx context.Context, q querier, node string) ([]byte, error) {
	var id int64
	var sealed []byte
	err := q.QueryRowContext(ctx, `SELECT id, key FROM nodes LEFT JOIN host_keys ON node_id = id WHERE name = ?`, node).Scan(&id, &sealed)
	if err != nil || sealed == nil {
		return nil, orNotFound(err, "node", node)
	}
	return s.box.open(hostKeyOwner(id), sealed)
}

func hostKeyOwner(id int64) string { return fmt.Sprintf("node/%d/host-key", id) }

// Setting gives a setting's value, or dsas.ErrNotFound.
func (s *Store) Setting(ctx context.Context, key string) (value string, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = ?`, key).Scan(&value)
	if err != nil {
		return "", fmt.Errorf("get setting: %w", orNotFound(err, "setting", key))
	}
	return value, nil
}

// SetSetting sets a setting.
func (s *Store) SetSetting(ctx context.Context, key, value string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value`, key, value)
		return err
	})
	if err != nil {
		return fmt.Errorf("set setting %s: %w", key, err)
	}
	return nil
}

// SecretSetting decrypts a secret setting's value, or gives dsas.ErrNotFound.
func (s *Store) SecretSetting(ctx context.Context, key string) (string, error) {
	var sealed []byte
	err := s.read.QueryRowContext(ctx, `SELECT value FROM secret_settings WHERE key = ?`, key).Scan(&sealed)
	if err != nil {
		return "", fmt.Errorf("get secret setting: %w", orNotFound(err, "secret setting", key))
	}
	plain, err := s.box.open("setting/"+key, sealed)
	return string(plain), err
}

// SetSecretSetting sets a secret setting, encrypted at rest.
func (s *Store) SetSecretSetting(ctx context.Context, key, value string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		return s.putSecretSetting(ctx, tx, key, value)
	})
	if err != nil {
		return fmt.Errorf("set secret setting %s: %w", key, err)
	}
	return nil
}

func (s *Store) putSecretSetting(ctx context.Context, tx *txn, key, value string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO secret_settings (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value`,
		key, s.box.seal("setting/"+key, []byte(value)))
	return err
}

// AddToken adds an API token by the SHA-256 of it.
func (s *Store) AddToken(ctx context.Context, name string, hash []byte) error {
	if err := dsas.CheckName("token", name); err != nil {
		return fmt.Errorf("add token: %w", err)
	}
	if len(hash) < 32 {
		return fmt.Errorf("add token %s: its hash has %d bytes, want 32: %w", name, len(hash), dsas.ErrInvalid)
	}
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		var there string
		err := tx.QueryRowContext(ctx, `SELECT name FROM tokens WHERE name = ? OR hash = ?`, name, hash).Scan(&there)
		if err == nil {
			return fmt.Errorf("token %s exists already; delete it first, or take another name: %w", there, dsas.ErrConflict)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO tokens (name, hash, created) VALUES (?, ?, ?)`, name, hash, toNanos(s.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("add token: %w", err)
	}
	return nil
}

// Tokens lists the API tokens by name.
func (s *Store) Tokens(ctx context.Context) ([]dsas.Token, error) {
	list, err := collect(ctx, s.read, func(scan func(...any) error) (t dsas.Token, err error) {
		var created, used int64
		err = scan(&t.Name, &created, &used)
		t.Created, t.LastUsed = fromNanos(created), fromNanos(used)
		return t, err
	}, `SELECT name, created, last_used FROM tokens ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return list, nil
}

// DeleteToken removes an API token; it is refused from then on.
func (s *Store) DeleteToken(ctx context.Context, name string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE name = ?`, name)
		return must1(res, err, "token", name)
	})
	if err != nil {
		return fmt.Errorf("delete token: %w", err)
	}
	return nil
}

// TokenByHash gives the name of the API token with this hash, and notes once a
// minute that it was used.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (name string, err error) {
	var used int64
	err = s.read.QueryRowContext(ctx, `SELECT name, last_used FROM tokens WHERE hash = ?`, hash).Scan(&name, &used)
	if err != nil {
		return "", fmt.Errorf("get token: %w", orNotFound(err, "token", "with this hash"))
	}
	if now := s.now(); now.Sub(fromNanos(used)) >= time.Minute {
		err := s.writeLax(ctx, func(ctx context.Context, tx *txn) error {
			_, err := tx.ExecContext(ctx, `UPDATE tokens SET last_used = ? WHERE hash = ?`, toNanos(now), hash)
			return err
		})
		if err != nil {
			return "", fmt.Errorf("note use of token %s: %w", name, err)
		}
	}
	return name, nil
}
