package service

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reapGrace is how long a child that nobody registered stays a zombie. Whoever
// started it with os/exec waits for it and has it long before: what is left
// after that time is an orphan, which PID 1 inherited.
const reapGrace = 2 * time.Second

// Reaper is PID 1's duty to its orphans. A wait for any child (wait4(-1))
// would take os/exec's children from it, and their exit status with them; so
// it waits for single zombies only: never for one that was started with
// Start, and for one that nobody registered only after a grace.
type Reaper struct {
	log   *slog.Logger
	grace time.Duration

	mu   sync.Mutex
	own  map[int]struct{}     // children that have somebody who waits
	seen map[zombie]time.Time // since when
}

// zombie names a process for good: numbers come again, with another start.
type zombie struct {
	pid   int
	start uint64 // clock ticks since the kernel's start
}

// NewReaper makes a Reaper; it does nothing before Run.
func NewReaper(log *slog.Logger) *Reaper {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reaper{log: log, grace: reapGrace, own: map[int]struct{}{}, seen: map[zombie]time.Time{}}
}

// Start is cmd.Start for a child whose exit status the reaper must not touch.
// wait is cmd.Wait; it has to be called, once. A nil Reaper starts as well.
func (r *Reaper) Start(cmd *exec.Cmd) (wait func() error, err error) {
	if r == nil {
		return cmd.Wait, cmd.Start()
	}
	// Under the lock: the child must not end, and be found, before it is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	r.own[pid] = struct{}{}
	return func() error {
		err := cmd.Wait()
		r.mu.Lock()
		delete(r.own, pid)
		r.mu.Unlock()
		return err
	}, nil
}

// Run reaps until ctx ends, and returns ctx's error.
func (r *Reaper) Run(ctx context.Context) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	// SIGCHLDs merge and an orphan may have been a zombie when it came:
	// look now and then in any case.
	const idle = 15 * time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-died:
			// Many die together: look once, a little later.
			timer.Reset(r.grace / 8)
			continue
		case <-timer.C:
		}
		left, err := r.reap(time.Now())
		if err != nil {
			r.log.Warn("reaper", "err", err)
		}
		if left > 0 {
			timer.Reset(r.grace / 2)
		} else {
			timer.Reset(idle)
		}
	}
}

// reap takes the zombies whose grace is over; left is how many still have some.
func (r *Reaper) reap(now time.Time) (left int, err error) {
	zombies, err := zombieChildren(os.Getpid())
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := make(map[zombie]time.Time, len(zombies))
	for _, z := range zombies {
		if _, ok := r.own[z.pid]; ok {
			continue
		}
		since, ok := r.seen[z]
		if !ok {
			since = now
		}
		if now.Sub(since) < r.grace {
			seen[z] = since
			continue
		}
		var status unix.WaitStatus
		switch pid, err := unix.Wait4(z.pid, &status, unix.WNOHANG, nil); {
		case err == nil && pid == z.pid:
			r.log.Debug("reaped an orphan", "pid", pid, "status", status)
		case err == nil: // not to be had yet: threads of it live still
			seen[z] = since
		}
	}
	r.seen = seen
	return len(seen), nil
}

// zombieChildren lists our dead children. waitid(P_ALL, WNOWAIT) would give
// the first one only, and go on giving it while somebody is slow to wait.
func zombieChildren(parent int) ([]zombie, error) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == unix.ECHILD || err == nil && info.Signo == 0 {
		return nil, nil // no child, or all alive: nothing to search for
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []zombie
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // gone
		}
		if ppid, state, start, ok := parseStat(stat); ok && ppid == parent && state == 'Z' {
			out = append(out, zombie{pid: pid, start: start})
		}
	}
	return out, nil
}

// parseStat reads fields 3, 4 and 22 of /proc/PID/stat (proc(5)). The name in
// field 2 may hold anything, ")" too: the last one ends it.
func parseStat(b []byte) (ppid int, state byte, start uint64, ok bool) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, 0, false
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return 0, 0, 0, false
	}
	ppid, err1 := strconv.Atoi(string(f[1]))
	start, err2 := strconv.ParseUint(string(f[19]), 10, 64)
	return ppid, f[0][0], start, err1 == nil && err2 == nil
}
