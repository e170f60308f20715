package tftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dsas"
	"dsas/server/boot"
)

const dir = "nbp/52-54-00-00-01-01/"

// start runs a server on a port of loopback.
func start(t *testing.T, change func(*Config), with ...func(*Server)) (addr string, files string, sent chan Transfer) {
	t.Helper()
	files, sent = t.TempDir(), make(chan Transfer, 100)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: files, Listeners: []net.PacketConn{c},
		Sent: func(_ context.Context, x Transfer) { sent <- x },
		PXELINUXConfig: func(_ context.Context, mac dsas.MAC, from netip.Addr, at boot.ConfigName) (string, error) {
			return fmt.Sprintf("SAY %s %d%s to %s\n", mac, at.Attempt, at.Role, from), nil
		}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range with {
		w(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v; want nil after its context ended", err)
		}
	})
	return c.LocalAddr().String(), files, sent
}

func content(t *testing.T, files, name string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	if err := os.WriteFile(filepath.Join(files, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

// peer is one client's socket.
type peer struct {
	t *testing.T
	c *net.UDPConn
	// to is where the server sends from: its port for this transfer.
	to  *net.UDPAddr
	buf []byte // of the packet last received
	// stalled: this process was held up for so long that the server may have
	// sent something again in the meantime.
	stalled bool
	last    time.Time // when something was last received
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{t: t, c: c}
}

func rrq(name string, opts ...string) []byte {
	b := append([]byte{0, 1}, name...)
	b = append(b, "\x00octet\x00"...)
	for _, o := range opts {
		b = append(append(b, o...), 0)
	}
	return b
}

func (p *peer) send(to string, b []byte) {
	p.t.Helper()
	a, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.c.WriteTo(b, a); err != nil {
		p.t.Fatal(err)
	}
}

// recv gives the next packet's opcode and rest; ok is false when none comes.
func (p *peer) recv(within time.Duration) (op uint16, rest []byte, ok bool) {
	p.t.Helper()
	if p.buf == nil {
		p.buf = make([]byte, 70000)
	}
	b := p.buf
	p.c.SetReadDeadline(time.Now().Add(within))
	n, from, err := p.c.ReadFromUDP(b)
	if err != nil {
		return 0, nil, false
	}
	if !p.last.IsZero() && time.Since(p.last) > minWait/2 {
		p.stalled = true
	}
	p.last = time.Now()
	p.to = from
	return binary.BigEndian.Uint16(b), b[2:n], true
}

func (p *peer) ack(block uint16) {
	p.t.Helper()
	if _, err := p.c.WriteTo([]byte{0, 4, byte(block >> 8), byte(block)}, p.to); err != nil {
		p.t.Fatal(err)
	}
}

func TestParsePath(t *testing.T) {
	for _, good := range []string{dir + "undionly.kpxe", "/" + dir + "snponly.efi", dir + "lpxelinux.0", dir + "ldlinux.c32", dir + "pxelinux.cfg/default", dir + "pxelinux.cfg/C0A80001", "//" + dir + "/undionly.kpxe", dir + "undionly.kpxe\xff"} {
		if mac, _, err := ParsePath(good); err != nil || mac.String() != "52:54:00:00:01:01" {
			t.Errorf("ParsePath(%q) = %v, %v; want the MAC", good, mac, err)
		}
	}
	// As an existing DHCP server names them, for all boxes alike.
	for name, want := range map[string]string{"undionly.kpxe": "00:00:00:00:00:00", "/snponly.efi": "00:00:00:00:00:00", "pxelinux.cfg/01-52-54-00-00-01-01": "52:54:00:00:01:01"} {
		if mac, _, err := ParsePath(name); err != nil || mac.String() != want {
			t.Errorf("ParsePath(%q) = %v, %v; want %s", name, mac, err, want)
		}
	}
	for _, bad := range []string{"", "/", "pxelinux.cfg/01-x", "../undionly.kpxe", "nbp/undionly.kpxe", dir, dir + "../../etc/passwd", "../" + dir + "undionly.kpxe", "..", ".", "./undionly.kpxe",
		"nbp/52-54-00-00-01-01/../52-54-00-00-01-01/undionly.kpxe", "nbp/52:54:00:00:01:01/undionly.kpxe", dir + "pxelinux.cfg/", dir + "pxelinux.cfg/../x", dir + "pxelinux.cfg\\x", "a/..", "a/./b", "nbp", "nbp/",
		dir + "undionly.kpxe\x00", "nbp/01-52-54-00-00-01-01/undionly.kpxe", strings.Repeat("a", 256), "a b", "a\nb", "\u00e4"} {
		if mac, file, err := ParsePath(bad); err == nil {
			t.Errorf("ParsePath(%q) = %v, %q; want an error", bad, mac, file)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add(dir + "undionly.kpxe")
	f.Add(dir + "pxelinux.cfg/default")
	f.Add("../../etc/passwd")
	f.Fuzz(func(t *testing.T, s string) {
		_, file, err := ParsePath(s)
		if err == nil && (!filepath.IsLocal(file) || filepath.Clean(file) != file || strings.Contains(file, "\\")) {
			t.Errorf("ParsePath(%q) leads to %q", s, file)
		}
	})
}

// TestClients fetches with the programs people have, whole blocks and not.
func TestClients(t *testing.T) {
	addr, files, sent := start(t, nil)
	host, port, _ := net.SplitHostPort(addr)
	for _, size := range []int{0, 1, 511, 512, 513, 1468 * 3, 74213} {
		want := content(t, files, boot.FileUndionly, size)
		for _, c := range []struct {
			name string
			args func(out string) *exec.Cmd
		}{
			{"tftp", func(out string) *exec.Cmd {
				return exec.Command("tftp", "-m", "binary", host, port, "-c", "get", dir+boot.FileUndionly, out)
			}},
			{"atftp", func(out string) *exec.Cmd {
				return exec.Command("atftp", "--option", "blksize 1468", "--option", "tsize 0", "-g", "-r", dir+boot.FileUndionly, "-l", out, host, port)
			}},
		} {
			if _, err := exec.LookPath(c.name); err != nil {
				if os.Getenv("DSAS_CI") != "" {
					t.Fatalf("%s is missing", c.name)
				}
				t.Logf("%s is missing", c.name)
				continue
			}
			out := filepath.Join(t.TempDir(), "out")
			cmd := c.args(out)
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s of %d bytes: %v: %s", c.name, size, err, b)
				continue
			}
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s of %d bytes gave %d bytes (%v); want the same content", c.name, size, len(got), err)
			}
			x := <-sent
			if x.Bytes != int64(size) || x.File != boot.FileUndionly || x.MAC.String() != "52:54:00:00:01:01" {
				t.Errorf("Sent told %+v; want %d bytes of %s", x, size, boot.FileUndionly)
			}
		}
	}
}

// TestProbe: UEFI asks for the size, breaks off with ERROR 8 and then asks for
// the file, from the same port.
func TestProbe(t *testing.T) {
	addr, files, sent := start(t, nil)
	want := content(t, files, boot.FileSNPOnly, 3000)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileSNPOnly, "tsize", "0", "blksize", "1468", "windowsize", "4"))
	op, rest, ok := p.recv(10 * time.Second)
	if !ok || op != 6 || string(rest) != "tsize\x003000\x00blksize\x001468\x00windowsize\x004\x00" {
		t.Fatalf("answer = %d %q; want an OACK with tsize 3000, blksize 1468, windowsize 4", op, rest)
	}
	p.c.WriteTo([]byte("\x00\x05\x00\x08User aborted the transfer\x00"), p.to)

	p.send(addr, rrq(dir+boot.FileSNPOnly, "blksize", "1468"))
	op, rest, ok = p.recv(10 * time.Second)
	if !ok || op != 6 || !bytes.Equal(rest, []byte("blksize\x001468\x00")) {
		t.Fatalf("answer = %d %q; want an OACK with blksize 1468", op, rest)
	}
	p.ack(0)
	var got []byte
	for block := uint16(1); ; block++ {
		op, rest, ok = p.recv(10 * time.Second)
		if !ok || op != 3 || binary.BigEndian.Uint16(rest) != block {
			t.Fatalf("answer = %d %.8q; want DATA %d", op, rest, block)
		}
		got = append(got, rest[2:]...)
		p.ack(block)
		if len(rest) < 1470 {
			break
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes; want the file's %d", len(got), len(want))
	}
	if x := <-sent; x.Bytes != 3000 {
		t.Errorf("Sent told %d bytes; want 3000", x.Bytes)
	}
	select {
	case x := <-sent:
		t.Errorf("Sent told %+v too; the probe sent nothing", x)
	default:
	}
}

// TestLargeBlock: a blksize beyond the MTU is cut down to it.
func TestLargeBlock(t *testing.T) {
	addr, files, _ := start(t, nil)
	content(t, files, boot.FileUndionly, 10000)
	p := newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly, "blksize", "65464"))
	op, rest, ok := p.recv(10 * time.Second)
	if !ok || op != 6 || !bytes.Equal(rest, []byte("blksize\x001468\x00")) {
		t.Errorf("answer = %d %q; want an OACK with blksize 1468", op, rest)
	}
}

