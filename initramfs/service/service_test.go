package service_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/service"
)

// patience is a deadline, no expectation: a test that passes does not wait.
const patience = 30 * time.Second

var reaper *service.Reaper

// TestMain makes the test what PID 1 is: the parent of all orphans.
func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	reaper = service.NewReaper(nil)
	done := make(chan struct{})
	go func() { reaper.Run(ctx); close(done) }()
	code := m.Run()
	cancel()
	<-done
	os.Exit(code)
}

// rig is a supervisor with its folders and the events it gave.
type rig struct {
	t   testing.TB
	dir string
	sup *service.Supervisor
	end func()

	mu     sync.Mutex
	events []service.Event
	news   chan struct{}
}

// quick are waits for tests; they bound nothing that a test asserts.
func quick() service.Times {
	return service.Times{Backoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond, Settle: 50 * time.Millisecond,
		CheckFast: 50 * time.Millisecond, CheckSlow: 50 * time.Millisecond, CheckTime: patience, First: patience, Stop: patience}
}

func newRig(t testing.TB) *rig { return &rig{t: t, dir: t.TempDir(), news: make(chan struct{})} }

// script writes an executable shell script into a service's folder.
func (r *rig) script(path, body string) {
	r.t.Helper()
	p := filepath.Join(r.dir, "services", path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		r.t.Fatal(err)
	}
	// By rename and a writer that is closed before any fork could inherit it
	// as open for writing (ETXTBSY): cp is another process.
	tmp := p + ".new"
	if err := os.WriteFile(tmp, []byte("#!/bin/sh\n"+body+"\n"), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if out, err := exec.Command("install", "-m", "0755", tmp, p).CombinedOutput(); err != nil {
		r.t.Fatalf("install: %v: %s", err, out)
	}
	os.Remove(tmp)
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) start(times service.Times, services ...dsas.Service) {
	r.t.Helper()
	sup, err := service.New(service.Options{
		Dir: r.path("services"), LogDir: r.path("log"), Socket: r.path("sock"), Services: services,
		Env: []string{"T=" + r.dir}, Reaper: reaper, Times: times,
		Events: func(e service.Event) {
			r.mu.Lock()
			r.events = append(r.events, e)
			close(r.news)
			r.news = make(chan struct{})
			r.mu.Unlock()
		},
	})
	if err != nil {
		r.t.Fatalf("New() = %v; want nil", err)
	}
	r.sup = sup
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- sup.Run(ctx) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				r.t.Errorf("Run() = %v; want nil", err)
			}
		case <-time.After(2 * patience):
			r.t.Error("Run() does not end")
		}
	})
	r.t.Cleanup(r.end)
}

// await returns the first event that fits, past ones included.
func (r *rig) await(what string, fits func(service.Event) bool) service.Event {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		i, news := slices.IndexFunc(r.events, fits), r.news
		if i >= 0 {
			defer r.mu.Unlock()
			return r.events[i]
		}
		r.mu.Unlock()
		select {
		case <-news:
		case <-deadline:
			r.t.Fatalf("no event %q; there were %v", what, r.all())
		}
	}
}

func (r *rig) all() []service.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *rig) awaitState(name string, s service.State) service.Event {
	r.t.Helper()
	return r.await(name+" "+string(s), func(e service.Event) bool { return e.Service == name && e.State == s })
}

func (r *rig) awaitReady() {
	r.t.Helper()
	select {
	case <-r.sup.Ready():
	case <-time.After(patience):
		r.t.Fatalf("not ready; status %+v, events %v", r.sup.Status(), r.all())
	}
}

// eventually waits for a condition that no event tells.
func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not come true; status %+v", what, r.sup.Status())
		}
	}
}

func (r *rig) file(name string) string {
	b, _ := os.ReadFile(r.path(name))
	return string(b)
}

