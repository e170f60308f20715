package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
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
type dhcpLoad func(ctx context.Context, d *load.DHCP) (dhcpResult, error)

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
	dnsmasq, kea := dnsmasqDHCP(nodes), keaDHCP(nodes)
	all := []dhcpServer{dsas, memory, dnsmasq, kea}

	burst := func(name, goal string, met func(row) (bool, error)) work {
		return b.dhcpWork(a, name, "ms", true, []dhcpServer{dsas, dnsmasq, kea}, goal, met,
			func(ctx context.Context, d *load.DHCP) (dhcpResult, error) { return dhcpBurst(ctx, d, burstNodes) })
	}
	rate := func(name, goal string, n int, list []dhcpServer, met func(row) (bool, error), one func(ctx context.Context, d *load.DHCP, n int) (int, error)) work {
		return b.dhcpWork(a, name, "/s", false, list, goal, met, func(ctx context.Context, d *load.DHCP) (dhcpResult, error) {
			return dhcpRate(ctx, d, n, atOnce, rateTime, one)
		})
	}
	if err := b.contest(ctx, burst("DHCP burst, 400 reserved nodes, kernel's default buffers", "none lost", func(r row) (bool, error) {
		return r.Extra[oursName]["retries"] == 0 && r.Extra[oursName]["failed"] == 0, nil
	})); err != nil {
		return err
	}
	err = withSysctl("net.core.rmem_default", bigBuffers, func() error {
		return b.contest(ctx, burst("DHCP burst, 400 reserved nodes, buffers enlarged for all", "5 × the best peer", atLeastRatio(5)))
	})
	if err != nil {
		return err
	}
	reserved := func(ctx context.Context, d *load.DHCP, n int) (int, error) {
		_, err := d.Lease(ctx, load.Ask{MAC: load.MAC(n % nodes)})
		return 2, err
	}
	if err := b.contest(ctx, rate("DHCP reserved nodes, DISCOVER to ACK, 32 at once", "80 % of ours without a store, ahead of Kea", nodes, all, aheadAnd(0.8, memory.name), reserved)); err != nil {
		return err
	}
	// Longer than records may wait: their writing is in it.
	if err := b.contest(ctx, rate("DHCP reserved nodes, the same for 5 s", "", 1<<20, []dhcpServer{dsas, memory, kea}, nil, reserved)); err != nil {
		return err
	}
	// Renewals want a lease to be renewed; it is had before the watch starts.
	pool := func(n int) load.Ask { return load.Ask{MAC: load.MAC(1_000_000 + n), Program: load.OS} }
	if err := b.contest(ctx, b.dhcpWork(a, "DHCP renewals of pool leases, 32 at once", "/s", false, all, "80 % of ours without a store, ahead of Kea", aheadAnd(0.8, memory.name),
		func(ctx context.Context, d *load.DHCP) (dhcpResult, error) {
			held := make([]load.Answer, nodes)
			if _, err := dhcpRate(ctx, d, nodes, atOnce, 5*time.Minute, func(ctx context.Context, d *load.DHCP, n int) (_ int, err error) {
				held[n], err = d.Lease(ctx, pool(n))
				return 2, err
			}); err != nil {
				return dhcpResult{}, fmt.Errorf("take leases: %w", err)
			}
			// dnsmasq offers one address to several clients at once, and refuses all but one.
			var got []int
			for n := range held {
				if held[n].Type == load.Ack {
					got = append(got, n)
				}
			}
			return dhcpRate(ctx, d, 1<<20, atOnce, rateTime, func(ctx context.Context, d *load.DHCP, i int) (int, error) {
				n := got[i%len(got)]
				_, err := d.Renew(ctx, pool(n), held[n])
				return 1, err
			})
		})); err != nil {
		return err
	}
	if err := b.contest(ctx, b.restartWork(a, []dhcpServer{dsas, dnsmasq, kea})); err != nil {
		return err
	}
	return b.contest(ctx, rate("DHCP new pool leases, DISCOVER to ACK, 32 at once", "6370/s (70 % of 9,100), ahead of Kea", b.scaled(3*dhcpNodes, 800), all, func(r row) (bool, error) {
		return *r.Ours >= 6370 && *r.Ours > r.Peers["kea"], nil
	}, func(ctx context.Context, d *load.DHCP, n int) (int, error) {
		_, err := d.Lease(ctx, pool(n))
		return 2, err
	}))
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
	var d *load.DHCP
	if err := a.inClient(func() (err error) { d, err = load.OpenDHCP(linkName); return err }); err != nil {
		return sample{}, err
	}
	defer d.Close()
	// It answers when a node that takes no part in the load has its address.
	d.Wait, d.Tries = 100*time.Millisecond, 1
	if err := p.until(ctx, s.name+" to answer", func() bool {
		_, err := d.Lease(ctx, load.Ask{MAC: load.MAC(9_999_999), Program: load.OS})
		return err == nil
	}); err != nil {
		return sample{}, err
	}
	d.Wait, d.Tries = time.Second, 5
	before, retries := p.cpu(), d.Retries()
	forced, asked := p.switches()
	r, err := do(ctx, d)
	if err != nil {
		return sample{}, fmt.Errorf("%w; the server said: %s", err, lastLines(p.log.String(), 3))
	}
	cpu := p.cpu() - before
	slices.Sort(r.times)
	extra := map[string]float64{
		"retries": float64(d.Retries() - retries), "failed": float64(r.failed), "server CPU s": cpu,
		"p50 ms": ms(quantile(r.times, 0.5)), "p99 ms": ms(quantile(r.times, 0.99)), "max ms": ms(quantile(r.times, 1)),
	}
	if r.exchanges > 0 {
		extra["CPU µs per exchange"] = cpu / float64(r.exchanges) * 1e6
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

// dhcpBurst lets n reserved nodes ask at the same moment; the value is the time
// until the last has its ACK.
func dhcpBurst(ctx context.Context, d *load.DHCP, n int) (dhcpResult, error) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	times := make([]time.Duration, n)
	errs := make([]error, n)
	var begin time.Time
	for i := range n {
		wg.Go(func() {
			<-start
			_, errs[i] = d.Lease(ctx, load.Ask{MAC: load.MAC(i)})
			times[i] = time.Since(begin)
		})
	}
	begin = time.Now()
	close(start)
	wg.Wait()
	r := dhcpResult{times: times, value: ms(slices.Max(times)), exchanges: 2 * n}
	for _, err := range errs {
		if err != nil {
			r.failed++
		}
	}
	return r, ctx.Err()
}

