package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"dsas"
)

// Why a life was ended from outside.
var (
	errDown    = errors.New("stopped by an operator")
	errRestart = errors.New("restarted")
	errGoing   = errors.New("the node goes down")
)

// unit is one service. Its run goroutine is the only one that starts and ends
// processes; the others say what they want and wait.
type unit struct {
	s          *Supervisor
	def        dsas.Service
	dir        string
	after      []*unit
	dependents []*unit
	out        *output

	once chan struct{} // closed when healthy for the first time
	done chan struct{} // closed when run has returned

	mu        sync.Mutex
	st        Status
	down      bool                    // an operator wants it down
	hurry     chan struct{}           // cuts a back-off short; capacity 1
	endLife   context.CancelCauseFunc // of the process that runs; nil: none
	changed   chan struct{}           // closed and replaced at each change
	proc      *process
	healthy   time.Time   // since when; zero: it is not
	late      bool        // its timeout is over: no more events until healthy
	due       *time.Timer // runs from the first start, and from each loss of health
	complaint string      // what the last check of this life said
	lastEnd   string      // how the last life ended, since it was healthy last
}

func newUnit(s *Supervisor, def dsas.Service, dir string) *unit {
	u := &unit{s: s, def: def, dir: dir, once: make(chan struct{}), done: make(chan struct{}),
		hurry: make(chan struct{}, 1), changed: make(chan struct{})}
	u.st = Status{Name: def.Name, State: Waiting, Since: time.Now()}
	u.out = newOutput(filepath.Join(s.o.LogDir, def.Name))
	return u
}

func (u *unit) env() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	return append(append(env, u.s.o.Env...), "DSAS_SERVICE="+u.def.Name)
}

func (u *unit) status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	st := u.st
	st.Down = u.down
	if u.proc != nil {
		st.PID = u.proc.pid
	}
	st.Tail = u.out.tail()
	return st
}

// become records a state and, where it is news, says so. tail: the end of the
// output belongs to it.
func (u *unit) become(state State, reason string, tail bool) {
	u.mu.Lock()
	from := u.st.State
	u.st.Reason = reason
	quiet := false
	switch state {
	case Healthy:
		u.late = false
		u.lastEnd = ""
		u.healthy = time.Now()
		u.stopDue()
	case Stopped, Waiting:
		u.late = false
		u.healthy = time.Time{}
		u.stopDue()
	case Starting, Ill:
		u.healthy = time.Time{}
		if u.late {
			// Failed or ill for long: its further ends are no news.
			quiet, state = true, from
		} else {
			// After its end, that it starts again is no news either.
			quiet = state == Starting && from == Starting && reason == ""
		}
		if !u.late && u.due == nil {
			u.due = time.AfterFunc(u.def.Timeout.Or(u.s.o.Times.First), u.overdue)
		}
	}
	if u.st.State != state {
		u.st.State, u.st.Since = state, time.Now()
	}
	u.finishChange(from, quiet, tail)
}

// finishChange lets mu go and tells everybody.
func (u *unit) finishChange(from State, quiet, tail bool) {
	e := Event{Time: time.Now(), Service: u.def.Name, From: from, State: u.st.State, Reason: u.st.Reason}
	if tail {
		e.Tail = u.out.tail()
	}
	if e.State == Healthy {
		if u.proc != nil {
			e.Took = time.Since(u.proc.started)
		}
		select {
		case <-u.once:
		default:
			close(u.once)
		}
	}
	close(u.changed)
	u.changed = make(chan struct{})
	if !quiet {
		u.s.emit(e) // under mu: in the order in which they happened
	}
	u.mu.Unlock()
}

func (u *unit) stopDue() {
	if u.due != nil {
		u.due.Stop()
		u.due = nil
	}
}

// overdue is the end of the time to become healthy: the first time it is a
// failure, later an illness. It is tried all the same.
func (u *unit) overdue() {
	u.mu.Lock()
	if u.due == nil || u.late || u.st.State == Healthy || u.st.State == Stopped {
		u.mu.Unlock()
		return
	}
	from, state := u.st.State, Failed
	select {
	case <-u.once:
		state = Ill
	default:
	}
	u.late = true
	u.st.State, u.st.Since = state, time.Now()
	u.st.Reason = fmt.Sprintf("not healthy within %s", u.def.Timeout.Or(u.s.o.Times.First))
	for _, why := range []string{u.lastEnd, u.complaint} {
		if why != "" {
			u.st.Reason += ": " + why
		}
	}
	u.finishChange(from, false, true)
}

