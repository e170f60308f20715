package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// strikes is how many checks in a row must fail before a healthy service
// counts as ill: one may be a busy moment.
const strikes = 2

// probe is one health check; nil: healthy.
type probe func(ctx context.Context) error

// probe finds the service's check: role.yaml's, else a check file, else none.
func (u *unit) probe() probe {
	c := u.def.Check
	switch {
	case c != nil && c.HTTP != "":
		return func(ctx context.Context) error { return checkHTTP(ctx, c.HTTP) }
	case c != nil && c.TCP != "":
		return func(ctx context.Context) error { return checkTCP(ctx, c.TCP) }
	case c != nil && c.Exec != "":
		return func(ctx context.Context) error { return u.command(ctx, "/bin/sh", "-c", c.Exec) }
	case executable(filepath.Join(u.dir, "check")):
		return func(ctx context.Context) error { return u.command(ctx, "./check") }
	}
	return nil
}

// watch checks the process p until ctx ends, and says what it finds.
func (u *unit) watch(ctx context.Context, p *process) {
	t := u.s.o.Times
	check := u.probe()
	if check == nil {
		if wait(ctx, t.Settle) {
			u.becomeHealthy(p)
		}
		return
	}
	c := u.def.Check
	if c == nil {
		c = &dsas.Check{}
	}
	slow := c.Interval.Or(t.CheckSlow)
	// The first checks come quickly: a boot waits for them.
	pause, failures := t.CheckFast/16, 0
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, c.Timeout.Or(t.CheckTime))
			defer cancel()
			return check(ctx)
		}()
		if ctx.Err() != nil {
			return
		}
		next := slow
		if err == nil {
			failures = 0
			u.becomeHealthy(p)
		} else {
			failures++
			u.unwell(err, failures)
			next = min(pause, t.CheckFast, slow)
			pause *= 2
		}
		if !wait(ctx, next) {
			return
		}
	}
}

func (u *unit) becomeHealthy(p *process) {
	if u.status().State != Healthy {
		u.become(Healthy, "after "+round(time.Since(p.started)).String(), false)
	}
}

// unwell notes what a check said, and that a healthy service is ill.
func (u *unit) unwell(err error, failures int) {
	u.mu.Lock()
	u.complaint = err.Error()
	state := u.st.State
	u.mu.Unlock()
	if state == Healthy && failures >= strikes {
		u.become(Ill, err.Error(), true)
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func checkHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	// A connection of its own each time: one kept alive says little.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("check: %s answers %s", url, resp.Status)
	}
	return nil
}

func checkTCP(ctx context.Context, addr string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return c.Close()
}

// command runs a check or a reload in the service's folder, and kills its
// whole group when ctx ends. The end of its output is in the error.
func (u *unit) command(ctx context.Context, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = u.dir, u.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, write
	wait, err := u.s.o.Reaper.Start(cmd)
	write.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", argv[len(argv)-1], err)
	}
	var out bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() {
		io.Copy(&out, io.LimitReader(read, 4<<10))
		io.Copy(io.Discard, read)
	})
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		<-ended
		err = ctx.Err()
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("takes too long")
		}
	}
	if err == nil {
		return nil
	}
	// Something it left behind may hold the pipe: what was said is enough.
	read.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	reading.Wait()
	said := strings.TrimSpace(strings.ToValidUTF8(out.String(), "?"))
	if len(said) > 300 {
		said = "..." + said[len(said)-300:]
	}
	if said != "" {
		return fmt.Errorf("%s: %w: %s", argv[len(argv)-1], err, said)
	}
	return fmt.Errorf("%s: %w", argv[len(argv)-1], err)
}
