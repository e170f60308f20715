package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/netns"
)

// skipOrFail skips where a tool is missing on a developer's machine, and
// fails in CI, where all of them must be there.
func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("DSAS_CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

var testLabs int

func testConfig(t *testing.T) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root")
	}
	if err := need("ip", "tcpdump", "qemu-system-x86_64", "ipmi_sim", "curl"); err != nil {
		skipOrFail(t, err.Error())
	}
	// What an earlier run left that was killed.
	if err := CleanDead(t.Context(), "", nil); err != nil {
		t.Error(err)
	}
	testLabs++
	return Config{Name: fmt.Sprintf("lab%d-%d", os.Getpid(), testLabs), Dir: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

func testLab(t *testing.T) *Lab {
	t.Helper()
	cfg := testConfig(t)
	l, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkDown(t, l) })
	return l
}

// checkDown takes the lab down and looks for leftovers.
func checkDown(t *testing.T, l *Lab) {
	t.Helper()
	s := l.State()
	if err := l.Down(context.Background()); err != nil {
		t.Errorf("Down: %v", err)
	}
	checkGone(t, s)
	if _, err := os.Stat(l.cfg.runDir()); !os.IsNotExist(err) {
		t.Errorf("state folder %s is still there", l.cfg.runDir())
	}
}