func TestConfig(t *testing.T) {
	addr, _, _ := start(t, nil)
	for _, tt := range []struct {
		name string
		want string // content; "" for an ERROR
	}{
		{"01-52-54-00-00-01-01", "SAY 52:54:00:00:01:01 0 to 127.0.0.1\n"},
		{"default", "SAY 52:54:00:00:01:01 0 to 127.0.0.1\n"},
		{"again-3", "SAY 52:54:00:00:01:01 3 to 127.0.0.1\n"},
		{"wait-3", boot.PXELINUXWait(dsas.MAC{0x52, 0x54, 0, 0, 1, 1}, boot.ConfigName{Attempt: 3})},
		{"role-rescue-0", "SAY 52:54:00:00:01:01 0rescue to 127.0.0.1\n"},
		{"role-../x-0", ""}, {"role-rescue", ""}, {"role--0", ""},
		{"again-x", ""}, {"again--1", ""}, {"again-1000000", ""}, {"wait-", ""},
		{"01-52-54-00-00-01-02", ""}, // another NIC than the path's
		{"12345678-1234-1234-1234-123456789abc", ""}, {"0A4D0065", ""},
	} {
		p := newPeer(t)
		p.send(addr, rrq(dir+configDir+tt.name))
		op, rest, ok := p.recv(10 * time.Second)
		if tt.want == "" {
			if !ok || op != 5 {
				t.Errorf("%s: answer = %d %q; want ERROR", tt.name, op, rest)
			}
			continue
		}
		if !ok || op != 3 || string(rest[2:]) != tt.want {
			t.Errorf("%s: answer = %d %q; want DATA %q", tt.name, op, rest, tt.want)
		}
		p.ack(1)
	}
}

