package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"dsas/lab/load"
)

// dhcpServer is a DHCP server in the arena; dir is its turn's own folder, or
// kept between turns where its state is to be.
type dhcpServer struct {
	name      string
	reference bool
	start     func(ctx context.Context, a *arena, dir string) (*program, error)
	// state makes what start finds in dir; nil for none.
	state func(ctx context.Context, a *arena, dir string) error
}

// dhcpLoad is the work of one turn, on a server that answers.
type dhcpLoad func(ctx context.Context, c *load.Crowd) (dhcpResult, error)

type dhcpResult struct {
	value     float64 // of the row
	times     []time.Duration
	failed    int
	exchanges int // requests with their answers
}

const (
	bigBuffers = "4194304" // bytes, net.core.rmem_default
	dhcpNodes  = 4000
	burstNodes = 400
	atOnce     = 32
	// rateTime ends a turn that would go on for longer.
	rateTime = 5 * time.Second
)

// measureDHCP measures bursts and rates.
func measureDHCP(ctx context.Context, b *bench) error {
	a, err := b.newArena(ctx, "dhcp")
	if err != nil {
		return err
	}
	defer a.close()
	nodes := b.scaled(dhcpNodes, 800)
	dsas, memory := b.ourDHCP(nodes), b.memoryDHCP(nodes)
	dnsmasq, kea, floor := dnsmasqDHCP(nodes), keaDHCP(nodes), floorDHCP()
	all := []dhcpServer{dsas, memory, dnsmasq, kea, floor}

	burst := func(name, goal string, met func(row) (bool, error)) work {
		return b.dhcpWork(a, name, "ms", true, all, goal, met,
			func(ctx context.Context, c *load.Crowd) (dhcpResult, error) { return dhcpBurst(ctx, c, 0, burstNodes) })
	}
	// As of a server that has been up for longer than a moment.
	later := b.dhcpWork(a, "DHCP burst, the same after another 400 nodes'", "ms", true, all, "5 × the best peer", atLeastRatio(5),
		func(ctx context.Context, c *load.Crowd) (dhcpResult, error) {
			before, err := dhcpBurst(ctx, c, burstNodes, burstNodes)
			if err != nil {
				return before, err
			}
			r, err := dhcpBurst(ctx, c, 0, burstNodes)
			r.exchanges += before.exchanges // the processor time is of both
			return r, err
		})
	rate := func(name, goal string, n int, list []dhcpServer, met func(row) (bool, error), talk func(n int) load.Talk) work {
		return b.dhcpWork(a, name, "/s", false, list, goal, met, func(ctx context.Context, c *load.Crowd) (dhcpResult, error) {
			return dhcpRate(ctx, c, n, rateTime, talk)
		})
	}
	if err := b.contest(ctx, burst("DHCP burst, 400 reserved nodes, kernel's default buffers", "none lost", func(r row) (bool, error) {
		return r.Extra[oursName]["retries"] == 0 && r.Extra[oursName]["failed"] == 0, nil
	})); err != nil {
		return err
	}
	err = withSysctl("net.core.rmem_default", bigBuffers, func() error {
		if err := b.contest(ctx, burst("DHCP burst, 400 reserved nodes, buffers enlarged for all", "5 × the best peer", atLeastRatio(5))); err != nil {
			return err
		}
		return b.contest(ctx, later)
	})
	if err != nil {
		return err
	}
	reserved := func(n int) load.Talk { return load.Talk{Ask: load.Ask{MAC: load.MAC(n % nodes)}} }
	if err := b.contest(ctx, rate("DHCP reserved nodes, DISCOVER to ACK, 32 at once", "80 % of ours without a store, ahead of Kea", nodes, all, aheadAnd(0.8, memory.name), reserved)); err != nil {
		return err
	}
	// Longer than records may wait: their writing is in it.
	if err := b.contest(ctx, rate("DHCP reserved nodes, the same for 5 s", "", 1<<20, []dhcpServer{dsas, memory, kea}, nil, reserved)); err != nil {
		return err
	}
	// Renewals want a lease to be renewed; it is had before the watch starts.
	pool := func(n int) load.Talk {
		return load.Talk{Ask: load.Ask{MAC: load.MAC(1_000_000 + n), Program: load.OS}}
	}
	if err := b.contest(ctx, b.dhcpWork(a, "DHCP renewals of pool leases, 32 at once", "/s", false, all, "80 % of ours without a store, ahead of Kea", aheadAnd(0.8, memory.name),
		func(ctx context.Context, c *load.Crowd) (dhcpResult, error) {
			// dnsmasq offers one address to several clients at once, and refuses all but one.
			var got []load.Talk
			if err := c.Run(ctx, atOnce, upTo(nodes, pool), func(n int, o load.Outcome) {
				if o.Err == nil {
					got = append(got, load.Talk{Ask: pool(n).Ask, Renew: &o.Answer})
				}
			}); err != nil || len(got) == 0 {
				return dhcpResult{}, fmt.Errorf("take leases: %d of %d were given: %w", len(got), nodes, err)
			}
			return dhcpRate(ctx, c, 1<<24, rateTime, func(n int) load.Talk { return got[n%len(got)] })
		})); err != nil {
		return err
	}
	if err := b.contest(ctx, b.restartWork(a, []dhcpServer{dsas, dnsmasq, kea})); err != nil {
		return err
	}
	return b.contest(ctx, rate("DHCP new pool leases, DISCOVER to ACK, 32 at once", "6370/s (70 % of 9,100), ahead of Kea", b.scaled(3*dhcpNodes, 800), all, func(r row) (bool, error) {
		return *r.Ours >= 6370 && *r.Ours > r.Peers["kea"], nil
	}, pool))
}