func TestOrderOfStartAndStop(t *testing.T) {
	r := newRig(t)
	body := `echo start $DSAS_SERVICE >>$T/order; trap 'echo stop $DSAS_SERVICE >>$T/order; exit 0' TERM; touch $T/up-$DSAS_SERVICE; while :; do sleep 0.02; done`
	for _, n := range []string{"a", "b", "c"} {
		r.script(n+"/run", body)
	}
	// c is given first and comes last.
	r.start(quick(),
		dsas.Service{Name: "c", After: []string{"b"}},
		dsas.Service{Name: "b", After: []string{"a"}, Check: &dsas.Check{Exec: "test -e $T/up-b"}},
		dsas.Service{Name: "a", Check: &dsas.Check{Exec: "test -e $T/up-a && test -e $T/a-may"}})
	r.await("a starts", func(e service.Event) bool { return e.Service == "a" && e.State == service.Starting })
	r.eventually("a runs", func() bool { return strings.Contains(r.file("order"), "start a") })
	if got := r.file("order"); got != "start a\n" {
		t.Errorf("order before a is healthy = %q; want only a's start", got)
	}
	if st := r.sup.Status()[0]; st.State != service.Waiting || !strings.Contains(st.Reason, "b") {
		t.Errorf("status of c = %+v; want waiting for b", st)
	}
	os.WriteFile(r.path("a-may"), nil, 0o644)
	r.awaitReady()
	// Ready without a check: c's shell may not have set its trap yet.
	r.eventually("c runs", func() bool { _, err := os.Stat(r.path("up-c")); return err == nil })
	r.end()
	want := "start a\nstart b\nstart c\nstop c\nstop b\nstop a\n"
	if got := r.file("order"); got != want {
		t.Errorf("order = %q; want %q", got, want)
	}
	for _, st := range r.sup.Status() {
		if st.State != service.Stopped {
			t.Errorf("after Run: %s is %s; want stopped", st.Name, st.State)
		}
	}
}

func TestRestartFinishAndTail(t *testing.T) {
	r := newRig(t)
	// Ends by a signal, then by exit 7, then stays.
	r.script("s/run", `n=$(cat $T/n 2>/dev/null || echo 0); echo $((n+1)) >$T/n; echo "said in life $n" >&2
case $n in 0) kill -9 $$;; 1) exit 7;; *) trap 'exit 3' TERM; touch $T/up; while :; do sleep 0.02; done;; esac`)
	r.script("s/finish", `echo "$1 $2" >>$T/finish`)
	r.start(quick(), dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}})
	r.awaitReady()
	killed := r.await("kill", func(e service.Event) bool { return strings.Contains(e.Reason, "signal: killed") })
	if !strings.Contains(killed.Tail, "said in life 0") {
		t.Errorf("tail of %v = %q; want what it said", killed, killed.Tail)
	}
	r.await("exit 7", func(e service.Event) bool { return strings.Contains(e.Reason, "exit status 7") })
	r.end()
	if got, want := r.file("finish"), "-1 9\n7 0\n3 0\n"; got != want {
		t.Errorf("finish heard %q; want %q: after every end, that of the node's stop too", got, want)
	}
	if st := r.sup.Status()[0]; st.Starts != 3 {
		t.Errorf("starts = %d; want 3", st.Starts)
	}
	if got := r.file("log/s/current"); !strings.Contains(got, "said in life 1") {
		t.Errorf("log/s/current = %q; want all output", got)
	}
}

func TestMissingRunIsReportedAndTriedAgain(t *testing.T) {
	r := newRig(t)
	os.MkdirAll(r.path("services/s"), 0o755)
	r.script("ok/run", `exec sleep 1000`)
	r.start(quick(), dsas.Service{Name: "s"}, dsas.Service{Name: "ok"})
	r.awaitState("ok", service.Healthy)
	e := r.await("cannot be started", func(e service.Event) bool { return strings.Contains(e.Reason, "cannot be started") })
	if !strings.Contains(e.Reason, "run") {
		t.Errorf("reason = %q; want the program's name", e.Reason)
	}
	r.script("s/run", `exec sleep 1000`)
	r.awaitReady()
}

