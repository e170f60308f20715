package power

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dsas"
)

const (
	testUser     = "dsas"
	testPassword = "Very-Secret-7"
)

// sim is a real ipmi_sim (OpenIPMI) whose box is a few files: "power" holds 0
// or 1, "calls" what the BMC did. See lab/bmc.go for what it wants.
type sim struct {
	dir  string
	node dsas.Node
}

func newSim(t *testing.T) *sim {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := &sim{dir: t.TempDir()}
	probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := probe.LocalAddr().(*net.UDPAddr).Port
	probe.Close()
	s.node = dsas.Node{Name: fmt.Sprintf("n%d", port), BMC: &dsas.BMC{Kind: "ipmi", Address: fmt.Sprintf("127.0.0.1:%d", port), User: testUser}}
	s.write(t, "power", "0\n")
	s.write(t, "calls", "")
	s.write(t, "hook", `#!/bin/sh
cd "`+s.dir+`" || exit 1
case "$*" in
"get power") echo "power:$(cat power)";;
"get boot") echo "boot:none";;
set\ *) [ ! -e refuse ] || exit 1
	echo "$*" >> calls
	[ "$2" != power ] || [ -e stuck ] || echo "$3" > power;;
esac
`)
	s.write(t, "lan.conf", fmt.Sprintf(`name "bmc"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 %d
  priv_limit admin
  allowed_auths_admin md5
  guid a123456789abcdefa123456789abcdef
endlan
chassis_control "%s/hook"
user 2 true "%s" "%s" operator 10 md5
`, port, s.dir, testUser, testPassword))
	s.write(t, "start.cmd", "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n")
	cmd := exec.Command("ipmi_sim", "-n", "-c", filepath.Join(s.dir, "lan.conf"), "-f", filepath.Join(s.dir, "start.cmd"), "-s", s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return s
}

func (s *sim) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// calls gives what the BMC was made to do, "set power 1" and so on.
func (s *sim) calls(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "; ")
}

func testDriver(t *testing.T, password string) *Driver {
	return New(func(context.Context, string) (string, error) { return password, nil },
		slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// up waits until the simulator serves.
func (s *sim) up(t *testing.T, d *Driver) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if _, err := d.Power(ctx, s.node, "status"); err == nil {
			return
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func TestPower(t *testing.T) {
	s, d := newSim(t), testDriver(t, testPassword)
	s.up(t, d)
	for _, tt := range []struct{ action, state, calls string }{
		{"status", "off", ""},
		{"off", "off", ""},
		{"cycle", "on", "set boot pxe; set power 1"}, // a box that is off is switched on
		{"on", "on", ""},
		{"cycle", "on", "set boot pxe; set power 0; set power 1"},
		{"reset", "on", "set boot pxe; set reset 1"},
		{"off", "off", "set power 0"},
		{"on", "on", "set boot pxe; set power 1"},
	} {
		s.write(t, "calls", "")
		state, err := d.Power(t.Context(), s.node, tt.action)
		if err != nil || state != tt.state {
			t.Errorf("Power(%s) = %q, %v; want %q", tt.action, state, err, tt.state)
		}
		if got := s.calls(t); got != tt.calls {
			t.Errorf("Power(%s): the BMC did %q; want %q", tt.action, got, tt.calls)
		}
	}
	// Suite 17, which it does not know, was tried once.
	if got := d.target(s.node.BMC.Address).suite; got != 3 {
		t.Errorf("remembered cipher suite %d; want 3", got)
	}
}

func TestPowerRefused(t *testing.T) {
	s, d := newSim(t), testDriver(t, testPassword)
	s.up(t, d)
	if _, err := d.Power(t.Context(), s.node, "reset"); !errors.Is(err, ErrRefused) {
		t.Errorf("Power(reset) of a box that is off = %v; want ErrRefused", err)
	}
	s.write(t, "refuse", "")
	_, err := d.Power(t.Context(), s.node, "on")
	checkError(t, s, err, ErrRefused, testPassword)
}

// Accepted and not done is an error, within the action's time.
func TestPowerStuck(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the whole time limit")
	}
	s, d := newSim(t), testDriver(t, testPassword)
	s.up(t, d)
	s.write(t, "stuck", "")
	_, err := d.Power(t.Context(), s.node, "on")
	checkError(t, s, err, context.DeadlineExceeded, testPassword)
}

// checkError wants the kind, the BMC's address and the node in the text, and
// no password.
func checkError(t *testing.T, s *sim, err, want error, password string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("Power = %v; want %v", err, want)
	}
	for _, part := range []string{s.node.Name, s.node.BMC.Address} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not name %s", err, part)
		}
	}
	if strings.Contains(err.Error(), password) {
		t.Errorf("error %q holds the password", err)
	}
}

