// Package tftp serves boot loaders and the configuration that PXELINUX asks
// for (RFC 1350, with the options blksize, RFC 2348, and tsize, RFC 2349).
package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
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
	// PXELINUXConfig writes a node's configuration; from is who asks, name what
	// for. nil: there is none.
	PXELINUXConfig func(ctx context.Context, mac dsas.MAC, from netip.Addr, name boot.ConfigName) (string, error)
	// Open, where set, gives further files.
	Open Opener
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

// Stats counts since the start.
func (s *Server) Stats() Stats { return Stats{} }

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
	r, err := s.open(ctx, mac, file, from)
	if err != nil {
		if errors.Is(err, dsas.ErrNotFound) {
			log.Debug("TFTP file not found")
			return errNotFound
		}
		log.Warn("TFTP file not sent", "err", err)
		return errors.New("the server cannot give this file; its log says why")
	}
	defer r.Close()
	out.SetSize(r.Size())
	n, err := rf.ReadFrom(io.NewSectionReader(r, 0, r.Size()))
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