// atLeastRatio judges a row by its ratio to the best peer.
func atLeastRatio(want float64) func(row) (bool, error) {
	return func(r row) (bool, error) {
		if r.Ratio == nil {
			return false, fmt.Errorf("no peer was measured")
		}
		return *r.Ratio >= want, nil
	}
}

// aheadAnd judges a rate: ahead of every peer, and part of a reference.
func aheadAnd(part float64, reference string) func(row) (bool, error) {
	return func(r row) (bool, error) {
		ref, ok := r.Others[reference]
		if !ok || r.Ratio == nil {
			return false, fmt.Errorf("%s or the peers were not measured", reference)
		}
		return *r.Ours >= part*ref && *r.Ours > r.Peers["kea"], nil
	}
}

// dhcpWork makes a row: each turn starts the server on its own state, waits
// until it answers, and loads it.
func (b *bench) dhcpWork(a *arena, name, unit string, less bool, servers []dhcpServer, goal string, met func(row) (bool, error), do dhcpLoad) work {
	w := work{name: name, unit: unit, less: less, goal: goal, met: met}
	for _, s := range servers {
		w.contenders = append(w.contenders, contender{name: s.name, reference: s.reference, turn: func(ctx context.Context) (sample, error) {
			return b.dhcpTurn(ctx, a, s, do)
		}})
	}
	return w
}

func (b *bench) dhcpTurn(ctx context.Context, a *arena, s dhcpServer, do dhcpLoad) (sample, error) {
	dir, err := os.MkdirTemp(a.dir, "turn-")
	if err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return sample{}, err
	}
	if s.state != nil {
		if err := s.state(ctx, a, dir); err != nil {
			return sample{}, err
		}
	}
	p, err := s.start(ctx, a, dir)
	if err != nil {
		return sample{}, err
	}
	defer p.stop()
	var c *load.Crowd
	if err := a.inClient(func() (err error) { c, err = load.OpenCrowd(linkName); return err }); err != nil {
		return sample{}, err
	}
	defer c.Close()
	// It answers when a node that takes no part in the load has its address.
	c.Wait, c.Tries = 100*time.Millisecond, 1
	if err := p.until(ctx, s.name+" to answer", func() bool { return answers(ctx, c, load.Ask{MAC: load.MAC(9_999_999), Program: load.OS}) }); err != nil {
		return sample{}, err
	}
	c.Wait, c.Tries, c.Retries = time.Second, 5, 0
	before, beforeOn, own := p.cpu(), p.onCPU(), procCPU(os.Getpid())
	forced, asked := p.switches()
	r, err := do(ctx, c)
	if err != nil {
		return sample{}, fmt.Errorf("%w; the server said: %s", err, lastLines(p.log.String(), 3))
	}
	cpu, on := p.cpu()-before, p.onCPU()-beforeOn
	slices.Sort(r.times)
	extra := map[string]float64{
		"retries": float64(c.Retries), "failed": float64(r.failed), "server CPU s": cpu, "client CPU s": procCPU(os.Getpid()) - own,
		"p50 ms": ms(quantile(r.times, 0.5)), "p99 ms": ms(quantile(r.times, 0.99)), "max ms": ms(quantile(r.times, 1)),
	}
	if r.exchanges > 0 {
		// In a short burst a tick is as long as all of it; in a long one threads and
		// children that ended count too.
		if cpu > 0.5 || on == 0 {
			on = cpu
		}
		extra["CPU µs per exchange"] = on / float64(r.exchanges) * 1e6
	}
	_, extra["server peak MiB"] = p.rss()
	f, v := p.switches()
	extra["forced switches"], extra["switches"] = f-forced, v-asked
	return sample{value: r.value, extra: extra}, nil
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// quantile of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// answers tells whether the server answers a.
func answers(ctx context.Context, c *load.Crowd, a load.Ask) bool {
	got := false
	err := c.Run(ctx, 1, upTo(1, func(int) load.Talk { return load.Talk{Ask: a} }), func(_ int, o load.Outcome) { got = o.Err == nil })
	return err == nil && got
}

