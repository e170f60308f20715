package service

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tailSize = 4 << 10
	logSize  = 256 << 10 // bytes of one log file
	logFiles = 4         // current and three older ones
	// logPatience is how long a service's output may wait for log/run before
	// it is dropped: a stuck logger must not stop the service.
	logPatience = 2 * time.Second
)

// output is where all that a service writes goes: its end is kept in memory,
// and all of it goes to log/run where the folder has one, else to a rotating
// file. It outlives the service's processes.
type output struct {
	dir string // of the log files

	mu   sync.Mutex
	last []byte // the end of all output, up to tailSize

	sink  sync.Mutex // guards what follows; a slow log does not hold up tail
	file  *os.File
	size  int
	toLog *os.File // log/run's standard input; nil: there is none
	stuck bool     // log/run took nothing for logPatience
}

func newOutput(dir string) *output { return &output{dir: dir} }

// tail is the end of the output, from a line's start on where possible.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := strings.ToValidUTF8(string(o.last), "?")
	if len(o.last) == tailSize {
		if _, rest, ok := strings.Cut(s, "\n"); ok && rest != "" {
			s = rest
		}
	}
	return s
}

// drain reads r to its end in the background.
func (o *output) drain(r *os.File) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			o.write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return done
}

func (o *output) write(b []byte) {
	if len(b) == 0 {
		return
	}
	o.mu.Lock()
	o.last = append(o.last, b...)
	if n := len(o.last) - tailSize; n > 0 {
		o.last = append(o.last[:0], o.last[n:]...)
	}
	o.mu.Unlock()

	o.sink.Lock()
	defer o.sink.Unlock()
	if o.toLog == nil {
		o.toFile(b)
		return
	}
	patience := logPatience
	if o.stuck {
		patience = time.Millisecond // it may have come round
	}
	o.toLog.SetWriteDeadline(time.Now().Add(patience))
	_, err := o.toLog.Write(b)
	o.stuck = err != nil
}

// toFile appends and rotates. What cannot be written is dropped: there is
// nowhere to complain that would not be just as full.
func (o *output) toFile(b []byte) {
	if o.file == nil {
		if os.MkdirAll(o.dir, 0o750) != nil {
			return
		}
		f, err := os.OpenFile(filepath.Join(o.dir, "current"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return
		}
		o.file = f
		if st, err := f.Stat(); err == nil {
			o.size = int(st.Size())
		}
	}
	n, _ := o.file.Write(b)
	if o.size += n; o.size >= logSize {
		o.rotate()
	}
}

// rotate makes current current.1, that one current.2, and so on.
func (o *output) rotate() {
	o.file.Close()
	o.file, o.size = nil, 0
	name := func(i int) string {
		if i == 0 {
			return filepath.Join(o.dir, "current")
		}
		return filepath.Join(o.dir, "current."+strconv.Itoa(i))
	}
	for i := logFiles - 1; i > 0; i-- {
		os.Rename(name(i-1), name(i))
	}
}

// startLog runs log/run in dir, and again when it ends, with all output as its
// standard input. stop lets it read the rest and end, daemontools' way. The
// pipe outlives both programs: a restart of either loses nothing.
func (o *output) startLog(so Options, dir string, env []string) (stop func()) {
	read, write, err := os.Pipe()
	if err != nil {
		so.Log.Warn("no log/run: output goes to a file", "dir", dir, "err", err)
		return func() {}
	}
	o.sink.Lock()
	o.toLog = write
	o.sink.Unlock()
	// What the logger itself says goes to the file.
	own := &output{dir: o.dir}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer own.close()
		pause := so.Times.Backoff
		for ctx.Err() == nil {
			begin := time.Now()
			p, err := spawn(so.Reaper, dir, env, own, read, "./run")
			if err != nil {
				so.Log.Warn("log/run cannot be started", "dir", dir, "err", err)
			} else {
				select {
				case <-p.dead:
				case <-ctx.Done():
					read.Close() // ours; the end of file comes to its copy
					select {
					case <-p.dead:
					case <-time.After(so.Times.Stop / 3):
						p.terminate(so.Times.Stop / 3)
					}
				}
				p.collect()
			}
			if time.Since(begin) >= so.Times.Steady {
				pause = so.Times.Backoff
			}
			if !wait(ctx, pause) {
				break
			}
			pause = min(2*pause, so.Times.MaxBackoff)
		}
	}()
	return func() {
		o.sink.Lock()
		o.toLog = nil
		o.sink.Unlock()
		write.Close()
		cancel()
		<-ended
		read.Close()
	}
}

// close closes the log file.
func (o *output) close() {
	o.sink.Lock()
	defer o.sink.Unlock()
	if o.file != nil {
		o.file.Close()
		o.file = nil
	}
}
