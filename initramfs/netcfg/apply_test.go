package netcfg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
)

const deadline = 60 * time.Second

// inNamespace runs the rest of the calling test in a process of its own, in
// fresh network and mount namespaces, with their own /sys. It returns true
// there, and false in the first process, once the other one has passed.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("DSAS_TEST_NAMESPACE") != "" {
		if err := errors.Join(
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("sysfs", "/sys", "sysfs", 0, ""),
			unix.Mount("run", "/run", "tmpfs", 0, ""),
		); err != nil {
			t.Fatalf("prepare namespace: %v", err)
		}
		return true
	}
	need(t, os.Getuid() == 0, "network namespaces need root")
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), "DSAS_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespace: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("in namespace: %s", out)
	}
	return false
}

// need skips, or in CI fails, a test that lacks something.
func need(t *testing.T, have bool, what string) {
	t.Helper()
	if have {
		return
	}
	if os.Getenv("DSAS_CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// addLink makes a link that stands for a NIC, with the cable in.
func addLink(t *testing.T, name, mac string) {
	t.Helper()
	far := "far" + mac[len(mac)-2:]
	run(t, "ip", "link", "add", name, "address", mac, "type", "veth", "peer", "name", far)
	run(t, "ip", "link", "set", far, "up")
}

func handle(t *testing.T) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func ctxFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// twice applies pl and checks that a second time changes nothing.
func twice(t *testing.T, h *netlink.Handle, pl Plan) Changes {
	t.Helper()
	first, err := Apply(ctxFor(t), h, pl)
	if err != nil {
		t.Fatalf("Apply: %v (changes %v)", err, first)
	}
	again, err := Apply(ctxFor(t), h, pl)
	if err != nil {
		t.Fatalf("Apply again: %v", err)
	}
	if made := len(again) - len(again.Deferred()); made > 0 {
		t.Errorf("Apply again: changes %v; want none", again)
	}
	return first
}

func TestApplyNames(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	// Two ports whose names are the wrong way round, one of them up.
	addLink(t, "eth0", "52:54:00:00:00:02")
	addLink(t, "eth1", "52:54:00:00:00:01")
	addLink(t, "ens3", "52:54:00:00:00:03")
	run(t, "ip", "link", "set", "eth0", "up")
	h := handle(t)
	pl := Plan{Names: []dsas.MAC{mac("52:54:00:00:00:01"), mac("52:54:00:00:00:02"), mac("52:54:00:00:00:03"), mac("52:54:00:00:00:99")}, Device: "eth0"}
	changes := twice(t, h, pl)
	for i, m := range pl.Names[:3] {
		l, err := h.LinkByName(fmt.Sprintf("eth%d", i))
		if err != nil {
			t.Fatalf("eth%d: %v", i, err)
		}
		if got := l.Attrs().HardwareAddr.String(); got != m.String() {
			t.Errorf("eth%d has MAC %s; want %s", i, got, m)
		}
	}
	d := changes.Deferred()
	if len(d) != 1 || !strings.Contains(d[0].String(), "52:54:00:00:00:99") {
		t.Errorf("deferred = %v; want one, about the MAC that no NIC has", d)
	}
	if _, err := Apply(ctxFor(t), h, Plan{Names: []dsas.MAC{mac("52:54:00:00:00:77")}, Device: "eth0"}); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Apply with no NIC of the plan: error %v; want ErrNotFound", err)
	}
}

func TestApplyAddresses(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	addLink(t, "eth0", "52:54:00:00:00:01")
	addLink(t, "eth1", "52:54:00:00:00:02")
	h := handle(t)
	pl := Plan{
		Names: []dsas.MAC{mac("52:54:00:00:00:01")}, Device: "eth0", MTU: 1400,
		Addresses: []Address{{Prefix: netip.MustParsePrefix("10.77.0.101/24")}, {"eth1", netip.MustParsePrefix("10.78.0.1/16")}},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.77.0.254"), netip.MustParseAddr("10.78.0.254")},
		Service:   []netip.Addr{netip.MustParseAddr("10.77.0.80"), netip.MustParseAddr("10.77.0.81")},
	}
	twice(t, h, pl)
	if got := run(t, "ip", "-4", "-o", "addr", "show", "dev", "eth0"); !strings.Contains(got, "inet 10.77.0.101/24") {
		t.Errorf("eth0: %s; want 10.77.0.101/24", got)
	}
	if got := run(t, "ip", "-o", "link", "show", "dev", "eth0"); !strings.Contains(got, "mtu 1400") || !strings.Contains(got, ",UP") {
		t.Errorf("eth0: %s; want it up with MTU 1400", got)
	}
	routes := run(t, "ip", "route")
	if !strings.Contains(routes, "default via 10.77.0.254 dev eth0") || !strings.Contains(routes, "default via 10.78.0.254 dev eth1 metric 1") {
		t.Errorf("routes: %s; want both gateways, the first preferred", routes)
	}
	lo := run(t, "ip", "-4", "-o", "addr", "show", "dev", "lo")
	if !strings.Contains(lo, "10.77.0.80/32") || !strings.Contains(lo, "10.77.0.81/32") || !strings.Contains(lo, "127.0.0.1") {
		t.Errorf("lo: %s; want the service addresses and its own", lo)
	}
	for path, want := range map[string]string{"all/arp_ignore": "1", "all/arp_announce": "2", "eth0/arp_ignore": "1", "eth0/arp_announce": "2"} {
		got, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + path)
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %s", path, got, err, want)
		}
	}

	// Another prefix length, another gateway, one service address less, and an
	// address that the plan does not know.
	run(t, "ip", "addr", "add", "10.77.9.9/24", "dev", "eth0")
	run(t, "ip", "addr", "add", "192.0.2.7/32", "dev", "lo") // not ours
	pl.Addresses = []Address{{"eth0", netip.MustParsePrefix("10.77.0.101/22")}}
	pl.Gateways = []netip.Addr{netip.MustParseAddr("10.77.0.253")}
	pl.Service = pl.Service[:1]
	d := twice(t, h, pl).Deferred()
	if len(d) != 1 || !strings.Contains(d[0].String(), "10.77.9.9/24") {
		t.Errorf("deferred = %v; want one, about 10.77.9.9/24", d)
	}
	got := run(t, "ip", "-4", "-o", "addr")
	for want, there := range map[string]bool{"10.77.0.101/22": true, "10.77.0.101/24": false, "10.77.0.80/32": true, "10.77.0.81/32": false, "192.0.2.7/32": true} {
		if strings.Contains(got, want) != there {
			t.Errorf("addresses: %s; want %s there: %v", got, want, there)
		}
	}
	if routes := run(t, "ip", "route"); !strings.Contains(routes, "default via 10.77.0.253") {
		t.Errorf("routes: %s; want the new gateway", routes)
	}

	// A gateway out of reach is told, and the rest applies.
	pl.Gateways = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
	pl.Service = append(pl.Service, netip.MustParseAddr("10.77.0.82"))
	if _, err := Apply(ctxFor(t), h, pl); err == nil || !strings.Contains(err.Error(), "198.51.100.1") {
		t.Errorf("Apply with a gateway out of reach: error %v; want one that names it", err)
	}
	if lo := run(t, "ip", "-4", "-o", "addr", "show", "dev", "lo"); !strings.Contains(lo, "10.77.0.82/32") {
		t.Errorf("lo: %s; want the rest of the plan applied", lo)
	}
}

