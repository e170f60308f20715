package agent

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Watchdog feeds /dev/watchdog (kernel Documentation/watchdog/watchdog-api.rst)
// only while the agent makes progress: Alive is called by its main loop, and
// when that stops for Patience, feeding stops and the hardware resets the box.
type Watchdog struct {
	Patience time.Duration
	last     atomic.Int64 // of start, in nanoseconds
	start    time.Time
}

// NewWatchdog starts with one sign of life.
func NewWatchdog(patience time.Duration) *Watchdog {
	w := &Watchdog{Patience: patience, start: time.Now()}
	w.Alive()
	return w
}

// Alive is the agent's sign of life. It counts time since start, which is
// monotonic: a clock that is set must not reset the box.
func (w *Watchdog) Alive() { w.last.Store(int64(time.Since(w.start))) }

// Live tells whether the agent gave a sign of life within Patience.
func (w *Watchdog) Live() bool {
	return time.Since(w.start)-time.Duration(w.last.Load()) < w.Patience
}

// watchdogTimeout is what the hardware is asked for, in seconds.
const watchdogTimeout = 60

// Run opens dev and feeds it until ctx ends; it stays armed then. A box without a watchdog is no error: found is false.
func (w *Watchdog) Run(ctx context.Context, dev string, said func(string)) (found bool, err error) {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("watchdog %s: %w", dev, err)
	}
	defer f.Close()
	timeout := watchdogTimeout
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, timeout); err != nil {
		if timeout, err = unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err != nil || timeout <= 0 {
			timeout = 10
		}
	}
	said(fmt.Sprintf("watchdog %s armed: %d s", dev, timeout))
	tick := time.NewTicker(time.Duration(timeout) * time.Second / 4)
	defer tick.Stop()
	for {
		if w.Live() {
			if _, err := f.Write([]byte{0}); err != nil {
				return true, fmt.Errorf("feed watchdog %s: %w", dev, err)
			}
		}
		select {
		case <-ctx.Done():
			// Not disarmed: a reboot that hangs is what it is for, and a second
			// stage opens it again in time.
			f.Write([]byte{0})
			return true, nil
		case <-tick.C:
		}
	}
}
