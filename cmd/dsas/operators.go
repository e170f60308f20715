package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"dsas"
	"dsas/server"
	"dsas/server/api"
)

// operators wires the operators' way in: the unix socket and, for browsers and
// programs elsewhere, the TCP listener. None of it is on the boot network
// unless the operator binds it there.
func (d *daemon) operators(ctx context.Context) ([]server.Named, error) {
	handler := api.New(api.Deps{
		Store: d.store, Power: d.power, Roles: d, Images: d.blobs, Tokens: d.store, Subnets: d.subnets,
		Explain: d.explain, SSH: d.sshInfo, Status: d.status, Done: ctx.Done(), Log: d.log.With("part", "api"),
	})
	sock, err := listenSocket(d.cfg.Socket)
	if err != nil {
		return nil, err
	}
	local := httpServer(handler, d.log)
	local.ConnContext = api.PeerCredentials
	return []server.Named{
		{Name: "socket", Component: server.Func(func(ctx context.Context) error { return serveHTTP(ctx, local, sock) })},
	}, nil
}

// serveHTTP serves l until ctx ends.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if srv.Shutdown(c) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// listenSocket opens the CLI's socket, for its owner alone. A socket that a
// killed server left behind is replaced; one that answers is not.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another dsas serve answers there: %w", path, dsas.ErrConflict)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}