func TestApplyVLAN(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	addLink(t, "eth0", "52:54:00:00:00:01")
	if out, err := exec.Command("ip", "link", "add", "link", "eth0", "name", "probe.1", "type", "vlan", "id", "1").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no 8021q (the QEMU test has): %s", out)
	}
	pl := Plan{Device: "eth0", VLANs: []VLAN{{"eth0.2", "eth0", 2}}, Addresses: []Address{{"eth0.2", netip.MustParsePrefix("10.9.0.1/24")}}}
	twice(t, handle(t), pl)
	if got := run(t, "ip", "-d", "-o", "link", "show", "dev", "eth0.2"); !strings.Contains(got, "vlan protocol 802.1Q id 2") {
		t.Errorf("eth0.2: %s; want VLAN 2", got)
	}
}

func TestWait(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := handle(t)
	made := make(chan error, 1)
	go func() { made <- WaitNICs(ctxFor(t), h2(t), []dsas.MAC{mac("52:54:00:00:00:01")}) }()
	run(t, "ip", "link", "add", "eth0", "address", "52:54:00:00:00:01", "type", "veth", "peer", "name", "far")
	if err := <-made; err != nil {
		t.Errorf("WaitNICs: %v; want nil once the NIC is there", err)
	}
	run(t, "ip", "link", "set", "eth0", "up")
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := WaitUp(short, h, "eth0"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no carrier") {
		t.Errorf("WaitUp without a carrier: %v; want the deadline and the reason", err)
	}
	up := make(chan error, 1)
	go func() { up <- WaitUp(ctxFor(t), h2(t), "eth0") }()
	run(t, "ip", "link", "set", "far", "up")
	if err := <-up; err != nil {
		t.Errorf("WaitUp: %v; want nil once there is a carrier", err)
	}
	if _, err := Watch(t.Context(), "eth0"); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Watch(eth0): %v; want ErrInvalid: it is no bond", err)
	}
}

