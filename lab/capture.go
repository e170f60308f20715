package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Capture is a tcpdump(8) that runs.
type Capture struct {
	cmd  *exec.Cmd
	file string
}

// Capture writes what passes iface (Core, "sw0", a node's Tap) to file until
// Stop. It returns when tcpdump listens, so nothing after it is missed. args
// are more arguments of tcpdump: options ("-c", "1": it ends by itself after
// one packet, see Wait), then a filter.
func (l *Lab) Capture(ctx context.Context, iface, file string, args ...string) (*Capture, error) {
	if err := need("tcpdump"); err != nil {
		return nil, err
	}
	// -U: each packet is written as it comes; -Z root: tcpdump would
	// otherwise give up root before it opens the file.
	cmd := exec.CommandContext(ctx, "tcpdump", append([]string{"-i", iface, "-w", file, "-U", "-Z", "root"}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	where := l.rack
	if strings.HasPrefix(iface, coreName) { // core, core0, core1, core.2
		where = l.inside
	}
	if err := where.start(cmd); err != nil {
		return nil, fmt.Errorf("capture %s: %w", iface, err)
	}
	var said []byte
	buf := make([]byte, 512)
	for !strings.Contains(string(said), "listening on") {
		n, err := stderr.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			cmd.Wait()
			return nil, fmt.Errorf("capture %s: tcpdump: %s", iface, strings.TrimSpace(string(said)))
		}
	}
	go io.Copy(io.Discard, stderr)
	return &Capture{cmd, file}, nil
}

// Stop ends the capture; the file is complete then.
func (c *Capture) Stop() error {
	c.cmd.Process.Signal(os.Interrupt)
	var exit *exec.ExitError
	if err := c.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// Wait waits until a capture that was given a count of packets has them; it
// fails when the context of Capture ends first.
func (c *Capture) Wait() error {
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}
