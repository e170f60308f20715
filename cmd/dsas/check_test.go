package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/blobs"
	"dsas/server/dhcp"
	"dsas/server/loaders"
	"dsas/server/netns"
	"dsas/server/store"
)

// newChecker is one for a machine and a state folder with nothing wrong.
func newChecker(t *testing.T) *checker {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	loader := writeFile(t, "undionly.kpxe", "loader")
	rtc := writeFile(t, "since_epoch", strconv.FormatInt(time.Now().Unix(), 10)+"\n")
	keys := writeFile(t, "authorized_keys", "# none yet\n")
	c := &checker{
		cfg: config{State: dir, AuthorizedKeys: keys}, lib: func(string) (string, error) { return "/bin/true", nil },
		loaders: []loaders.Loader{{Name: "undionly.kpxe", Source: loader, Package: "ipxe"}},
		now:     time.Now, proc: "/proc", rtc: rtc,
	}
	c.cfg.setDefaults()
	return c
}

// expect finds the finding on check and compares its level, and that its text
// holds every word.
func (c *checker) expect(t *testing.T, check string, want level, words ...string) {
	t.Helper()
	for _, f := range c.findings {
		if f.Check != check {
			continue
		}
		text := f.Found + " " + f.Why + " " + f.Mend
		if f.Level != want {
			t.Errorf("%s = %s: %s; want %s", check, f.Level, text, want)
		}
		if f.Level != levelOK && f.Mend == "" {
			t.Errorf("%s = %s: %s; want a way to mend it", check, f.Level, text)
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s = %s: %s; want %q in it", check, f.Level, text, w)
			}
		}
		return
	}
	t.Errorf("no finding on %s among %+v", check, c.findings)
}

func TestCheckSoftware(t *testing.T) {
	c := newChecker(t)
	c.software()
	c.expect(t, "boot loaders", levelOK)
	c.expect(t, "programs for nodes", levelOK)

	// An optional one is no fault, whether it is there or not.
	c = newChecker(t)
	c.loaders = append(c.loaders, loaders.Loader{Name: "shimx64.efi", Source: "/nonexistent/shim", Package: "shim-signed", Set: loaders.SecureBoot})
	c.software()
	c.expect(t, "boot loaders", levelOK, "1, all there")
	c.expect(t, "boot loaders for secureboot", levelOK, "dsas loader fetch secureboot")

	c = newChecker(t)
	c.loaders = append(c.loaders, loaders.Loader{Name: "snponly.efi", Source: "/nonexistent/snponly.efi", Package: "ipxe-more"})
	c.lib = func(name string) (string, error) { return "", fmt.Errorf("%s: %w", name, dsas.ErrNotFound) }
	t.Setenv("PATH", t.TempDir())
	c.software()
	c.expect(t, "boot loaders", levelFail, "/nonexistent/snponly.efi", "apt-get install ipxe-more")
	c.expect(t, "programs", levelWarn, "mmdebstrap", "xz-utils")
	c.expect(t, "programs for nodes", levelWarn, "dsas-init", "bb", "make build")
}

