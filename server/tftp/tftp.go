// Package tftp serves boot loaders and the configuration that PXELINUX asks
// for (RFC 1350, with the options blksize, RFC 2348, and tsize, RFC 2349).
package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	pin "github.com/pin/tftp/v3"

	"dsas"
	"dsas/server/boot"
)

// Transfer is one file that reached a box whole.
type Transfer struct {
	MAC      dsas.MAC
	File     string // "undionly.kpxe", "pxelinux.cfg/01-52-54-..."
	Peer     string // address and port
	Bytes    int64
	Duration time.Duration
}

// Config holds the parts and figures of a Server.
type Config struct {
	Log *slog.Logger
	// Dir holds the loaders, by the names of package boot.
	Dir string
	// PXELINUXConfig writes a node's configuration; from is who asks, attempt
	// counts the retries of a boot. nil: there is none.
	PXELINUXConfig func(ctx context.Context, mac dsas.MAC, from netip.Addr, attempt int) (string, error)
	// Sent, where set, is told of every finished transfer.
	Sent func(ctx context.Context, t Transfer)
	// Listeners are opened sockets, usually from Listen; the server closes them.
	Listeners []net.PacketConn
	// In runs a function in the listeners' network namespace, where that is
	// not the process's: each transfer opens a socket of its own. nil: as it is.
	In func(fn func() error) error
	// Transfers that may run at the same time, in all and per address; further
	// requests are dropped, and the client asks again. 0: 512 and 16.
	MaxTransfers, MaxPerAddress int
}

// Server answers on its listeners.
type Server struct{ Config }

// New checks c and makes a Server.
func New(c Config) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.In == nil {
		c.In = func(fn func() error) error { return fn() }
	}
	if c.MaxTransfers <= 0 {
		c.MaxTransfers = 512
	}
	if c.MaxPerAddress <= 0 {
		c.MaxPerAddress = 16
	}
	if c.Dir == "" {
		return nil, fmt.Errorf("TFTP: no folder of loaders is configured: %w", dsas.ErrInvalid)
	}
	return &Server{c}, nil
}

// A round trip that takes longer than timeout is repeated, tries times, with a
// growing pause: about 12 s in all for a box that went away.
const (
	timeout = time.Second
	tries   = 5
	grace   = 2 * time.Second
)

// Run answers until ctx ends; transfers that run then have two seconds to end.
func (s *Server) Run(ctx context.Context) error {
	if len(s.Listeners) == 0 {
		return fmt.Errorf("TFTP: no interface to listen on: %w", dsas.ErrInvalid)
	}
	g := newGate(s.MaxTransfers, s.MaxPerAddress)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(s.Listeners))
	for _, l := range s.Listeners {
		go func() {
			err := s.serve(ctx, cancel, g, l)
			l.Close()
			errs <- err
		}()
	}
	var all error
	for range s.Listeners {
		all = errors.Join(all, <-errs)
	}
	return all
}

// serve answers on one listener until ctx ends, and waits for its transfers.
func (s *Server) serve(ctx context.Context, cancel context.CancelFunc, g *gate, l net.PacketConn) error {
	srv := pin.NewServer(func(name string, rf io.ReaderFrom) error { return s.read(ctx, g, name, rf) }, nil)
	srv.SetTimeout(timeout)
	srv.SetRetries(tries)
	srv.SetBackoff(func(attempt int) time.Duration { return time.Duration(attempt) * 500 * time.Millisecond })
	// The library reads the interface's MTU only from a socket it can look
	// into, and the gate hides this one: the limit comes from Listen.
	srv.SetBlockSizeNegotiation(false)
	srv.SetBlockSize(blockLimit(l))
	down := make(chan struct{})
	context.AfterFunc(ctx, func() {
		srv.Shutdown()
		close(down)
	})
	s.Log.Info("TFTP listens", "address", l.LocalAddr())
	// Serve opens the transfers' sockets itself, so it runs in the namespace.
	err := s.In(func() error { return srv.Serve(&gatedConn{PacketConn: l, gate: g, ctx: ctx, log: s.Log}) })
	if ctx.Err() != nil {
		err = nil
	} else if err == nil {
		err = errors.New("the library stopped serving")
	}
	cancel() // one listener's end is the server's
	// Transfers may end by themselves, for a while: a box that went away would
	// hold up the end of the server until its last retry.
	select {
	case <-down:
	case <-time.After(grace):
	}
	if err != nil {
		return fmt.Errorf("TFTP on %s: %w", l.LocalAddr(), err)
	}
	return nil
}

// errNotFound is what a client is told; the wording is in ERROR packets.
var errNotFound = errors.New("file not found")