func TestRefused(t *testing.T) {
	addr, files, sent := start(t, nil)
	content(t, files, "secret", 10)
	for _, tt := range []struct {
		name   string
		packet []byte
	}{
		{"a file that is no loader", rrq(dir + "secret")},
		{"a way out", rrq(dir + "../../../../etc/passwd")},
		{"a loader that is not installed", rrq(dir + boot.FileLdlinux)},
		{"a write", append([]byte{0, 2}, (dir + "undionly.kpxe\x00octet\x00")...)},
	} {
		p := newPeer(t)
		p.send(addr, tt.packet)
		if op, rest, ok := p.recv(10 * time.Second); !ok || op != 5 {
			t.Errorf("%s: answer = %d %q; want ERROR", tt.name, op, rest)
		}
	}
	if _, err := os.Stat(filepath.Join(files, "undionly.kpxe")); err == nil {
		t.Error("a write made a file")
	}
	if len(sent) != 0 {
		t.Errorf("Sent told %d transfers; want none", len(sent))
	}
	// Nonsense is dropped and ends nothing.
	p := newPeer(t)
	for _, b := range [][]byte{{}, {0}, {0, 1}, {0, 1, 0, 0}, {0, 3, 0, 1, 5}, {0, 4, 0, 1}, bytes.Repeat([]byte{0xff}, 600), append([]byte{0, 1}, bytes.Repeat([]byte("a"), 600)...)} {
		p.send(addr, b)
	}
	content(t, files, boot.FileUndionly, 10)
	p = newPeer(t)
	p.send(addr, rrq(dir+boot.FileUndionly))
	if op, _, ok := p.recv(10 * time.Second); !ok || op != 3 {
		t.Errorf("after nonsense: answer = %d, %t; want DATA", op, ok)
	}
}

// TestRepeatedRequest: a client that repeats its RRQ gets one transfer.
func TestRepeatedRequest(t *testing.T) {
	t.Parallel()
	addr, files, _ := start(t, nil)
	content(t, files, boot.FileUndionly, 3000)
	p := newPeer(t)
	for range 5 {
		p.send(addr, rrq(dir+boot.FileUndionly))
	}
	ports := map[int]bool{}
	for range 3 { // the first, and what the server repeats by itself
		if _, _, ok := p.recv(10 * time.Second); !ok {
			t.Fatal("no answer")
		}
		ports[p.to.Port] = true
	}
	if len(ports) != 1 {
		t.Errorf("answers come from %d ports; want 1, for one transfer", len(ports))
	}
}

// TestManyAtOnce: a rack's worth of nodes at the same time, beyond what may
// run: all get the file, because they ask again.
func TestManyAtOnce(t *testing.T) {
	var top, now atomic.Int32
	addr, _, _ := start(t, func(c *Config) {
		c.MaxTransfers, c.MaxPerAddress = 8, 8
		c.PXELINUXConfig = func(context.Context, dsas.MAC, netip.Addr, boot.ConfigName) (string, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for {
				t := top.Load()
				if n <= t || top.CompareAndSwap(t, n) {
					break
				}
			}
			return "x", nil
		}
	})
	var wg sync.WaitGroup
	for i := range 50 {
		p := newPeer(t)
		wg.Go(func() {
			for range 100 {
				p.send(addr, rrq(dir+configDir+"default"))
				if op, rest, ok := p.recv(300 * time.Millisecond); ok && op == 3 && string(rest[2:]) == "x" {
					p.ack(1)
					return
				}
			}
			t.Errorf("client %d never got its file", i)
		})
	}
	wg.Wait()
	if n := top.Load(); n < 1 || n > 8 {
		t.Errorf("%d transfers at once; want 1 to 8", n)
	}
}

// TestFilesClosed: transfers leave no open files behind.
func TestFilesClosed(t *testing.T) {
	addr, files, sent := start(t, nil)
	content(t, files, boot.FileUndionly, 100)
	for range 20 {
		p := newPeer(t)
		p.send(addr, rrq(dir+boot.FileUndionly))
		if _, _, ok := p.recv(10 * time.Second); !ok {
			t.Fatal("no answer")
		}
		p.ack(1)
		<-sent
		p.c.Close()
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		n := 0
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, files) {
				n++
			}
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(strconv.Itoa(n) + " files of finished transfers are open")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
