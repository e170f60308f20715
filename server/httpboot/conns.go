package httpboot

import (
	"net"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Limits of connections, unless Config says otherwise. A running node holds two
// or three. Many readers behind one address (a router that masquerades, a load
// test) are to work too; one address shall not take all that there is.
const (
	defaultConns      = 16 << 10
	defaultPerAddress = 512
	spareFiles        = 512 // file descriptors left for the rest: blobs, state, BMCs
)

// conns counts connections. Those beyond a limit are closed at once: the box
// tries again.
type conns struct {
	mu      sync.Mutex
	perAddr map[netip.Addr]int
	open    map[net.Conn]netip.Addr
	refused uint64
}

// limits gives the limits of all connections and of one address's.
func (s *Server) limits() (all, per int) {
	all, per = s.MaxConns, s.MaxConnsPerAddress
	if all <= 0 {
		all = defaultConns
		var files unix.Rlimit
		// Each transfer has a second file open, the blob.
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < 2*uint64(all)+spareFiles {
			all = max(int(files.Cur)-spareFiles, 64) / 2
		}
	}
	if per <= 0 {
		per = min(defaultPerAddress, max(all/2, 1))
	}
	return all, per
}

// connState is an http.Server's hook.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !s.conns.admit(c, s.maxConns, s.maxPerAddress) {
			if t, ok := c.(*net.TCPConn); ok {
				t.SetLinger(0) // a reset: nothing is left to be sent, and no TIME-WAIT
			}
			c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		s.conns.drop(c)
	}
}

func (n *conns) admit(c net.Conn, all, per int) bool {
	ap, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	from := ap.Addr().Unmap()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		n.open, n.perAddr = map[net.Conn]netip.Addr{}, map[netip.Addr]int{}
	}
	if len(n.open) >= all || n.perAddr[from] >= per {
		n.refused++
		return false
	}
	n.open[c] = from
	n.perAddr[from]++
	return true
}

func (n *conns) drop(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	from, ok := n.open[c]
	if !ok {
		return
	}
	delete(n.open, c)
	if n.perAddr[from]--; n.perAddr[from] == 0 {
		delete(n.perAddr, from)
	}
}

func (n *conns) count() (open int, refused uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.open), n.refused
}
