package agent

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Console says what happens to whoever looks at the screen or the serial
// line, and keeps the last lines for reports. It writes to /dev/kmsg, which
// reaches every console of the cmdline; /dev/console is the last one alone.
type Console struct {
	mu    sync.Mutex
	out   *os.File
	kmsg  bool
	start time.Time
	tail  []string
}

const consoleTail = 40

// OpenConsole opens the kernel's log, or stderr where there is none.
func OpenConsole() *Console {
	c := &Console{start: time.Now(), out: os.Stderr}
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		c.out, c.kmsg = f, true
	}
	return c
}

// Say writes one line. Priority 4 (warning) shows even where the kernel's
// console log level is low.
func (c *Console) Say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := printable(fmt.Sprintf(format, args...))
	c.tail = append(c.tail, fmt.Sprintf("%6.2fs %s", time.Since(c.start).Seconds(), text))
	if len(c.tail) > consoleTail {
		c.tail = c.tail[len(c.tail)-consoleTail:]
	}
	if c.kmsg {
		// One write is one record, of at most about 1,000 bytes.
		if len(text) > 900 {
			text = text[:900] + "..."
		}
		fmt.Fprintf(c.out, "<4>dsas: %s\n", text)
		return
	}
	fmt.Fprintf(c.out, "dsas: %s\n", text)
}

// Tail gives the last lines, oldest first.
func (c *Console) Tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.tail, "\n")
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r < ' ' || r == 0x7f:
			return '?'
		}
		return r
	}, s)
}
