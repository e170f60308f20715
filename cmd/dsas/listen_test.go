package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBacklog: what Go chose from /proc/sys does not stand, as it must not
// where the unit hides that.
func TestBacklog(t *testing.T) {
	l, err := listenBurst("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	somax, err := readInt("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := waiting(t, l), uint32(min(backlog, somax)); got != want {
		t.Errorf("room for waiting connections = %d; want %d", got, want)
	}
	if err := deepen(l.(*net.TCPListener), 77); err != nil {
		t.Fatal(err)
	}
	if got := waiting(t, l); got != 77 {
		t.Errorf("room after deepen(77) = %d; want 77", got)
	}
}

// waiting gives how many connections may wait at l: tcpi_sacked of a socket
// that listens (Linux, tcp_get_info).
func waiting(t *testing.T, l net.Listener) uint32 {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil {
		t.Fatal(err)
	}
	return info.Sacked
}
