// Package store keeps dsas's state in one SQLite file.
//
// There is one writer at a time, whose transactions are on disk when a method
// returns (WAL, synchronous=FULL), and a pool of readers that never wait for
// it. Secrets are encrypted with a key that lies in a file of its own, so a
// copy of the database alone gives none away.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"dsas"

	_ "github.com/mattn/go-sqlite3"
)

const (
	busyTimeout = 10_000 // ms; only a second process can make us wait
	readers     = 4
	// keyCheck is sealed into the database when the key is made, to tell a
	// wrong key from damaged secrets.
	keyCheck = "store.key-check"
)

// Store is the state of one server. Its methods may be called concurrently.
type Store struct {
	db   *sql.DB // the writer: FULL
	lax  *sql.DB // the writer where the last second may be lost to a power cut: NORMAL
	read *sql.DB // readers
	box  box
	log  *slog.Logger
	now  func() time.Time

	queue           *queue // what is to be written
	started         bool   // the goroutine that empties it
	stmts, laxStmts *stmts // of db and lax
	progress        recentProgress
	health          health

	// What is asked for every packet is in memory, read when the store opens
	// and changed as the database is.
	pools     pools
	clock     time.Time // when it was last right; guarded by pools.mu
	nodes     nodeCache
	unknowns  unknowns
	published publishedCache

	mu   sync.Mutex // guards subs
	subs map[chan dsas.Event]struct{}
}

// Open opens the database at path, makes it and its folder (0700) when there is
// none, and brings it to the present version. The key file is made (0600) with
// a new database only: a missing one beside a database that has secrets is an
// error, since a new key would lose them.
func Open(ctx context.Context, path, keyPath string, log *slog.Logger) (*Store, error) {
	for _, p := range []string{path, keyPath} {
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	// SQLite gives the WAL the mode of the database, and the database 0644.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, syscall.EROFS):
		return nil, fmt.Errorf("open store: %w; the state folder must be writable: mount -o remount,rw, or name another with --state", err)
	case errors.Is(err, syscall.ENOSPC):
		return nil, fmt.Errorf("open store: %w; free some space there, or name another state folder with --state", err)
	case err != nil:
		return nil, fmt.Errorf("open store: %w", err)
	}
	f.Close()
	s := &Store{
		queue:  newQueue(),
		log:    log,
		now:    time.Now,
		health: health{log: log, path: path},
		subs:   map[chan dsas.Event]struct{}{},
	}
	if err := s.open(ctx, path, keyPath); err != nil {
		if s.started {
			s.queue.close()
		}
		s.closeAll()
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path, keyPath string) (err error) {
	if s.db, err = connect(path, 1, "_synchronous", "FULL", "_txlock", "immediate"); err != nil {
		return err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	from, to, err := migrate(ctx, s.db, files)
	if err != nil {
		return err
	}
	if from != to {
		s.log.Info("database brought up to date", "from", from, "to", to)
	}
	if s.lax, err = connect(path, 1, "_synchronous", "NORMAL", "_txlock", "immediate"); err != nil {
		return err
	}
	if s.read, err = connect(path, readers, "_query_only", "1"); err != nil {
		return err
	}
	s.stmts, s.laxStmts = newStmts(s.db), newStmts(s.lax)
	if err := errors.Join(s.pools.load(ctx, s.read, s.now()), s.nodes.load(ctx, s.read), s.unknowns.load(ctx, s.read), s.published.load(ctx, s.read)); err != nil {
		return err
	}
	s.started = true
	go s.commitLoop()
	return s.openKey(ctx, keyPath)
}

// connect opens a pool. The pragmas stand in the DSN, since only so every
// connection of the pool has them, and the DSN begins with "file:", without
// which they are dropped silently.
func connect(path string, conns int, params ...string) (*sql.DB, error) {
	q := url.Values{}
	q.Set("_foreign_keys", "1")
	q.Set("_journal_mode", "WAL")
	q.Set("_busy_timeout", fmt.Sprint(busyTimeout))
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite3", "file:"+(&url.URL{Path: abs}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (s *Store) openKey(ctx context.Context, keyPath string) error {
	var check []byte
	err := s.read.QueryRowContext(ctx, `SELECT value FROM secret_settings WHERE key = ?`, keyCheck).Scan(&check)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read key check: %w", err)
	}
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if check != nil {
			return fmt.Errorf("key %s is missing, and the database has secrets encrypted with it: restore the file from a backup, or begin anew without this database: %w", keyPath, dsas.ErrNotFound)
		}
		key, err = makeKey(keyPath)
	}
	if err != nil {
		return err
	}
	if s.box, err = newBox(key); err != nil {
		return err
	}
	if check == nil {
		return s.SetSecretSetting(ctx, keyCheck, keyCheck)
	}
	if _, err := s.box.open("setting/"+keyCheck, check); err != nil {
		return fmt.Errorf("key %s is not the one this database was made with: restore the right one from a backup: %w", keyPath, dsas.ErrInvalid)
	}
	return nil
}

// SetClock replaces time.Now, for tests. Call it before any other method.
func (s *Store) SetClock(now func() time.Time) { s.now = now }

// Close writes what waits, ends all subscriptions and closes the file.
func (s *Store) Close() error {
	s.queue.close()
	s.mu.Lock()
	for c := range s.subs {
		delete(s.subs, c)
		close(c)
	}
	s.mu.Unlock()
	return s.closeAll()
}

func (s *Store) closeAll() error {
	var errs []error
	// The writer last: the last connection to close folds the WAL in.
	for _, db := range []*sql.DB{s.read, s.lax, s.db} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// querier is what *sql.DB and *sql.Tx have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// collect runs a query and scans each row with scan.
func collect[T any](ctx context.Context, q querier, scan func(func(...any) error) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []T{} // not nil: an empty list is [] in JSON
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// must1 turns "no row was changed" into a wrapped dsas.ErrNotFound.
func must1(res sql.Result, err error, what, name string) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		err = notFound(what, name)
	}
	return err
}

// missing is a wrapped dsas.ErrNotFound. Its text is made when it is read: for
// every packet of a box that is no node, nobody reads it.
type missing struct{ what, name string }

func (m missing) Error() string {
	return fmt.Sprintf("no %s %q: %v", m.what, m.name, dsas.ErrNotFound)
}

func (m missing) Unwrap() error { return dsas.ErrNotFound }

// noNodeWith is missing for a MAC.
type noNodeWith struct{ mac dsas.MAC }

func (m noNodeWith) Error() string {
	return "get node: " + missing{"node with MAC", m.mac.String()}.Error()
}

func (m noNodeWith) Unwrap() error { return dsas.ErrNotFound }

func notFound(what, name string) error { return missing{what, name} }

// orNotFound replaces sql.ErrNoRows.
func orNotFound(err error, what, name string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(what, name)
	}
	return err
}

func toNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// orNow gives t, or the store's clock where t is unset, as it will be read back:
// in UTC and without a monotonic reading.
func (s *Store) orNow(t time.Time) time.Time {
	if t.IsZero() {
		t = s.now()
	}
	return t.Round(0).UTC()
}

// addrKey gives an address as the database has it; nil for the zero address.
func addrKey(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	return a.Unmap().AsSlice()
}

func fromAddrKey(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// macText gives "" for the zero MAC.
func macText(m dsas.MAC) string {
	if m.IsZero() {
		return ""
	}
	return m.String()
}

func fromMACText(s string) (dsas.MAC, error) {
	if s == "" {
		return dsas.MAC{}, nil
	}
	return dsas.ParseMAC(s)
}