func h2(t *testing.T) *netlink.Handle {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Error(err)
	}
	return h
}

// TestUpByDHCP gets its address from a real dnsmasq.
func TestUpByDHCP(t *testing.T) {
	_, err := exec.LookPath("dnsmasq")
	need(t, err == nil, "dnsmasq is missing: install dnsmasq-base")
	if !inNamespace(t) {
		return
	}
	run(t, "ip", "netns", "add", "peer")
	run(t, "ip", "link", "add", "nic", "address", "52:54:00:00:00:01", "type", "veth", "peer", "name", "far", "netns", "peer")
	run(t, "ip", "-n", "peer", "addr", "add", "10.77.0.1/24", "dev", "far")
	run(t, "ip", "-n", "peer", "link", "set", "far", "up")
	dns := exec.Command("ip", "netns", "exec", "peer", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=0",
		"--user=root", "--interface=far", "--bind-interfaces", "--dhcp-range=10.77.0.50,10.77.0.60,1h", "--no-ping", "--dhcp-authoritative",
		"--dhcp-option=3,10.77.0.254", "--dhcp-option=6,10.77.0.2,10.77.0.3", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"))
	var log bytes.Buffer
	dns.Stderr = &log
	if err := dns.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dns.Process.Kill(); dns.Wait() })
	p, err := ParseCmdline("dsas.server=http://10.77.0.1:8080 dsas.ports=52:54:00:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	st, err := Up(ctxFor(t), p)
	if err != nil {
		t.Fatalf("Up: %v\n%s", err, log.String())
	}
	if st.Device != "eth0" || st.Lease == nil || !netip.MustParsePrefix("10.77.0.0/24").Contains(st.Lease.Address.Addr()) || st.Lease.Address.Bits() != 24 {
		t.Fatalf("Up = device %q, lease %+v; want eth0 with a lease of the pool", st.Device, st.Lease)
	}
	if got := fmt.Sprint(st.Lease.Gateway, st.Lease.DNS, st.Lease.Server, st.Lease.Time); got != "10.77.0.254 [10.77.0.2 10.77.0.3] 10.77.0.1 1h0m0s" {
		t.Errorf("lease = %s; want gateway, DNS, server and time of dnsmasq", got)
	}
	if routes := run(t, "ip", "route"); !strings.Contains(routes, "default via 10.77.0.254 dev eth0") {
		t.Errorf("routes: %s; want the lease's gateway", routes)
	}
	run(t, "ping", "-c1", "-W5", "10.77.0.1")
}
