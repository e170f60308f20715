package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"dsas"
)

// passwordKey is the secret setting with the operator's password hash.
const passwordKey = "auth.password"

// maxSessions bounds the sessions; the one unused for longest goes.
const maxSessions = 1000

// PasswordHash gives the hash of the operator's password as SetPassword got it;
// dsas.ErrNotFound while none is set.
func (s *Store) PasswordHash(ctx context.Context) (string, error) {
	return s.SecretSetting(ctx, passwordKey)
}

// PutSetup makes the token with this SHA-256 the one that may set the first
// password until it expires; one made before is worth nothing from then on.
// dsas.ErrConflict where a password is set.
func (s *Store) PutSetup(ctx context.Context, hash []byte, expires time.Time) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		var there int
		err := tx.QueryRowContext(ctx, `SELECT 1 FROM secret_settings WHERE key = ?`, passwordKey).Scan(&there)
		if err == nil {
			return fmt.Errorf("a password is set already: %w", dsas.ErrConflict)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT OR REPLACE INTO setup (id, hash, expires) VALUES (1, ?, ?)`, hash, toNanos(expires))
		return err
	})
	if err != nil {
		return fmt.Errorf("make setup token: %w", err)
	}
	return nil
}

// CheckSetup tells whether the token with this hash may set the password at
// now: nil, or dsas.ErrDenied.
func (s *Store) CheckSetup(ctx context.Context, hash []byte, now time.Time) error {
	return checkSetup(ctx, s.read, hash, now)
}

func checkSetup(ctx context.Context, q querier, hash []byte, now time.Time) error {
	var there int
	err := q.QueryRowContext(ctx, `SELECT 1 FROM setup WHERE hash = ? AND expires > ?`, hash, toNanos(now)).Scan(&there)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("this setup link was used, replaced, or is older than its time; the server makes a new one when it starts: %w", dsas.ErrDenied)
	}
	return err
}

// SetPassword uses up the setup token with this hash and sets the password, both
// or neither. dsas.ErrDenied: the token is not good.
func (s *Store) SetPassword(ctx context.Context, setup []byte, now time.Time, passwordHash string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		if err := checkSetup(ctx, tx, setup, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM setup`); err != nil {
			return err
		}
		return s.putSecretSetting(ctx, tx, passwordKey, passwordHash)
	})
	if err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	return nil
}

// ClearPassword forgets the password and ends all sessions.
func (s *Store) ClearPassword(ctx context.Context) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM secret_settings WHERE key = ?`, passwordKey); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM sessions`)
		return err
	})
	if err != nil {
		return fmt.Errorf("clear password: %w", err)
	}
	return nil
}

// AddSession begins a session by the SHA-256 of its cookie, and forgets those
// idle for longer than idle.
func (s *Store) AddSession(ctx context.Context, hash []byte, now time.Time, idle time.Duration) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM sessions WHERE last_used <= ?1 OR hash IN (
			SELECT hash FROM sessions ORDER BY last_used DESC LIMIT -1 OFFSET ?2)`, toNanos(now.Add(-idle)), maxSessions-1); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO sessions (hash, created, last_used) VALUES (?1, ?2, ?2)`, hash, toNanos(now))
		return err
	})
	if err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	return nil
}

// UseSession notes (once a minute) that a session is used. dsas.ErrNotFound:
// there is none, or it was idle for longer than idle.
func (s *Store) UseSession(ctx context.Context, hash []byte, now time.Time, idle time.Duration) error {
	var used int64
	err := s.read.QueryRowContext(ctx, `SELECT last_used FROM sessions WHERE hash = ? AND last_used > ?`, hash, toNanos(now.Add(-idle))).Scan(&used)
	if err == nil && now.Sub(fromNanos(used)) >= time.Minute {
		err = s.writeLax(ctx, func(ctx context.Context, tx *txn) error {
			_, err := tx.ExecContext(ctx, `UPDATE sessions SET last_used = max(last_used, ?) WHERE hash = ?`, toNanos(now), hash)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("use session: %w", orNotFound(err, "session", "with this cookie"))
	}
	return nil
}

// DeleteSession ends a session; that there is none is no error.
func (s *Store) DeleteSession(ctx context.Context, hash []byte) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM sessions WHERE hash = ?`, hash)
		return err
	})
	if err != nil {
		return fmt.Errorf("end session: %w", err)
	}
	return nil
}