func TestFailedKeepsTrying(t *testing.T) {
	r := newRig(t)
	r.script("s/run", `echo trying; test -e $T/may || exit 4; exec sleep 1000`)
	r.start(quick(), dsas.Service{Name: "s", Timeout: dsas.Duration(3 * time.Second), Check: &dsas.Check{Exec: "test -e $T/may"}})
	e := r.awaitState("s", service.Failed)
	if !strings.Contains(e.Reason, "within 3s") || !strings.Contains(e.Reason, "exit status 4") || !strings.Contains(e.Tail, "trying") {
		t.Errorf("failed event = %+v; want the limit, the last exit and the log's end", e)
	}
	n := len(r.all())
	starts := r.sup.Status()[0].Starts
	r.eventually("it is tried on", func() bool { return r.sup.Status()[0].Starts > starts+2 })
	if got := len(r.all()); got != n {
		t.Errorf("%d events while it stays failed; want none: %v", got-n, r.all()[n:])
	}
	os.WriteFile(r.path("may"), nil, 0o644)
	r.awaitReady()
}

func TestChecks(t *testing.T) {
	var sick atomic.Bool
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			http.Error(w, "ill", http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	r := newRig(t)
	for _, n := range []string{"http", "tcp", "file"} {
		r.script(n+"/run", `echo hello from $DSAS_SERVICE; exec sleep 1000`)
	}
	r.script("file/check", `echo checked >>$T/checked; test -e $T/good || { echo not good; exit 1; }`)
	r.start(quick(),
		dsas.Service{Name: "http", Check: &dsas.Check{HTTP: web.URL}},
		dsas.Service{Name: "tcp", Check: &dsas.Check{TCP: ln.Addr().String()}},
		dsas.Service{Name: "file"})
	r.awaitState("http", service.Healthy)
	r.awaitState("tcp", service.Healthy)
	r.eventually("check file runs", func() bool { return strings.Count(r.file("checked"), "\n") > 2 })
	select {
	case <-r.sup.Ready():
		t.Fatal("ready although a check fails")
	default:
	}
	os.WriteFile(r.path("good"), nil, 0o644)
	r.awaitReady()

	sick.Store(true)
	e := r.awaitState("http", service.Ill)
	if !strings.Contains(e.Reason, "503") || !strings.Contains(e.Tail, "hello from http") {
		t.Errorf("ill event = %+v; want the status and the log's end", e)
	}
	sick.Store(false)
	r.await("http healthy again", func(e service.Event) bool { return e.From == service.Ill && e.State == service.Healthy })
}

func TestCheckThatHangsIsKilled(t *testing.T) {
	r := newRig(t)
	r.script("s/run", `exec sleep 1000`)
	times := quick()
	times.First, times.CheckTime = 3*time.Second, 50*time.Millisecond
	// The shell's child is killed with it, or its hold on the pipe would hang the check.
	r.start(times, dsas.Service{Name: "s", Check: &dsas.Check{Exec: `echo waiting for it; sleep 1000; true`}})
	if e := r.awaitState("s", service.Failed); !strings.Contains(e.Reason, "takes too long") || !strings.Contains(e.Reason, "waiting for it") {
		t.Errorf("reason = %q; want that the check takes too long, and what it said", e.Reason)
	}
}

func TestKillsWhatDoesNotHear(t *testing.T) {
	r := newRig(t)
	r.script("s/run", `trap '' TERM; sleep 1001 & echo $! >$T/child; touch $T/up; while :; do sleep 0.02; done`)
	times := quick()
	times.Stop = 100 * time.Millisecond
	r.script("s/finish", `echo "$1 $2" >>$T/finish`)
	r.start(times, dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}})
	r.awaitReady()
	var child int
	fmt.Sscan(r.file("child"), &child)
	r.end()
	if got := r.file("finish"); got != "-1 9\n" {
		t.Errorf("finish heard %q; want the KILL", got)
	}
	if err := unix.Kill(child, 0); err != unix.ESRCH {
		t.Errorf("kill(%d, 0) of what it left behind = %v; want no such process", child, err)
	}
}

