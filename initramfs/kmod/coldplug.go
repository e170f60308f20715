package kmod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dsas/initramfs/uevent"
)

// quiet is how long the kernel must have had nothing new to tell before the
// hardware counts as found. A bus that looks for its devices in the background
// (USB, SCSI) may take longer: what comes later is Hotplug's.
const quiet = 150 * time.Millisecond

// LoadFor loads the drivers of the hardware that sysfs ("/sys") shows, again
// and again, since a driver may bring a bus with devices of its own, until
// nothing new appears. The error joins what failed; the rest is loaded.
// Hardware that turns out not to be there (ENODEV) is no failure.
func (l *Loader) LoadFor(ctx context.Context, sysfs string) error {
	conn, err := uevent.Listen()
	if err != nil {
		return err
	}
	defer conn.Close()
	p := &plug{loader: l, seen: map[string]bool{}}
	for {
		found, err := modaliases(sysfs)
		if err != nil {
			return errors.Join(append(p.errs, err)...)
		}
		if p.load(found) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(p.errs, err)...)
		}
		if !stirs(ctx, conn) {
			return errors.Join(p.errs...)
		}
	}
}

// stirs waits for a device that comes, for the quiet time.
func stirs(ctx context.Context, conn *uevent.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	for {
		e, err := conn.Next(ctx)
		if errors.Is(err, uevent.ErrLost) {
			return true
		}
		if err != nil {
			return false
		}
		// Modules announce themselves too; only what has a driver to find counts.
		if e.Action == "add" && e.Env["MODALIAS"] != "" {
			return true
		}
	}
}

// Hotplug loads the drivers of devices that appear, until ctx ends. What
// cannot be loaded is logged.
func (l *Loader) Hotplug(ctx context.Context, sysfs string) error {
	conn, err := uevent.Listen()
	if err != nil {
		return err
	}
	defer conn.Close()
	p := &plug{loader: l, seen: map[string]bool{}}
	look := true // for what came before the socket was open, or was lost
	for {
		var found []string
		if look {
			if found, err = modaliases(sysfs); err != nil {
				return err
			}
			look = false
		} else {
			e, err := conn.Next(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, uevent.ErrLost):
				look = true
				continue
			case err != nil:
				return err
			}
			if m := e.Env["MODALIAS"]; e.Action == "add" && m != "" {
				found = []string{m}
			}
		}
		p.load(found)
		for _, err := range p.errs {
			l.log().Warn("driver", "err", err)
		}
		p.errs = nil
	}
}

// plug remembers what was looked for already.
type plug struct {
	loader *Loader
	seen   map[string]bool // modaliases
	mu     sync.Mutex
	errs   []error
}

// load loads the modules for the modaliases not seen before and tells whether
// there were any. Several at a time: a driver may wait for its hardware.
func (p *plug) load(modaliases []string) bool {
	var names []string
	for _, m := range modaliases {
		if p.seen[m] {
			continue
		}
		p.seen[m] = true
		for _, n := range p.loader.match(m) {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	if len(names) == 0 {
		return false
	}
	work := make(chan string)
	var wg sync.WaitGroup
	for range min(max(2, runtime.NumCPU()), len(names)) {
		wg.Go(func() {
			for n := range work {
				if err := p.loader.Load(n, ""); err != nil && !errors.Is(err, unix.ENODEV) {
					p.mu.Lock()
					p.errs = append(p.errs, err)
					p.mu.Unlock()
				}
			}
		})
	}
	for _, n := range names {
		work <- n
	}
	close(work)
	wg.Wait()
	return true
}

// maxModalias bounds what is read of one file; DMI's is the longest.
const maxModalias = 4096

// modaliases gives what devices say they are, each once, sorted. Every device
// with a driver to find is on a bus; that is a tenth of the walk through all
// of /sys/devices.
func modaliases(sysfs string) ([]string, error) {
	buses, err := os.ReadDir(filepath.Join(sysfs, "bus"))
	if err != nil {
		return nil, fmt.Errorf("look for hardware: %w", err)
	}
	dirs := []string{"class/dmi", "class/input"}
	for _, b := range buses {
		if b.Name() != "memory" { // one entry per 128 MiB, none with a driver
			dirs = append(dirs, filepath.Join("bus", b.Name(), "devices"))
		}
	}
	seen := map[string]bool{}
	for _, d := range dirs {
		entries, err := os.ReadDir(filepath.Join(sysfs, d))
		if err != nil {
			continue // a bus without devices, or one that has just gone
		}
		for _, e := range entries {
			m, err := os.ReadFile(filepath.Join(sysfs, d, e.Name(), "modalias"))
			if err != nil || len(m) > maxModalias {
				continue
			}
			if s := strings.TrimSpace(string(bytes.TrimRight(m, "\x00"))); s != "" {
				seen[s] = true
			}
		}
	}
	out := make([]string, 0, len(seen))
	for m := range seen {
		out = append(out, m)
	}
	slices.Sort(out)
	return out, nil
}
