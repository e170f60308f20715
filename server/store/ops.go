package store

import (
	"context"
	"fmt"
	"time"
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
