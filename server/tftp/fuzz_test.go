package tftp

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// FuzzRequest: whatever comes to port 69, what is agreed on is within bounds.
func FuzzRequest(f *testing.F) {
	for _, s := range [][]byte{
		rrq(dir+"undionly.kpxe", "tsize", "0", "blksize", "1468", "windowsize", "4"), // OVMF
		rrq("pxelinux.cfg/default", "tsize", "0", "blksize", "1408"),                 // PXELINUX
		rrq("a", "blksize", "512", "timeout", "6", "tsize", "0"),                     // curl
		rrq("a", "rollover", "1", "windowsize", "65535", "blksize", "8"),
		[]byte("\x00\x01a\x00netascii\x00"), []byte("\x00\x02a\x00octet\x00"), []byte("\x00\x01a\x00octet"), {0}, nil,
		[]byte("\x00\x01a\x00octet\x00blksize\x00"), bytes.Repeat([]byte("\x00\x01"), 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(b)
		if err != nil {
			return
		}
		tr := transfer{req: q, size: 1 << 20}
		tr.agree(1468)
		if tr.blksize < 8 || tr.blksize > 1468 || tr.window < 1 || tr.window > maxWindow || tr.blocks != tr.size/int64(tr.blksize)+1 || tr.wait < time.Second || tr.wait > 255*time.Second {
			t.Errorf("parseRequest(%q) leads to blksize %d, window %d, %d blocks, wait %s", b, tr.blksize, tr.window, tr.blocks, tr.wait)
		}
		if tr.oack != nil && (len(tr.oack) > 200 || tr.oack[len(tr.oack)-1] != 0 || bytes.Count(tr.oack[2:], []byte{0})%2 != 0) {
			t.Errorf("parseRequest(%q) leads to OACK %q", b, tr.oack)
		}
		if tr.oack == nil && (tr.window != 1 || tr.blksize != 512) {
			t.Errorf("parseRequest(%q) agrees on something without an OACK", b)
		}
	})
}

// FuzzTransfer plays a client that sends any ACKs at any time. The window is
// never overrun, nothing beyond the file is read, before the first right
// answer no more than four packets go out, and it all ends.
func FuzzTransfer(f *testing.F) {
	f.Add(byte(1), byte(0), []byte{1, 1, 0, 2, 1, 0, 3, 1, 0})
	f.Add(byte(4), byte(4), []byte{1, 0, 0, 1, 2, 0, 1, 2, 0, 200, 0, 0, 1, 6, 0})
	f.Add(byte(64), byte(3), []byte{1, 0, 0, 255, 255, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, window, size byte, plays []byte) {
		q := request{rollover: -1}
		if window > 1 {
			q.option("windowsize", string('0'+window%10))
			q.option("blksize", "8")
		}
		tr := transfer{req: q, size: int64(size) * 100}
		tr.agree(1468)
		now, packets := time.Duration(0), 0
		send := func() {
			tr.round(now)
			if tr.oack != nil {
				packets++
				return
			}
			for {
				_, from, to, ok := tr.next()
				if !ok {
					return
				}
				if from < 0 || to < from || to > tr.size {
					t.Fatalf("block %d is %d to %d of %d", tr.sent+1, from, to, tr.size)
				}
				tr.sent++
				tr.high = max(tr.high, tr.sent)
				packets++
			}
		}
		check := func() {
			if tr.sent-tr.acked > tr.window || tr.acked > tr.sent || tr.sent > tr.blocks || tr.acked < 0 {
				t.Fatalf("acked %d, sent %d of %d with a window of %d", tr.acked, tr.sent, tr.blocks, tr.window)
			}
			if !tr.proven && packets > 1+maxUnproven {
				t.Fatalf("%d packets before an answer", packets)
			}
		}
		send()
		for ; len(plays) >= 3; plays = plays[3:] {
			now += time.Duration(plays[0]) * 20 * time.Millisecond
			v := tr.expire(now)
			if v == nothing {
				v = tr.ack(uint16(plays[2])<<8|uint16(plays[1]), now)
			}
			switch v {
			case sendOn:
				send()
			case finished:
				if tr.acked != tr.blocks {
					t.Fatalf("finished at %d of %d blocks", tr.acked, tr.blocks)
				}
				return
			case gaveUp:
				return
			}
			check()
		}
		for i := 0; ; i++ { // the client is gone
			now += 20 * time.Second
			v := tr.expire(now)
			if v == gaveUp {
				break
			}
			if i > 2*maxTries {
				t.Fatal("a client that is gone is never given up")
			}
			send()
			check()
		}
	})
}

// FuzzControl: the kernel's control messages are taken apart within bounds.
func FuzzControl(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 && len(b) < 16 {
			return
		}
		if a, _, direct := localAddr(b); direct && a.IsMulticast() && a.Is6() {
			t.Errorf("localAddr(%x) = %s, direct", b, a)
		}
	})
}

func TestSockaddr(t *testing.T) {
	for _, s := range []string{"10.1.2.3:69", "[2001:db8::1]:1024", "[::ffff:10.1.2.3]:7"} {
		want := netip.MustParseAddrPort(s)
		want = netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
		var sa sockaddr
		if sa.setAddr(want.Addr(), want.Port(), 3); sa.addrPort() != want {
			t.Errorf("sockaddr of %s = %s", want, sa.addrPort())
		}
	}
}

func TestWire(t *testing.T) {
	for _, tt := range []struct {
		n     int64
		toOne bool
		want  uint16
	}{{0, false, 0}, {65535, false, 65535}, {65536, false, 0}, {65537, false, 1}, {131072, false, 0}, {65535, true, 65535}, {65536, true, 1}, {131070, true, 65535}, {131071, true, 1}} {
		if got := wire(tt.n, tt.toOne); got != tt.want {
			t.Errorf("wire(%d, %t) = %d; want %d", tt.n, tt.toOne, got, tt.want)
		}
	}
}
