package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas/server/boot"
	"dsas/server/netns"
)

// wires are two namespaces with a veth pair: our server behind one end, clients
// at the other.
type wires struct {
	t              *testing.T
	s              *Server
	server, client string
	files          string
	sent           chan Transfer
	log            *logged
}

// logged keeps what was logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

func (w *wires) ip(args string) {
	w.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// link makes the pair.
func (w *wires) link() {
	w.ip("-n " + w.server + " link add boot0 type veth peer name nic0 netns " + w.client)
	for ns, dev := range map[string]string{w.server: "boot0", w.client: "nic0"} {
		host := map[string]string{"boot0": "1", "nic0": "2"}[dev]
		w.ip("-n " + ns + " addr add 10.98.0." + host + "/24 dev " + dev)
		w.ip("-n " + ns + " -6 addr add fd98::" + host + "/64 dev " + dev + " nodad")
		w.ip("-n " + ns + " link set " + dev + " up")
	}
}

func newWires(t *testing.T) *wires {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &wires{t: t, files: t.TempDir(), sent: make(chan Transfer, 100), log: &logged{},
		server: fmt.Sprintf("dsastftp%ds", os.Getpid()), client: fmt.Sprintf("dsastftp%dc", os.Getpid())}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, ns := range []string{w.server, w.client} {
			if err := netns.Delete(context.Background(), ns); err != nil {
				t.Error(err)
			}
		}
	})
	for _, ns := range []string{w.server, w.client} {
		if err := netns.Create(ctx, ns); err != nil {
			t.Fatal(err)
		}
	}
	w.link()
	var c *Conn
	if err := netns.Do(w.server, func() (err error) { c, err = Listen("boot0"); return err }); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Dir: w.files, Listeners: []net.PacketConn{c}, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		In: func(fn func() error) error { return netns.Do(w.server, fn) }, Sent: func(_ context.Context, x Transfer) { w.sent <- x }})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

// packet is one of TFTP's as it was on the wire.
type packet struct {
	toServer bool
	b        []byte
}

// capture keeps the UDP packets of IPv4 and IPv6 that pass the client's end.
// Call what it gives for what there was.
func (w *wires) capture() func() []packet {
	w.t.Helper()
	var fd int
	if err := netns.Do(w.client, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL})<<8|unix.ETH_P_ALL>>8))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		w.t.Fatal(err)
	}
	return func() (all []packet) {
		defer unix.Close(fd)
		b := make([]byte, 70000)
		for {
			n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err != nil {
				return all
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			if !ok || n < 28 {
				continue
			}
			head := 28
			switch {
			case b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP:
			case b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
				head = 48
			default:
				continue
			}
			// Segments that left with one call pass a veth pair as one packet,
			// each as long as the first.
			all = append(all, packet{ll.Pkttype == unix.PACKET_OUTGOING, bytes.Clone(b[head:n])})
		}
	}
}

// count tells how many ACKs, OACKs and bytes of DATA there were, and gives the
// options of the request and the OACK.
func count(all []packet) (rrq, oack string, acks, oacks, errors, bytes int) {
	for _, p := range all {
		switch {
		case p.toServer && p.b[1] == opRRQ:
			rrq = string(p.b)
		case p.toServer && p.b[1] == opACK:
			acks++
		case p.b[1] == opOACK:
			oack, oacks = string(p.b[2:]), oacks+1
		case p.b[1] == opERROR:
			errors++
		case p.b[1] == opDATA:
			bytes += len(p.b)
		}
	}
	return
}

