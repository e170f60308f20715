package tftp

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is TFTP's (RFC 1350).
const Port = 69

// Conn is a UDP socket bound to one interface.
type Conn struct {
	*net.UDPConn
	blksize int
}

// Listen opens port 69 on the named interface and no other. It must be called
// in the interface's network namespace.
func Listen(name string) (*Conn, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("listen for TFTP on %s: %w", name, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if e := rc.Control(func(fd uintptr) {
			if err = unix.BindToDevice(int(fd), name); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", Port))
	if err != nil {
		return nil, fmt.Errorf("listen for TFTP on %s (another TFTP server on this machine?): %w", name, err)
	}
	return &Conn{UDPConn: pc.(*net.UDPConn), blksize: ifi.MTU - headers}, nil
}

// headers of IPv4 (20), UDP (8) and TFTP (4): a block and these fit the MTU,
// since boot ROMs do not put fragments together.
const headers = 32

// blockLimit gives the largest blksize that c's interface carries whole.
func blockLimit(c net.PacketConn) int {
	if c, ok := c.(*Conn); ok {
		return min(max(c.blksize, 513), 8192) // the library takes only more than 512
	}
	return 1500 - headers
}