func TestCredentials(t *testing.T) {
	s := newSim(t)
	s.up(t, testDriver(t, testPassword))
	_, err := testDriver(t, "Wrong-Secret-7").Power(t.Context(), s.node, "status")
	checkError(t, s, err, ErrCredentials, "Wrong-Secret-7")

	other := *s.node.BMC
	other.User = "nobody"
	node := s.node
	node.BMC = &other
	_, err = testDriver(t, testPassword).Power(t.Context(), node, "status")
	checkError(t, s, err, ErrCredentials, testPassword)

	_, err = testDriver(t, strings.Repeat("Longer-Secret", 2)).Power(t.Context(), s.node, "status")
	checkError(t, s, err, dsas.ErrInvalid, "Longer-Secret")

	lost := errors.New("no key")
	d := New(func(context.Context, string) (string, error) { return "", lost }, slog.New(slog.DiscardHandler))
	_, err = d.Power(t.Context(), s.node, "status")
	checkError(t, s, err, lost, testPassword)
}

func TestUnreachable(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.LocalAddr().String()
	closed.Close()
	for _, addr := range []string{silent.LocalAddr().String(), nobody} {
		s := &sim{node: dsas.Node{Name: "w101", BMC: &dsas.BMC{Kind: "ipmi", Address: addr, User: testUser}}}
		_, err := testDriver(t, testPassword).Power(t.Context(), s.node, "status")
		checkError(t, s, err, ErrNoAnswer, testPassword)
	}
}

func TestParallel(t *testing.T) {
	d := testDriver(t, testPassword)
	sims := make([]*sim, 8)
	for i := range sims {
		sims[i] = newSim(t)
	}
	for _, s := range sims {
		s.up(t, d)
	}
	var wg sync.WaitGroup
	for _, s := range sims {
		for range 2 { // and two at a time on each
			wg.Go(func() {
				if state, err := d.Power(t.Context(), s.node, "cycle"); err != nil || state != "on" {
					t.Errorf("Power(cycle) of %s = %q, %v; want on", s.node.Name, state, err)
				}
			})
		}
	}
	wg.Wait()
	for _, s := range sims {
		if got, want := s.calls(t), "set boot pxe; set power 1; set boot pxe; set power 0; set power 1"; got != want {
			t.Errorf("BMC of %s did %q; want %q", s.node.Name, got, want)
		}
	}
}

func TestPowerInvalid(t *testing.T) {
	bmc := func(kind, addr string) *dsas.BMC { return &dsas.BMC{Kind: kind, Address: addr} }
	for _, tt := range []struct {
		bmc    *dsas.BMC
		action string
	}{
		{nil, "on"},
		{bmc("ipmi", ""), "on"},
		{bmc("redfish", "127.0.0.1"), "on"},
		{bmc("ipmi", "127.0.0.1"), "explode"},
		{bmc("ipmi", "127.0.0.1:0"), "on"},
		{bmc("ipmi", "127.0.0.1:x"), "on"},
	} {
		_, err := testDriver(t, testPassword).Power(t.Context(), dsas.Node{Name: "w101", BMC: tt.bmc}, tt.action)
		if !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Power(%+v, %s) = %v; want ErrInvalid", tt.bmc, tt.action, err)
		}
	}
}

func TestSplitAddress(t *testing.T) {
	for _, tt := range []struct {
		in   string
		host string
		port int
		ok   bool
	}{
		{"bmc1.example", "bmc1.example", 623, true},
		{"192.0.2.1:6230", "192.0.2.1", 6230, true},
		{"2001:db8::1", "2001:db8::1", 623, true},
		{"[2001:db8::1]:624", "2001:db8::1", 624, true},
		{"[2001:db8::1]", "2001:db8::1", 623, true},
		{":623", "", 0, false},
		{"a b", "", 0, false},
		{"host:70000", "", 0, false},
	} {
		host, port, err := splitAddress(tt.in)
		if host != tt.host || port != tt.port || (err == nil) != tt.ok {
			t.Errorf("splitAddress(%q) = %q, %d, %v; want %q, %d, ok %t", tt.in, host, port, err, tt.host, tt.port, tt.ok)
		}
	}
}
