package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// SocketPath is where a node's init listens for Control.
const SocketPath = "/run/dsas/service.sock"

// controlTime bounds one command: a stop with its finish takes the longest.
const controlTime = 2 * time.Minute

func (s *Supervisor) named(name string) (*unit, error) {
	if u := s.unit(name); u != nil {
		return u, nil
	}
	var names []string
	for _, u := range s.units {
		names = append(names, u.def.Name)
	}
	return nil, fmt.Errorf("service %q: this node has %s: %w", name, strings.Join(names, ", "), dsas.ErrNotFound)
}

// Up starts a service that an operator took down, or cuts its back-off short.
func (s *Supervisor) Up(ctx context.Context, name string) error {
	u, err := s.named(name)
	if err != nil {
		return err
	}
	u.want(false, nil)
	return nil
}

// Down stops a service and returns when it has ended and finish has run. It
// stays down until Up or Restart, or the next boot.
func (s *Supervisor) Down(ctx context.Context, name string) error {
	u, err := s.named(name)
	if err != nil {
		return err
	}
	if u.status().State == Waiting {
		u.want(true, nil)
		return nil
	}
	u.want(true, errDown)
	return u.until(ctx, "stop", func() bool { return u.st.State == Stopped })
}

// Restart ends a service's process and returns when the next one has started.
func (s *Supervisor) Restart(ctx context.Context, name string) error {
	u, err := s.named(name)
	if err != nil {
		return err
	}
	st := u.status()
	if st.State == Waiting {
		return fmt.Errorf("restart %s: it waits %s: %w", name, st.Reason, dsas.ErrConflict)
	}
	u.want(false, errRestart)
	return u.until(ctx, "restart", func() bool { return u.st.Starts > st.Starts })
}

// HUP sends SIGHUP to a service's process.
func (s *Supervisor) HUP(_ context.Context, name string) error {
	u, err := s.named(name)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.proc == nil {
		return fmt.Errorf("hup %s: it does not run: %w", name, dsas.ErrConflict)
	}
	// Under mu with proc set it is not collected: the number is its own.
	if err := unix.Kill(u.proc.pid, unix.SIGHUP); err != nil {
		return fmt.Errorf("hup %s: %w", name, err)
	}
	return nil
}

// Reload makes a service take a changed configuration: by cmd (run with sh -c),
// or its own reload command where cmd is empty, or else by a restart. A service
// that does not run is started now instead of after its back-off, unless an
// operator took it down.
func (s *Supervisor) Reload(ctx context.Context, name, cmd string) error {
	u, err := s.named(name)
	if err != nil {
		return err
	}
	if cmd == "" {
		cmd = u.def.Reload
	}
	u.mu.Lock()
	down, runs := u.down, u.proc != nil
	u.mu.Unlock()
	switch {
	case down:
		return nil // it reads the new one when it comes up
	case !runs:
		return s.Up(ctx, name)
	case cmd == "":
		return s.Restart(ctx, name)
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Times.Finish)
	defer cancel()
	if err := u.command(ctx, "/bin/sh", "-c", cmd); err != nil {
		return fmt.Errorf("reload %s: %w", name, err)
	}
	return nil
}

// want says whether the service is to be down, ends its process for cause
// (nil: it may go on), and cuts a back-off short.
func (u *unit) want(down bool, cause error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down = down
	if cause != nil && u.endLife != nil {
		u.endLife(cause)
	}
	if u.endLife == nil {
		select {
		case u.hurry <- struct{}{}:
		default:
		}
	}
	close(u.changed)
	u.changed = make(chan struct{})
}

// until returns when cond, called under mu, is true.
func (u *unit) until(ctx context.Context, what string, cond func() bool) error {
	for {
		u.mu.Lock()
		ok, changed := cond(), u.changed
		u.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-u.done:
			return fmt.Errorf("%s %s: %w", what, u.def.Name, errGoing)
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", what, u.def.Name, ctx.Err())
		}
	}
}

type controlRequest struct {
	Args []string `json:"args"`
}

type controlAnswer struct {
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
}

