// Package e2e holds the tests that switch boxes on: the programs as built, on
// real firmware and a real kernel, in a rack of QEMU nodes. They share one
// rack and its boots, and run in the order of the files' names and of the
// functions in them; make e2e runs them, and one alone by
//
//	DSAS_E2E=1 go test -v -count=1 -timeout 60m ./lab/e2e -run 'TestRack/balance'
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"dsas"
	"dsas/client"
	"dsas/lab"
)

// The operators' password for the nodes' consoles, and its crypt(5) hash.
const (
	consolePassword = "lab console"
	consoleHash     = "$6$labsalt$DCDcl5cZclVj6cZuNzNoBC3DGUOidfMyzCNlg81dgh6addc2OboqHE6mlw5Lii1rvzXcT2ZAqlTwFCghT8OkF1"
)

// patience bounds every wait: software emulation on a shared machine.
const patience = 8 * time.Minute

// rack is the virtual rack with a server in it.
type rack struct {
	t     *testing.T
	root  string // of the checkout
	state string // the server's
	lab   *lab.Lab
	sock  string
	conf  string
	serve *server // nil when none should run
	log   *os.File
}

// newRack builds the images (those that are built already are only checked),
// the network and the server.
func newRack(t *testing.T) *rack { return newRackWith(t, "", "web", "lb", "db", "rescue", "inventory") }

