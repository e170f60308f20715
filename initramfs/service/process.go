package service

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program in a session and process group of its own.
type process struct {
	cmd     *exec.Cmd
	pid     int // and number of its group
	started time.Time
	dead    chan struct{} // closed when it has ended; it is a zombie until collect
	wait    func() error
	drained <-chan struct{} // closed when all its output has been read
	pipe    *os.File
}

// leftover is how long what a program left behind in its group may take to end.
const leftover = 2 * time.Second

// spawn starts argv in dir with its output going to out. stdin nil: /dev/null.
func spawn(r *Reaper, dir string, env []string, out *output, stdin *os.File, argv ...string) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = write, write
	if stdin != nil {
		cmd.Stdin = stdin
	}
	wait, err := r.Start(cmd)
	write.Close()
	if err != nil {
		read.Close()
		return nil, err
	}
	p := &process{cmd: cmd, pid: cmd.Process.Pid, started: time.Now(), dead: make(chan struct{}), wait: wait, pipe: read, drained: out.drain(read)}
	go func() {
		// Seen, and left a zombie: its number stays taken, and with it the
		// group's, until collect has signalled the group.
		for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		close(p.dead)
	}()
	return p, nil
}

// terminate sends TERM to the group, and KILL when it is not dead within limit.
func (p *process) terminate(limit time.Duration) {
	if limit > 0 {
		unix.Kill(-p.pid, unix.SIGTERM)
		unix.Kill(-p.pid, unix.SIGCONT) // a stopped one hears nothing else
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-p.dead:
			return
		case <-t.C:
		}
	}
	unix.Kill(-p.pid, unix.SIGKILL)
	<-p.dead
}

// collect ends what is left of the group (a restart would find its port
// taken), takes the exit status and closes the output. It wants p dead.
func (p *process) collect() (code, sig int, text string) {
	<-p.dead
	unix.Kill(-p.pid, unix.SIGTERM)
	err := p.wait()
	// From here on the group's number is held by its members alone: where there
	// are none, ESRCH says so, and nothing is signalled again. Those that
	// became ours (PID 1) are reaped here, since nobody else waits for them.
	deadline := time.Now().Add(leftover)
	for killed := false; unix.Kill(-p.pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		for {
			if pid, err := unix.Wait4(-p.pid, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		if time.Now().After(deadline) {
			if killed {
				break // zombies that nobody reaps, or in the kernel's hands
			}
			unix.Kill(-p.pid, unix.SIGKILL)
			killed, deadline = true, time.Now().Add(leftover)
		}
	}
	select {
	case <-p.drained:
	case <-time.After(leftover): // somebody who left the group has the pipe
		p.pipe.Close()
		<-p.drained
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, 0, "exit status 0"
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return -1, int(ws.Signal()), exit.String()
		}
		return exit.ExitCode(), 0, exit.String()
	}
	return failedStart, 0, err.Error()
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
