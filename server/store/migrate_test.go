package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"dsas"
)

func version(t *testing.T, db *sql.DB) (v int) {
	t.Helper()
	if err := db.QueryRow(`PRAGMA user_version`).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMigrateFromZero(t *testing.T) {
	db, err := connect(filepath.Join(t.TempDir(), "x.db"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil || len(names) == 0 {
		t.Fatalf("Glob = %v, %v; want migrations", names, err)
	}
	for i, want := range [][2]int{{0, len(names)}, {len(names), len(names)}} {
		from, to, err := migrate(t.Context(), db, files)
		if err != nil || from != want[0] || to != want[1] {
			t.Errorf("migrate #%d = %d, %d, %v; want %d, %d", i, from, to, err, want[0], want[1])
		}
		if got := version(t, db); got != len(names) {
			t.Errorf("version = %d; want %d", got, len(names))
		}
	}
	var bad string
	if err := db.QueryRow(`PRAGMA integrity_check`).Scan(&bad); err != nil || bad != "ok" {
		t.Errorf("integrity_check = %q, %v; want ok", bad, err)
	}
}

// A migration that fails leaves nothing of itself, and the ones before it stay;
// one that comes later carries on from there with the data kept.
func TestMigrateFails(t *testing.T) {
	db, err := connect(filepath.Join(t.TempDir(), "x.db"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	files := fstest.MapFS{
		"0001_a.sql": {Data: []byte(`CREATE TABLE a (x); INSERT INTO a VALUES (42);`)},
		"0002_b.sql": {Data: []byte(`CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);`)},
	}
	from, to, err := migrate(t.Context(), db, files)
	if err == nil || from != 0 || to != 1 || !strings.Contains(err.Error(), "0002_b.sql") {
		t.Errorf("migrate = %d, %d, %v; want 0, 1 and an error that names 0002_b.sql", from, to, err)
	}
	if got := version(t, db); got != 1 {
		t.Errorf("version = %d; want 1", got)
	}
	if _, err := db.Exec(`SELECT * FROM b`); err == nil {
		t.Error("table b exists; want it rolled back")
	}
	files["0002_b.sql"] = &fstest.MapFile{Data: []byte(`CREATE TABLE b (x); INSERT INTO b SELECT x FROM a;`)}
	if from, to, err := migrate(t.Context(), db, files); err != nil || from != 1 || to != 2 {
		t.Errorf("migrate = %d, %d, %v; want 1, 2, nil", from, to, err)
	}
	var x int
	if err := db.QueryRow(`SELECT x FROM b`).Scan(&x); err != nil || x != 42 {
		t.Errorf("x = %d, %v; want 42", x, err)
	}

	delete(files, "0002_b.sql")
	if _, _, err := migrate(t.Context(), db, files); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("migrate(newer database) = %v; want an error that says newer", err)
	}
	files["0003_c.sql"] = &fstest.MapFile{}
	if _, _, err := migrate(t.Context(), db, files); err == nil || !strings.Contains(err.Error(), "0003_c.sql") {
		t.Errorf("migrate(gap) = %v; want an error that names 0003_c.sql", err)
	}
}

// Every connection of every pool has its pragmas.
func TestPragmas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd ?&#% name.db")
	db, err := connect(path, readers, "_synchronous", "FULL", "_query_only", "0")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range readers {
		conn, err := db.Conn(t.Context()) // held, so the next is another
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000"} {
			var got string
			if err := conn.QueryRowContext(context.Background(), `PRAGMA `+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("PRAGMA %s = %q, %v; want %q", pragma, got, err, want)
			}
		}
	}
	if m, err := filepath.Glob(filepath.Join(filepath.Dir(path), "odd*.db")); err != nil || len(m) != 1 {
		t.Errorf("files = %v, %v; want the one named", m, err)
	}
}

func TestBox(t *testing.T) {
	b, err := newBox(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	sealed := b.seal("node/1/x", []byte("secret"))
	if got, err := b.open("node/1/x", sealed); err != nil || string(got) != "secret" {
		t.Errorf("open = %q, %v; want secret", got, err)
	}
	if bytes.Equal(sealed, b.seal("node/1/x", []byte("secret"))) {
		t.Error("sealing twice gives the same bytes; want another nonce each time")
	}
	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	for what, f := range map[string]func() ([]byte, error){
		"another's": func() ([]byte, error) { return b.open("node/2/x", sealed) },
		"changed":   func() ([]byte, error) { return b.open("node/1/x", changed) },
		"cut off":   func() ([]byte, error) { return b.open("node/1/x", sealed[:10]) },
	} {
		if got, err := f(); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("open(%s) = %q, %v; want %v", what, got, err, dsas.ErrInvalid)
		}
	}
}

// The writer waits for the disk, heartbeats do not, readers cannot write.
func TestOpenedPragmas(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), filepath.Join(dir, "x.db"), filepath.Join(dir, "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		name, pragma, want string
		db                 *sql.DB
	}{
		{"db", "synchronous", "2", s.db},
		{"lax", "synchronous", "1", s.lax},
		{"read", "query_only", "1", s.read},
	} {
		var got string
		if err := c.db.QueryRow(`PRAGMA ` + c.pragma).Scan(&got); err != nil || got != c.want {
			t.Errorf("%s: PRAGMA %s = %q, %v; want %q", c.name, c.pragma, got, err, c.want)
		}
	}
}

// TestMigrateProven: what a database of before boots were proven says of its
// nodes is taken for proven.
func TestMigrateProven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dsas.db")
	db, err := connect(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	older := fstest.MapFS{}
	for _, name := range []string{"0001_init.sql", "0002_auth.sql"} {
		b, err := fs.ReadFile(migrations, "migrations/"+name)
		if err != nil {
			t.Fatal(err)
		}
		older[name] = &fstest.MapFile{Data: b}
	}
	if _, _, err := migrate(t.Context(), db, older); err != nil {
		t.Fatal(err)
	}
	phases := []dsas.Phase{dsas.PhaseReady, dsas.PhaseLost, dsas.PhaseServices, dsas.PhaseFailed, dsas.PhaseLoader, dsas.PhaseOff, dsas.PhaseNew}
	for i, p := range phases {
		for _, q := range []string{
			`INSERT INTO nodes (id, name, doc) VALUES (?1, ?2, '{}')`,
			`INSERT INTO boots (id, node_id, mac, role, image, token_hash, session, created) VALUES (?2, ?1, '', 'web', '', CAST(?2 AS BLOB), x'00', 0)`,
			`INSERT INTO statuses (node_id, phase, boot, running) VALUES (?1, ?2, ?2, 'web')`,
		} {
			if _, err := db.Exec(q, i+1, string(p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := Open(t.Context(), path, filepath.Join(t.TempDir(), "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Statuses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range phases {
		want := ""
		if p == dsas.PhaseReady || p == dsas.PhaseLost {
			want = "web"
		}
		if st := all[string(p)]; st.Phase != p || st.Serving != want {
			t.Errorf("a node that was %s is %s, serving %q; want %s, %q", p, st.Phase, st.Serving, p, want)
		}
	}
}