// newRackWith adds lines to the server's configuration, and builds these roles.
func newRackWith(t *testing.T, config string, roles ...string) *rack {
	t.Helper()
	if os.Getenv("DSAS_E2E") == "" {
		t.Skip("set DSAS_E2E=1 (make e2e) to boot nodes")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	r := &rack{t: t, root: root, state: filepath.Join(root, "build", "e2e")}
	r.sock = filepath.Join(t.TempDir(), "dsas.sock")
	r.conf = filepath.Join(t.TempDir(), "dsas.yaml")
	r.fresh()
	// Two checkouts can have their racks up at the same time.
	name := cmp.Or(os.Getenv("DSAS_E2E_NAME"), "dsas-e2e")
	r.lab, err = lab.Up(t.Context(), lab.Config{
		Name: name, Dir: filepath.Join(r.state, "lab"), RunDir: "/run/dsas/" + name,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.lab.Down(context.Background()); err != nil {
			t.Errorf("lab down: %v", err)
		}
	})
	r.writeConfig(config)
	r.buildImages(roles...)
	t.Cleanup(r.stopServer)
	r.startServer()
	return r
}

// fresh removes an earlier run's state, but not its images.
func (r *rack) fresh() {
	r.t.Helper()
	old, _ := filepath.Glob(filepath.Join(r.state, "dsas.db*"))
	for _, p := range append(old, filepath.Join(r.state, "lab"), filepath.Join(r.state, "key"), filepath.Join(r.state, "roles")) {
		if err := os.RemoveAll(p); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(r.state, 0o755); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rack) writeConfig(more string) {
	r.t.Helper()
	keys := filepath.Join(r.state, "operator")
	pub := makeKey(r.t, keys)
	if err := os.WriteFile(keys+".pub", pub, 0o644); err != nil {
		r.t.Fatal(err)
	}
	hash := filepath.Join(r.state, "console.hash")
	if err := os.WriteFile(hash, []byte(consoleHash+"\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	text := fmt.Sprintf(`
consolePasswordFile: %s
state: %s
socket: %s
roles: %s
keys: %s
listen: 127.0.0.1:0
netns: %s
interfaces: [%s]
authorizedKeys: %s
heartbeat: 2s
bond:
  options: mode=active-backup arp_interval=500 arp_ip_target=%s
variables:
  LVSADDRESS: %s
%s`, hash, r.state, r.sock, filepath.Join(r.state, "roles"), filepath.Join(r.state, "keys"), r.lab.Namespace(), r.lab.Core(), keys+".pub", r.lab.Address().Addr(), r.lab.Address().Addr(), more)
	if err := os.WriteFile(r.conf, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// makeKey writes an SSH key pair's private half and gives the public line.
func makeKey(t *testing.T, path string) []byte {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "operator")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.MarshalAuthorizedKey(sshPub)
}

func (r *rack) bin() string { return filepath.Join(r.root, "bin", "dsas") }

func (r *rack) buildImages(roles ...string) {
	r.t.Helper()
	cmd := exec.Command(r.bin(), append([]string{"image", "build", "--config", r.conf}, roles...)...)
	cmd.Dir = r.root
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		r.t.Fatalf("dsas image build: %v", err)
	}
}

// server is a dsas serve.
type server struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // of its end; read after gone
}

// startServer starts dsas serve and waits until it answers.
func (r *rack) startServer() {
	r.t.Helper()
	if r.log == nil {
		var err error
		if r.log, err = os.Create(filepath.Join(r.state, "serve.log")); err != nil {
			r.t.Fatal(err)
		}
	}
	cmd := exec.Command(r.bin(), "serve", "--config", r.conf)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	// It never outlives the tests, however they end. The signal comes when
	// the thread ends that started it (PR_SET_PDEATHSIG(2const)): this one
	// stays as long as the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s := &server{cmd: cmd, gone: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			s.err = cmd.Wait()
			close(s.gone)
		}
	}()
	if err := <-started; err != nil {
		r.t.Fatal(err)
	}
	r.serve = s
	deadline := time.After(time.Minute)
	for {
		if _, err := r.try("status"); err == nil {
			return
		}
		select {
		case <-s.gone:
			r.t.Fatalf("dsas serve ended: %v\n%s", s.err, r.serverLog())
		case <-deadline:
			r.t.Fatalf("dsas serve does not answer\n%s", r.serverLog())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// killServer is SIGKILL: no goodbye of any kind.
func (r *rack) killServer() {
	r.t.Helper()
	s := r.serve
	r.serve = nil
	if err := s.cmd.Process.Kill(); err != nil {
		r.t.Fatalf("kill dsas serve: %v\n%s", err, r.serverLog())
	}
	<-s.gone
}

// stopServer asks the server to end, which it does in order.
func (r *rack) stopServer() {
	s := r.serve
	if s == nil {
		return
	}
	r.serve = nil
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Errorf("dsas serve was gone before it was asked to: %v\n%s", err, r.serverLog())
		return
	}
	select {
	case <-s.gone:
		if s.err != nil {
			r.t.Errorf("dsas serve after SIGTERM: %v; want exit status 0\n%s", s.err, r.serverLog())
		}
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		<-s.gone
		r.t.Errorf("dsas serve did not end within a minute of SIGTERM\n%s", r.serverLog())
	}
}

func (r *rack) serverLog() string {
	b, err := os.ReadFile(filepath.Join(r.state, "serve.log"))
	if err != nil {
		return err.Error()
	}
	if len(b) > 8000 {
		b = b[len(b)-8000:]
	}
	return string(b)
}

// try runs the CLI.
func (r *rack) try(args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.Command(r.bin(), append([]string{"--server", r.sock}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("dsas %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// dsas runs the CLI and fails the test when it fails.
func (r *rack) dsas(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// box is a node of the rack, plugged in, off, and known to the server.
type box struct {
	*lab.Node
	r *rack
}

// add plugs a box in and tells the server of it as an operator would.
func (r *rack) add(t *testing.T, spec lab.NodeSpec, args ...string) *box {
	t.Helper()
	n, err := r.lab.AddNode(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := []string{"node", "add", spec.Name}
	for _, nic := range n.NICs() {
		cmd = append(cmd, "--mac", nic.MAC.String())
	}
	if bmc := n.BMC(); bmc != nil {
		pw := filepath.Join(r.state, spec.Name+".pw")
		if err := os.WriteFile(pw, []byte(bmc.Password), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = append(cmd, "--bmc", "ipmi://"+bmc.User+"@"+bmc.Address, "--bmc-password-file", pw)
	}
	r.dsas(t, append(cmd, args...)...)
	return &box{n, r}
}

// machine plugs a network namespace into the rack's core switch by its eth0: a
// box with programs of its own, beside the server. It gives the namespace's name.
func (r *rack) machine(t *testing.T, suffix, address string) string {
	t.Helper()
	core, name := r.lab.Namespace(), r.lab.Namespace()+"-"+suffix
	exec.Command("ip", "netns", "del", name).Run() // an interrupted run's
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	for _, args := range []string{
		"netns add " + name,
		"-n " + core + " link add to-" + suffix + " type veth peer name eth0 netns " + name,
		"-n " + core + " link set to-" + suffix + " master " + r.lab.Core() + " up",
		"-n " + name + " addr add " + address + " dev eth0",
		"-n " + name + " link set eth0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	return name
}

func (r *rack) node(t *testing.T, name string) dsas.NodeView {
	t.Helper()
	var v dsas.NodeView
	if err := json.Unmarshal([]byte(r.dsas(t, "node", "show", name, "--json")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// events gives what was said of a node after a point.
func (r *rack) events(t *testing.T, node string, after int64) []dsas.Event {
	t.Helper()
	c, err := client.New(r.sock, "", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var list []dsas.Event
	for {
		// A server that is just being killed and started again is asked again.
		page, err := c.Events(context.Background(), dsas.EventFilter{Node: node, After: after, Limit: 500})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, page...)
		if len(page) < 500 {
			return list
		}
		after = page[len(page)-1].ID
	}
}

// mark is the newest event's ID: what comes later is news.
func (r *rack) mark(t *testing.T, node string) int64 {
	var last int64
	for _, e := range r.events(t, node, 0) {
		last = max(last, e.ID)
	}
	return last
}

// wait waits until an event after mark satisfies want; failed and part-bad
// end the wait unless they are what is wanted.
func (b *box) wait(t *testing.T, mark int64, what string, want func(dsas.Event) bool) dsas.Event {
	t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, e := range b.r.events(t, b.Name(), mark) {
			if want(e) {
				return e
			}
			if e.Kind == dsas.KindFailed {
				t.Fatalf("%s: waiting for %s: failed: %s\n%s\n%s", b.Name(), what, e.Message, e.Detail, b.story(t, mark))
			}
		}
		time.Sleep(300 * time.Millisecond)
	}
	t.Fatalf("%s: waiting for %s: nothing for %s\n%s", b.Name(), what, patience, b.story(t, mark))
	return dsas.Event{}
}

func kind(k dsas.Kind) func(dsas.Event) bool {
	return func(e dsas.Event) bool { return e.Kind == k }
}

// story is all a person would want to see of a boot that went wrong.
func (b *box) story(t *testing.T, mark int64) string {
	var s strings.Builder
	for _, e := range b.r.events(t, b.Name(), mark) {
		fmt.Fprintf(&s, "  %s %-18s %s\n", e.Time.Format("15:04:05.000"), e.Kind, e.Message)
	}
	serial, _ := b.SerialLog()
	if len(serial) > 6000 {
		serial = serial[len(serial)-6000:]
	}
	fmt.Fprintf(&s, "serial console:\n%s\nserver:\n%s", serial, b.r.serverLog())
	return s.String()
}

// boot power-cycles a node by its BMC and waits until it is ready.
func (b *box) boot(t *testing.T) {
	t.Helper()
	mark := b.r.mark(t, b.Name())
	b.r.dsas(t, "power", "cycle", b.Name())
	b.ready(t, mark)
}

func (b *box) ready(t *testing.T, mark int64) {
	t.Helper()
	e := b.wait(t, mark, "ready", kind(dsas.KindReady))
	t.Logf("%s: %s", b.Name(), e.Message)
}

// saw fails unless the events after mark hold every kind, in this order.
func (b *box) saw(t *testing.T, mark int64, kinds ...dsas.Kind) {
	t.Helper()
	var got []dsas.Kind
	rest := kinds
	for _, e := range b.r.events(t, b.Name(), mark) {
		got = append(got, e.Kind)
		if len(rest) > 0 && e.Kind == rest[0] {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		t.Errorf("%s: events %v; want %v among them in this order (missing from %s on)", b.Name(), got, kinds, rest[0])
	}
}

// ssh runs a command on the node through sshd, as an operator would.
func (b *box) ssh(t *testing.T, command string) string {
	t.Helper()
	out, err := b.trySSH(command)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

func (b *box) trySSH(command string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.Command(b.r.bin(), "--server", b.r.sock, "ssh", "--identity", filepath.Join(b.r.state, "operator"), b.Name(), "--", command)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ssh %s %q: %w: %s%s", b.Name(), command, err, out.String(), errOut.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// get is one request from the rack's core switch, as a client's.
func (r *rack) get(url string) (string, error) {
	c := r.lab.HTTPClient()
	c.Timeout = 10 * time.Second
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(b), err
}

// eventually tries until f says nil, within patience.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %s: %v", what, patience, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// alone gives a rack with one node of role web that is up, for work on what
// TestRack does with a node that it has.
func alone(t *testing.T) (*rack, *box) {
	t.Helper()
	if os.Getenv("DSAS_E2E_ALONE") == "" {
		t.Skip("TestRack does it; alone with DSAS_E2E_ALONE=1")
	}
	r := newRackWith(t, "", "web")
	w := r.add(t, lab.NodeSpec{Name: "w101"}, "--role", "web", "--loader", "nbp")
	w.boot(t)
	return r, w
}