func TestLeftoversEndBeforeRestart(t *testing.T) {
	r := newRig(t)
	// The first life leaves a child in its group; the second says whether it met it.
	r.script("s/run", `if test -e $T/child; then kill -0 $(cat $T/child) 2>/dev/null && touch $T/met; touch $T/up; exec sleep 1000; fi
sleep 1002 & echo $! >$T/child; exit 1`)
	r.start(quick(), dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}})
	r.awaitReady()
	if _, err := os.Stat(r.path("met")); err == nil {
		t.Error("the second run met what the first left behind")
	}
}

func TestLogRun(t *testing.T) {
	r := newRig(t)
	r.script("s/run", `i=0; while test $i -lt 200; do echo line $i; i=$((i+1)); done; touch $T/up; exec sleep 1000`)
	// Ends after every 50 lines: what the pipe holds then must not be lost.
	r.script("s/log/run", `n=0; while test $n -lt 50 && IFS= read -r l; do echo "$l" >>$T/logged; n=$((n+1)); done`)
	r.start(quick(), dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}})
	r.awaitReady()
	r.eventually("all is logged", func() bool { return strings.Count(r.file("logged"), "\n") >= 200 })
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := r.file("logged"); got != want.String() {
		t.Errorf("log/run got %q; want the 200 lines in order", got)
	}
	if got := r.sup.Status()[0].Tail; !strings.Contains(got, "line 199") {
		t.Errorf("tail = %q; want the end of the output too", got)
	}
}

func TestLogIsBounded(t *testing.T) {
	r := newRig(t)
	r.script("s/run", `head -c 2000000 /dev/zero | tr '\0' x | fold -w 79; echo; echo the end; touch $T/up; exec sleep 1000`)
	r.start(quick(), dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}})
	r.awaitReady()
	r.eventually("all is read", func() bool { return strings.Contains(r.sup.Status()[0].Tail, "the end") })
	files, err := os.ReadDir(r.path("log/s"))
	if err != nil || len(files) > 4 {
		t.Fatalf("log/s holds %v, %v; want four files at most", files, err)
	}
	var sum int64
	for _, f := range files {
		st, _ := f.Info()
		sum += st.Size()
	}
	if limit := int64(4 * (256<<10 + 16<<10)); sum > limit || sum < 256<<10 {
		t.Errorf("log/s holds %d bytes; want some, and %d at most", sum, limit)
	}
	if n := len(r.sup.Status()[0].Tail); n > 4<<10 {
		t.Errorf("tail has %d bytes; want 4096 at most", n)
	}
}

