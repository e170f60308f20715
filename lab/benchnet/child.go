package main

import (
	"context"
	"fmt"

	"dsas"
)

// runChild makes this process one of the servers that are measured.
func runChild(ctx context.Context, name string, args []string) error {
	return fmt.Errorf("no child %q: %w", name, dsas.ErrInvalid)
}
