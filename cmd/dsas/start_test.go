package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dsas/lab"
)

// TestServeMakesNothing: what the command line names and is not there is found
// out before anything is made.
func TestServeMakesNothing(t *testing.T) {
	c := newCLI(t)
	state := filepath.Join(t.TempDir(), "state")
	keys := filepath.Join(t.TempDir(), "keys")
	for _, f := range []struct {
		code  int
		args  []string
		words []string
	}{
		{1, words("--interface nope0"), []string{`interface "nope0"`, "no such network interface", "ip -br link"}},
		{1, words("--interface lo --pool zz"), []string{`pool "zz"`}},
		{1, words("--interface lo --netns dsas-nope"), []string{"network namespace dsas-nope"}},
		{1, words("--interface lo --socket-group dsas-nope"), []string{"group dsas-nope", "groupadd"}},
		{78, []string{"--interface", "lo", "--authorized-keys", keys}, []string{keys}},
		{78, words("--interface lo --listen zz"), []string{`listen "zz"`}},
		{78, []string{"--interface", ""}, []string{"no interface to serve"}},
	} {
		c.fails(f.code, append([]string{"serve", "--config", os.DevNull, "--state", state, "--socket", filepath.Join(filepath.Dir(state), "sock")}, f.args...), f.words...)
		if _, err := os.Stat(state); !os.IsNotExist(err) {
			t.Fatalf("serve %q left a state folder: %v", f.args, err)
		}
	}
}

func TestLabRunRefuses(t *testing.T) {
	c := newCLI(t)
	state := filepath.Join(t.TempDir(), "lab")
	c.fails(2, []string{"lab", "run", "--state", ""}, "--state: its value is empty")
	c.fails(2, []string{"lab", "run", "--state", state, "--listen", "zz"}, `--listen "zz"`, "127.0.0.1:8443")
	if err := rackDown(lab.DefaultRunDir); err != nil {
		t.Skip(err)
	}
	c.fails(1, []string{"lab", "run", "--state", state, "--socket", c.socket}, c.socket, "--socket")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.fails(1, []string{"lab", "run", "--state", state, "--socket", c.socket + "2", "--listen", l.Addr().String()}, l.Addr().String(), "--listen")
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("lab run left %s: %v", state, err)
	}
}

// TestRackDown: whoever starts a second rack is told how the first is stopped.
func TestRackDown(t *testing.T) {
	dir := t.TempDir()
	if err := rackDown(dir); err != nil {
		t.Errorf("rackDown without a rack = %v", err)
	}
	stat, err := os.ReadFile("/proc/self/stat") // proc_pid_stat(5); the name in it has no space
	if err != nil {
		t.Fatal(err)
	}
	begun, err := strconv.ParseUint(strings.Fields(string(stat))[21], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		owner lab.ProcID
		alive bool
	}{{lab.ProcID{PID: os.Getpid(), Start: begun}, true}, {lab.ProcID{PID: os.Getpid(), Start: begun + 1}, false}} {
		b, err := json.Marshal(lab.State{Name: labName, Owner: f.owner})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, labName), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, labName, "state.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		err = rackDown(dir)
		if f.alive != (err != nil) || f.alive && (!strings.Contains(err.Error(), "dsas lab down") || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid()))) {
			t.Errorf("rackDown with a rack whose process lives: %v = %v", f.alive, err)
		}
	}
}
