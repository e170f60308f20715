// Package tftp serves boot loaders, the configuration that PXELINUX asks for,
// and further files it is given a function for: TFTP (RFC 1350) with the
// options blksize (RFC 2348), tsize and timeout (RFC 2349), windowsize (RFC
// 7440) and tftp-hpa's rollover, over IPv4 and IPv6, read only.
//
// After block 65535 comes block 0, unless the client asks for rollover 1.
// Nothing but one packet, repeated three times at most, goes to an address that
// has not answered.
package tftp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"dsas"
	"dsas/server/boot"
)

// Transfer is one file that reached a box whole.
type Transfer struct {
	MAC      dsas.MAC // zero where the name had none
	File     string   // "undionly.kpxe", "pxelinux.cfg/01-52-54-..."
	Peer     string   // address and port
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
	// Sent, where set, is told of every finished transfer. It may take its
	// time: transfers do not wait for it.
	Sent func(ctx context.Context, t Transfer)
	// Listeners are opened sockets, usually from Listen; the server closes them.
	Listeners []net.PacketConn
	// In runs a function in the listeners' network namespace, where that is
	// not the process's: each transfer opens a socket of its own. nil: as it is.
	In func(fn func() error) error
	// Transfers that may run at the same time, in all and per address (IPv6:
	// per /64); further requests are dropped, and the client asks again. 0:
	// 2048 and 16.
	MaxTransfers, MaxPerAddress int
}

// Server answers on its listeners.
type Server struct {
	Config
	count counters
}

// New checks c and makes a Server.
func New(c Config) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.In == nil {
		c.In = func(fn func() error) error { return fn() }
	}
	if c.MaxTransfers <= 0 {
		c.MaxTransfers = 2048
	}
	if c.MaxPerAddress <= 0 {
		c.MaxPerAddress = 16
	}
	if c.Dir == "" {
		return nil, fmt.Errorf("TFTP: no folder of loaders is configured: %w", dsas.ErrInvalid)
	}
	return &Server{Config: c}, nil
}

// grace is how long transfers may go on when the server is to end.
const grace = 2 * time.Second

// Run answers until ctx ends; transfers that run then have two seconds to end.
func (s *Server) Run(ctx context.Context) error {
	if len(s.Listeners) == 0 {
		return fmt.Errorf("TFTP: no interface to listen on: %w", dsas.ErrInvalid)
	}
	// What runs beside the loop is told to end when the loop has.
	beside, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	l, err := newLoop(beside, s)
	if err != nil {
		return fmt.Errorf("TFTP: %w", err)
	}
	defer func() {
		cancel()
		l.beside.Wait()
		for _, o := range l.opened {
			o.t.content, o.t.view, o.t.release = o.content, o.view, o.release
			o.t.drop()
		}
		l.close()
	}()
	for _, c := range s.Listeners {
		li, err := newListener(c)
		if err == nil {
			err = l.listen(li)
		}
		if err != nil {
			return err
		}
		s.Log.Info("TFTP listens", "address", li.address, "interface", li.device)
	}
	// The loop opens the transfers' sockets, so it runs in the namespace.
	if err := s.In(func() error { return l.run(ctx) }); err != nil {
		return fmt.Errorf("TFTP: %w", err)
	}
	return nil
}
