// Package diskio is what all that keep files have in common.
package diskio

import (
	"context"
	"fmt"
	"io"
	"os"
)

// SyncDir makes what was made, renamed or removed in a folder survive a power
// cut (fsync(2), notes).
func SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}

// Reader reads from r until ctx ends, so that a copy can be interrupted.
func Reader(ctx context.Context, r io.Reader) io.Reader { return reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
