package lab

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"dsas/server/netns"
)

var errClosed = errors.New("the lab is down")

// spawner starts processes from one OS thread of its own, which lives in the
// lab's network namespace (or, with an empty name, where the process is) and
// as long as the lab. Both matter: a child inherits the namespace of the
// thread that forks it, and PR_SET_PDEATHSIG fires when that thread ends, not
// when the process does (prctl(2)). So every child dies with the lab, even
// when the lab is killed.
type spawner struct {
	reqs chan spawnReq
	quit chan struct{}
	done chan struct{}
}

type spawnReq struct {
	cmd *exec.Cmd
	err chan error
}

func newSpawner(namespace string) (*spawner, error) {
	s := &spawner{reqs: make(chan spawnReq), quit: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error, 1)
	go s.begin(namespace, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

func (s *spawner) begin(namespace string, ready chan error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not on the main thread: it would never end, and /proc/PID/ns of
		// the whole process is read from it. Hold it while another
		// goroutine gets its own thread.
		next := make(chan struct{})
		go func() { close(next); s.begin(namespace, ready) }()
		<-next
		runtime.UnlockOSThread()
		return
	}
	defer close(s.done)
	if namespace != "" {
		if err := netns.Enter(namespace); err != nil {
			ready <- err
			return // still locked: the thread ends here
		}
	}
	ready <- nil
	for {
		select {
		case r := <-s.reqs:
			r.err <- r.cmd.Start()
		case <-s.quit:
			return
		}
	}
}

// start starts cmd on the spawner's thread.
func (s *spawner) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A group of its own: Ctrl-C at the terminal goes to the lab, which
	// then ends its children in order.
	cmd.SysProcAttr.Setpgid = true
	r := spawnReq{cmd, make(chan error, 1)}
	select {
	case s.reqs <- r:
		return <-r.err
	case <-s.done:
		return errClosed
	}
}

// close ends the thread, and with it whatever child is left.
func (s *spawner) close() {
	close(s.quit)
	<-s.done
}
