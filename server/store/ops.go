package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"time"

	"dsas"
)

// aliveTime is how long an answer to Alive may take.
const aliveTime = 10 * time.Second

// Alive tells whether a reader is answered: nil, or why not.
func (s *Store) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aliveTime)
	defer cancel()
	var one int
	if err := s.read.QueryRowContext(ctx, `SELECT 1`).Scan(&one); err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	return nil
}

// Probe tells whether a change gets to the disk now: nil, or why not.
func (s *Store) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aliveTime)
	defer cancel()
	if err := s.SetSetting(ctx, "store.probe", s.now().UTC().Format(time.RFC3339)); err != nil {
		return fmt.Errorf("write store: %w", err)
	}
	return nil
}

// Snapshot copies the database at path, which a server may be using, to the
// new file to: all of it as it was at one moment, compacted. The writers of a
// running server do not wait for it (WAL). It gives the database's version.
func Snapshot(ctx context.Context, path, to string) (schema int, err error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("copy database %s: %w", path, err) }
	if _, err := os.Stat(path); err != nil {
		return fail(err)
	}
	db, err := connect(path, 1, "mode", "rw")
	if err != nil {
		return fail(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&schema); err != nil {
		return fail(err)
	}
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		return fail(err)
	}
	return schema, os.Chmod(to, 0o600)
}

// CheckSnapshot tells whether this program can use the database at path with
// the key at keyPath: it is whole, of a version that is known, and the key is
// the one its secrets are sealed with. Nothing is written. It gives the number
// of nodes in it.
func CheckSnapshot(ctx context.Context, path, keyPath string) (nodes int, err error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("check database: %w", err) }
	db, err := connect(path, 1, "mode", "ro", "immutable", "1", "_journal_mode", "")
	if err != nil {
		return fail(err)
	}
	defer db.Close()
	var said string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&said); err != nil {
		return fail(err)
	}
	if said != "ok" {
		return fail(fmt.Errorf("it is damaged: %s: %w", said, dsas.ErrInvalid))
	}
	var schema int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&schema); err != nil {
		return fail(err)
	}
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return fail(err)
	}
	if schema < 1 || schema > len(files) {
		return fail(fmt.Errorf("it has version %d and this program knows 1 to %d: use the dsas that made it, or a newer one: %w", schema, len(files), dsas.ErrInvalid))
	}
	key, err := readKey(keyPath)
	if err != nil {
		return fail(err)
	}
	b, err := newBox(key)
	if err != nil {
		return fail(err)
	}
	var check []byte
	if err := db.QueryRowContext(ctx, `SELECT value FROM secret_settings WHERE key = ?`, keyCheck).Scan(&check); err != nil {
		return fail(fmt.Errorf("read key check: %w", err))
	}
	if _, err := b.open("setting/"+keyCheck, check); err != nil {
		return fail(fmt.Errorf("the key is not the one that it was made with: %w", dsas.ErrInvalid))
	}
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM nodes`).Scan(&nodes); err != nil {
		return fail(err)
	}
	return nodes, nil
}