func checkGone(t *testing.T, s State) {
	t.Helper()
	for _, n := range s.Nodes {
		for _, p := range []*ProcID{n.QEMU, n.Sim} {
			if p != nil && p.alive() {
				t.Errorf("process %d of %s still runs", p.PID, n.Name)
			}
		}
	}
	for _, name := range []string{s.Name, rackName(s.Name)} {
		if netns.Exists(name) {
			t.Errorf("network namespace %s is still there", name)
		}
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestUp(t *testing.T) {
	l := testLab(t)
	ctx := deadline(t, time.Minute)
	if _, err := Up(ctx, l.cfg); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("Up of a lab that is up = %v; want ErrConflict", err)
	}
	if err := Clean(ctx, "", l.cfg.Name, nil); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("Clean of a lab that is up = %v; want ErrConflict", err)
	}
	if s, err := ReadState("", l.cfg.Name); err != nil || !s.Alive {
		t.Errorf("ReadState = %+v, %v; want it alive", s, err)
	}
	out, err := l.Exec(ctx, "ip", "-o", "-4", "addr", "show", "dev", "core")
	if err != nil || !strings.Contains(string(out), "10.77.0.1/24") {
		t.Errorf("ip addr in the lab = %q, %v; want 10.77.0.1/24", out, err)
	}
	if _, err := l.Exec(ctx, "false"); err == nil {
		t.Error("Exec(false) = nil; want an error")
	}

	var ln net.Listener
	if err := netns.Do(l.Namespace(), func() (err error) {
		ln, err = net.Listen("tcp", "10.77.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "inside") })}
	go srv.Serve(ln)
	defer srv.Close()
	res, err := l.HTTPClient().Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "inside" {
		t.Errorf("GET in the lab = %q; want inside", b)
	}
}

func TestUpRefuses(t *testing.T) {
	for _, cfg := range []Config{{Name: "../x"}, {Name: "a b"}, {Dir: "/tmp/a,b"}, {RunDir: "/tmp/" + strings.Repeat("x", 80)}, {BMCPassword: strings.Repeat("x", 21)}} {
		if _, err := Up(t.Context(), cfg); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Up(%+v) = %v; want ErrInvalid", cfg, err)
		}
	}
}

// A namespace that no lab made is not touched.
func TestUpForeignNamespace(t *testing.T) {
	cfg := testConfig(t)
	if err := netns.Create(t.Context(), cfg.Name); err != nil {
		t.Fatal(err)
	}
	defer netns.Delete(context.Background(), cfg.Name)
	if _, err := Up(t.Context(), cfg); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("Up = %v; want ErrConflict", err)
	}
	if !netns.Exists(cfg.Name) {
		t.Error("Up removed a namespace it did not make")
	}
}

func TestAddNodeRefuses(t *testing.T) {
	l := testLab(t)
	ctx := deadline(t, time.Minute)
	if _, err := l.AddNode(ctx, NodeSpec{Name: "w101", NoBMC: true, Memory: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spec NodeSpec
		want error
	}{
		{NodeSpec{Name: "w101"}, dsas.ErrConflict},
		{NodeSpec{Name: "w102", MACs: []dsas.MAC{MAC("w101", 0)}}, dsas.ErrConflict},
		{NodeSpec{Name: "W!"}, dsas.ErrInvalid},
		{NodeSpec{Name: "w103", Firmware: "coreboot"}, dsas.ErrInvalid},
	} {
		if _, err := l.AddNode(ctx, tt.spec); !errors.Is(err, tt.want) {
			t.Errorf("AddNode(%+v) = %v; want %v", tt.spec, err, tt.want)
		}
	}
	if err := l.Node("w101").PowerOn(ctx); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("PowerOn of a node of 1 PiB = %v; want an error about memory", err)
	}
}

// The node is watched by what its firmware sends.
func TestNodesBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots QEMU")
	}
	l := testLab(t)
	for _, fw := range []Firmware{BIOS, UEFI} {
		t.Run(string(fw), func(t *testing.T) {
			ctx := deadline(t, 4*time.Minute)
			n, err := l.AddNode(ctx, NodeSpec{Name: "w-" + string(fw), Firmware: fw, Memory: 512, NoBMC: true})
			if err != nil {
				t.Fatal(err)
			}
			if n.State() != Off {
				t.Errorf("State = %s before PowerOn; want off", n.State())
			}
			seen := discover(t, ctx, l, l.Core(), n, 0)
			if err := n.PowerOn(ctx); err != nil {
				t.Fatal(err)
			}
			if err := seen.Wait(); err != nil {
				log, _ := n.SerialLog()
				t.Fatalf("no DISCOVER: %v\n%s", err, tail(log, 2000))
			}
			if n.State() != On {
				t.Errorf("State = %s; want on", n.State())
			}
			if _, err := n.WaitSerial(ctx, regexp.MustCompile(`(?i)pxe`)); err != nil {
				t.Error(err)
			}
			if err := n.PowerOff(ctx, true); err != nil {
				t.Error(err)
			}
			if n.State() != Off {
				t.Errorf("State = %s after PowerOff; want off", n.State())
			}
			if err := n.Remove(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// discover begins to look at iface for one DISCOVER from a port of n.
func discover(t *testing.T, ctx context.Context, l *Lab, iface string, n *Node, port int) *Capture {
	t.Helper()
	c, err := l.Capture(ctx, iface, filepath.Join(t.TempDir(), iface+".pcap"), "-c", "1",
		"udp dst port 67 and ether src "+n.Spec().MACs[port].String())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// packets counts what a capture has written so far.
func packets(t *testing.T, c *Capture) int {
	t.Helper()
	out, err := exec.Command("tcpdump", "-n", "-r", c.file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(out), "\n")
}

// One boot: the first port's cable is out, so the firmware goes on to the
// second; its switch passes nothing, and then does.
func TestLinksAndForwarding(t *testing.T) {
	if testing.Short() {
		t.Skip("boots QEMU")
	}
	l := testLab(t)
	ctx := deadline(t, 4*time.Minute)
	n, err := l.AddNode(ctx, NodeSpec{Name: "w101", Memory: 512, NoBMC: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.SetLink(ctx, 0, false); err != nil {
		t.Fatal(err)
	}
	if err := l.SwitchForwarding(1, false); err != nil {
		t.Fatal(err)
	}
	port0 := discover(t, ctx, l, n.Tap(0), n, 0)
	port1 := discover(t, ctx, l, n.Tap(1), n, 1)
	core, err := l.Capture(ctx, l.Core(), filepath.Join(t.TempDir(), "core.pcap"), "udp dst port 67")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := port1.Wait(); err != nil {
		t.Fatalf("no DISCOVER from port 1: %v", err)
	}
	if err := core.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := packets(t, core); got != 0 {
		t.Errorf("the core saw %d packets through a switch that forwards nothing; want none", got)
	}
	if st := l.State().Nodes[0]; st.Links[0] || !st.Links[1] {
		t.Errorf("links = %v; want down, up", st.Links)
	}
	passed := discover(t, ctx, l, l.Core(), n, 1)
	if err := l.SwitchForwarding(1, true); err != nil {
		t.Fatal(err)
	}
	if err := n.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if err := passed.Wait(); err != nil {
		t.Errorf("no DISCOVER at the core after the switch forwards again: %v", err)
	}
	if got := packets(t, port0); got != 0 {
		t.Errorf("%d packets from port 0 while its cable is out; want none", got)
	}
	// The other way round while it runs: port 1 out, port 0 in.
	if err := l.CutSwitch(ctx, 1, true); err != nil {
		t.Fatal(err)
	}
	if err := n.SetLink(ctx, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := n.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if err := port0.Wait(); err != nil {
		t.Errorf("no DISCOVER from port 0 with its cable back: %v", err)
	}
}

// A box that finds nothing to boot tries again, with no hand on it.
func TestUEFIRetries(t *testing.T) {
	if testing.Short() {
		t.Skip("boots QEMU")
	}
	l := testLab(t)
	ctx := deadline(t, 4*time.Minute)
	n, err := l.AddNode(ctx, NodeSpec{Name: "w101", Firmware: UEFI, Memory: 512, NoBMC: true})
	if err != nil {
		t.Fatal(err)
	}
	for port := range n.NICs() { // so that it gives up soon
		if err := n.SetLink(ctx, port, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	again := regexp.MustCompile(`(?s)starting Boot.... "EFI Internal Shell".*failed to load Boot`)
	if _, err := n.WaitSerial(ctx, again); err != nil {
		t.Error(err)
	}
}

// TestKilled kills a process that runs a lab: its processes die with it, and
// Clean finds the rest.
func TestKilled(t *testing.T) {
	cfg := testConfig(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperLab$", "-test.v")
	cmd.Env = append(os.Environ(), "DSAS_LAB_HELPER="+cfg.Name, "DSAS_LAB_DIR="+cfg.Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buf := make([]byte, 256)
	for !strings.Contains(said.String(), "lab is up") {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			cmd.Wait()
			t.Fatalf("helper: %v: %s", err, said.String())
		}
	}
	s, err := ReadState("", cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Alive || len(s.Nodes) != 1 || s.Nodes[0].QEMU == nil || s.Nodes[0].Sim == nil {
		t.Fatalf("state of the helper's lab = %+v; want a node with QEMU and BMC", s)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if s, err := ReadState("", cfg.Name); err != nil || s.Alive {
		t.Errorf("ReadState of a killed lab = %+v, %v; want it not alive", s, err)
	}
	if err := Stop(deadline(t, time.Minute), "", cfg.Name, nil); err != nil {
		t.Errorf("Stop of a killed lab: %v", err)
	}
	// SIGKILL has been sent; the kernel needs a moment to end a QEMU.
	ctx := deadline(t, time.Minute)
	for ctx.Err() == nil && (s.Nodes[0].QEMU.alive() || s.Nodes[0].Sim.alive()) {
		time.Sleep(20 * time.Millisecond)
	}
	checkGone(t, s)
	if _, err := ReadState("", cfg.Name); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("ReadState after Stop = %v; want ErrNotFound", err)
	}
}

// TestHelperLab is the process that TestKilled kills.
func TestHelperLab(t *testing.T) {
	name := os.Getenv("DSAS_LAB_HELPER")
	if name == "" {
		t.Skip("run by TestKilled")
	}
	l, err := Up(t.Context(), Config{Name: name, Dir: os.Getenv("DSAS_LAB_DIR")})
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.AddNode(t.Context(), NodeSpec{Name: "w101", Memory: 64})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Println("lab is up")
	<-t.Context().Done()
}