// read answers one RRQ.
func (s *Server) read(ctx context.Context, g *gate, name string, rf io.ReaderFrom) error {
	out, ok := rf.(pin.OutgoingTransfer)
	if !ok {
		return errors.New("unusable transfer")
	}
	addr := out.RemoteAddr()
	peer := addr.String()
	defer g.done(peer)
	start := time.Now()
	mac, file, err := ParsePath(name)
	if err != nil {
		s.Log.Debug("TFTP request refused", "path", clip(name), "peer", peer, "err", err)
		return errNotFound
	}
	log := s.Log.With("mac", mac, "file", file, "peer", peer)
	from := addr.AddrPort().Addr().Unmap()
	r, size, err := s.open(ctx, mac, file, from)
	if err != nil {
		if errors.Is(err, dsas.ErrNotFound) {
			log.Debug("TFTP file not found")
			return errNotFound
		}
		log.Warn("TFTP file not sent", "err", err)
		return errors.New("the server cannot give this file; its log says why")
	}
	defer r.Close()
	out.SetSize(size)
	n, err := rf.ReadFrom(r)
	if err != nil {
		if strings.Contains(err.Error(), ": code=") {
			// The client broke off: UEFI asks for the size and stops (ERROR 8)
			// before it asks for the file.
			log.Debug("TFTP transfer ended by the client", "err", err)
		} else {
			log.Info("TFTP transfer not finished", "bytes", n, "err", err)
		}
		return nil // the library has told the client what there is to tell
	}
	log.Debug("TFTP sent", "bytes", n)
	if s.Sent != nil {
		s.Sent(ctx, Transfer{MAC: mac, File: file, Peer: peer, Bytes: n, Duration: time.Since(start)})
	}
	return nil
}

// open finds a file of ParsePath's.
func (s *Server) open(ctx context.Context, mac dsas.MAC, file string, from netip.Addr) (io.ReadCloser, int64, error) {
	if cfg, ok := strings.CutPrefix(file, configDir); ok {
		attempt, wait, ok := configAttempt(mac, cfg)
		if !ok || s.PXELINUXConfig == nil {
			return nil, 0, dsas.ErrNotFound
		}
		if wait {
			text := boot.PXELINUXWait(mac, attempt)
			return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		text, err := s.PXELINUXConfig(ctx, mac, from, attempt)
		return io.NopCloser(strings.NewReader(text)), int64(len(text)), err
	}
	f, err := os.Open(filepath.Join(s.Dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("loader %s is not in %s; start the server anew to install it", file, s.Dir)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open loader: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("size of loader: %w", err)
	}
	return f, fi.Size(), nil
}

const configDir = "pxelinux.cfg/"

// ParsePath takes "nbp/MAC/FILE" apart; a path that names nothing we have is
// an error. FILE is a loader's name or lies below pxelinux.cfg/: since it is
// compared and never looked up as it came, no path leads out of the folder.
// Without "nbp/MAC/", as an existing DHCP server's one boot file for all boxes
// has it, mac is zero for a loader, and the one that PXELINUX puts into the
// name of its configuration.
func ParsePath(name string) (mac dsas.MAC, file string, err error) {
	bad := func(why string) (dsas.MAC, string, error) {
		return dsas.MAC{}, "", fmt.Errorf("path %q: %s: %w", clip(name), why, dsas.ErrNotFound)
	}
	file = strings.TrimPrefix(name, "/")
	if rest, ok := strings.CutPrefix(file, "nbp/"); ok {
		dir, in, ok := strings.Cut(rest, "/")
		if !ok {
			return bad("names no file")
		}
		mac, err = dsas.ParseMAC(dir)
		if err != nil || mac.Dashed() != dir {
			return bad("its second part is not a MAC with dashes")
		}
		file = in
	} else if cfg, ok := strings.CutPrefix(file, configDir+"01-"); ok {
		if mac, err = dsas.ParseMAC(cfg); err != nil || mac.Dashed() != cfg {
			return bad("names no MAC with dashes")
		}
	}
	switch file {
	case boot.FileUndionly, boot.FileSNPOnly, boot.FileLPXELINUX, boot.FileLdlinux:
		return mac, file, nil
	}
	if cfg, ok := strings.CutPrefix(file, configDir); ok && cfg != "" && !mac.IsZero() && !strings.ContainsAny(cfg, "/\\") && len(cfg) < 64 {
		return mac, file, nil
	}
	return bad("no such file")
}

// configAttempt tells whether PXELINUX is answered for the name it asks for
// below pxelinux.cfg/. It asks for the box's UUID, then 01-MAC, then its
// address in hex, shortened digit by digit, then "default".
func configAttempt(mac dsas.MAC, name string) (attempt int, wait, ok bool) {
	if name == "01-"+mac.Dashed() || name == "default" {
		return 0, false, true
	}
	n, wait := strings.CutPrefix(name, boot.WaitPrefix)
	if !wait {
		if n, ok = strings.CutPrefix(name, boot.AgainPrefix); !ok {
			return 0, false, false
		}
	}
	attempt, err := strconv.Atoi(n)
	return attempt, wait, err == nil && attempt >= 0 && attempt < 100
}

func clip(s string) string { return s[:min(len(s), 120)] }
