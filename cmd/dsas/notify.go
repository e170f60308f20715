package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// notify tells the service manager how we are (sd_notify(3)): "READY=1",
// "STOPPING=1", "WATCHDOG=1", several separated by newlines. Without one
// ($NOTIFY_SOCKET is not set) it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if strings.HasPrefix(path, "@") { // an abstract socket
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// watchdogPeriod is within what time the service manager wants to hear of us
// (sd_watchdog_enabled(3)); 0 where it does not ask.
func watchdogPeriod() time.Duration {
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// watchdog tells the service manager that we live, three times per period, as
// long as alive says so: a server that hangs is killed and started anew. What
// alive looks at must be ours alone; a full disk is no reason to be killed.
func watchdog(ctx context.Context, period time.Duration, log *slog.Logger, alive func(context.Context) error) error {
	t := time.NewTicker(period / 3)
	defer t.Stop()
	for {
		if err := alive(ctx); err == nil {
			if err := notify("WATCHDOG=1"); err != nil {
				log.Warn("watchdog", "err", err)
			}
		} else if !errors.Is(err, context.Canceled) {
			log.Error("watchdog: not alive", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
