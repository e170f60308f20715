package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/netns"
)

// Servers have one core, whoever measures them the other.
const (
	serverCore = 0
	clientCore = 1
)

// arena is the wire: a namespace for the server and one for the clients, joined
// by a veth pair whose ends are called "boot" in both. The server's address is
// 10.66.0.1/16, and the clients' 10.66.0.2/16.
type arena struct {
	server, client string // names of namespaces
	dir            string // scratch, on the disk that the checkout is on
}

const (
	linkName     = "boot"
	serverAddr   = "10.66.0.1"
	clientAddr   = "10.66.0.2"
	subnetPrefix = "10.66.0.0/16"
)

// newArena makes an arena; end it with close. what goes into the names.
func (b *bench) newArena(ctx context.Context, what string) (a *arena, err error) {
	a = &arena{server: fmt.Sprintf("bn%d-%s-s", os.Getpid(), what), client: fmt.Sprintf("bn%d-%s-c", os.Getpid(), what)}
	if err := os.MkdirAll(b.scratch, 0o755); err != nil {
		return nil, err
	}
	if a.dir, err = os.MkdirTemp(b.scratch, what+"-"); err != nil {
		return nil, err
	}
	// Peers drop to users of their own, and read below it.
	if err := os.Chmod(a.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, ns := range []string{a.server, a.client} {
		if err := netns.Create(ctx, ns); err != nil {
			return nil, err
		}
	}
	for _, args := range [][]string{
		{"-n", a.server, "link", "add", linkName, "type", "veth", "peer", "name", linkName, "netns", a.client},
		{"-n", a.server, "addr", "add", serverAddr + "/16", "dev", linkName},
		{"-n", a.client, "addr", "add", clientAddr + "/16", "dev", linkName},
		{"-n", a.server, "link", "set", linkName, "up"},
		{"-n", a.client, "link", "set", linkName, "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return a, nil
}

func (a *arena) close() {
	ctx := context.Background()
	for _, ns := range []string{a.server, a.client} {
		if ns != "" && netns.Exists(ns) {
			exec.CommandContext(ctx, "ip", "netns", "del", ns).Run()
		}
	}
	if a.dir != "" {
		os.RemoveAll(a.dir)
	}
}

// inClient runs fn in the clients' namespace: sockets that it opens stay there.
func (a *arena) inClient(fn func() error) error { return netns.Do(a.client, fn) }

// program is a server that is being measured.
type program struct {
	cmd  *exec.Cmd
	log  *bytes.Buffer // what it said; read it after gone
	gone chan struct{}
	err  error
}

// start runs a server in the arena's server namespace, on its core.
func (a *arena) start(ctx context.Context, name string, args ...string) (*program, error) {
	return startPinned(ctx, a.server, serverCore, name, args...)
}

// startPinned runs a program in a namespace and on one core. It dies with us.
// ip and taskset replace themselves with it, so that its process id is its own.
func startPinned(ctx context.Context, ns string, core int, name string, args ...string) (*program, error) {
	all := append([]string{"netns", "exec", ns, "taskset", "-c", strconv.Itoa(core), name}, args...)
	p := &program{cmd: exec.CommandContext(ctx, "ip", all...), log: &bytes.Buffer{}, gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if os.Getenv("BN_DEBUG") != "" {
		p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	}
	// A session of its own: that is what the scheduler shares time among
	// (sched(7), autogroups).
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 5 * time.Second
	started := make(chan error, 1)
	go func() {
		// Pdeathsig comes when the thread ends that started the child: this
		// one stays as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
		close(p.gone)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	putAhead(p.cmd.Process.Pid)
	return p, nil
}

// putAhead gives a process's session the niceness ahead among sessions, where
// the kernel has autogroups; elsewhere that of its threads does it.
func putAhead(pid int) {
	os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(ahead)), 0)
}

// until waits for ok; it fails when the program ends first.
func (p *program) until(ctx context.Context, what string, ok func() bool) error {
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		select {
		case <-p.gone:
			return fmt.Errorf("%s: the program ended: %w: %s", what, p.err, lastLines(p.log.String(), 5))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within 30 s: %w", what, os.ErrDeadlineExceeded)
		}
	}
	return nil
}

// stop ends the program and waits for it.
func (p *program) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
		return
	case <-time.After(10 * time.Second):
	}
	p.cmd.Process.Kill()
	<-p.gone
}

// cpu gives the processor seconds the program and its children have taken so
// far, those it has waited for included.
func (p *program) cpu() float64 { return cpuSeconds(p.cmd.Process.Pid) }

func cpuSeconds(pid int) float64 {
	total := procCPU(pid)
	for _, c := range children(pid) {
		total += cpuSeconds(c)
	}
	return total
}

// children gives the processes that pid's threads have started and that are there
// (proc_pid_task_children(5)).
func children(pid int) (list []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, w := range strings.Fields(string(b)) {
			if c, err := strconv.Atoi(w); err == nil {
				list = append(list, c)
			}
		}
	}
	return list
}

// procCPU reads utime, stime, cutime and cstime (proc_pid_stat(5), fields 14 to
// 17), in ticks of 10 ms.
func procCPU(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	var ticks float64
	for i := 11; i <= 14 && i < len(f); i++ {
		v, _ := strconv.ParseFloat(f[i], 64)
		ticks += v
	}
	return ticks / 100
}

// onCPU is how long the program's threads that there are have run, and its
// children's, in seconds: to the nanosecond, where cpu counts ticks
// (/proc/PID/schedstat, kernel Documentation/scheduler/sched-stats.rst). It is 0
// where the kernel does not count so.
func (p *program) onCPU() float64 { return onCPU(p.cmd.Process.Pid) }

func onCPU(pid int) (total float64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		var ns float64
		if _, err := fmt.Sscan(string(b), &ns); err == nil {
			total += ns / 1e9
		}
	}
	for _, c := range children(pid) {
		total += onCPU(c)
	}
	return total
}

// rss gives VmRSS and VmHWM in MiB.
func (p *program) rss() (now, peak float64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.SplitSeq(string(b), "\n") {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			now = kib / 1024
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kib); err == nil {
			peak = kib / 1024
		}
	}
	return now, peak
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// ahead is the niceness of servers and clients alike, so that other work on the
// machine blurs the figures less.
const ahead = -15

// pinSelf keeps every thread of this process, and those to come, on one core,
// and puts them ahead of other work; what it starts inherits the latter.
func pinSelf(core int) error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("one core only: servers and clients would share it: %w", dsas.ErrInvalid)
	}
	putAhead(os.Getpid())
	var set unix.CPUSet
	set.Set(core)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("keep to core %d: %w", core, err)
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, ahead); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set niceness: %w", err)
		}
	}
	return nil
}

// withSysctl sets a value of /proc/sys for as long as fn runs. The network
// core's values hold for the whole machine.
func withSysctl(name, value string, fn func() error) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	defer os.WriteFile(path, old, 0o644)
	return fn()
}

// switches counts the context switches of all threads so far, those that the
// program was made to do and those it asked for.
func (p *program) switches() (forced, asked float64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for line := range strings.SplitSeq(string(b), "\n") {
			var n float64
			if _, err := fmt.Sscanf(line, "nonvoluntary_ctxt_switches: %f", &n); err == nil {
				forced += n
			}
			if _, err := fmt.Sscanf(line, "voluntary_ctxt_switches: %f", &n); err == nil {
				asked += n
			}
		}
	}
	return forced, asked
}