// TestRealClients: programs others wrote, over a wire with an interface of its
// own, IPv4 and IPv6; what passes the wire is what was agreed on and nothing
// twice.
func TestRealClients(t *testing.T) {
	w := newWires(t)
	const size = 200_000
	want := content(t, w.files, boot.FileUndionly, size)
	name := dir + boot.FileUndionly
	for _, tt := range []struct {
		name            string
		args            string // OUT is the file to write
		blksize, window int
		oack            string // "": none asked for
	}{
		{"tftp-hpa", "tftp -m binary 10.98.0.1 -c get " + name + " OUT", 512, 1, ""},
		{"tftp-hpa IPv6", "tftp -6 -m binary fd98::1 -c get " + name + " OUT", 512, 1, ""},
		{"atftp", "atftp -g -r " + name + " -l OUT 10.98.0.1", 512, 1, ""},
		{"atftp window", "atftp --option|blksize 1468|--option|windowsize 8|--option|tsize 0|-g|-r|" + name + "|-l|OUT|10.98.0.1", 1468, 8, "windowsize\x008\x00"},
		{"curl", "curl -sS -o OUT tftp://10.98.0.1/" + name, 512, 1, "tsize\x00200000\x00"},
		{"curl blksize", "curl -sS --tftp-blksize 1428 -o OUT tftp://10.98.0.1/" + name, 1428, 1, "blksize\x001428\x00"},
		{"curl no options", "curl -sS --tftp-no-options -o OUT tftp://10.98.0.1/" + name, 512, 1, ""},
		{"curl IPv6", "curl -sS -o OUT tftp://[fd98::1]/" + name, 512, 1, "tsize\x00200000\x00"},
		{"busybox", "busybox tftp -g -b 1400 -r " + name + " -l OUT 10.98.0.1", 1400, 1, "blksize\x001400\x00"},
		{"busybox small", "busybox tftp -g -b 400 -r " + name + " -l OUT 10.98.0.1", 400, 1, "blksize\x00400\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			args := strings.Fields(tt.args)
			if strings.Contains(tt.args, "|") {
				first, rest, _ := strings.Cut(tt.args, " ")
				args = append([]string{first}, strings.Split(rest, "|")...)
			}
			if _, err := exec.LookPath(args[0]); err != nil {
				if os.Getenv("DSAS_CI") != "" {
					t.Fatalf("%s is missing", args[0])
				}
				t.Skipf("%s is missing", args[0])
			}
			for i := range args {
				if args[i] == "OUT" {
					args[i] = out
				}
			}
			// A client that is held up is sent something again: then what
			// passes is not to be counted, and it has another go.
			wire := w.capture()
			for try := 0; ; try++ {
				before := w.s.Stats().Retransmits
				cmd := exec.Command("ip", append([]string{"netns", "exec", w.client}, args...)...)
				if b, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, b)
				}
				if w.s.Stats().Retransmits == before || try == 10 {
					break
				}
				done(t, w.sent, size)
				wire()
				wire = w.capture()
			}
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes (%v); want the file's %d", len(got), err, size)
			}
			done(t, w.sent, size)
			rrq, oack, acks, oacks, errors, wired := count(wire())
			blocks := size/tt.blksize + 1
			wantOACKs := 0
			if tt.oack != "" {
				wantOACKs = 1
			}
			if !strings.Contains(oack, tt.oack) || oacks != wantOACKs || errors != 0 {
				t.Errorf("%q got OACK %q, %d of them, %d ERRORs; want %d with %q and no ERROR", rrq, oack, oacks, errors, wantOACKs, tt.oack)
			}
			if wantACKs := (blocks+tt.window-1)/tt.window + wantOACKs; acks != wantACKs {
				t.Errorf("%d ACKs passed; want %d for %d blocks", acks, wantACKs, blocks)
			}
			if most := size + 4*blocks; wired != most {
				t.Errorf("DATA of %d bytes passed; want %d: every block once", wired, most)
			}
		})
	}
}

// TestNetascii: tftp-hpa's default mode is refused with a reason it shows.
func TestNetascii(t *testing.T) {
	w := newWires(t)
	if _, err := exec.LookPath("tftp"); err != nil {
		t.Skip("tftp is missing")
	}
	content(t, w.files, boot.FileUndionly, 10)
	b, _ := exec.Command("ip", "netns", "exec", w.client, "tftp", "-m", "ascii", "10.98.0.1", "-c", "get", dir+boot.FileUndionly, filepath.Join(t.TempDir(), "x")).CombinedOutput()
	if !strings.Contains(string(b), errNetascii.text) {
		t.Errorf("the client shows %q; want %q", b, errNetascii.text)
	}
}

// TestInterfaceGone: the interface is taken away and made anew, with another
// index. The server says so and serves on.
func TestInterfaceGone(t *testing.T) {
	w := newWires(t)
	want := content(t, w.files, boot.FileUndionly, 5000)
	fetch := func() error {
		return netns.Do(w.client, func() error {
			b, err := plain("10.98.0.1:69", dir+boot.FileUndionly)
			if err == nil && !bytes.Equal(b, want) {
				err = fmt.Errorf("got %d bytes; want %d", len(b), len(want))
			}
			return err
		})
	}
	if err := fetch(); err != nil {
		t.Fatalf("before: %v", err)
	}
	w.ip("-n " + w.server + " link del boot0")
	wait := func(text string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !w.log.has(text); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the log never says %q; it says:\n%s", text, w.log.b.String())
			}
		}
	}
	wait("the interface is gone")
	w.link()
	wait("the interface is back")
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = fetch(); err == nil {
			return
		}
	}
	t.Errorf("after: %v", err)
}

// plain fetches by RFC 1350 alone.
func plain(server, name string) (got []byte, err error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	to, err := net.ResolveUDPAddr("udp4", server)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteTo(rrq(name), to); err != nil {
		return nil, err
	}
	b := make([]byte, 600)
	for {
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return nil, err
		}
		if n < 4 || b[1] != opDATA {
			return nil, fmt.Errorf("got %q", b[:n])
		}
		got = append(got, b[4:n]...)
		c.WriteTo([]byte{0, opACK, b[2], b[3]}, from)
		if n < 516 {
			return got, nil
		}
	}
}
