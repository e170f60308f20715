package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// manager is the service manager's end of $NOTIFY_SOCKET.
func manager(t *testing.T) (read func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		b := make([]byte, 1024)
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestNotify(t *testing.T) {
	read := manager(t)
	if err := notify("READY=1\nSTATUS=serving eth1"); err != nil {
		t.Fatal(err)
	}
	if got, want := read(), "READY=1\nSTATUS=serving eth1"; got != want {
		t.Errorf("the manager heard %q; want %q", got, want)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := notify("READY=1"); err == nil {
		t.Error("notify(nobody listens) = nil; want an error")
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("notify(no manager) = %v; want nil", err)
	}
}

func TestWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "60000000")
	for pid, want := range map[string]time.Duration{"": time.Minute, strconv.Itoa(os.Getpid()): time.Minute, "1": 0} {
		t.Setenv("WATCHDOG_PID", pid)
		if got := watchdogPeriod(); got != want {
			t.Errorf("watchdogPeriod(pid %q) = %s; want %s", pid, got, want)
		}
	}
	t.Setenv("WATCHDOG_PID", "")
	t.Setenv("WATCHDOG_USEC", "no number")
	if got := watchdogPeriod(); got != 0 {
		t.Errorf("watchdogPeriod(no number) = %s; want 0", got)
	}

	read := manager(t)
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error)
	ended := make(chan error)
	go func() {
		ended <- watchdog(ctx, 30*time.Millisecond, slog.New(slog.DiscardHandler), func(context.Context) error { return <-answer })
	}()
	answer <- errors.New("hangs") // nothing is said then
	answer <- errors.New("hangs")
	answer <- nil
	answer <- errors.New("hangs") // by now it was said
	if err := notify("END"); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "WATCHDOG=1" {
		t.Errorf("the manager heard %q; want WATCHDOG=1", got)
	}
	cancel()
	for {
		select {
		case answer <- errors.New("hangs"):
			continue
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("watchdog = %v; want context.Canceled", err)
			}
		}
		return
	}
}
