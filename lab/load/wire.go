package load

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"dsas"
)

const (
	serverPort = 67
	clientPort = 68

	ethLen, ipLen, udpLen = 14, 20, 8
	// maxFrame is more than any Ethernet frame without jumbo sizes.
	maxFrame = 2048
	// receiveBuffer in bytes: what is lost is to be lost by the server.
	receiveBuffer = 32 << 20
)

// wire is an Ethernet interface on which every simulated node has its own MAC:
// a packet socket that sees what is sent to DHCP's client port.
type wire struct {
	file *os.File // the socket
}

// openWire opens the named interface in the thread's network namespace. It
// wants CAP_NET_RAW. The socket blocks, and so is not in the runtime's poller,
// whose thread would be woken by every frame that comes or has left.
func openWire(name string) (*wire, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("open interface %s: %w", name, err)
	}
	// Bound to IPv4 alone it does not see what is sent from here (packet(7)).
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	fail := func(what string, err error) (*wire, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("%s on %s: %w", what, name, err)
	}
	// The filter before the protocol, so that nothing else gets in between.
	prog, err := toClients()
	if err != nil {
		return fail("make filter", err)
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fail("attach filter", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return fail("enlarge receive buffer", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff}), Ifindex: ifi.Index}); err != nil {
		return fail("bind packet socket", err)
	}
	return &wire{file: os.NewFile(uintptr(fd), "packet socket "+name)}, nil
}

// toClients passes UDP datagrams to port 68, unfragmented.
func toClients() ([]unix.SockFilter, error) {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: ethLen + 9, Size: 1},                                  // protocol
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 5},      //
		bpf.LoadAbsolute{Off: ethLen + 6, Size: 2},                                  // fragment offset
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 3},                 //
		bpf.LoadMemShift{Off: ethLen},                                               // X: header length
		bpf.LoadIndirect{Off: ethLen + 2, Size: 2},                                  // destination port
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: clientPort, SkipFalse: 0, SkipTrue: 1}, //
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: maxFrame},
	})
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return prog, err
}

func (w *wire) close() error { return w.file.Close() }

// fd gives the socket's number, good until close.
func (w *wire) fd() (fd int, err error) {
	rc, err := w.file.SyscallConn()
	if err == nil {
		err = rc.Control(func(n uintptr) { fd = int(n) })
	}
	return fd, err
}

// frameTo writes Ethernet II, IPv4 and UDP around a DHCP message that begins at
// ethLen+ipLen+udpLen of b.
func frameTo(b []byte, to, from dsas.MAC, src, dst netip.Addr) {
	copy(b, to[:])
	copy(b[6:], from[:])
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	h := b[ethLen : ethLen+ipLen]
	clear(h)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(len(b)-ethLen))
	h[8], h[9] = 64, unix.IPPROTO_UDP
	s, d := src.As4(), dst.As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	var sum uint32
	for i := 0; i < ipLen; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	u := b[ethLen+ipLen:]
	binary.BigEndian.PutUint16(u, clientPort)
	binary.BigEndian.PutUint16(u[2:], serverPort)
	binary.BigEndian.PutUint16(u[4:], uint16(len(b)-ethLen-ipLen))
	binary.BigEndian.PutUint16(u[6:], 0) // no checksum (RFC 768)
}

// payload gives the DHCP message in a frame that passed the filter.
func payload(frame []byte) ([]byte, bool) {
	if len(frame) < ethLen+ipLen+udpLen {
		return nil, false
	}
	at := ethLen + int(frame[ethLen]&15)*4 + udpLen
	if len(frame) < at {
		return nil, false
	}
	return frame[at:], true
}
