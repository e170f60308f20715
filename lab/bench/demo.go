package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"
)

// demoPatience bounds the demonstration: three boots at once.
const demoPatience = 15 * time.Minute

var nodesReadyRE = regexp.MustCompile(`^[0-9]+ nodes are ready`)

// demo times what make run starts, with everything built: images checked,
// server and rack started, three nodes booted at once.
func (b *bench) demo(ctx context.Context) error {
	if b.firstRun > 0 {
		b.report.add(figure("make run, first", b.firstRun.Seconds(), "s", "fresh clone to three ready nodes; noted by hand (-first-run)").atMost(600))
	}
	if _, _, err := b.build(ctx); err != nil {
		return err
	}
	if err := b.fresh(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dsas-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	took, err := b.timeDemo(ctx, filepath.Join(dir, "dsas.sock"))
	if err != nil {
		return err
	}
	b.report.add(figure("make run, second", took.Seconds(), "s", "dsas lab run with all built, to three ready nodes booted at once").atMost(180))
	return nil
}

func (b *bench) timeDemo(ctx context.Context, sock string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	cmd := exec.Command(b.bin(), "lab", "run", "--state", b.state, "--listen", "127.0.0.1:0", "--socket", sock)
	cmd.Dir = b.root
	// The end of a pipe of our own is closed here, so that reading ends with
	// the process and Wait can be called at once.
	out, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	var errOut bytes.Buffer // read after gone alone
	cmd.Stdout, cmd.Stderr = in, &errOut
	begin := time.Now()
	p, err := startProcess(cmd)
	in.Close()
	if err != nil {
		return 0, fmt.Errorf("dsas lab run: %w", err)
	}
	ready := make(chan time.Duration, 1)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if nodesReadyRE.MatchString(s.Text()) {
				select {
				case ready <- time.Since(begin):
				default: // said twice
				}
			}
		}
	}()
	select {
	case took := <-ready:
		return took, p.end()
	case <-p.gone:
		return 0, fmt.Errorf("dsas lab run ended: %v: %s", p.err, lastLines(errOut.Bytes(), 1))
	case <-ctx.Done():
		return 0, errors.Join(fmt.Errorf("dsas lab run: nodes are not ready: %w", ctx.Err()), p.end())
	}
}
