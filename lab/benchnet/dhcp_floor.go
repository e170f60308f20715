package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"dsas/lab/load"
)

// floorDHCP is what no server can be faster than here: one thread that takes
// packets off a UDP socket by batches, looks at nothing but their type, and sends
// prepared answers off a packet socket by batches.
func floorDHCP() dhcpServer {
	return dhcpServer{name: "floor", reference: true, start: func(ctx context.Context, a *arena, _ string) (*program, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return a.start(ctx, self, "-child", "dhcp-floor")
	}}
}

// floorAnswer is an answer of the length that servers' have here, but for what
// is copied from the request.
func floorAnswer() (frame []byte) {
	const head, fixed = 42, 240
	f := make([]byte, head+fixed, head+fixed+120)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	f[14], f[22], f[23] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(f[34:], 67)
	binary.BigEndian.PutUint16(f[36:], 68)
	m := f[head:]
	m[0], m[1], m[2] = 2, 1, 6
	copy(m[16:], nodeAddr(0).AsSlice())
	binary.BigEndian.PutUint32(m[236:], 0x63825363)
	f = append(f, 53, 1, load.Offer, 54, 4, 10, 66, 0, 1, 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 0, 0, 255)
	f = f[:cap(f)] // the length of ours, 360 bytes of message
	binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
	binary.BigEndian.PutUint16(f[38:], uint16(len(f)-34))
	return f
}

// floorChild serves until ctx ends.
func floorChild(ctx context.Context) error {
	runtime.LockOSThread()
	ifi, err := net.InterfaceByName(linkName)
	if err != nil {
		return err
	}
	in, err1 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	out, err2 := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("open sockets: %w", err)
	}
	if err := errors.Join(
		unix.BindToDevice(in, linkName),
		unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.Bind(in, &unix.SockaddrInet4{Port: 67}),
		unix.Bind(out, &unix.SockaddrLinklayer{Ifindex: ifi.Index}),
	); err != nil {
		return fmt.Errorf("prepare sockets: %w", err)
	}
	got := newBatch()
	to := unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Protocol: binary.NativeEndian.Uint16([]byte{0x08, 0x00}), Ifindex: int32(ifi.Index), Halen: 6}
	var frames [len(got.msgs)][]byte
	var iov [len(got.msgs)]unix.Iovec
	msgs := got.msgs
	for i := range frames {
		frames[i] = floorAnswer()
		iov[i].Base = &frames[i][0]
		iov[i].SetLen(len(frames[i]))
		msgs[i].hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&to)), Namelen: unix.SizeofSockaddrLinklayer, Iov: &iov[i]}
		msgs[i].hdr.SetIovlen(1)
	}
	for ctx.Err() == nil {
		n := got.receive(in)
		if n == 0 {
			unix.Poll([]unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}, 100)
			continue
		}
		for i := range n {
			q, f := got.buf[i][:], frames[i]
			copy(f, q[28:34])               // the frame's destination
			copy(f[6:12], ifi.HardwareAddr) //
			copy(f[42+4:42+8], q[4:8])      // xid
			copy(f[42+28:42+44], q[28:44])  // chaddr
			f[42+242] = load.Offer          // the first option is the type, in requests too
			if q[242] == load.Request {
				f[42+242] = load.Ack
			}
		}
		unix.Syscall6(unix.SYS_SENDMMSG, uintptr(out), uintptr(unsafe.Pointer(&msgs[0])), uintptr(n), 0, 0, 0)
	}
	return nil
}
