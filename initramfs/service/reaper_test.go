package service_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// zombies lists this process's dead children.
func zombies(t *testing.T) (out []string) {
	t.Helper()
	names, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprint(os.Getpid())
	for _, n := range names {
		b, err := os.ReadFile("/proc/" + n.Name() + "/stat")
		if err != nil {
			continue
		}
		s := string(b)
		f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if len(f) > 1 && f[0] == "Z" && f[1] == me {
			out = append(out, n.Name())
		}
	}
	return out
}

// 200 children whose exit status somebody wants, half of them unknown to the
// reaper, each leaving an orphan to it.
func TestReaperTakesOrphansOnly(t *testing.T) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range 200 {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			code := i % 100
			cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("(sleep 0.0%d &) ; (: &) ; exit %d", i%9+1, code))
			start, wait := cmd.Start, cmd.Wait
			if i%2 == 0 {
				start = func() (err error) { wait, err = reaper.Start(cmd); return err }
			}
			if err := start(); err != nil {
				t.Errorf("start %d: %v", i, err)
				return
			}
			err := wait()
			var exit *exec.ExitError
			if got := cmd.ProcessState.ExitCode(); got != code || err != nil && !errors.As(err, &exit) {
				t.Errorf("child %d: exit code %d, %v; want %d", i, got, err, code)
			}
		})
	}
	all.Wait()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := zombies(t)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("zombies left: %v; want none", left)
		}
	}
}

// A child that was registered stays, however long its owner takes to wait.
func TestReaperLeavesRegisteredChild(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "exit 42")
	wait, err := reaper.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	// An orphan that dies after it shows that the reaper went by.
	b, err := exec.Command("/bin/sh", "-c", "sleep 0.3 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	orphan := strings.TrimSpace(string(b))
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + orphan); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("orphan %s is not reaped", orphan)
		}
	}
	wait()
	if got := cmd.ProcessState.ExitCode(); got != 42 {
		t.Errorf("exit code = %d; want 42", got)
	}
}