// upTo gives n talks.
func upTo(n int, talk func(n int) load.Talk) func(int) (load.Talk, bool) {
	return func(i int) (load.Talk, bool) {
		if i >= n {
			return load.Talk{}, false
		}
		return talk(i), true
	}
}

// dhcpBurst lets n reserved nodes, from the first on, ask at the same moment;
// the value is the time until the last has its ACK.
func dhcpBurst(ctx context.Context, c *load.Crowd, first, n int) (dhcpResult, error) {
	r := dhcpResult{exchanges: 2 * n}
	begin := time.Now()
	err := c.Run(ctx, n, upTo(n, func(n int) load.Talk { return load.Talk{Ask: load.Ask{MAC: load.MAC(first + n)}} }), func(_ int, o load.Outcome) {
		r.times = append(r.times, time.Since(begin))
		if o.Err != nil {
			r.failed++
		}
	})
	r.value = ms(time.Since(begin))
	return r, err
}

// dhcpRate has atOnce clients talk at a time, n in all or for as long as limit;
// the value is conversations per second.
func dhcpRate(ctx context.Context, c *load.Crowd, n int, limit time.Duration, talk func(n int) load.Talk) (dhcpResult, error) {
	var r dhcpResult
	var first error
	begin := time.Now()
	err := c.Run(ctx, atOnce, func(i int) (load.Talk, bool) {
		if i >= n || time.Since(begin) >= limit {
			return load.Talk{}, false
		}
		return talk(i), true
	}, func(i int, o load.Outcome) {
		r.times = append(r.times, o.Took)
		r.exchanges += 2
		if talk(i).Renew != nil {
			r.exchanges--
		}
		if o.Err != nil {
			r.failed++
			first = cmp.Or(first, o.Err)
		}
	})
	r.value = float64(len(r.times)-r.failed) / time.Since(begin).Seconds()
	if err == nil && r.failed == len(r.times) {
		err = first
	}
	return r, err
}

// ourDHCP is the built program, on a copy of a state folder with the nodes.
func (b *bench) ourDHCP(nodes int) dhcpServer {
	var made string
	return dhcpServer{name: oursName,
		state: func(ctx context.Context, a *arena, dir string) (err error) {
			if made == "" {
				if made, err = b.ourState(ctx, a, "ours", nodes, 1<<20); err != nil {
					return err
				}
			}
			if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", made, filepath.Join(dir, "state")).CombinedOutput(); err != nil {
				return fmt.Errorf("copy state: %w: %s", err, out)
			}
			return nil
		},
		start: func(ctx context.Context, a *arena, dir string) (*program, error) {
			o, err := b.startOurs(ctx, a, filepath.Join(dir, "state"))
			if err != nil {
				return nil, err
			}
			return o.program, nil
		}}
}

// memoryDHCP is our protocol code over a map: what a store costs.
func (b *bench) memoryDHCP(nodes int) dhcpServer {
	return dhcpServer{name: "dsas without a store", reference: true, start: func(ctx context.Context, a *arena, _ string) (*program, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return a.start(ctx, self, "-child", "dhcp", fmt.Sprint(nodes))
	}}
}

// restartWork times a start after a SIGKILL, until a reserved node has its ACK.
func (b *bench) restartWork(a *arena, servers []dhcpServer) work {
	w := work{name: "Restart after SIGKILL to the first ACK, 4,000 nodes", unit: "ms", less: true, goal: "under 1 s", met: func(r row) (bool, error) { return *r.Ours < 1000, nil }}
	for _, s := range servers {
		w.contenders = append(w.contenders, contender{name: s.name, turn: func(ctx context.Context) (sample, error) {
			dir, err := os.MkdirTemp(a.dir, "turn-")
			if err != nil {
				return sample{}, err
			}
			defer os.RemoveAll(dir)
			if s.state != nil {
				if err := s.state(ctx, a, dir); err != nil {
					return sample{}, err
				}
			}
			var took time.Duration
			for range 2 { // the second start finds what the first left
				begin := time.Now()
				p, err := s.start(ctx, a, dir)
				if err != nil {
					return sample{}, err
				}
				took, err = firstACK(ctx, a, p, begin)
				p.cmd.Process.Kill()
				<-p.gone
				if err != nil {
					return sample{}, err
				}
			}
			return sample{value: ms(took)}, nil
		}})
	}
	return w
}

// firstACK waits until the first node has its address.
func firstACK(ctx context.Context, a *arena, p *program, begin time.Time) (time.Duration, error) {
	var c *load.Crowd
	if err := a.inClient(func() (err error) { c, err = load.OpenCrowd(linkName); return err }); err != nil {
		return 0, err
	}
	defer c.Close()
	c.Wait, c.Tries = 10*time.Millisecond, 1
	var took time.Duration
	err := p.until(ctx, "the first ACK", func() bool {
		ok := answers(ctx, c, load.Ask{MAC: load.MAC(0)})
		took = time.Since(begin)
		return ok
	})
	return took, err
}
