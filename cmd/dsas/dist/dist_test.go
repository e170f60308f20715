// Package dist holds what an installation is made of: the systemd unit, and
// what the Debian package has beside the programs. Its tests build the package
// from what make build made, and run the server of it as the unit would.
package dist

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dsas/server/loaders"
)

// missing skips the test, or fails it where everything has to be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("DSAS_CI") != "" {
		t.Fatalf("%s is missing", what)
	}
	t.Skipf("%s is missing", what)
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
}

func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

const testVersion = "0.1.0~test"

// buildDeb builds the package into dir.
func buildDeb(t *testing.T, dir string) string {
	t.Helper()
	need(t, "dpkg-deb", "strip", "gzip")
	for _, p := range []string{"bin/dsas", "build/dsas-init", "build/bb"} {
		if _, err := os.Stat(filepath.Join("../../..", p)); err != nil {
			missing(t, p+" (make build)")
		}
	}
	cmd := exec.CommandContext(t.Context(), "deb/build.sh", testVersion, dir)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1704067200", "DPKG_DEB_COMPRESSOR_LEVEL=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("deb/build.sh: %v\n%s", err, out)
	}
	list, err := filepath.Glob(filepath.Join(dir, "dsas_"+testVersion+"_*.deb"))
	if err != nil || len(list) != 1 {
		t.Fatalf("deb/build.sh made %q, %v; want one package", list, err)
	}
	return list[0]
}

func digest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

func TestDeb(t *testing.T) {
	deb := buildDeb(t, t.TempDir())
	if again := buildDeb(t, t.TempDir()); digest(t, deb) != digest(t, again) {
		t.Error("two builds of the package differ; want the same bytes")
	}
	root := t.TempDir()
	sh(t, "dpkg-deb", "-x", deb, root)
	for path, mode := range map[string]fs.FileMode{
		"usr/bin/dsas": 0o755, "usr/lib/dsas/dsas-init": 0o755, "usr/lib/dsas/bb": 0o755, "lib/systemd/system/dsas.service": 0o644,
		"etc/dsas/dsas.yaml": 0o644, "etc/dsas/roles": 0o755, "usr/lib/sysusers.d/dsas.conf": 0o644, "usr/lib/tmpfiles.d/dsas.conf": 0o644,
		"usr/lib/sysctl.d/10-dsas.conf": 0o644, "usr/share/bash-completion/completions/dsas": 0o644, "usr/share/man/man8/dsas.8.gz": 0o644,
		"usr/share/doc/dsas/copyright": 0o644, "usr/share/doc/dsas/changelog.gz": 0o644, "usr/share/doc/dsas/changelog.Debian.gz": 0o644,
	} {
		if st, err := os.Stat(filepath.Join(root, path)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, st, err, mode)
		}
	}
	for line := range strings.Lines(sh(t, "dpkg-deb", "-c", deb)) {
		if f := strings.Fields(line); f[1] != "root/root" || strings.Contains(f[0], "s") || f[0][8] == 'w' {
			t.Errorf("in the package: %s; want root's, without setuid, written by nobody else", strings.TrimSpace(line))
		}
	}
	if got := strings.TrimSpace(sh(t, "dpkg-deb", "-f", deb, "Version")); got != testVersion {
		t.Errorf("version = %s; want %s", got, testVersion)
	}
	depends := sh(t, "dpkg-deb", "-f", deb, "Depends")
	for _, l := range loaders.All() {
		if l.Set == "" && !strings.Contains(depends, l.Package) {
			t.Errorf("Depends: %s lacks %s, of loader %s, without which the server does not start", depends, l.Package, l.Name)
		}
	}
	control := t.TempDir()
	sh(t, "dpkg-deb", "-e", deb, control)
	if b, err := os.ReadFile(filepath.Join(control, "conffiles")); err != nil || string(b) != "/etc/dsas/dsas.yaml\n" {
		t.Errorf("conffiles = %q, %v; want dsas.yaml alone", b, err)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		sh(t, "sh", "-n", filepath.Join(control, script))
	}
	cmd := exec.Command("md5sum", "--quiet", "-c", filepath.Join(control, "md5sums"))
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("md5sums: %v\n%s", err, out)
	}
	if os.Getenv("DSAS_LONG") != "" {
		need(t, "lintian")
		if out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", deb).CombinedOutput(); err != nil {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	}
}

