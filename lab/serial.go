package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// SerialLog gives what the node wrote to its serial console since it was
// last powered on.
func (n *Node) SerialLog() ([]byte, error) { return n.serialFrom(n.bootOffset()) }

// SerialSize gives the length of the whole serial log: a mark for
// WaitSerialFrom.
func (n *Node) SerialSize() int64 {
	st, err := os.Stat(n.serialPath())
	if err != nil {
		return 0
	}
	return st.Size()
}

func (n *Node) bootOffset() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.logFrom
}

func (n *Node) serialFrom(offset int64) ([]byte, error) {
	f, err := os.Open(n.serialPath())
	if os.IsNotExist(err) {
		return nil, nil // never switched on
	}
	if err != nil {
		return nil, fmt.Errorf("serial log of %s: %w", n.spec.Name, err)
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, offset, 1<<40))
}

// WaitSerial waits until what the node wrote since its last power-on matches
// re, and gives the match and its groups. When ctx ends first, the error
// shows the end of the log.
func (n *Node) WaitSerial(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return n.WaitSerialFrom(ctx, n.bootOffset(), re)
}

// WaitSerialFrom is WaitSerial over the log from an offset on (SerialSize).
func (n *Node) WaitSerialFrom(ctx context.Context, offset int64, re *regexp.Regexp) ([]string, error) {
	return n.waitSerial(ctx, offset, re, 50*time.Millisecond)
}

func (n *Node) waitSerial(ctx context.Context, offset int64, re *regexp.Regexp, interval time.Duration) ([]string, error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	seen := int64(-1)
	for {
		if size := n.SerialSize(); size != seen {
			seen = size
			log, err := n.serialFrom(offset)
			if err != nil {
				return nil, err
			}
			if m := re.FindSubmatch(log); m != nil {
				out := make([]string, len(m))
				for i := range m {
					out[i] = string(m[i])
				}
				return out, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			log, _ := n.serialFrom(offset)
			return nil, fmt.Errorf("serial log of %s: wait for %q: %w; it ends:\n%s", n.spec.Name, re, ctx.Err(), tail(log, 2000))
		}
	}
}

// tail gives the last max bytes as text a terminal can show.
func tail(b []byte, max int) string {
	if len(b) > max {
		b = b[len(b)-max:]
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(b), "?"))
}
