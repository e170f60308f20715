package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/lab"
)

// testAlone is what a box does when nobody helps it: one that hangs is reset,
// one that nobody knows says what it is, one that cannot boot gives a shell.
func testAlone(t *testing.T, r *rack, web, lb *box) {
	r.reconfigure(t, "discovery: true\ncmdline: dsas.shell\n")
	t.Run("side by side", func(t *testing.T) {
		t.Run("watchdog", func(t *testing.T) { t.Parallel(); testWatchdog(t, r, web) })
		t.Run("discovery", func(t *testing.T) { t.Parallel(); testDiscovery(t, r) })
		t.Run("rescue shell", func(t *testing.T) { t.Parallel(); testRescueShell(t, r, lb) })
	})
}

// reconfigure starts the server anew with more configuration.
func (r *rack) reconfigure(t *testing.T, more string) {
	t.Helper()
	r.stopServer()
	f, err := os.OpenFile(r.conf, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(more); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.startServer()
}

// testWatchdog freezes a node's init, and nothing else: the kernel and the
// services go on, and the hardware has to notice.
func testWatchdog(t *testing.T, r *rack, b *box) {
	mark := r.mark(t, b.Name())
	b.ssh(t, "mkdir -p /run/frozen && mount -t cgroup2 none /run/frozen && mkdir /run/frozen/init && "+
		"echo 1 > /run/frozen/init/cgroup.procs && echo 1 > /run/frozen/init/cgroup.freeze && echo frozen")
	b.ready(t, mark)
	b.saw(t, mark, dsas.KindLost, dsas.KindScript, dsas.KindInit, dsas.KindReady)
	for _, e := range r.events(t, b.Name(), mark) {
		if e.Kind == dsas.KindPower {
			t.Errorf("somebody cycled the power (%s); want the node's own watchdog to reset it", e.Message)
		}
	}
}

// testDiscovery switches a box on that nobody told the server of, adds it with
// what it said of itself, and makes a web server of it.
func testDiscovery(t *testing.T, r *rack) {
	n, err := r.lab.AddNode(t.Context(), lab.NodeSpec{Name: "w105", Firmware: lab.UEFI})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	ports := n.NICs()
	var found dsas.Unknown
	eventually(t, "the box says what it is", func() error {
		var list []dsas.Unknown
		decode(t, r.dsas(t, "unknown", "ls", "--json"), &list)
		for _, u := range list {
			if u.MAC == ports[0].MAC && u.Hardware != "" {
				found = u
				return nil
			}
		}
		return fmt.Errorf("unknown boxes: %+v", list)
	})
	for _, want := range []string{"QEMU", "1 threads", ports[0].MAC.String(), ports[1].MAC.String()} {
		if !strings.Contains(found.Hardware, want) {
			t.Errorf("hardware of the unknown box is %q; want %q in it", found.Hardware, want)
		}
	}
	r.dsas(t, "node", "add", "w105", "--mac", ports[0].MAC.String(), "--mac", ports[1].MAC.String(), "--role", "web")
	b := &box{n, r}
	mark := r.mark(t, "w105")
	if err := n.PowerOff(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.ready(t, mark)
	if got := b.ssh(t, "cat /proc/sys/kernel/hostname"); got != "w105" {
		t.Errorf("the discovered node is called %q; want w105", got)
	}
	if out := r.dsas(t, "unknown", "ls"); strings.Contains(out, ports[0].MAC.String()) {
		t.Errorf("a MAC of w105 is still listed as unknown:\n%s", out)
	}
	if err := n.PowerOff(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

// testRescueShell makes a boot fail and uses the shell that it ends in.
func testRescueShell(t *testing.T, r *rack, b *box) {
	role := r.node(t, b.Name()).Node.Role
	r.dsas(t, "node", "set", b.Name(), "--role", "db") // which wants a disk
	mark, at := r.mark(t, b.Name()), b.SerialSize()
	r.dsas(t, "power", "cycle", b.Name())
	expect := func(pattern string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := b.WaitSerialFrom(ctx, at, regexp.MustCompile(pattern)); err != nil {
			t.Fatalf("%v\n%s", err, b.story(t, mark))
		}
		at = b.SerialSize()
	}
	expect(`rescue shell: `)
	con, err := net.Dial("unix", b.Console())
	if err != nil {
		t.Fatal(err)
	}
	defer con.Close()
	go io.Copy(io.Discard, con)
	enter := func(line string) {
		t.Helper()
		if _, err := io.WriteString(con, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	// The shell may not read yet when its greeting is there: a line that is
	// lost is sent again.
	answered := make(chan struct{})
	go func() {
		for {
			enter("cat /proc/net/bonding/bond0; echo $((6 * 7)) in the shell")
			select {
			case <-answered:
				return
			case <-time.After(3 * time.Second):
			}
		}
	}()
	expect(`(?s)Bonding Mode: fault-tolerance.*42 in the shell`)
	close(answered)
	r.dsas(t, "node", "set", b.Name(), "--role", role)
	enter("exit")
	eventuallyReady(t, b, mark) // the box booted again by itself, into its role
}