// TestManual: the manual page names every command there is.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("dsas.8.in")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("../../../bin/dsas"); err != nil {
		missing(t, "bin/dsas (make build)")
	}
	help := sh(t, "../../../bin/dsas", "--help")
	commands := regexp.MustCompile(`(?m)^  ([a-z]+)( |$)`).FindAllStringSubmatch(help, -1)
	if len(commands) < 10 {
		t.Fatalf("dsas --help shows %d commands:\n%s", len(commands), help)
	}
	for _, c := range commands {
		if !regexp.MustCompile(`\b` + c[1] + `\b`).Match(page) {
			t.Errorf("the manual page does not name %q", c[1])
		}
	}
}

func TestInstall(t *testing.T) {
	if _, err := os.Stat("../../../build/bb"); err != nil {
		missing(t, "build/bb (make build)")
	}
	root := t.TempDir()
	run := func(what string) {
		t.Helper()
		cmd := exec.Command("./install.sh", what, "1.2")
		cmd.Env = append(os.Environ(), "DESTDIR="+root, "PREFIX=/opt/dsas")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("install.sh %s: %v\n%s", what, err, out)
		}
	}
	run("install")
	unit, err := os.ReadFile(filepath.Join(root, "etc/systemd/system/dsas.service"))
	if err != nil || !bytes.Contains(unit, []byte("\nExecStart=/opt/dsas/bin/dsas serve\n")) {
		t.Errorf("unit = %v; want it to start /opt/dsas/bin/dsas", err)
	}
	own := filepath.Join(root, "etc/dsas/dsas.yaml")
	if err := os.WriteFile(own, []byte("interfaces: [eth1]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run("install")
	run("uninstall")
	if b, err := os.ReadFile(own); err != nil || string(b) != "interfaces: [eth1]\n" {
		t.Errorf("dsas.yaml after install and uninstall = %q, %v; want it as it was", b, err)
	}
	var left []string
	filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			left = append(left, strings.TrimPrefix(p, root))
		}
		return err
	})
	if !slices.Equal(left, []string{"/etc/dsas/dsas.yaml"}) {
		t.Errorf("left after uninstall: %q; want dsas.yaml alone", left)
	}
}

func TestUnit(t *testing.T) {
	need(t, "systemd-analyze")
	dir := t.TempDir()
	b, err := os.ReadFile("dsas.service.in")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "dsas.service")
	if err := os.WriteFile(unit, bytes.ReplaceAll(b, []byte("@BINDIR@"), []byte("/bin")), 0o644); err != nil {
		t.Fatal(err)
	}
	// It tells what it does not know in text alone.
	out, _ := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, unit+":") || strings.Contains(line, "Unknown") {
			t.Errorf("systemd-analyze verify: %s", strings.TrimSpace(line))
		}
	}
	// Tenths: 0 is as closed as can be, 10.0 is open.
	security, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v; want an exposure of at most 2.0\n%s", err, security)
	}
	lines := strings.Split(strings.TrimSpace(string(security)), "\n")
	t.Log(lines[len(lines)-1])
}

// capabilities is what the unit grants: CAP_NET_BIND_SERVICE (10) and
// CAP_NET_RAW (13), as /proc/PID/status has it (capabilities(7)).
const capabilities = "0000000000002400"

