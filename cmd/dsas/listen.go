package main

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// backlog is how many connections may wait to be accepted: a room's nodes ask
// at the same second. The kernel takes net.core.somaxconn where that is less.
const backlog = 4096

// listenBurst is net.Listen for tcp4 with room for backlog connections. Go reads
// the limit from /proc/sys, which the unit hides (ProcSubset=pid), and lets 128
// wait then: whoever comes when they do tries again after a second or more.
func listenBurst(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return nil, err
	}
	if err := deepen(l.(*net.TCPListener), backlog); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// deepen makes room for n waiting connections: listen(2) may be called again.
func deepen(l *net.TCPListener, n int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), n) })
	return errors.Join(err, listenErr)
}
