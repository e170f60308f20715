// Package uevent receives the kernel's messages about devices that come and
// go (NETLINK_KOBJECT_UEVENT), so that nobody has to sleep and look again.
package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds the burst of a bus that finds all its devices at once.
const receiveBuffer = 4 << 20

// ErrLost tells that messages were dropped: look at /sys again.
var ErrLost = errors.New("uevents were lost")

// Event is one message.
type Event struct {
	Action  string            // "add", "remove", "change", "bind", ...
	DevPath string            // below /sys
	Env     map[string]string // SUBSYSTEM, MODALIAS, DEVNAME, ...
}

// Conn receives messages from when it was opened. Not for concurrent use.
type Conn struct {
	file *os.File
}

// Listen opens a Conn.
func Listen() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	// Group 1 is the kernel's own; a udev would speak on 2. Port 0 lets the
	// kernel choose one, so that several listeners can be in one process.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	// Without the right to go over the limit the default has to do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	return &Conn{file: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Close ends the Conn.
func (c *Conn) Close() error { return c.file.Close() }

// Next waits for the next message until ctx ends.
func (c *Conn) Next(ctx context.Context) (Event, error) {
	if err := c.file.SetReadDeadline(time.Time{}); err != nil {
		return Event{}, fmt.Errorf("read uevent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10) // a message is at most UEVENT_BUFFER_SIZE (2 KiB) and its header
	for {
		n, err := c.file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return Event{}, ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return Event{}, ErrLost
		case err != nil:
			return Event{}, fmt.Errorf("read uevent: %w", err)
		}
		if e, ok := Parse(buf[:n]); ok {
			return e, nil
		}
	}
}

// Parse reads a message: "add@/devices/..." and KEY=value strings, each ended
// by NUL (the kernel's lib/kobject_uevent.c).
func Parse(msg []byte) (Event, bool) {
	parts := bytes.Split(bytes.TrimRight(msg, "\x00"), []byte{0})
	action, path, ok := strings.Cut(string(parts[0]), "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return Event{}, false
	}
	e := Event{Action: action, DevPath: path, Env: make(map[string]string, len(parts))}
	for _, p := range parts[1:] {
		if k, v, ok := strings.Cut(string(p), "="); ok {
			e.Env[k] = v
		}
	}
	return e, true
}
