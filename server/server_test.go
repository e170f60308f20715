package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestRunStopsAllWhenOneFails(t *testing.T) {
	boom := errors.New("boom")
	stopped := make(chan struct{})
	err := Run(context.Background(), quiet(),
		Named{"waits", Func(func(ctx context.Context) error {
			<-ctx.Done()
			close(stopped)
			return ctx.Err()
		})},
		Named{"fails", Func(func(context.Context) error { return boom })},
	)
	<-stopped
	if !errors.Is(err, boom) {
		t.Errorf("Run() = %v; want %v", err, boom)
	}
	if got, want := err.Error(), "fails: boom"; got != want {
		t.Errorf("Run() says %q; want %q", got, want)
	}
}

func TestRunTellsOfAComponentThatJustReturns(t *testing.T) {
	err := Run(context.Background(), quiet(), Named{"quits", Func(func(context.Context) error { return nil })})
	if err == nil {
		t.Error("Run() = nil; want an error: a component may not stop by itself")
	}
}

func TestRunIsNilWhenTheContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	err := Run(ctx, quiet(),
		Named{"a", Func(func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() })},
		Named{"b", Func(func(ctx context.Context) error { <-ctx.Done(); return nil })})
	if err != nil {
		t.Errorf("Run() = %v; want nil", err)
	}
}
