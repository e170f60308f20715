package storm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// What OVMF's PXE asks for.
const (
	tftpBlock  = 1468
	tftpWindow = 4
	tftpTries  = 6
)

var errTFTP = errors.New("the server says")

// tftpGet reads a file as UEFI does (RFC 1350, 2347, 2348, 2349, 7440): blksize
// 1468 and windowsize 4. It gives the file's length in bytes.
func tftpGet(ctx context.Context, from, server netip.Addr, file string, retry func(time.Duration)) (int64, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		return 0, fmt.Errorf("TFTP: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	t := transfer{conn: conn, peer: netip.AddrPortFrom(server, 69), block: 512, window: 1}
	for _, s := range []string{"\x00\x01" + file, "octet", "tsize", "0", "blksize", strconv.Itoa(tftpBlock), "windowsize", strconv.Itoa(tftpWindow)} {
		t.last = append(append(t.last, s...), 0)
	}
	n, err := t.run(ctx, retry)
	if err != nil {
		return n, fmt.Errorf("TFTP %s: %w", file, err)
	}
	return n, nil
}

type transfer struct {
	conn          *net.UDPConn
	peer          netip.AddrPort // port 69 until the first answer
	known         bool           // peer's port is
	last          []byte         // what is sent again after a silence
	block, window int
	next          uint16 // block wanted
	inWindow      int
	size, got     int64
}

func (t *transfer) send(b []byte) error {
	t.last = b
	_, err := t.conn.WriteToUDPAddrPort(b, t.peer)
	return err
}

func (t *transfer) ack(block uint16) error {
	t.inWindow = 0
	return t.send(binary.BigEndian.AppendUint16([]byte{0, 4}, block))
}

func (t *transfer) run(ctx context.Context, retry func(time.Duration)) (int64, error) {
	t.next, t.size = 1, -1
	buf := make([]byte, 2048)
	if err := t.send(t.last); err != nil {
		return 0, err
	}
	pause, silent := time.Second, 0
	for {
		if ctx.Err() != nil {
			return t.got, ctx.Err()
		}
		t.conn.SetReadDeadline(time.Now().Add(pause))
		n, from, err := t.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return t.got, ctx.Err()
			}
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				return t.got, err
			}
			if silent++; silent == tftpTries {
				return t.got, fmt.Errorf("no answer to %d tries", silent)
			}
			retry(pause)
			pause = min(2*pause, 4*time.Second)
			if err := t.send(t.last); err != nil {
				return t.got, err
			}
			continue
		}
		if n < 4 || from.Addr() != t.peer.Addr() || t.known && from != t.peer {
			continue
		}
		pause, silent = time.Second, 0
		done, err := t.take(from, buf[:n])
		if done || err != nil {
			return t.got, err
		}
	}
}

// take handles one packet.
func (t *transfer) take(from netip.AddrPort, p []byte) (done bool, err error) {
	switch p[1] {
	case 5:
		return false, fmt.Errorf("%w: %q", errTFTP, bytes.TrimRight(p[4:], "\x00"))
	case 6: // OACK
		if t.known {
			return false, nil
		}
		t.peer, t.known = from, true
		if err := t.options(string(p[2:])); err != nil {
			return false, err
		}
		return false, t.ack(0)
	case 3:
		t.peer, t.known = from, true
		block := binary.BigEndian.Uint16(p[2:])
		if block != t.next {
			// A gap, or what came twice: say once per window where we are.
			if t.inWindow++; t.inWindow >= t.window {
				return false, t.ack(t.next - 1)
			}
			return false, nil
		}
		t.next++
		t.got += int64(len(p) - 4)
		t.inWindow++
		if len(p)-4 < t.block {
			if t.size >= 0 && t.got != t.size {
				return true, fmt.Errorf("%d bytes came, and tsize said %d", t.got, t.size)
			}
			return true, t.ack(block)
		}
		if t.inWindow >= t.window {
			return false, t.ack(block)
		}
	}
	return false, nil
}

// options reads the OACK's: names and values, each ended by a zero.
func (t *transfer) options(s string) error {
	f := strings.Split(strings.TrimRight(s, "\x00"), "\x00")
	for i := 0; i+1 < len(f); i += 2 {
		v, err := strconv.ParseInt(f[i+1], 10, 64)
		if err != nil {
			return fmt.Errorf("option %q=%q: %w", f[i], f[i+1], err)
		}
		switch strings.ToLower(f[i]) {
		case "blksize":
			t.block = int(v)
		case "windowsize":
			t.window = int(v)
		case "tsize":
			t.size = v
		}
	}
	return nil
}
