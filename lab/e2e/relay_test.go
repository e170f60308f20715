package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dsas"
	"dsas/lab"
)

// TestRelay boots a BIOS and a UEFI box on a segment of their own: between them
// and the server is a router, which runs ISC's relay agent. Everything of a
// boot is routed, from the boot loader to the heartbeats.
func TestRelay(t *testing.T) {
	const router, away = "10.88.0.254", "10.77.0.254" // on the nodes' segment, on the server's
	r := newRackWith(t, `
subnets:
  - prefix: 10.77.0.0/24
    pool: none
  - prefix: 10.88.0.0/24
    server: 10.77.0.1
    gateway: `+router+`
    pool: 10.88.0.200-10.88.0.220
    bondOptions: mode=active-backup arp_interval=500 arp_ip_target=`+router+`
`, "web")
	r.putRouter(t, netip.MustParsePrefix(router+"/24"), netip.MustParsePrefix(away+"/24"))
	v101 := r.add(t, lab.NodeSpec{Name: "v101"}, "--role", "web", "--loader", "nbp", "--address", "10.88.0.101")
	v102 := r.add(t, lab.NodeSpec{Name: "v102", Firmware: lab.UEFI}, "--role", "web", "--address", "10.88.0.102")
	for _, b := range []*box{v101, v102} {
		t.Run(b.Name(), func(t *testing.T) {
			t.Parallel()
			b.boot(t)
			b.saw(t, 0, wholeBoot...)
			for _, e := range r.events(t, b.Name(), 0) {
				if e.Kind == dsas.KindWarning || e.Kind == dsas.KindConfError || e.Kind == dsas.KindRefused {
					t.Errorf("%s: %s", e.Kind, e.Message)
				}
			}
			// The switch port, as the relay has it: its interface there.
			if out := r.dsas(t, "node", "show", b.Name()); !strings.Contains(out, "nodes") || !strings.Contains(out, router) {
				t.Errorf("node show tells no relay %s and its port:\n%s", router, out)
			}
			if out := r.dsas(t, "explain", b.Name()); !strings.Contains(out, "relay") {
				t.Errorf("explain tells of no relay:\n%s", out)
			}
			if out := b.ssh(t, "ip route get 10.77.0.1"); !strings.Contains(out, "via "+router+" dev bond0") {
				t.Errorf("the node's way to the server = %q; want via %s dev bond0", out, router)
			}
			// The bond's ports stay up, since what is asked for is on the segment.
			if out := b.ssh(t, "cat /proc/net/bonding/bond0"); !strings.Contains(out, "ARP IP target/s (n.n.n.n form): "+router) || strings.Count(out, "MII Status: up") != 3 {
				t.Errorf("the bond is not up, or asks for another than %s:\n%s", router, out)
			}
			if out := b.ssh(t, "cat /etc/dsas.conf"); !strings.Contains(out, "arp_ip_target="+router) || !strings.Contains(out, router) {
				t.Errorf("/etc/dsas.conf has another bond:\n%s", out)
			}
			mark := time.Now()
			eventually(t, b.Name()+" is heard of", func() error {
				if st := r.node(t, b.Name()).Status; !st.LastSeen.After(mark) {
					return fmt.Errorf("last heard of at %s", st.LastSeen)
				}
				return nil
			})
		})
	}
}

// putRouter puts a router between the server and the switches, in a namespace
// of its own: near is its address on the nodes' segment, away that on the
// server's. It runs a DHCP relay agent.
func (r *rack) putRouter(t *testing.T, near, away netip.Prefix) {
	t.Helper()
	ns, router := r.lab.Namespace(), cmp.Or(os.Getenv("DSAS_E2E_NAME"), "dsas-e2e")+"-r"
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	if _, err := exec.LookPath("dhcrelay"); err != nil {
		t.Fatal(err)
	}
	ip("netns add " + router)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", router).Run() })
	ip("-n " + router + " link set lo up")
	ip("-n " + router + " link add nodes type bridge mcast_snooping 0")
	for sw := range lab.Switches { // the switches' uplinks, from the server's core to here
		port := fmt.Sprintf("core%d", sw)
		ip("-n " + ns + " link set " + port + " netns " + router)
		ip("-n " + router + " link set " + port + " master nodes up")
	}
	ip("-n " + router + " addr add " + near.String() + " dev nodes")
	ip("-n " + router + " link set nodes up")
	ip("-n " + ns + " link add router type veth peer name away netns " + router)
	ip("-n " + ns + " link set router master " + r.lab.Core() + " up")
	ip("-n " + router + " addr add " + away.String() + " dev away")
	ip("-n " + router + " link set away up")
	ip("-n " + ns + " route add " + near.Masked().String() + " via " + away.Addr().String())
	ip("netns exec " + router + " sysctl -q -w net.ipv4.ip_forward=1")
	log := filepath.Join(t.TempDir(), "dhcrelay.log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	// -a: option 82 with the interface's name as circuit id.
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", router, "dhcrelay", "-4", "-d", "--no-pid", "-a",
		"-id", "nodes", "-iu", "away", r.lab.Address().Addr().String())
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if b, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("dhcrelay: %s", b[max(0, len(b)-4000):])
		}
	})
	eventually(t, "the relay agent listens", func() error {
		b, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(b), "Sending on   Socket/fallback") {
			err = fmt.Errorf("not up: %s", b)
		}
		return err
	})
}
