package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestStartProcess(t *testing.T) {
	p, err := startProcess(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	pid := p.cmd.Process.Pid
	if group, err := syscall.Getpgid(pid); err != nil || group != pid {
		t.Errorf("process group = %d, %v; want its own, %d", group, err, pid)
	}
	if err := p.end(); err != nil {
		t.Errorf("end() = %v; want nil", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after end(), kill(0) = %v; want no such process", err)
	}
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) {
		t.Errorf("its end was %v; want an exit by signal", p.err)
	}
	if err := p.end(); err != nil {
		t.Errorf("end() of one that has ended = %v; want nil", err)
	}
	if _, err := startProcess(exec.Command("/nonexistent/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("startProcess of a program that is not there = %v; want ErrNotExist", err)
	}
}
