package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/blobs"
	"dsas/server/httpboot"
)

const (
	httpSize = 50 << 20 // bytes of the file
	httpPort = "8080"
)

// measureHTTP has many readers read one file at once.
func measureHTTP(ctx context.Context, b *bench) error {
	a, err := b.newArena(ctx, "http")
	if err != nil {
		return err
	}
	defer a.close()
	// The blob's file is what nginx serves too.
	store, err := blobs.Open(filepath.Join(a.dir, "images"))
	if err != nil {
		return err
	}
	size := int64(b.scaled(httpSize, httpSize/10))
	d, _, err := store.Put(ctx, io.LimitReader(rand.Reader, size))
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"-child", "http"}
	if b.profile != "" {
		args = append(args, "-profile", b.profile)
	}
	ours := func(ctx context.Context) (*program, error) {
		return a.start(ctx, self, append(args, filepath.Join(a.dir, "images"))...)
	}
	for _, readers := range []int{64, 400} {
		turn := func(path string, start func(context.Context) (*program, error)) func(context.Context) (sample, error) {
			return func(ctx context.Context) (sample, error) { return a.httpTurn(ctx, start, path, size, readers) }
		}
		err := b.contest(ctx, work{
			name: fmt.Sprintf("HTTP, %d readers of a 50 MB file", readers), unit: "MB/s",
			goal: "nginx's throughput at 1.25 × its CPU at most",
			met: func(r row) (bool, error) {
				if r.Peers["nginx"] == 0 {
					return false, errors.New("nginx was not measured")
				}
				return *r.Ours >= 0.95*r.Peers["nginx"] && r.Extra[oursName]["CPU s/GB"] <= 1.25*r.Extra["nginx"]["CPU s/GB"], nil
			},
			contenders: []contender{
				{name: oursName, turn: turn("/v2/dsas/boot/blobs/"+string(d), ours)},
				{name: "nginx", turn: turn("/"+d.Hex(), a.startNginx)},
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startNginx starts one worker, since there is one core, with sendfile.
func (a *arena) startNginx(ctx context.Context) (*program, error) {
	conf := filepath.Join(a.dir, "nginx.conf")
	text := fmt.Sprintf(`user root;
daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000;
  server { listen %[2]s:%[3]s backlog=4096; root %[1]s/images/blobs/sha256; }
}
`, a.dir, serverAddr, httpPort)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return a.start(ctx, "nginx", "-c", conf, "-p", a.dir)
}

// httpTurn has the readers read a file once each, of a server that was just
// started.
func (a *arena) httpTurn(ctx context.Context, start func(context.Context) (*program, error), path string, size int64, readers int) (out sample, err error) {
	p, err := start(ctx)
	if err != nil {
		return out, err
	}
	defer p.stop()
	addr := net.JoinHostPort(serverAddr, httpPort)
	err = p.until(ctx, "start "+p.cmd.Args[len(p.cmd.Args)-1], func() bool {
		return a.inClient(func() error {
			c, err := net.DialTimeout("tcp4", addr, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}) == nil
	})
	if err != nil {
		return out, err
	}
	// One after the other, in the namespace; what is measured begins after.
	conns := make([]net.Conn, readers)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	err = a.inClient(func() error {
		for i := range conns {
			if conns[i], err = net.DialTimeout("tcp4", addr, 10*time.Second); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	before, begin := p.cpu(), time.Now()
	first, last := time.Duration(0), time.Duration(0)
	g, ctx := errgroup.WithContext(ctx)
	done := make(chan time.Duration, readers)
	for _, c := range conns {
		g.Go(func() error {
			defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
			err := readOnce(c, path, size)
			done <- time.Since(begin)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return out, fmt.Errorf("%w: %s", err, lastLines(p.log.String(), 2))
	}
	for range readers {
		d := <-done
		if first == 0 || d < first {
			first = d
		}
		last = max(last, d)
	}
	total := float64(size) * float64(readers)
	_, peak := p.rss()
	return sample{value: total / 1e6 / last.Seconds(), extra: map[string]float64{
		"CPU s/GB": (p.cpu() - before) / (total / 1e9), "first s": first.Seconds(), "last s": last.Seconds(), "peak MiB": peak,
	}}, nil
}

// readOnce asks for path and reads the answer, whose bytes nobody looks at: the
// kernel throws them away (tcp(7), MSG_TRUNC), for to copy them costs more than to
// serve them.
func readOnce(c net.Conn, path string, size int64) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: boot\r\n\r\n", path); err != nil {
		return err
	}
	r := bufio.NewReaderSize(c, 64<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != size {
		return fmt.Errorf("GET %s: %s, %d bytes; want %d", path, resp.Status, resp.ContentLength, size)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	for left := size - int64(r.Buffered()); left > 0; {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, failed = discard(int(fd), left)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err = cmp.Or(err, failed); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		left -= int64(n)
	}
	return nil
}

// discard takes up to n bytes off a TCP socket.
func discard(fd int, n int64) (int, error) {
	got, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

// httpChild is our boot listener over a folder of images, and nothing else.
func httpChild(ctx context.Context, images, profile string) error {
	store, err := blobs.Open(images)
	if err != nil {
		return err
	}
	stop, err := startProfile(profile, "http")
	if err != nil {
		return err
	}
	defer stop()
	l, err := net.Listen("tcp4", net.JoinHostPort(serverAddr, httpPort))
	if err != nil {
		return err
	}
	return httpboot.New(httpboot.Config{Blobs: store, Releases: noReleases{store}, Log: slog.New(slog.DiscardHandler)}).Run(ctx, l)
}

// noReleases has no kernel, so no transfer is recorded as one.
type noReleases struct{ *blobs.Store }

func (noReleases) Assigned(*dsas.Node, string) (*dsas.Release, error) { return nil, nil }