func TestCheckImages(t *testing.T) {
	c := newChecker(t)
	c.images()
	c.expect(t, "images", levelFail, "none is built", "dsas image build")

	s, err := blobs.Open(c.cfg.path("images"))
	if err != nil {
		t.Fatal(err)
	}
	again := func(want level, words ...string) {
		t.Helper()
		c.findings = nil
		c.images()
		c.expect(t, "images", want, words...)
	}
	again(levelFail, "no release")
	r := addRelease(t, s, "web", "base")
	again(levelOK, "web:1")
	blob := filepath.Join(c.cfg.path("images"), "blobs/sha256", r.Manifest.Parts[0].Digest.Hex())
	if err := os.WriteFile(blob, []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	again(levelFail, "release web:1, base has 5 bytes, not 4", "dsas image build web")
	os.Remove(filepath.Join(c.cfg.path("images"), "blobs/sha256", r.Boot.Kernel.Digest.Hex()))
	again(levelFail, "kernel is missing")
}

func TestCheckPermissions(t *testing.T) {
	c := newChecker(t)
	for _, name := range []string{"dsas.db", "key"} {
		if err := os.WriteFile(c.cfg.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := func() {
		c.findings = nil
		c.permissions()
	}
	again()
	c.expect(t, "state folder", levelOK)
	c.expect(t, "secrets", levelOK, "2 files")
	c.expect(t, "authorized keys", levelOK)

	os.Chmod(c.cfg.State, 0o777)
	os.Chmod(c.cfg.path("dsas.db"), 0o644)
	os.Chmod(c.cfg.AuthorizedKeys, 0o666)
	os.Remove(c.cfg.path("key"))
	again()
	c.expect(t, "state folder", levelFail, "0777", "chmod go-w")
	c.expect(t, "dsas.db", levelFail, "0644", "chmod 600")
	c.expect(t, "authorized keys", levelFail, "0666", "root on every node")
	c.expect(t, "key", levelFail, "missing", "back-up")

	os.WriteFile(c.cfg.AuthorizedKeys, []byte("\nnonsense\n"), 0o600)
	again()
	c.expect(t, "authorized keys", levelFail, "line 2")
	c.cfg.State = filepath.Join(c.cfg.State, "none")
	again()
	c.expect(t, "state folder", levelWarn, "is not there")
	c.expect(t, "authorized keys", levelFail, "line 2") // before the first start, too
	c.cfg.State = c.cfg.AuthorizedKeys
	again()
	c.expect(t, "state folder", levelFail, "no folder")
}

func TestCheckNoKeys(t *testing.T) {
	if isFile("/etc/dsas/authorized_keys") {
		t.Skip("this machine has /etc/dsas/authorized_keys")
	}
	c := newChecker(t)
	t.Setenv("HOME", t.TempDir())
	c.cfg.AuthorizedKeys = ""
	c.keys()
	c.expect(t, "authorized keys", levelWarn, "Nobody can log in")
}

func TestCheckReadOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	c := newChecker(t)
	c.cfg.State = t.TempDir()
	if err := unix.Mount("none", c.cfg.State, "tmpfs", unix.MS_RDONLY, "size=64k,mode=755"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(c.cfg.State, 0)
	c.writable()
	c.expect(t, "state folder", levelFail, "read-only")
}

func TestCheckDatabase(t *testing.T) {
	c := newChecker(t)
	path := c.cfg.path("dsas.db")
	c.database(t.Context())
	if len(c.findings) != 0 {
		t.Errorf("without a database: %+v; want nothing said", c.findings)
	}
	s, err := store.Open(t.Context(), path, c.cfg.path("key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if _, err := s.AddEvent(t.Context(), dsas.Event{Kind: dsas.KindServer, Time: time.Now(), Message: fmt.Sprint("event ", i, strings.Repeat(" filler", 40))}); err != nil {
			t.Fatal(err)
		}
	}
	// Beside a server that has it open, and with what it left in the WAL.
	for _, c.running = range []int{1, 0} {
		c.findings = nil
		c.database(t.Context())
		c.expect(t, "database", levelOK)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := filepath.Glob(path + "*")
	c.findings = nil
	c.database(t.Context())
	c.expect(t, "database", levelOK)
	if after, _ := filepath.Glob(path + "*"); len(after) != len(before) {
		t.Errorf("the check left %v; want %v as before", after, before)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) / 2; i < len(b); i += 3 {
		b[i] ^= 0x5a
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.findings = nil
	c.database(t.Context())
	c.expect(t, "database", levelFail, "back-up")
}

func TestCheckReceiveBuffers(t *testing.T) {
	for _, tt := range []struct {
		max, caps string
		want      level
	}{{"4194304", "0", levelOK}, {"212992", "0", levelWarn}, {"212992", "1000", levelOK}} {
		c := newChecker(t)
		c.proc = t.TempDir()
		for p, text := range map[string]string{"sys/net/core/rmem_max": tt.max + "\n", "7/status": "Name:\tdsas\nCapEff:\t000000000000" + tt.caps + "\n"} {
			p = filepath.Join(c.proc, p)
			os.MkdirAll(filepath.Dir(p), 0o755)
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.running = 7
		c.receiveBuffers()
		c.expect(t, "receive buffers", tt.want, tt.max)
	}
}

func TestCheckClock(t *testing.T) {
	c := newChecker(t)
	c.now = func() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }
	c.clock()
	c.expect(t, "clock", levelFail, "before this program was made")

	for off, words := range map[time.Duration][]string{2 * time.Hour: {"2h0m0s off", "local time"}, 17 * time.Minute: {"17m0s off", "systohc"}} {
		c = newChecker(t)
		now := time.Unix(1_900_000_000, 0)
		c.now = func() time.Time { return now }
		os.WriteFile(c.rtc, []byte(strconv.FormatInt(now.Add(-off).Unix(), 10)), 0o644)
		c.clock()
		c.expect(t, "clock", levelWarn, words...)
	}
}

func TestCheckSpace(t *testing.T) {
	c := newChecker(t)
	for _, tt := range []struct {
		free, files, freeFiles int64
		want                   level
	}{{10 << 30, 1000000, 500000, levelOK}, {1 << 30, 0, 0, levelWarn}, {100 << 20, 0, 0, levelFail}, {10 << 30, 1000000, 3, levelFail}} {
		c.findings = nil
		c.room("/srv", tt.free, tt.files, tt.freeFiles)
		c.expect(t, "disk space", tt.want, "/srv")
	}
	c.cfg.State = filepath.Join(t.TempDir(), "not/there/yet")
	c.findings = nil
	c.space()
	if len(c.findings) != 1 || strings.Contains(c.findings[0].Found, "not checked") {
		t.Errorf("space of a folder that is yet to be made = %+v; want its file system's", c.findings)
	}
}

// checkNet is a namespace with a cable to another.
func checkNet(t *testing.T) (ours, other string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	ours, other = fmt.Sprintf("dsasck%da", os.Getpid()), fmt.Sprintf("dsasck%db", os.Getpid())
	for _, ns := range []string{ours, other} {
		if err := netns.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netns.Delete(context.Background(), ns) })
	}
	for _, args := range []string{
		"-n " + ours + " link add eth1 type veth peer name eth0 netns " + other, "-n " + ours + " link add eth2 type bridge",
		"-n " + ours + " link add eth3 type bridge", "-n " + ours + " link set eth3 up",
		"-n " + ours + " addr add 10.77.0.1/24 dev eth1", "-n " + ours + " addr add 10.66.0.1/8 dev eth2", "-n " + other + " addr add 10.77.0.2/24 dev eth0",
		"-n " + ours + " link set eth1 up", "-n " + other + " link set eth0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	// The kernel tells of a carrier when it comes to it.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.Command("ip", "-n", ours, "link", "show", "eth1").CombinedOutput()
		if err == nil && strings.Contains(string(out), "state UP") {
			return ours, other
		}
		if time.Now().After(deadline) {
			t.Fatalf("eth1 does not come up: %v: %s", err, out)
		}
	}
}

func TestCheckNetwork(t *testing.T) {
	ours, _ := checkNet(t)
	c := newChecker(t)
	c.network()
	c.expect(t, "interfaces", levelFail, "--interface")
	look := func(names ...string) {
		t.Helper()
		c.findings, c.subnets = nil, nil
		c.cfg.Interfaces = names
		if err := netns.Do(ours, func() error { c.network(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	look("eth1")
	c.expect(t, "interface eth1", levelOK, "10.77.0.1/24")
	c.expect(t, "subnet 10.77.0.0/24", levelOK, "10.77.0.1")
	look("eth9")
	c.expect(t, "interface eth9", levelFail, "ip -br link")
	look("eth2")
	c.expect(t, "interface eth2", levelFail, "is down", "ip link set eth2 up")
	c.expect(t, "subnet 10.0.0.0/8", levelWarn, "larger than a /16")
	look("eth3")
	c.expect(t, "interface eth3", levelFail, "no IPv4 address", "ip addr add")
	c.cfg.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Pool: "10.77.0.1-10.77.0.1"}}
	look("eth1")
	c.expect(t, "subnet 10.77.0.0/24", levelWarn, "no address to give")
	c.cfg.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Pool: "10.88.0.1-10.88.0.9"}}
	look("eth1")
	c.expect(t, "subnets", levelFail, "10.88.0.1")
	c.cfg.Subnets = []subnetConfig{{Prefix: netip.MustParsePrefix("10.88.0.0/24"), Server: netip.MustParseAddr("10.77.0.1"), Gateway: netip.MustParseAddr("10.88.0.254"), Pool: "none"}}
	look("eth1")
	c.expect(t, "subnet 10.88.0.0/24", levelFail, "no route to 10.88.0.254", "ip route add 10.88.0.0/24")
	if out, err := exec.Command("ip", "-n", ours, "route", "add", "10.88.0.0/24", "via", "10.77.0.2").CombinedOutput(); err != nil {
		t.Fatalf("ip route add: %v: %s", err, out)
	}
	look("eth1")
	c.expect(t, "subnet 10.88.0.0/24", levelOK, "server 10.77.0.1")
	c.cfg.Subnets = nil
	if out, err := exec.Command("ip", "-n", ours, "link", "set", "eth1", "carrier", "off").CombinedOutput(); err == nil {
		look("eth1")
		c.expect(t, "interface eth1", levelFail, "no carrier")
	} else {
		t.Logf("carrier cannot be taken off a veth here: %s", out)
	}
}

func TestCheckPorts(t *testing.T) {
	ours, _ := checkNet(t)
	c := newChecker(t)
	c.cfg.Interfaces, c.cfg.ProxyDHCP = []string{"eth1"}, true
	c.subnets = []dsas.Subnet{{Server: netip.MustParseAddr("10.77.0.1")}}
	look := func() {
		t.Helper()
		c.findings = nil
		if err := netns.Do(ours, func() error { c.ports(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	look()
	for _, p := range []string{"67/udp", "69/udp", "4011/udp", "8080/tcp", "8443/tcp"} {
		c.expect(t, "port "+p, levelOK, "free")
	}
	// Taken: by us here, bound to our interface, to everything, to our address.
	var open []io.Closer
	if err := netns.Do(ours, func() error {
		d, err := dhcp.Listen("eth1")
		if err != nil {
			return err
		}
		open = append(open, d)
		for _, a := range []string{"10.77.0.1:8080", ":8443"} {
			l, err := net.Listen("tcp4", a)
			if err != nil {
				return err
			}
			open = append(open, l)
		}
		u, err := net.ListenPacket("udp4", ":69")
		if err == nil {
			open = append(open, u)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("(pid %d)", os.Getpid())
	look()
	c.expect(t, "port 67/udp", levelFail, me, "--no-dhcp")
	c.expect(t, "port 69/udp", levelFail, me)
	c.expect(t, "port 4011/udp", levelOK)
	c.expect(t, "port 8080/tcp", levelFail, me, "httpPort")
	c.expect(t, "port 8443/tcp", levelFail, me, "--listen")
	c.running = os.Getpid()
	look()
	c.expect(t, "port 67/udp", levelOK, "the dsas serve that runs")
	// What is on another interface or address is in nobody's way.
	c.running = 0
	c.cfg.Interfaces, c.subnets = []string{"eth2"}, []dsas.Subnet{{Server: netip.MustParseAddr("10.66.0.1")}}
	look()
	c.expect(t, "port 67/udp", levelOK)
	c.expect(t, "port 69/udp", levelFail)
	c.expect(t, "port 8080/tcp", levelOK)
	for _, x := range open {
		x.Close()
	}
}

func TestCheckOtherServers(t *testing.T) {
	found := []dhcp.Other{{Interface: "eth1", Server: netip.MustParseAddr("10.77.0.2"), MAC: dsas.MAC{2, 0, 0, 0, 0, 9}}}
	for _, tt := range []struct {
		cfg   config
		found []dhcp.Other
		err   error
		want  level
	}{
		{config{}, nil, nil, levelOK},
		{config{}, found, nil, levelFail},
		{config{}, nil, fmt.Errorf("network is down"), levelWarn},
		{config{AllowOtherDHCP: true}, found, nil, levelOK},
		{config{ProxyDHCP: true}, found, nil, levelOK},
		{config{ProxyDHCP: true}, nil, nil, levelFail},
		{config{NoDHCP: true}, nil, nil, levelFail},
	} {
		c := &checker{cfg: tt.cfg}
		c.judgeOthers("others", tt.found, tt.err)
		c.expect(t, "others", tt.want)
	}
}

// TestCheckCommand runs the whole of it beside a real dnsmasq, as a person and
// as a program would.
func TestCheckCommand(t *testing.T) {
	ours, other := checkNet(t)
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", other, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0",
		"--bind-interfaces", "--user=root", "--pid-file=", "--leasefile-ro", "--no-ping", "--dhcp-range=10.77.0.150,10.77.0.159,5m")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); cmd.Wait() }()
	state := t.TempDir()
	// A dnsmasq that is not up yet does not hear us: ask again.
	deadline := time.Now().Add(time.Minute)
	for {
		var out, errOut bytes.Buffer
		err := run(t.Context(), []string{"check", "--json", "--state", state, "--netns", ours, "--interface", "eth1"}, strings.NewReader(""), &out, &errOut)
		if err == nil {
			t.Fatal("check = nil; want an error: nothing is built, and another server answers")
		}
		c := &checker{}
		if err := json.Unmarshal(out.Bytes(), &c.findings); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		if strings.Contains(out.String(), "10.77.0.2") {
			c.expect(t, "other DHCP servers on eth1", levelFail, "10.77.0.2", "--proxy-dhcp", "--allow-other-dhcp")
			c.expect(t, "images", levelFail)
			c.expect(t, "port 67/udp", levelOK)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("dnsmasq is not found: %s", out.String())
		}
	}
	var out bytes.Buffer
	var err error
	// On a machine that is very busy its answer may come after the last question.
	for !strings.Contains(out.String(), "10.77.0.2") && time.Now().Before(deadline) {
		out.Reset()
		err = run(t.Context(), []string{"check", "--state", state, "--netns", ours, "--interface", "eth1", "--proxy-dhcp"}, strings.NewReader(""), &out, io.Discard)
	}
	if err == nil || err.Error() != "check: one thing fails" && !strings.Contains(err.Error(), "things fail") {
		t.Errorf("check = %v; want how many things fail", err)
	}
	for _, want := range []string{"fail  images", "-> dsas image build web", "ok    other DHCP servers on eth1", "10.77.0.2"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("check prints no %q:\n%s", want, out.String())
		}
	}
	if left, _ := os.ReadDir(state); len(left) != 0 {
		t.Errorf("check left %v in the state folder; want nothing changed", left)
	}
}

func TestHolder(t *testing.T) {
	dir := t.TempDir()
	if got := holder(filepath.Join(dir, "serve.lock"), "/proc"); got != 0 {
		t.Errorf("holder of a state folder that is not there = %d; want 0", got)
	}
	unlock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := holder(filepath.Join(dir, "serve.lock"), "/proc"); got != os.Getpid() {
		t.Errorf("holder = %d; want %d", got, os.Getpid())
	}
	unlock()
	if got := holder(filepath.Join(dir, "serve.lock"), "/proc"); got != 0 {
		t.Errorf("holder after the end = %d; want 0", got)
	}
}

// TestServeBesideOther: dsas serve does not go on beside a dnsmasq that gives
// addresses, and does as its proxy or when told.
func TestServeBesideOther(t *testing.T) {
	ours, other := checkNet(t)
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", other, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0",
		"--bind-interfaces", "--user=root", "--pid-file=", "--leasefile-ro", "--no-ping", "--dhcp-range=10.77.0.150,10.77.0.159,5m")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); cmd.Wait() }()
	for _, tt := range []struct {
		name    string
		change  func(*config)
		refuses bool
	}{
		{"alone", func(*config) {}, true},
		{"proxy", func(c *config) { c.ProxyDHCP = true }, false},
		{"allowed", func(c *config) { c.AllowOtherDHCP = true }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := config{State: dir, Socket: filepath.Join(dir, "sock"), Roles: filepath.Join(dir, "roles"), Listen: "127.0.0.1:0", Netns: ours, Interfaces: []string{"eth1"}}
			tt.change(&cfg)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ready, done := make(chan struct{}), make(chan error, 1)
			go func() {
				done <- serve(ctx, cfg, slog.New(slog.DiscardHandler), io.Discard, serveOptions{Ready: func() { close(ready) }})
			}()
			if tt.refuses {
				select {
				case err := <-done:
					if err == nil || !strings.Contains(err.Error(), "10.77.0.2") || !strings.Contains(err.Error(), "--proxy-dhcp") {
						t.Errorf("serve beside another server = %v; want a refusal that names it and the ways out", err)
					}
				case <-time.After(time.Minute):
					t.Error("serve goes on beside another server")
				}
				return
			}
			select {
			case <-ready:
			case err := <-done:
				t.Fatalf("serve = %v; want it to run", err)
			case <-time.After(time.Minute):
				t.Fatal("serve is not ready")
			}
			select {
			case err := <-done:
				t.Errorf("serve = %v; want it to go on", err)
			case <-time.After(500 * time.Millisecond): // a --no-ping dnsmasq answers in 1 ms
			}
			stop()
			if err := <-done; err != nil {
				t.Errorf("serve after its end was asked for = %v; want nil", err)
			}
		})
	}
}
