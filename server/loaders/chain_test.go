package loaders_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dsas"
	"dsas/server/boot"
	"dsas/server/dhcp"
	"dsas/server/dhcp/dhcptest"
	"dsas/server/loaders"
	"dsas/server/netns"
	"dsas/server/tftp"
)

// rack is a namespace with a tap for one QEMU node, and our server's boot side
// in it.
type rack struct {
	t     *testing.T
	ns    string
	store *dhcptest.Store
	blobs map[string][]byte // by digest

	mu   sync.Mutex
	menu []string // roles that may be picked at the loader
	log  []string // what happened, in order
	ch   chan string
}

var (
	nodeMAC = dsas.MAC{0x52, 0x54, 0, 0x99, 0, 1}
	subnet  = dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.99.0.0/24"), Server: netip.MustParseAddr("10.99.0.1"),
		Pool:  dsas.Range{First: netip.MustParseAddr("10.99.0.200"), Last: netip.MustParseAddr("10.99.0.220")},
		Lease: time.Hour,
	}
)

func (r *rack) note(format string, a ...any) {
	s := fmt.Sprintf(format, a...)
	r.mu.Lock()
	r.log = append(r.log, s)
	r.mu.Unlock()
	r.t.Log(s)
	select {
	case r.ch <- s:
	default:
	}
}

// need skips, or fails in CI, where a program or file is missing.
func need(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		var err error
		if strings.HasPrefix(f, "/") {
			_, err = os.Stat(f)
		} else {
			_, err = exec.LookPath(f)
		}
		if err != nil {
			if os.Getenv("DSAS_CI") != "" {
				t.Fatalf("%s is missing", f)
			}
			t.Skipf("%s is missing", f)
		}
	}
}