// run is the whole life of the service under the supervisor.
func (u *unit) run(ctx context.Context) {
	if log := filepath.Join(u.dir, "log"); executable(filepath.Join(log, "run")) {
		stopLog := u.out.startLog(u.s.o, log, u.env())
		defer stopLog()
	}
	defer u.out.close()
	if !u.waitForOthers(ctx) {
		u.become(Stopped, errGoing.Error(), false)
		return
	}
	pause, reason := u.s.o.Times.Backoff, ""
	for {
		if !u.waitUntilWanted(ctx) {
			u.become(Stopped, errGoing.Error(), false)
			return
		}
		end := u.live(ctx, reason)
		reason = ""
		if ctx.Err() != nil {
			u.become(Stopped, errGoing.Error(), false)
			return
		}
		if end.cause != nil { // down or restart: at once
			pause = u.s.o.Times.Backoff
			if errors.Is(end.cause, errRestart) {
				reason = end.cause.Error()
			}
			continue
		}
		if end.steady {
			pause = u.s.o.Times.Backoff
		}
		u.mu.Lock()
		u.lastEnd = end.text
		u.mu.Unlock()
		u.become(Starting, fmt.Sprintf("%s, again in %s", end.text, pause), true)
		select {
		case <-time.After(pause):
		case <-u.hurry:
		case <-ctx.Done():
		}
		pause = min(2*pause, u.s.o.Times.MaxBackoff)
	}
}

// waitForOthers returns true when all it comes after have been healthy.
func (u *unit) waitForOthers(ctx context.Context) bool {
	for i, a := range u.after {
		var names []string
		for _, b := range u.after[i:] {
			names = append(names, b.def.Name)
		}
		u.mu.Lock()
		u.st.Reason = "for " + strings.Join(names, ", ")
		u.mu.Unlock()
		select {
		case <-a.once:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// waitUntilWanted returns true when it is to run.
func (u *unit) waitUntilWanted(ctx context.Context) bool {
	for ctx.Err() == nil {
		u.mu.Lock()
		down, changed, state := u.down, u.changed, u.st.State
		u.mu.Unlock()
		if !down {
			return true
		}
		if state != Stopped {
			u.become(Stopped, errDown.Error(), false)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return false
}

// ending is how one process of run ended.
type ending struct {
	text   string // "exit status 1 after 3s", "signal: killed after 1m", "cannot be started: ..."
	steady bool   // it was healthy for long
	cause  error  // ended on request: errDown, errRestart, errGoing
}

// live starts run and returns when it has ended and finish has run.
func (u *unit) live(ctx context.Context, reason string) ending {
	lifeCtx, endLife := context.WithCancelCause(ctx)
	defer endLife(nil)
	select {
	case <-u.hurry: // was meant for the back-off before
	default:
	}
	u.mu.Lock()
	u.st.Starts++
	u.complaint = ""
	u.mu.Unlock()
	p, err := spawn(u.s.o.Reaper, u.dir, u.env(), u.out, nil, "./run")
	if err != nil {
		u.finish(failedStart, 0)
		return ending{text: "cannot be started: " + err.Error()}
	}
	u.mu.Lock()
	u.proc, u.endLife = p, endLife
	if u.down { // asked for in between
		endLife(errDown)
	}
	u.mu.Unlock()
	u.become(Starting, reason, false)

	var watching sync.WaitGroup
	watchCtx, endWatch := context.WithCancel(lifeCtx)
	watching.Go(func() { u.watch(watchCtx, p) })
	var cause error
	select {
	case <-p.dead:
	case <-lifeCtx.Done():
		if cause = context.Cause(lifeCtx); ctx.Err() != nil {
			cause = errGoing
		}
		p.terminate(u.def.Stop.Or(u.s.o.Times.Stop))
	}
	endWatch()
	watching.Wait()
	code, sig, text := p.collect()
	u.mu.Lock()
	steady := !u.healthy.IsZero() && time.Since(u.healthy) >= u.s.o.Times.Steady
	u.proc, u.endLife = nil, nil
	u.mu.Unlock()
	u.finish(code, sig)
	return ending{text: text + " after " + round(time.Since(p.started)).String(), steady: steady, cause: cause}
}

// failedStart is the exit code that finish hears when run could not be started.
const failedStart = 111

// finish runs finish, whatever it was that run ended of: the exit code (-1: by
// a signal) and the signal (0: none) are its arguments.
func (u *unit) finish(code, sig int) {
	if !executable(filepath.Join(u.dir, "finish")) {
		return
	}
	p, err := spawn(u.s.o.Reaper, u.dir, u.env(), u.out, nil, "./finish", fmt.Sprint(code), fmt.Sprint(sig))
	if err != nil {
		u.s.o.Log.Warn("finish cannot be started", "service", u.def.Name, "err", err)
		return
	}
	select {
	case <-p.dead:
	case <-time.After(u.s.o.Times.Finish):
		u.s.o.Log.Warn("finish takes too long and is killed", "service", u.def.Name, "limit", u.s.o.Times.Finish)
		p.terminate(0)
	}
	if code, _, text := p.collect(); code != 0 {
		u.s.o.Log.Warn("finish failed", "service", u.def.Name, "end", text)
	}
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}
