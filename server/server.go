// Package server runs the components of dsas serve together: each one is a
// Run(ctx) error; when one fails or the context ends, all stop.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
)

// Component is one part of the server. Run returns when ctx ends (nil or
// ctx's error) or when it cannot go on (why).
type Component interface {
	Run(ctx context.Context) error
}

// Func makes a Component of a function.
type Func func(ctx context.Context) error

// Run implements Component.
func (f Func) Run(ctx context.Context) error { return f(ctx) }

// Named is a component with the name under which its failure is told.
type Named struct {
	Name string
	Component
}

// Run runs all components until ctx ends or one of them stops; the first
// failure is returned, with the component's name.
func Run(ctx context.Context, log *slog.Logger, components ...Named) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range components {
		g.Go(func() error {
			err := c.Run(ctx)
			if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
				return nil
			}
			if err == nil {
				err = errors.New("stopped by itself")
			}
			log.Error("component stopped", "component", c.Name, "err", err)
			return fmt.Errorf("%s: %w", c.Name, err)
		})
	}
	return g.Wait()
}