// dhcpRate has at most outstanding clients ask at a time, n times in all or for
// as long as limit; the value is conversations per second.
func dhcpRate(ctx context.Context, d *load.DHCP, n, outstanding int, limit time.Duration, one func(ctx context.Context, d *load.DHCP, n int) (exchanges int, err error)) (dhcpResult, error) {
	var next, failed, exchanges atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	var times []time.Duration
	begin := time.Now()
	for range outstanding {
		wg.Go(func() {
			mine := make([]time.Duration, 0, min(n, 1<<16)/outstanding+1)
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil && time.Since(begin) < limit; i = int(next.Add(1)) - 1 {
				t := time.Now()
				x, err := one(ctx, d, i)
				mine = append(mine, time.Since(t))
				exchanges.Add(int64(x))
				if err != nil {
					failed.Add(1)
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
			mu.Lock()
			times = append(times, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(begin)
	r := dhcpResult{value: float64(len(times)-int(failed.Load())) / took.Seconds(), times: times, failed: int(failed.Load()), exchanges: int(exchanges.Load())}
	if r.failed == len(times) {
		return r, first
	}
	return r, ctx.Err()
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
	var d *load.DHCP
	if err := a.inClient(func() (err error) { d, err = load.OpenDHCP(linkName); return err }); err != nil {
		return 0, err
	}
	defer d.Close()
	d.Wait, d.Tries = 10*time.Millisecond, 1
	var took time.Duration
	err := p.until(ctx, "the first ACK", func() bool {
		_, err := d.Lease(ctx, load.Ask{MAC: load.MAC(0)})
		took = time.Since(begin)
		return err == nil
	})
	return took, err
}