// fetched copies a set of optional loaders into dir. They are got by apt once
// and kept below build/.
func fetched(t *testing.T, dir, set string) {
	t.Helper()
	cache := filepath.FromSlash("../../build/loaders")
	list, err := loaders.List(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Set != set {
			continue
		}
		if l.Size == 0 {
			if err := loaders.Fetch(t.Context(), cache, []string{set}); err != nil {
				if os.Getenv("DSAS_CI") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
		}
		b, err := os.ReadFile(filepath.Join(cache, l.Name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, l.Name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// newRack starts the boot side for one node with the loader; sets are those of
// the optional loaders that are there.
func newRack(t *testing.T, loader dsas.Loader, sets ...string) *rack {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	need(t, "qemu-system-x86_64", "ip")
	ctx, cancel := context.WithCancel(context.Background())
	r := &rack{t: t, ns: fmt.Sprintf("dsaschain%d", os.Getpid()), blobs: map[string][]byte{}, ch: make(chan string, 1000)}
	r.store = dhcptest.New(dsas.Node{Name: "w1", NICs: []dsas.NIC{{MAC: nodeMAC}}, Address: netip.MustParsePrefix("10.99.0.10/24"), Role: "web", Loader: loader})
	dir := t.TempDir()
	if err := loaders.Install(dir); err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		fetched(t, dir, set)
	}
	if err := netns.Create(ctx, r.ns); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := netns.Delete(context.Background(), r.ns); err != nil {
			t.Error(err)
		}
	})
	for _, args := range []string{"link set lo up", "tuntap add tap0 mode tap", "addr add 10.99.0.1/24 dev tap0", "link set tap0 up"} {
		if out, err := exec.Command("ip", append([]string{"-n", r.ns}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	var dc *dhcp.Conn
	var tc *tftp.Conn
	var hl net.Listener
	if err := netns.Do(r.ns, func() (err error) {
		if dc, err = dhcp.Listen("tap0"); err != nil {
			return err
		}
		if tc, err = tftp.Listen("tap0"); err != nil {
			return err
		}
		hl, err = net.Listen("tcp4", "10.99.0.1:8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ds, err := dhcp.New(dhcp.Config{Log: log, Store: noting{r.store, r}, Releases: r.store, Subnets: []dsas.Subnet{subnet}, Listeners: []net.PacketConn{dc}})
	if err != nil {
		t.Fatal(err)
	}
	ts, err := tftp.New(tftp.Config{
		Log: log, Dir: dir, Listeners: []net.PacketConn{tc},
		In:   func(fn func() error) error { return netns.Do(r.ns, fn) },
		Sent: func(_ context.Context, x tftp.Transfer) { r.note("tftp %s", x.File) },
		Open: func(_ context.Context, q tftp.Request) (tftp.Content, error) { return r.open(dir, q) },
		PXELINUXConfig: func(_ context.Context, mac dsas.MAC, _ netip.Addr, at boot.ConfigName) (string, error) {
			p := r.plan(boot.StepTFTPConfig, mac)
			return p.PXELINUXConfig(params, at.Attempt), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot/{mac}/script.ipxe", func(w http.ResponseWriter, q *http.Request) {
		mac, err := dsas.ParseMAC(q.PathValue("mac"))
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		r.note("http script")
		p := r.plan(boot.StepScript, mac)
		io.WriteString(w, p.IPXEScript(params))
	})
	mux.HandleFunc("GET /boot/{mac}/failed", func(w http.ResponseWriter, q *http.Request) {
		r.note("http failed %s", q.URL.Query().Get("why"))
		io.WriteString(w, "noted\n")
	})
	mux.HandleFunc("GET /v2/dsas/boot/blobs/{digest}", func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		b, ok := r.blobs[q.PathValue("digest")]
		r.mu.Unlock()
		if !ok {
			r.note("http blob missing")
			http.NotFound(w, q)
			return
		}
		r.note("http blob %s", q.PathValue("digest")[:12])
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b))
	})
	hs := &http.Server{Handler: mux}
	wg.Go(func() {
		if err := ds.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := ts.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { hs.Serve(hl) })
	context.AfterFunc(ctx, func() { hs.Close() })
	return r
}

// open gives what the TFTP server does not have itself: shim, GRUB, and what
// GRUB asks for.
func (r *rack) open(dir string, q tftp.Request) (tftp.Content, error) {
	if slices.Contains(boot.LoaderFiles(), q.File) {
		f, err := os.Open(filepath.Join(dir, q.File))
		if err != nil {
			return nil, dsas.ErrNotFound
		}
		return tftp.File(f)
	}
	if q.File == boot.GRUBFirst {
		return tftp.Bytes([]byte(boot.GRUBConfig())), nil
	}
	f, ok := boot.ParseGRUB(q.File)
	switch {
	case !ok:
		return nil, dsas.ErrNotFound
	case f.Failed != "":
		r.note("grub failed %s", f.Failed)
		return tftp.Bytes([]byte("# noted\n")), nil
	case f.Blob != "":
		r.mu.Lock()
		defer r.mu.Unlock()
		if b, ok := r.blobs[string(f.Blob)]; ok {
			return tftp.Bytes(b), nil
		}
		return nil, dsas.ErrNotFound
	}
	p := r.plan(boot.StepGRUBConfig, f.MAC, func(q *boot.Request) {
		q.Pick = f.Role
		q.Arch, q.HasArch = boot.GRUBArch(f.CPU)
	})
	return tftp.Bytes([]byte(p.GRUBConfig(params))), nil
}

var params = boot.Params{Boot: "b1", Token: "t1", Extra: []string{"dsas.test=1"}}

func (r *rack) plan(step boot.Step, mac dsas.MAC, more ...func(*boot.Request)) boot.Plan {
	r.mu.Lock()
	menu := r.menu
	r.mu.Unlock()
	q := boot.Request{Step: step, MAC: mac, Menu: menu, MenuTimeout: time.Hour, Server: boot.Server{Addr: subnet.Server, URL: "http://10.99.0.1:8080"}}
	if n, err := r.store.NodeByMAC(context.Background(), mac); err == nil {
		q.Node = &n
	}
	for _, f := range more {
		f(&q)
	}
	q.Release, _ = r.store.Assigned(q.Node, q.Role())
	return boot.Decide(q)
}

// setMenu says what may be picked from now on.
func (r *rack) setMenu(roles ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.menu = roles
}

// blob makes content fetchable.
func (r *rack) blob(b []byte) dsas.Part {
	h := sha256.Sum256(b)
	d := dsas.Digest("sha256:" + hex.EncodeToString(h[:]))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[string(d)] = b
	return dsas.Part{Digest: d, Size: int64(len(b))}
}

// noting notes the addresses given.
type noting struct {
	*dhcptest.Store
	r *rack
}

func (n noting) Event(ctx context.Context, e dsas.Event) error {
	n.r.note("event %s %s", e.Kind, e.Message)
	return n.Store.Event(ctx, e)
}

// qemu starts a node; it ends with the test.
func (r *rack) qemu(args ...string) { r.qemuAs("qemu-system-x86_64", args...) }

func (r *rack) qemuAs(program string, args ...string) {
	r.t.Helper()
	all := append([]string{"netns", "exec", r.ns, program, "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0"}, args...)
	cmd := exec.Command("ip", all...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if out.Len() > 0 {
			r.t.Logf("qemu: %s", out.String())
		}
	})
}

// expect waits until each of the notes has come, in this order; others may
// come between them.
func (r *rack) expect(notes ...string) {
	r.t.Helper()
	deadline := time.After(4 * time.Minute)
	for _, want := range notes {
		for got := ""; !strings.HasPrefix(got, want); {
			select {
			case got = <-r.ch:
			case <-deadline:
				r.mu.Lock()
				defer r.mu.Unlock()
				r.t.Fatalf("boot did not get to %q; it did:\n%s", want, strings.Join(r.log, "\n"))
			}
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

const bios = "virtio-net-pci,netdev=n0,mac=52:54:00:99:00:01"

// second is a bzImage that tells what it was given: Debian's iPXE as a Linux
// kernel takes its cmdline for a command, does not know it and says so.
func (r *rack) second(t *testing.T) dsas.BootSet {
	t.Helper()
	need(t, "/boot/ipxe.lkrn")
	kernel, err := os.ReadFile("/boot/ipxe.lkrn")
	if err != nil {
		t.Fatal(err)
	}
	return dsas.BootSet{Kernel: r.blob(kernel), Initramfs: r.blob([]byte("#!ipxe\necho the initrd runs\nsleep 600\n"))}
}

// escapes are a terminal's control sequences (ECMA-48, CSI).
var escapes = regexp.MustCompile(`\x1b\[[0-9;=?]*[A-Za-z]`)

// legible is what a person reads on a serial console: without control sequences,
// which loaders put in the midst of a word, and each letter once where it comes
// twice, as on a machine that is busy firmware's output does.
func legible(text string) string {
	text = escapes.ReplaceAllString(text, "")
	var b strings.Builder
	last := rune(-1)
	for _, c := range text {
		if c != last {
			b.WriteRune(c)
		}
		last = c
	}
	return b.String()
}

// console waits until each text has come up on the node's console, in order.
func (r *rack) console(file string, texts ...string) {
	r.t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			r.t.Fatal(err)
		}
		rest, missing := legible(string(b)), ""
		for _, s := range texts {
			_, after, ok := strings.Cut(rest, legible(s))
			if !ok {
				missing = s
				break
			}
			rest = after
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the console never showed %q; it shows:\n%s", missing, b)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// serial gives the file of a node's serial line and QEMU's arguments for it;
// without graphics SeaBIOS shows there what boot loaders print.
func serial(t *testing.T) (file string, args []string) {
	file = filepath.Join(t.TempDir(), "serial")
	return file, []string{"-machine", "pc,graphics=off", "-serial", "file:" + file, "-device", bios, "-boot", "n"}
}

// TestPXELINUX: the ROM loads PXELINUX, which retries in its own way.
func TestPXELINUX(t *testing.T) {
	r := newRack(t, dsas.LoaderPXELINUX)
	good := r.second(t)
	bad := good
	bad.Initramfs.Digest = "sha256:00000000000000000000000000000000000000000000000000000000000000ff" // 404
	r.store.Publish(bad, "web")
	file, args := serial(t)
	r.qemu(args...)
	r.expect("event dhcp.ack 10.99.0.10, boot file nbp/52-54-00-99-00-01/lpxelinux.0", "tftp lpxelinux.0", "tftp ldlinux.c32", "tftp pxelinux.cfg/01-52-54-00-99-00-01",
		"http blob", "http blob missing", "tftp pxelinux.cfg/wait-0", "tftp pxelinux.cfg/again-1", "http blob missing", "tftp pxelinux.cfg/wait-1")
	r.store.Publish(good, "web")
	r.expect("tftp pxelinux.cfg/again-2", "http blob", "http blob")
	r.console(file, "dsas: 52:54:00:99:00:01: node w1 boots as web, release web:1.", "trying again in", "dsas.server=http://10.99.0.1:8080: ")
}

// TestUEFI: OVMF's own PXE (its tsize probe and all), then iPXE.
func TestUEFI(t *testing.T) {
	r := newRack(t, dsas.LoaderAuto)
	need(t, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "/boot/ipxe.efi")
	kernel, err := os.ReadFile("/boot/ipxe.efi")
	if err != nil {
		t.Fatal(err)
	}
	r.store.Publish(dsas.BootSet{Kernel: r.blob(kernel), Initramfs: r.blob([]byte("none"))}, "web")
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(own, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	r.qemu("-machine", "q35", "-device", bios+",romfile=", "-serial", "file:"+filepath.Join(t.TempDir(), "serial"),
		"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+own)
	r.expect("event dhcp.ack 10.99.0.10, boot file nbp/52-54-00-99-00-01/snponly.efi", "tftp snponly.efi",
		"event dhcp.ack 10.99.0.10, boot file http://10.99.0.1:8080/boot/52-54-00-99-00-01/script.ipxe", "http script", "http blob", "http blob")
}

// TestBIOSThroughNBP: the ROM's iPXE is sent through the NBP by TFTP, the NBP
// gets the script, a kernel that is not there is reported and asked for again, and
// the right one boots.
func TestBIOSThroughNBP(t *testing.T) {
	r := newRack(t, dsas.LoaderNBP)
	good := r.second(t)
	bad := good
	bad.Kernel.Digest = "sha256:00000000000000000000000000000000000000000000000000000000000000ff" // 404
	r.store.Publish(bad, "web")
	file, args := serial(t)
	r.qemu(args...)
	r.expect("event dhcp.ack 10.99.0.10, boot file nbp/52-54-00-99-00-01/undionly.kpxe", "tftp undionly.kpxe",
		"event dhcp.ack 10.99.0.10, boot file http://10.99.0.1:8080/boot/52-54-00-99-00-01/script.ipxe", "http script", "http blob missing", "http failed kernel", "http script", "http blob missing", "http failed kernel")
	r.store.Publish(good, "web")
	r.expect("http script", "http blob", "http blob")
	r.console(file, "dsas: 52:54:00:99:00:01: node w1 boots as web, release web:1.", "dsas: 52:54:00:99:00:01: kernel failed", "trying again in 1 s", "trying again in 2 s", "dsas.server=http://10.99.0.1:8080: ")
}

func TestLegible(t *testing.T) {
	for in, want := range map[string]string{
		"dsas: 52:54:00:99:00\x1b[25;20H\x1b[25;21H:01: node w1": "dsas: 52:54:00:99:00:01: node w1",
		"\x1b[06;03H lb (for this boott only)  \x1b[37m":         " lb (for this boot only)",
	} {
		if !strings.Contains(legible(in), legible(want)) {
			t.Errorf("legible(%q) = %q; want %q in it", in, legible(in), legible(want))
		}
	}
	if strings.Contains(legible("lb (for this boat only)"), legible("lb (for this boot only)")) {
		t.Error("another word is taken for what was wanted")
	}
}
