package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	pin "github.com/pin/tftp/v3"

	"dsas"
	"dsas/server/netns"
	"dsas/server/tftp"
)

const (
	tftpFile    = "file"
	tftpBlock   = 1468 // what fits Ethernet; OVMF asks for it
	tftpClients = 64
	tftpEach    = 4 << 20 // bytes per client
	tftpFar     = 6 << 20 // bytes, one client behind a delay
)

// tftpServer is a TFTP server in the arena that serves dir.
type tftpServer struct {
	name      string
	reference bool
	start     func(ctx context.Context, a *arena, dir string) (*program, error)
}

// measureTFTP measures many near clients, and one far away.
func measureTFTP(ctx context.Context, b *bench) error {
	a, err := b.newArena(ctx, "tftp")
	if err != nil {
		return err
	}
	defer a.close()
	servers := b.tftpServers()
	for _, w := range []struct {
		window int
		goal   string
		met    func(row) (bool, error)
	}{
		{1, "dnsmasq or better, at less CPU per GB", func(r row) (bool, error) {
			if r.Peers["dnsmasq"] == 0 {
				return false, errors.New("dnsmasq was not measured")
			}
			return *r.Ours >= r.Peers["dnsmasq"] && r.Extra[oursName]["CPU s/GB"] < r.Extra["dnsmasq"]["CPU s/GB"], nil
		}},
		{4, "2 × dnsmasq", beats("dnsmasq", 2)},
		{16, "ahead of atftpd", beats("atftpd", 1)},
	} {
		f := tftpFetch{file: tftpFile, size: int64(b.scaled(tftpEach, tftpEach/8)), clients: tftpClients, blksize: tftpBlock, window: w.window}
		err := b.contest(ctx, work{name: fmt.Sprintf("TFTP, %d clients, %d bytes, window %d", f.clients, f.blksize, f.window), unit: "MB/s", goal: w.goal, met: w.met,
			contenders: tftpContenders(servers, func(ctx context.Context, s tftpServer) (sample, error) {
				return a.tftpTurn(ctx, s, f, 0)
			})})
		if err != nil {
			return err
		}
	}
	for _, window := range []int{1, 4, 16} {
		f := tftpFetch{file: tftpFile, size: int64(b.scaled(tftpFar, tftpFar/8)), clients: 1, blksize: tftpBlock, window: window}
		err := b.contest(ctx, work{name: fmt.Sprintf("TFTP, one client behind 1 ms, 6 MB, window %d", window), unit: "MB/s",
			goal: "90 % of block × window / round trip", met: func(r row) (bool, error) { return *r.Ours >= 0.9*r.Extra[oursName]["bound MB/s"], nil },
			contenders: tftpContenders(servers, func(ctx context.Context, s tftpServer) (sample, error) {
				return a.tftpTurn(ctx, s, f, time.Millisecond)
			})})
		if err != nil {
			return err
		}
	}
	return nil
}

// beats judges a row by one peer.
func beats(peer string, times float64) func(row) (bool, error) {
	return func(r row) (bool, error) {
		if r.Peers[peer] == 0 {
			return false, fmt.Errorf("%s was not measured", peer)
		}
		return *r.Ours >= times*r.Peers[peer], nil
	}
}

func tftpContenders(servers []tftpServer, turn func(context.Context, tftpServer) (sample, error)) (list []contender) {
	for _, s := range servers {
		list = append(list, contender{name: s.name, reference: s.reference, turn: func(ctx context.Context) (sample, error) { return turn(ctx, s) }})
	}
	return list
}

// tftpTurn has the clients fetch from a server that was just started, directly
// or through a relay with that round trip.
func (a *arena) tftpTurn(ctx context.Context, s tftpServer, f tftpFetch, roundTrip time.Duration) (out sample, err error) {
	dir, err := os.MkdirTemp(a.dir, "turn-")
	if err != nil {
		return out, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return out, err
	}
	data := make([]byte, f.size)
	rand.Read(data)
	if err := os.WriteFile(filepath.Join(dir, tftpFile), data, 0o644); err != nil {
		return out, err
	}
	p, err := s.start(ctx, a, dir)
	if err != nil {
		return out, err
	}
	defer p.stop()
	f.server = netip.AddrPortFrom(netip.MustParseAddr(serverAddr), tftp.Port)
	err = p.until(ctx, "start "+s.name, func() bool { return a.tftpListens() })
	if err != nil {
		return out, err
	}
	var res tftpResult
	var far time.Duration
	before := p.cpu()
	if roundTrip > 0 {
		if far, err = a.idealRoundTrip(f, roundTrip); err != nil {
			return out, fmt.Errorf("measure the delay: %w", err)
		}
		err = a.throughRelay(f, roundTrip, func(f tftpFetch) (err error) { res, err = f.run(ctx); return err })
	} else {
		err = a.inClient(func() (err error) { res, err = f.run(ctx); return err })
	}
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, lastLines(p.log.String(), 2))
	}
	total := float64(f.size) * float64(f.clients)
	cpu := p.cpu() - before
	out = sample{value: total / 1e6 / res.took.Seconds(), extra: map[string]float64{"retries": float64(res.retries), "window": float64(max(res.window, 1))}}
	if far > 0 {
		out.extra["round trip ms"] = ms(far)
		out.extra["bound MB/s"] = float64(f.blksize*f.window) / 1e6 / far.Seconds()
	} else if s.name != "tftpd-hpa" { // its children are nobody's, and their time is lost
		out.extra["CPU s/GB"] = cpu / (total / 1e9)
	}
	return out, nil
}

