package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the database to the newest version in files, which are named
// NNNN_what.sql and numbered from 1 without a gap. Each runs in a transaction
// of its own together with the new version number (PRAGMA user_version is part
// of a transaction), so a failure leaves the version before it. It returns the
// version found and the version reached.
func migrate(ctx context.Context, db *sql.DB, files fs.FS) (from, to int, err error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, 0, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&from); err != nil {
		return 0, 0, fmt.Errorf("read database version: %w", err)
	}
	if from > len(names) {
		return from, from, fmt.Errorf("database has version %d and this program knows %d: it was used by a newer dsas; run that one, or restore a backup", from, len(names))
	}
	for i, name := range names {
		num, _, _ := strings.Cut(name, "_")
		if n, err := strconv.Atoi(num); err != nil || n != i+1 {
			return from, to, fmt.Errorf("migration %s: want number %04d", name, i+1)
		}
		to = i + 1
		if to <= from {
			continue
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return from, to - 1, fmt.Errorf("read migration %s: %w", name, err)
		}
		err = inTx(ctx, db, func(ctx context.Context, tx *txn) error {
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, to))
			return err
		})
		if err != nil {
			return from, to - 1, fmt.Errorf("run migration %s: %w", name, err)
		}
	}
	return from, max(from, to), nil
}
