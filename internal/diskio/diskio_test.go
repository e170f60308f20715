package diskio

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
)

func TestSyncDir(t *testing.T) {
	if err := SyncDir(t.TempDir()); err != nil {
		t.Errorf("SyncDir(a folder) = %v; want nil", err)
	}
	if err := SyncDir(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir(no folder) = %v; want ErrNotExist", err)
	}
}

func TestReaderEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := Reader(ctx, strings.NewReader("abcdef"))
	b := make([]byte, 3)
	if n, err := r.Read(b); n != 3 || err != nil {
		t.Fatalf("Read = %d, %v; want 3, nil", n, err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAll after cancel = %v; want context.Canceled", err)
	}
}
