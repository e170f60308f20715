package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"dsas"
	"dsas/client"
	"dsas/lab"
	"dsas/lab/figures"
)

// patience bounds the wait for one boot: software emulation on a machine that
// may be busy with other things.
const patience = 8 * time.Minute

// benchLab names the rack; others may be up at the same time.
const benchLab = "dsas-bench"

// rackNode is one box of the rack.
type rackNode struct {
	spec   lab.NodeSpec
	role   string
	loader dsas.Loader
	says   string // of the loader, in the table
}

// rackNodes are the three ways into the kernel. With its default ROM a BIOS
// node is iPXE already, so that it is sent through the NBP.
var rackNodes = []rackNode{
	{lab.NodeSpec{Name: "w101"}, "web", dsas.LoaderNBP, "undionly.kpxe"},
	{lab.NodeSpec{Name: "w102", Firmware: lab.UEFI}, "web", dsas.LoaderAuto, "snponly.efi"},
	{lab.NodeSpec{Name: "w103"}, "lb", dsas.LoaderPXELINUX, "lpxelinux.0"},
}

// fresh removes an earlier run's state, but not its images.
func (b *bench) fresh() error {
	old, err := filepath.Glob(filepath.Join(b.state, "dsas.db*"))
	if err != nil {
		return err
	}
	for _, p := range append(old, filepath.Join(b.state, "lab"), filepath.Join(b.state, "key")) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return os.MkdirAll(b.state, 0o755)
}

// boots boots the nodes one after the other, so that none takes another's
// processor time, and then looks at the server's memory.
func (b *bench) boots(ctx context.Context) (err error) {
	if _, _, err := b.build(ctx); err != nil { // nothing to do after images
		return err
	}
	if err := b.fresh(); err != nil {
		return err
	}
	rack, err := lab.Up(ctx, lab.Config{Name: benchLab, Dir: filepath.Join(b.state, "lab")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rack.Down(context.WithoutCancel(ctx))) }()
	srv, err := b.startServer(ctx, rack)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	if _, err := srv.api.AddSite(ctx, dsas.Site{Name: "www", Address: netip.MustParseAddr("10.77.0.80"), Port: 80, Role: "web"}, false); err != nil {
		return err
	}
	for _, n := range rackNodes {
		box, err := rack.AddNode(ctx, n.spec)
		if err != nil {
			return err
		}
		node := dsas.Node{Name: n.spec.Name, NICs: box.NICs(), Role: n.role, Loader: n.loader, BMC: box.BMC()}
		if _, err := srv.api.AddNodes(ctx, []dsas.Node{node}, false); err != nil {
			return err
		}
	}
	for _, n := range rackNodes {
		t, err := srv.boot(ctx, n, rack.Node(n.spec.Name))
		if err != nil {
			return err
		}
		b.say("%s is ready after %.1f s", t.Node, t.Total)
		b.report.Boots = append(b.report.Boots, t)
	}
	b.bootRows()
	return b.memoryRows(srv.cmd.Process.Pid)
}

// bootRows sums the boots up.
func (b *bench) bootRows() {
	var worst float64
	var inits []string
	for _, t := range b.report.Boots {
		worst = max(worst, t.seconds("init"))
		how := ""
		if !t.FromKernel {
			how = ", without its start: the kernel's log has no line of it"
		}
		inits = append(inits, fmt.Sprintf("%s %.2f (network up after %.2f%s)", t.Node, t.seconds("init"), t.NetworkUp, how))
	}
	b.report.add(figure("init before the fetch", worst, "s", "from the kernel's \"Run /init\"; slowest of %s", strings.Join(inits, ", ")).atMost(5))
	for _, t := range b.report.Boots {
		b.report.add(figure("boot "+t.Node, t.Total, "s", "power command to ready: %s, %s, %s; software emulation", t.Role, t.Firmware, t.Loader))
	}
}

// memoryRows says what memory the server takes and took at most (proc_pid_status(5)).
func (b *bench) memoryRows(pid int) error {
	for _, f := range []struct{ name, field, note string }{
		{"server memory", "VmRSS", "resident after the boots, three nodes ready"},
		{"server memory, peak", "VmHWM", "most that was ever resident"},
	} {
		var kib int64
		if _, err := fmt.Sscanf(figures.ProcField(fmt.Sprintf("/proc/%d/status", pid), f.field), "%d kB", &kib); err != nil {
			return fmt.Errorf("memory of dsas serve: %s of process %d: %w", f.field, pid, err)
		}
		b.report.add(figure(f.name, float64(kib)/1024, "MiB", "%s (%s)", f.note, f.field).atMost(60))
	}
	return nil
}