// throughRelay has fetch go through a relay with that round trip.
func (a *arena) throughRelay(f tftpFetch, roundTrip time.Duration, fetch func(tftpFetch) error) error {
	return a.inClient(func() error {
		r, addr, err := newRelay(f.server, roundTrip/2)
		if err != nil {
			return err
		}
		defer r.close()
		f.server = addr
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			r.run(stop)
			close(done)
		}()
		err = fetch(f)
		close(stop)
		<-done
		return err
	})
}

// idealRoundTrip measures the delay's round trip as it is on this machine: from
// one ACK to the last of the window's packets, when what is behind the relay
// does nothing but send them.
func (a *arena) idealRoundTrip(f tftpFetch, roundTrip time.Duration) (took time.Duration, err error) {
	var c net.PacketConn
	err = netns.Do(a.server, func() (err error) { c, err = net.ListenPacket("udp4", serverAddr+":0"); return err })
	if err != nil {
		return 0, err
	}
	defer c.Close()
	go func() {
		ack, data := make([]byte, 100), make([]byte, 4+f.blksize)
		for {
			_, from, err := c.ReadFrom(ack)
			if err != nil {
				return
			}
			for range f.window {
				c.WriteTo(data, from)
			}
		}
	}()
	f.server = netip.MustParseAddrPort(c.LocalAddr().String())
	err = a.throughRelay(f, roundTrip, func(f tftpFetch) error {
		took, err = f.pingPong(500)
		return err
	})
	return took, err
}

// tftpListens looks whether port 69 is taken in the server's namespace.
func (a *arena) tftpListens() bool {
	out, err := exec.Command("ip", "netns", "exec", a.server, "ss", "-Hlun", "sport = :69").Output()
	return err == nil && len(strings.TrimSpace(string(out))) > 0
}

// tftpServers are ours, the library it came from, and the peers.
func (b *bench) tftpServers() []tftpServer {
	child := func(name string) func(ctx context.Context, a *arena, dir string) (*program, error) {
		return func(ctx context.Context, a *arena, dir string) (*program, error) {
			exe, err := os.Executable()
			if err != nil {
				return nil, err
			}
			args := []string{"-child", name}
			if b.profile != "" {
				args = append(args, "-profile", b.profile)
			}
			return a.start(ctx, exe, append(args, dir)...)
		}
	}
	return []tftpServer{
		{name: oursName, start: child("tftp")},
		{name: "pin/tftp", reference: true, start: child("tftp-pin")},
		{name: "dnsmasq", start: func(ctx context.Context, a *arena, dir string) (*program, error) {
			return a.start(ctx, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-", "--quiet-tftp", "--pid-file="+filepath.Join(dir, "pid"),
				"--interface="+linkName, "--bind-interfaces", "--enable-tftp", "--tftp-root="+dir, "--tftp-max=1000")
		}},
		{name: "tftpd-hpa", start: func(ctx context.Context, a *arena, dir string) (*program, error) {
			return a.start(ctx, b.peer("in.tftpd"), "-L", "--user", "nobody", "--address", serverAddr+":69", "--secure", dir)
		}},
		{name: "atftpd", start: func(ctx context.Context, a *arena, dir string) (*program, error) {
			return a.start(ctx, b.peer("atftpd"), "--daemon", "--no-fork", "--logfile", "/dev/stderr", "--verbose=3", "--user", "root.root", "--bind-address", serverAddr, "--maxthread", "1000", dir)
		}},
	}
}

// peer finds a program that is unpacked for the measurement and not installed,
// since its package would start it.
func (b *bench) peer(name string) string {
	if p := filepath.Join(b.root, "build", "peers", "usr", "sbin", name); exists(p) {
		return p
	}
	return name
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tftpChild serves a folder's file by our server. profile is a folder, or "".
func tftpChild(ctx context.Context, dir, profile string) error {
	c, err := tftp.Listen(linkName)
	if err != nil {
		return err
	}
	// All clients are one address here.
	s, err := tftp.New(tftp.Config{Dir: dir, Listeners: []net.PacketConn{c}, MaxPerAddress: 10 * tftpClients,
		Open: func(_ context.Context, r tftp.Request) (tftp.Content, error) {
			if r.File != tftpFile {
				return nil, dsas.ErrNotFound
			}
			f, err := os.Open(filepath.Join(dir, tftpFile))
			if err != nil {
				return nil, err
			}
			return tftp.File(f)
		}})
	if err != nil {
		return err
	}
	stop, err := startProfile(profile, "tftp")
	if err != nil {
		return err
	}
	defer stop()
	return s.Run(ctx)
}

// pinChild serves a folder's file by the library alone.
func pinChild(ctx context.Context, dir string) error {
	s := pin.NewServer(func(_ string, rf io.ReaderFrom) error {
		f, err := os.Open(filepath.Join(dir, tftpFile))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = rf.ReadFrom(f)
		return err
	}, nil)
	s.SetTimeout(time.Second)
	context.AfterFunc(ctx, s.Shutdown)
	return s.ListenAndServe(serverAddr + ":69")
}