func TestControl(t *testing.T) {
	if signal.Ignored(unix.SIGHUP) { // under nohup, and then in all that is started too, which no trap changes
		signal.Notify(make(chan os.Signal, 1), unix.SIGHUP) // for good: Stop would ignore it again
	}
	r := newRig(t)
	r.script("s/run", `trap 'echo hup >>$T/hup' HUP; echo run >>$T/runs; touch $T/up; while :; do sleep 0.02; done`)
	r.script("other/run", `exec sleep 1000`)
	r.start(quick(), dsas.Service{Name: "s", Check: &dsas.Check{Exec: "test -e $T/up"}, Reload: "echo reloaded >>$T/reloads"}, dsas.Service{Name: "other"})
	r.awaitReady()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	svc := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := service.ControlAt(ctx, r.path("sock"), args, &out); err != nil {
			t.Fatalf("svc %v = %v; want nil", args, err)
		}
		return out.String()
	}
	if got := svc("status"); !strings.Contains(got, "s ") || strings.Count(got, "healthy") != 2 {
		t.Errorf("svc status = %q; want both healthy", got)
	}
	before := r.sup.Status()[0].PID
	svc("restart", "s")
	if got := r.sup.Status()[0].PID; got == before || got == 0 {
		t.Errorf("pid after restart = %d; want another than %d", got, before)
	}
	r.eventually("second run", func() bool { return strings.Count(r.file("runs"), "run") == 2 })
	svc("hup", "s")
	r.eventually("hup arrives", func() bool { return r.file("hup") == "hup\n" })
	svc("reload", "s")
	if got := r.file("reloads"); got != "reloaded\n" {
		t.Errorf("reload wrote %q; want its command run once", got)
	}
	svc("down", "s")
	if st := r.sup.Status()[0]; st.State != service.Stopped || st.PID != 0 || !st.Down {
		t.Errorf("after down: %+v; want stopped", st)
	}
	svc("reload", "s") // does not bring it up
	if st := r.sup.Status()[0]; st.State != service.Stopped {
		t.Errorf("after reload while down: %s; want stopped", st.State)
	}
	svc("up", "s")
	r.await("up again", func(e service.Event) bool { return e.Service == "s" && e.From == service.Stopped })
	r.eventually("healthy", func() bool { return r.sup.Status()[0].State == service.Healthy })

	for _, args := range [][]string{{"restart", "nobody"}, {"dance", "s"}} {
		if err := service.ControlAt(ctx, r.path("sock"), args, &bytes.Buffer{}); err == nil {
			t.Errorf("svc %v = nil; want an error", args)
		}
	}
	if err := r.sup.Reload(ctx, "s", "echo cannot >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("Reload() of a failing command = %v; want its words", err)
	}
	if st, err := os.Stat(r.path("sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", st.Mode(), err)
	}
}

func TestDownWhileWaitingAndReloadStartsNow(t *testing.T) {
	r := newRig(t)
	r.script("a/run", `test -e $T/conf || exit 1; exec sleep 1000`)
	r.script("b/run", `touch $T/b-ran; exec sleep 1000`)
	times := quick()
	times.Backoff, times.MaxBackoff = time.Hour, time.Hour // only a hurry starts it again
	r.start(times, dsas.Service{Name: "a", Check: &dsas.Check{Exec: "test -e $T/conf"}}, dsas.Service{Name: "b", After: []string{"a"}})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.sup.Down(ctx, "b"); err != nil {
		t.Fatalf("Down(b) = %v; want nil", err)
	}
	r.await("a ended", func(e service.Event) bool { return e.Service == "a" && strings.Contains(e.Reason, "again in") })
	os.WriteFile(r.path("conf"), nil, 0o644)
	if err := r.sup.Reload(ctx, "a", "exit 1"); err != nil {
		t.Fatalf("Reload(a) in its back-off = %v; want nil", err)
	}
	r.awaitState("a", service.Healthy)
	r.awaitState("b", service.Stopped)
	if _, err := os.Stat(r.path("b-ran")); err == nil {
		t.Error("b ran although it was taken down while it waited")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, services := range map[string][]dsas.Service{
		"unknown after": {{Name: "a", After: []string{"x"}}},
		"circle":        {{Name: "a", After: []string{"b"}}, {Name: "b", After: []string{"a"}}},
		"itself":        {{Name: "a", After: []string{"a"}}},
		"twice":         {{Name: "a"}, {Name: "a"}},
		"bad name":      {{Name: "../a"}},
	} {
		if _, err := service.New(service.Options{Services: services}); err == nil {
			t.Errorf("New(%s) = nil error; want one", name)
		}
	}
}

func TestNoServicesIsReady(t *testing.T) {
	r := newRig(t)
	r.start(quick())
	r.awaitReady()
}