// benchServer is a dsas serve of its own process.
type benchServer struct {
	*process
	api *client.Client
	dir string // socket and configuration
}

// startServer starts dsas serve for the rack and waits until it answers.
func (b *bench) startServer(ctx context.Context, rack *lab.Lab) (srv *benchServer, err error) {
	// A socket's path has at most 107 bytes (unix(7)), a checkout's any number.
	dir, err := os.MkdirTemp("", "dsas-bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	server := rack.Address().Addr()
	conf, sock := filepath.Join(dir, "dsas.yaml"), filepath.Join(dir, "dsas.sock")
	text := fmt.Sprintf("state: %s\nsocket: %s\nroles: %s\nlisten: 127.0.0.1:0\nnetns: %s\ninterfaces: [%s]\nbond:\n  options: mode=active-backup arp_interval=500 arp_ip_target=%s\nvariables:\n  LVSADDRESS: %s\n",
		b.state, sock, filepath.Join(b.state, "roles"), rack.Namespace(), rack.Core(), server, server)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	logName := filepath.Join(b.state, "serve.log")
	logFile, err := os.OpenFile(logName, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // it names the set-up link
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(b.bin(), "serve", "--config", conf)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	p, err := startProcess(cmd)
	if err != nil {
		return nil, fmt.Errorf("start dsas serve: %w", err)
	}
	srv = &benchServer{process: p, dir: dir}
	defer func() {
		if err != nil {
			srv.stop()
		}
	}()
	if srv.api, err = client.New(sock, "", client.Options{}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := srv.api.Status(ctx); err == nil {
			return srv, nil
		}
		select {
		case <-srv.gone:
			said, _ := os.ReadFile(logName)
			return nil, fmt.Errorf("dsas serve ended: %v: %s", srv.err, lastLines(said, 5))
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for dsas serve to answer (its log: %s): %w", logName, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the server and waits for it.
func (s *benchServer) stop() error {
	defer os.RemoveAll(s.dir)
	select {
	case <-s.gone:
		return fmt.Errorf("dsas serve ended by itself: %v", s.err)
	default:
	}
	return s.end()
}

// boot power-cycles a node by its BMC and times its way to ready.
func (s *benchServer) boot(ctx context.Context, n rackNode, box *lab.Node) (bootTime, error) {
	name := n.spec.Name
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last, err := s.api.LastEvent(ctx)
	if err != nil {
		return bootTime{}, err
	}
	results, err := s.api.Power(ctx, dsas.PowerCycle, []string{name}, false)
	if err != nil {
		return bootTime{}, err
	}
	for _, r := range results {
		if r.Error != "" {
			return bootTime{}, fmt.Errorf("power on %s: %s", r.Node, r.Error)
		}
	}
	var events []dsas.Event
	for e, err := range s.api.Stream(ctx, last) {
		if err != nil {
			return bootTime{}, fmt.Errorf("boot %s: %w", name, err)
		}
		if e.Node != name {
			continue
		}
		events = append(events, e)
		switch e.Kind {
		case dsas.KindFailed, dsas.KindPartBad:
			return bootTime{}, fmt.Errorf("boot %s: %s: %s (console: %s)", name, e.Kind, e.Message, box.SerialPath())
		case dsas.KindReady:
			serial, err := box.SerialLog()
			if err != nil {
				return bootTime{}, err
			}
			t, err := timeBoot(events, serial)
			t.Node, t.Role, t.Firmware, t.Loader = name, n.role, string(box.Spec().Firmware), n.says
			if err != nil {
				return t, fmt.Errorf("%s: %w", name, err)
			}
			return t, nil
		}
	}
	at := "nothing was heard of it"
	if len(events) > 0 {
		at = "the last thing heard was " + string(events[len(events)-1].Kind)
	}
	return bootTime{}, fmt.Errorf("boot %s: not ready; %s (console: %s): %w", name, at, box.SerialPath(), ctx.Err())
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
