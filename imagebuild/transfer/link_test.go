package transfer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dsas"
)

// TestLinkNew: where the kernel cannot rename without replacing (NFS), nothing is
// replaced either.
func TestLinkNew(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for _, name := range []string{from, to} {
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, rename := range map[string]func(from, to string) error{"linkNew": linkNew, "renameNew": renameNew} {
		if err := rename(from, to); !errors.Is(err, dsas.ErrConflict) {
			t.Errorf("%s over a file = %v; want ErrConflict", name, err)
		}
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != to {
		t.Errorf("the file that was there = %q, %v; want it as it was", b, err)
	}
	if err := errors.Join(os.Remove(to), linkNew(from, to)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != from {
		t.Errorf("linkNew leaves %q, %v; want the file", b, err)
	}
	if _, err := os.Lstat(from); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("linkNew leaves the first name: %v", err)
	}
}
