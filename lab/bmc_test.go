package lab

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/power"
)

// The whole way of a power action: the server's driver, IPMI, ipmi_sim, its
// hook, the lab's socket, QEMU.
func TestBMC(t *testing.T) {
	l := testLab(t)
	ctx := deadline(t, 2*time.Minute)
	n, err := l.AddNode(ctx, NodeSpec{Name: "w101", Memory: 64})
	if err != nil {
		t.Fatal(err)
	}
	node := dsas.Node{Name: "w101", NICs: n.NICs(), BMC: n.BMC()}
	d := power.New(func(context.Context, string) (string, error) { return n.BMC().Password, nil }, slog.New(slog.NewTextHandler(t.Output(), nil)))
	pid := func() int {
		if q := l.State().Nodes[0].QEMU; q != nil {
			return q.PID
		}
		return 0
	}
	for _, tt := range []struct {
		action, state string
		restarts      bool
	}{
		{"status", Off, false}, {"cycle", On, true}, {"cycle", On, true}, {"reset", On, false}, {"off", Off, true}, {"on", On, true},
	} {
		before := pid()
		state, err := d.Power(ctx, node, tt.action)
		if err != nil || state != tt.state {
			t.Fatalf("Power(%s) = %q, %v; want %q", tt.action, state, err, tt.state)
		}
		// The BMC answers before it is done, as real ones do.
		for ctx.Err() == nil && (n.State() != tt.state || (pid() != before) != tt.restarts) {
			time.Sleep(10 * time.Millisecond)
		}
		if n.State() != tt.state {
			t.Errorf("after %s the node is %s; want %s", tt.action, n.State(), tt.state)
		}
		if (pid() != before) != tt.restarts {
			t.Errorf("after %s QEMU is %d, before %d; want another: %t", tt.action, pid(), before, tt.restarts)
		}
	}
	if got := n.BootDevice(); got != "pxe" {
		t.Errorf("BootDevice = %q; want pxe", got)
	}
	b, err := os.ReadFile(n.SerialPath())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(b), "===== w101: power on"); got != 3 {
		t.Errorf("%d power-ons in the serial log; want 3", got)
	}
}

func TestTell(t *testing.T) {
	l := testLab(t)
	ctx := deadline(t, time.Minute)
	n, err := l.AddNode(ctx, NodeSpec{Name: "w101", Memory: 64, NoBMC: true})
	if err != nil {
		t.Fatal(err)
	}
	tell := func(words ...string) error { return Tell(ctx, "", l.cfg.Name, words...) }
	for _, words := range []string{"nodes w101 power on", "nodes w101 link 1 down", "switches 0 block", "nodes w101 power reset"} {
		if err := tell(strings.Fields(words)...); err != nil {
			t.Errorf("Tell(%s) = %v", words, err)
		}
	}
	s, err := ReadState("", l.cfg.Name)
	if err != nil || s.Nodes[0].State != On || s.Nodes[0].Links[1] || s.Forwarding[0] || !s.Forwarding[1] {
		t.Errorf("ReadState = %+v, %v; want w101 on, its link 1 down, switch 0 blocking", s, err)
	}
	if err := tell("nodes", "w101", "power", "off"); err != nil || n.State() != Off {
		t.Errorf("Tell(off) = %v, node %s; want off", err, n.State())
	}
	for words, want := range map[string]error{
		"nodes w102 power on": dsas.ErrNotFound, "nodes w101 power up": dsas.ErrInvalid, "nodes w101 power reset": dsas.ErrConflict,
		"nodes w101 link 7 down": dsas.ErrInvalid, "switches 2 block": dsas.ErrInvalid, "switches 0 explode": dsas.ErrInvalid,
	} {
		if err := tell(strings.Fields(words)...); !errors.Is(err, want) {
			t.Errorf("Tell(%s) = %v; want %v", words, err, want)
		}
	}
	if err := Tell(ctx, "", "lab-none", "switches", "0", "block"); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Tell of no lab = %v; want ErrNotFound", err)
	}
}

func TestKeepDisks(t *testing.T) {
	cfg := testConfig(t)
	for i, keep := range []bool{false, true, false} {
		cfg.KeepDisks = keep
		l, err := Up(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		n, err := l.AddNode(t.Context(), NodeSpec{Name: "w101", Disk: 1 << 20, NoBMC: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(n.DiskPath())
		if err != nil || len(b) != 1<<20 {
			t.Fatalf("disk has %d bytes, %v; want 1 MiB", len(b), err)
		}
		if kept := b[0] == 'x'; kept != keep {
			t.Errorf("lab %d: disk kept %t; want %t", i, kept, keep)
		}
		b[0] = 'x'
		if err := os.WriteFile(n.DiskPath(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		checkDown(t, l)
	}
}
