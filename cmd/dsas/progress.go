package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows how far a long command is: on a terminal the step at work
// with a bar and its time below the steps that are done, else a plain line for
// each step.
type progress struct {
	w     io.Writer
	width func() int // columns of the terminal; nil: none is there
	now   func() time.Time

	mu          sync.Mutex
	step        string // at work, "" for none
	since       time.Time
	done, total int64 // of the step; total 0: nobody knows
	stop        chan struct{}
	stopped     chan struct{}
}

// redraw is how often a bar is drawn: the seconds go on although nothing is said.
const redraw = 200 * time.Millisecond

// newProgress shows progress on w. Call close when the work is done.
func newProgress(w io.Writer) *progress {
	p := &progress{w: w, now: time.Now, stop: make(chan struct{}), stopped: make(chan struct{})}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p.width = func() int {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		}
	}
	if p.width == nil {
		close(p.stopped)
		return p
	}
	go func() {
		defer close(p.stopped)
		t := time.NewTicker(redraw)
		defer t.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-t.C:
				p.mu.Lock()
				p.draw()
				p.mu.Unlock()
			}
		}
	}()
	return p
}

// line tells a step that begins.
func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width == nil {
		fmt.Fprintln(p.w, clean(text))
		return
	}
	p.finish()
	p.step, p.since, p.done, p.total = clean(text), p.now(), 0, 0
	p.draw()
}

// fraction tells how far the step at work is.
func (p *progress) fraction(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.total = done, total // drawn by the clock
}

// finish writes the step that was at work as done.
func (p *progress) finish() {
	if p.step == "" {
		return
	}
	took := ""
	if d := p.now().Sub(p.since); d >= time.Second {
		took = fmt.Sprintf("  %.0f s", d.Seconds())
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s%s\n", p.step, took)
	p.step = ""
}

// draw writes the step at work over itself.
func (p *progress) draw() {
	if p.step == "" {
		return
	}
	took := p.now().Sub(p.since)
	end := fmt.Sprintf("  %s  %.0f s", bar(20, p.done, p.total, took), took.Seconds())
	text := []rune(p.step)
	if room := p.width() - 1 - len(end); len(text) > room {
		text = text[:max(0, room)]
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s%s", string(text), end)
}

// bar gives "[====      ]  40 %", or where nobody knows the whole a block that
// walks and what is done in MiB.
func bar(width int, done, total int64, took time.Duration) string {
	if total > 0 {
		done = min(max(done, 0), total)
		n := int(done * int64(width) / total)
		return fmt.Sprintf("[%s%s] %3d %%", strings.Repeat("=", n), strings.Repeat(" ", width-n), done*100/total)
	}
	const block = 4
	span := width - block
	at := int(took/redraw) % (2 * span)
	if at > span {
		at = 2*span - at
	}
	s := fmt.Sprintf("[%s%s%s]", strings.Repeat(" ", at), strings.Repeat("=", block), strings.Repeat(" ", span-at))
	if done > 0 {
		s += " " + size(done)
	}
	return s
}

// close ends the drawing and leaves the last step as done.
func (p *progress) close() {
	if p.width != nil {
		close(p.stop)
	}
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width != nil {
		p.finish()
	}
}
