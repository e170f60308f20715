package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/client"
	"dsas/lab"
)

// labName is the one rack that the CLI handles, and its network namespace.
const labName = "dsas-lab"

type labCmd struct {
	Run    labRunCmd    `cmd:"" help:"Build what is missing, start server and rack, and show them until Ctrl-C."`
	Up     labUpCmd     `cmd:"" help:"The same in the background; its log is lab.log in the state folder."`
	Down   labDownCmd   `cmd:"" help:"Stop it."`
	Status labStatusCmd `cmd:"" help:"Tell what runs."`
	Link   labLinkCmd   `cmd:"" help:"Pull a node's cable, or plug it in."`
	Storm  labStormCmd  `cmd:"" help:"Let many simulated nodes boot at once, and tell what the server made of it."`
	Switch labSwitchCmd `cmd:"" help:"Make a switch stop forwarding, or go on."`
}

type labFlags struct {
	State  string `help:"State folder of the rack and its server." default:"build/lab" env:"DSAS_LAB_STATE" placeholder:"DIR"`
	Listen string `help:"Where the page is." default:"127.0.0.1:8443" env:"DSAS_LISTEN" placeholder:"ADDR:PORT"`
	Socket string `help:"The CLI's socket." default:"/run/dsas/dsas.sock" env:"DSAS_SOCKET" placeholder:"PATH"`
}

// check refuses what would only be found out after the minutes that images take.
func (f *labFlags) check() error {
	if f.State == "" {
		return usagef("--state: its value is empty; name a folder, as build/lab")
	}
	if err := checkListen(f.Listen, "127.0.0.1:8443"); err != nil {
		return usagef("--listen %q: %w", f.Listen, err)
	}
	return rackDown(lab.DefaultRunDir)
}

type labRunCmd struct {
	labFlags
	LogLevel string `help:"debug, info, warn or error." default:"warn" enum:"debug,info,warn,error" env:"DSAS_LOG_LEVEL"`
}

// Run implements the command.
func (c *labRunCmd) Run(ctx context.Context, a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	log, err := newLog(a.stderr, c.LogLevel, false)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	return runLab(ctx, labRequest{State: c.State, Listen: c.Listen, Socket: c.Socket, Out: a.stdout, Log: log})
}

type labUpCmd struct{ labFlags }

// Run implements the command.
func (c *labUpCmd) Run(ctx context.Context, a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := socketFree(c.Socket); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.State, 0o755); err != nil {
		return err
	}
	logPath := filepath.Join(c.State, "lab.log")
	logFile, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(exe, "lab", "run", "--state", c.State, "--listen", c.Listen, "--socket", c.Socket)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the rack: %w", err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	api, err := client.New(c.Socket, "", client.Options{})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "building and starting; follow it with: tail -f %s\n", logPath)
	for {
		if _, err := api.Status(ctx); err == nil {
			fmt.Fprintln(a.stdout, "server and rack are up; the nodes boot: dsas node ls, dsas events --follow")
			return nil
		}
		select {
		case err := <-gone:
			tail, _ := os.ReadFile(logPath)
			return fmt.Errorf("the rack did not start: %v; the end of %s:\n%s", err, logPath, lastLines(string(tail), 10))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

type labDownCmd struct{}

// Run implements the command.
func (c *labDownCmd) Run(ctx context.Context, a *app) error {
	log, err := newLog(a.stderr, "warn", false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := lab.Stop(ctx, lab.DefaultRunDir, labName, log); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "the rack is down")
	return nil
}

type labStatusCmd struct{}

// Run implements the command.
func (c *labStatusCmd) Run(_ context.Context, a *app) error {
	st, err := lab.ReadState(lab.DefaultRunDir, labName)
	if errors.Is(err, dsas.ErrNotFound) {
		return fmt.Errorf("no rack is up; start one with: dsas lab up: %w", dsas.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if a.JSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	if !st.Alive {
		fmt.Fprintf(a.stdout, "the rack's process %d is gone; clean up with: dsas lab down\n", st.Owner.PID)
	}
	fmt.Fprintf(a.stdout, "namespace %s, server %s, up since %s\n", st.Name, st.Address.Addr(), st.Started.Local().Format(time.DateTime))
	for _, n := range st.Nodes {
		links := make([]string, len(n.Links))
		for i, up := range n.Links {
			links[i] = map[bool]string{true: "up", false: "down"}[up]
		}
		fmt.Fprintf(a.stdout, "%-6s %-4s %-5s %5d MiB  links %-10s console %s\n", n.Name, n.State, n.Firmware, n.Memory, strings.Join(links, ","), n.Serial)
	}
	return nil
}

type labLinkCmd struct {
	Node  string `arg:"" help:"Node whose cable it is."`
	Port  int    `arg:"" help:"Port, from 0."`
	State string `arg:"" enum:"up,down" help:"up or down."`
}

// Help gives the examples.
func (*labLinkCmd) Help() string {
	return `Pulls a node's cable, or plugs it in again.

  dsas lab link w101 0 down`
}

// Run implements the command.
func (c *labLinkCmd) Run(ctx context.Context, _ *app) error {
	return lab.Tell(ctx, lab.DefaultRunDir, labName, "nodes", c.Node, "link", strconv.Itoa(c.Port), c.State)
}

type labSwitchCmd struct {
	Switch int    `arg:"" help:"Switch, 0 or 1."`
	State  string `arg:"" enum:"forward,block" help:"forward or block."`
}

// Help gives the examples.
func (*labSwitchCmd) Help() string {
	return `Makes a switch stop forwarding while its links stay up (only ARP monitoring
notices), or forward again.

  dsas lab switch 0 block`
}

// Run implements the command.
func (c *labSwitchCmd) Run(ctx context.Context, _ *app) error {
	return lab.Tell(ctx, lab.DefaultRunDir, labName, "switches", strconv.Itoa(c.Switch), c.State)
}
