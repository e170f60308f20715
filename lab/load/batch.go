package load

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many frames go or come with one system call.
const batchSize = 64

// batch sends and takes in frames by many at a time (sendmmsg(2), recvmmsg(2)).
type batch struct {
	fd       int
	in       [batchSize][maxFrame]byte
	inIov    [batchSize]unix.Iovec
	inMsgs   [batchSize]mmsghdr
	outIov   [batchSize]unix.Iovec
	outMsgs  [batchSize]mmsghdr
	outCount int
}

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

func newBatch(fd int) *batch {
	b := &batch{fd: fd}
	for i := range batchSize {
		b.inIov[i].Base = &b.in[i][0]
		b.inIov[i].SetLen(maxFrame)
		b.inMsgs[i].hdr.Iov, b.outMsgs[i].hdr.Iov = &b.inIov[i], &b.outIov[i]
		b.inMsgs[i].hdr.SetIovlen(1)
		b.outMsgs[i].hdr.SetIovlen(1)
	}
	return b
}

// send sends frame with the next flush, or before; it must stay as it is until
// then.
func (b *batch) send(frame []byte) error {
	b.outIov[b.outCount].Base = &frame[0]
	b.outIov[b.outCount].SetLen(len(frame))
	if b.outCount++; b.outCount == batchSize {
		return b.flush()
	}
	return nil
}

// flush sends what waits.
func (b *batch) flush() error {
	for done := 0; done < b.outCount; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(b.fd), uintptr(unsafe.Pointer(&b.outMsgs[done])), uintptr(b.outCount-done), 0, 0, 0)
		switch errno {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS: // our own queue is full
			if err := b.poll(unix.POLLOUT, 10); err != nil {
				return err
			}
		default:
			b.outCount = 0
			return fmt.Errorf("send DHCP: %w", errno)
		}
	}
	b.outCount = 0
	return nil
}

// receive gives how many frames have come; they are in b.in until the next call.
func (b *batch) receive() int {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(b.fd), uintptr(unsafe.Pointer(&b.inMsgs[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 { // none, or the interface was down for a moment
		return 0
	}
	return int(n)
}

func (b *batch) frame(i int) []byte { return b.in[i][:b.inMsgs[i].n] }

// poll waits for the socket, for so many milliseconds at most.
func (b *batch) poll(events int16, ms int) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(b.fd), Events: events}}, ms)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}