// TestUnprivileged runs the packaged server as the unit does, without the
// sandbox: as a user of its own with two capabilities. A real DHCP client, TFTP
// client and HTTP client on another interface get their answers.
func TestUnprivileged(t *testing.T) {
	need(t, "ip", "setpriv", "udhcpc", "tftp", "curl")
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "dpkg-deb", "-x", buildDeb(t, t.TempDir()), root)
	const server, client = "dsas-ops-s", "dsas-ops-c"
	for _, ns := range []string{server, client} {
		exec.Command("ip", "netns", "del", ns).Run()
		sh(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		sh(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	sh(t, "ip", "-n", server, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", client)
	sh(t, "ip", "-n", server, "addr", "add", "10.93.0.1/24", "dev", "eth1")
	sh(t, "ip", "-n", server, "link", "set", "eth1", "up")
	sh(t, "ip", "-n", client, "link", "set", "eth0", "up")

	s := &packaged{t: t, root: root, netns: server}
	s.folders()
	s.write("etc/dsas/dsas.yaml", "")
	if out, code := s.serveOnce(); code != 78 || !strings.Contains(out, "interfaces: [eth1]") {
		t.Errorf("dsas serve without an interface = exit status %d, %q; want 78 and what to write", code, out)
	}
	s.write("etc/dsas/dsas.yaml", "interfaces: [eth1]\npool: none\n")
	if out, code := s.serveOnce(); code != 78 {
		t.Errorf("dsas serve with a wrong key = exit status %d, %q; want 78", code, out)
	}
	s.write("etc/dsas/dsas.yaml", "interfaces: [eth1]\nallowOtherDHCP: true\n")
	s.start()

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t" + capabilities, "CapBnd:\t" + capabilities, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d", testUID), "NoNewPrivs:\t1"} {
		if !bytes.Contains(status, []byte(want+"\n")) {
			t.Errorf("/proc/PID/status lacks %q:\n%s", want, status)
		}
	}
	s.clients(client)

	// Killed, it comes back with all that it had.
	s.root2("node", "add", "w1", "--mac", "52:54:00:00:00:01")
	s.kill()
	s.start()
	if got := s.root2("node", "ls", "--names"); strings.TrimSpace(got) != "w1" {
		t.Errorf("nodes after a kill = %q; want w1", got)
	}
	s.clients(client)
	// By hand, root would leave files that the service cannot read.
	s.kill()
	cmd := exec.Command("ip", "netns", "exec", server, filepath.Join(root, "usr/bin/dsas"), "serve")
	cmd.Env = s.env()
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "belongs to user") {
		t.Errorf("dsas serve by root on the service's state = %v, %s; want it refused", err, out)
	}
	backup := filepath.Join(root, "backup")
	s.root2("backup", backup)
	s.root2("restore", "--force", backup)
	s.start() // and what root restored, the service can use
	if got := s.root2("node", "ls", "--names"); strings.TrimSpace(got) != "w1" {
		t.Errorf("nodes after a restore by root = %q; want w1", got)
	}
}

// testUID is the service's user and group; nobody has it here.
const testUID = 64973

// packaged is the unpacked package with a server of it.
type packaged struct {
	t     *testing.T
	root  string
	netns string
	cmd   *exec.Cmd
	out   *bytes.Buffer
}

