package storm

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"dsas"
)

// watchPage asks for the page twice a second, as an operator's browser would.
func (s *storm) watchPage(ctx context.Context) {
	if s.Page == nil {
		return
	}
	for ctx.Err() == nil {
		start := time.Now()
		c, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := s.Page(c)
		cancel()
		switch {
		case err == nil:
			s.figures.add("page", time.Since(start))
		case ctx.Err() == nil:
			s.figures.failure("page", err)
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// watchEvents tells how long after a node said that it was ready the event
// stream shows it. Both clocks are the same: the nodes follow the server's.
func (s *storm) watchEvents(ctx context.Context) {
	if s.API == nil {
		return
	}
	ours := map[string]bool{}
	for _, n := range s.Nodes {
		ours[n.Name] = true
	}
	for e, err := range s.API.Stream(ctx, -1) {
		if err != nil {
			if ctx.Err() == nil {
				s.figures.failure("event stream", err)
			}
			return
		}
		if e.Kind == dsas.KindReady && ours[e.Node] {
			s.figures.add("event shown", max(0, time.Since(e.Time)))
		}
	}
}

// watchServer samples the server's memory and adds up its processor time, over
// restarts too.
func (s *storm) watchServer(ctx context.Context, g *sync.WaitGroup) (usage func() *Usage) {
	if s.PID == nil {
		return func() *Usage { return nil }
	}
	var mu sync.Mutex
	var most int64
	spent := map[int][2]time.Duration{} // by process: first and last reading of CPU
	users := map[int][2]time.Duration{}
	sample := func() {
		pid := s.PID()
		rss, user, system, err := readProc(pid)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		most = max(most, rss)
		first, known := spent[pid]
		if !known {
			first[0], users[pid] = user+system, [2]time.Duration{user, user}
			if len(spent) > 0 { // a restarted server's CPU is all of this storm
				first[0], users[pid] = 0, [2]time.Duration{0, user}
			}
		}
		spent[pid] = [2]time.Duration{first[0], user + system}
		users[pid] = [2]time.Duration{users[pid][0], user}
	}
	sample()
	g.Go(func() {
		for ctx.Err() == nil {
			sample()
			sleep(ctx, 100*time.Millisecond)
		}
	})
	return func() *Usage {
		sample()
		mu.Lock()
		defer mu.Unlock()
		if len(spent) == 0 {
			return nil
		}
		u := &Usage{RSS: most}
		for pid, c := range spent {
			u.CPU += c[1] - c[0]
			u.User += users[pid][1] - users[pid][0]
		}
		return u
	}
}

// readProc reads a process's resident memory in bytes and its processor time
// (proc(5); the clock tick is 1/100 s on all that Go runs on).
func readProc(pid int) (rss int64, user, system time.Duration, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the name before it may hold blanks
	f := strings.Fields(rest)
	if len(f) < 22 {
		return 0, 0, 0, fmt.Errorf("/proc/%d/stat: %w", pid, dsas.ErrInvalid)
	}
	num := func(i int) int64 {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		return n
	}
	const tick = 10 * time.Millisecond
	return num(21) * int64(os.Getpagesize()), time.Duration(num(11)) * tick, time.Duration(num(12)) * tick, nil
}
