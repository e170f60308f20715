package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"dsas/lab/storm"
)

// measureStorm has 400 and 1000 simulated nodes do the whole conversation. Each
// storm is compared with plain HTTP within itself, on the same shaped link, so
// it is taken once. It has all cores: server and nodes share them.
func measureStorm(ctx context.Context, b *bench) error {
	for _, n := range []int{400, 1000} {
		nodes := b.scaled(n, n/20)
		w := work{
			name: fmt.Sprintf("boot storm, %d nodes, 1 Gbit/s, 16 MiB image", n), unit: "% of plain HTTP",
			goal: "85 %; no failed boot, no retry of 1 s or more, under 150 MiB",
			contenders: []contender{{name: oursName, turn: func(ctx context.Context) (sample, error) {
				return b.stormTurn(ctx, nodes)
			}}},
			met: func(r row) (bool, error) {
				x := r.Extra[oursName]
				return *r.Ours >= 85 && x["failed"] == 0 && x["slow retries"] == 0 && x["peak MiB"] < 150, nil
			},
		}
		once := *b
		once.runs = 1
		once.report = report{}
		if err := once.contest(ctx, w); err != nil {
			return err
		}
		b.report.Rows = append(b.report.Rows, once.report.Rows...)
	}
	return nil
}

func (b *bench) stormTurn(ctx context.Context, nodes int) (out sample, err error) {
	cmd := exec.CommandContext(ctx, "taskset", "-c", fmt.Sprintf("%d,%d", serverCore, clientCore),
		b.bin(), "lab", "storm", "-n", fmt.Sprint(nodes), "--json", "--quiet", "--hold", "2s")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var said, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &errs
	runErr := cmd.Run()
	var rep storm.Report
	if err := json.Unmarshal(said.Bytes(), &rep); err != nil {
		return out, fmt.Errorf("dsas lab storm: %w: %s", errors.Join(runErr, err), lastLines(errs.String(), 3))
	}
	if rep.Plain == nil || rep.Server == nil {
		return out, fmt.Errorf("dsas lab storm: %w: %s", runErr, lastLines(errs.String(), 3))
	}
	out = sample{value: 100 * rep.Plain.Ratio, extra: map[string]float64{
		"seconds": rep.Duration.Seconds(), "plain s": rep.Plain.Duration.Seconds(), "MB/s": rep.Rate / 1e6,
		"failed": float64(len(rep.Failed)), "reboots": float64(rep.Reboots), "slow retries": float64(rep.SlowTries),
		"peak MiB": float64(rep.Server.RSS) / (1 << 20), "server CPU s": rep.Server.CPU.Seconds(),
	}}
	for _, s := range rep.Steps {
		if s.Name == "page" || s.Name == "event shown" {
			out.extra[s.Name+" p99 ms"] = ms(s.P99)
		}
	}
	return out, nil
}