// folders makes what tmpfiles.d would.
func (s *packaged) folders() {
	s.t.Helper()
	for _, d := range []struct {
		path  string
		owner int
	}{
		{"state", testUID}, {"state/images", 0}, {"state/loaders", testUID}, {"run", testUID},
	} {
		p := filepath.Join(s.root, d.path)
		if err := errors.Join(os.Mkdir(p, 0o755), os.Chown(p, d.owner, d.owner)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *packaged) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.root, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *packaged) env() []string {
	in := func(p string) string { return filepath.Join(s.root, p) }
	return append(os.Environ(), "DSAS_CONFIG="+in("etc/dsas/dsas.yaml"), "DSAS_STATE="+in("state"), "DSAS_ROLES="+in("etc/dsas/roles"),
		"DSAS_SOCKET="+in("run/dsas.sock"), "DSAS_SERVER="+in("run/dsas.sock"), "HOME=/nonexistent")
}

func (s *packaged) command() *exec.Cmd {
	id := fmt.Sprint(testUID)
	cmd := exec.Command("ip", "netns", "exec", s.netns, "setpriv", "--reuid="+id, "--regid="+id, "--clear-groups", "--no-new-privs",
		"--inh-caps=-all,+net_bind_service,+net_raw", "--ambient-caps=-all,+net_bind_service,+net_raw", "--bounding-set=-all,+net_bind_service,+net_raw",
		filepath.Join(s.root, "usr/bin/dsas"), "serve")
	cmd.Env = s.env()
	return cmd
}

// serveOnce starts a server that must end by itself.
func (s *packaged) serveOnce() (string, int) {
	s.t.Helper()
	cmd := s.command()
	out, err := cmd.CombinedOutput()
	if err == nil {
		s.t.Fatalf("dsas serve ended well: %s", out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// start starts the server and waits until it says that it is ready.
func (s *packaged) start() {
	s.t.Helper()
	path := filepath.Join(s.root, "run/notify")
	os.Remove(path)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		s.t.Fatal(err)
	}
	s.cmd, s.out = s.command(), &bytes.Buffer{}
	s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET="+path)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.kill)
	b := make([]byte, 1024)
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	n, err := c.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "READY=1\n") {
		s.kill()
		s.t.Fatalf("the server said %q, %v; want READY=1\n%s", b[:n], err, s.out)
	}
}

func (s *packaged) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// root2 runs a command of the CLI as root, over the socket.
func (s *packaged) root2(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.root, "usr/bin/dsas"), args...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("dsas %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// clients asks the server by every protocol.
func (s *packaged) clients(client string) {
	s.t.Helper()
	in := func(name string, args ...string) string {
		s.t.Helper()
		out, err := exec.CommandContext(s.t.Context(), "ip", append([]string{"netns", "exec", client, name}, args...)...).CombinedOutput()
		if err != nil {
			s.t.Fatalf("%s %q: %v\n%s\nserver:\n%s", name, args, err, out, s.out)
		}
		return string(out)
	}
	script := filepath.Join(s.root, "udhcpc.sh")
	s.write("udhcpc.sh", "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface\nip addr add $ip/24 dev $interface\necho got $ip from $serverid\n")
	if err := os.Chmod(script, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if got := in("udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "30", "-T", "2", "-s", script); !strings.Contains(got, "from 10.93.0.1") {
		s.t.Errorf("udhcpc said %q; want an address from 10.93.0.1", got)
	}
	file := filepath.Join(s.t.TempDir(), "undionly.kpxe")
	in("tftp", "-m", "binary", "10.93.0.1", "-c", "get", "undionly.kpxe", file)
	if digest(s.t, file) != digest(s.t, "/usr/lib/ipxe/undionly.kpxe") {
		s.t.Error("undionly.kpxe by TFTP is another file than the package's")
	}
	if got := in("curl", "-sS", "-m", "60", "http://10.93.0.1:8080/boot/script.ipxe"); !strings.HasPrefix(got, "#!ipxe") {
		s.t.Errorf("boot script = %q; want #!ipxe", got)
	}
	here := func(path string) string {
		return sh(s.t, "ip", "netns", "exec", s.netns, "curl", "-sS", "-m", "60", "http://127.0.0.1:8443"+path)
	}
	if got := here("/readyz"); got != "ok store\nok interfaces\nok images\n" {
		s.t.Errorf("/readyz = %q; want all ok", got)
	}
	for _, want := range []string{`dsas_dhcp_answered_total{type="ack"} `, `dsas_tftp_transfers_total{file="undionly.kpxe",outcome="sent"} 1`, "process_resident_memory_bytes "} {
		if got := here("/metrics"); !strings.Contains(got, "\n"+want) {
			s.t.Errorf("/metrics lacks %s:\n%s", want, got)
		}
	}
	s.root2("status")
	// Who is neither root nor the server's user does not get in.
	cmd := exec.Command("setpriv", "--reuid=64974", "--regid=64974", "--clear-groups", filepath.Join(s.root, "usr/bin/dsas"), "node", "ls")
	cmd.Env = s.env()
	if out, err := cmd.CombinedOutput(); err == nil {
		s.t.Errorf("dsas node ls by a stranger = %s; want it refused", out)
	}
}