// serve answers Control on the socket until ctx ends.
func (s *Supervisor) serve(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.o.Socket), 0o755); err != nil {
		return fmt.Errorf("listen at %s: %w", s.o.Socket, err)
	}
	if err := os.Remove(s.o.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen at %s: %w", s.o.Socket, err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.o.Socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	// Between the two calls the folder's mode guards it, and the check of the
	// caller's credentials always.
	if err := os.Chmod(s.o.Socket, 0o600); err != nil {
		ln.Close()
		return fmt.Errorf("listen: %w", err)
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", s.o.Socket, err)
		}
		calls.Go(func() {
			defer c.Close()
			callCtx, cancel := context.WithTimeout(ctx, controlTime)
			defer cancel()
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			var req controlRequest
			var answer controlAnswer
			if err := rootOnly(c); err != nil {
				answer.Error = err.Error()
			} else if err := json.NewDecoder(io.LimitReader(c, 64<<10)).Decode(&req); err != nil {
				answer.Error = "request: " + err.Error()
			} else if answer.Text, err = s.command(callCtx, req.Args); err != nil {
				answer.Error = err.Error()
			}
			c.SetWriteDeadline(time.Now().Add(5 * time.Second))
			json.NewEncoder(c).Encode(answer)
		})
	}
}

// rootOnly refuses callers that are neither root nor the supervisor's own user
// (unix(7), SO_PEERCRED).
func rootOnly(c net.Conn) error {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("only root may: %w", dsas.ErrDenied)
	}
	return nil
}

const controlHelp = `usage: svc status [NAME]         the services and their states
       svc up|down NAME          start; stop and keep down
       svc restart|hup NAME      end and start again; send SIGHUP
       svc reload NAME           as a changed configuration does
       svc tail NAME             the end of its output
`

func (s *Supervisor) command(ctx context.Context, args []string) (string, error) {
	verb, name := "status", ""
	if len(args) > 0 {
		verb = args[0]
	}
	if len(args) > 1 {
		name = args[1]
	}
	if verb == "help" || len(args) > 2 || name == "" && verb != "status" {
		return controlHelp, nil
	}
	var err error
	switch verb {
	case "status":
		return s.table(name)
	case "up":
		err = s.Up(ctx, name)
	case "down":
		err = s.Down(ctx, name)
	case "restart":
		err = s.Restart(ctx, name)
	case "hup":
		err = s.HUP(ctx, name)
	case "reload":
		err = s.Reload(ctx, name, "")
	case "tail":
		u, err := s.named(name)
		if err != nil {
			return "", err
		}
		return u.out.tail(), nil
	default:
		return "", fmt.Errorf("%q is no command\n%s%w", verb, controlHelp, dsas.ErrInvalid)
	}
	if err != nil {
		return "", err
	}
	return s.table(name)
}

func (s *Supervisor) table(name string) (string, error) {
	if name != "" {
		if _, err := s.named(name); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tSTATE\tFOR\tPID\tSTARTS\tREASON")
	for _, st := range s.Status() {
		if name != "" && st.Name != name {
			continue
		}
		pid := "-"
		if st.PID > 0 {
			pid = fmt.Sprint(st.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", st.Name, st.State, time.Since(st.Since).Round(time.Second), pid, st.Starts, st.Reason)
	}
	w.Flush()
	return b.String(), nil
}

// Control sends an operator's command ("status", "restart nginx") to the
// node's init and writes the answer.
func Control(ctx context.Context, args []string, stdout io.Writer) error {
	return ControlAt(ctx, SocketPath, args, stdout)
}

// ControlAt is Control for an init that listens at socket.
func ControlAt(ctx context.Context, socket string, args []string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, controlTime)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("reach the node's init (are you root, on a node?): %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := json.NewEncoder(c).Encode(controlRequest{Args: args}); err != nil {
		return fmt.Errorf("ask the node's init: %w", err)
	}
	var answer controlAnswer
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return fmt.Errorf("answer of the node's init: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	_, err = io.WriteString(stdout, answer.Text)
	return err
}
