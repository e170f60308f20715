package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"dsas"
)

var t0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func prefix(a, b byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, a, b}), 32)
}

func TestLimiterBacksOff(t *testing.T) {
	l := newLimiter()
	now := t0
	for i := range freeTries {
		if w := l.attempt(prefix(2, 1), now); w != 0 {
			t.Fatalf("attempt %d waits %s; want none", i+1, w)
		}
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
		want *= time.Second
		if got := l.attempt(prefix(2, 1), now); got != want {
			t.Errorf("attempt after many waits %s; want %s", got, want)
		}
		// One that was refused does not make it longer; another address is free.
		if got := l.attempt(prefix(2, 1), now.Add(want/2)); got != wholeSeconds(want-want/2) {
			t.Errorf("attempt half-way waits %s; want %s", got, wholeSeconds(want-want/2))
		}
		if got := l.attempt(prefix(2, 2), now); got != 0 {
			t.Errorf("another address's attempt waits %s; want none", got)
		}
		l.forget(prefix(2, 2))
		now = now.Add(want)
		if got := l.attempt(prefix(2, 1), now); got != 0 {
			t.Errorf("attempt after the wait waits %s; want none", got)
		}
	}
	l.forget(prefix(2, 1))
	if got := l.attempt(prefix(2, 1), now); got != 0 {
		t.Errorf("attempt after success waits %s; want none", got)
	}
	for range freeTries {
		l.attempt(prefix(2, 3), now)
	}
	if got := l.attempt(prefix(2, 3), now.Add(tryMemory+time.Second)); got != 0 {
		t.Errorf("attempt after an hour waits %s; want none", got)
	}
	for range freeTries - 1 { // an hour makes it begin anew
		if got := l.attempt(prefix(2, 3), now.Add(tryMemory+time.Second)); got != 0 {
			t.Errorf("attempt after an hour waits %s; want none", got)
		}
	}
}

func TestLimiterTotal(t *testing.T) {
	l := newLimiter()
	for i := range totalTries {
		if w := l.attempt(prefix(2, byte(i)), t0); w != 0 {
			t.Fatalf("attempt of address %d waits %s; want none", i, w)
		}
	}
	if got := l.attempt(prefix(3, 1), t0); got != totalEvery {
		t.Errorf("attempt beyond the total waits %s; want %s", got, totalEvery)
	}
	if got := l.attempt(prefix(3, 1), t0.Add(totalEvery)); got != 0 {
		t.Errorf("attempt after the wait waits %s; want none", got)
	}
	if got := l.attempt(prefix(3, 2), t0.Add(totalEvery)); got == 0 {
		t.Error("second attempt after the wait does not wait; want it to")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter()
	now := t0
	for i := range maxTracked + 100 {
		now = now.Add(totalEvery / 4)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		l.total = totalTries
		l.attempt(p, now)
	}
	if len(l.tries) > maxTracked {
		t.Errorf("%d addresses are remembered; want at most %d", len(l.tries), maxTracked)
	}
}

// Attempts made at the same time count as well.
func TestLimiterInParallel(t *testing.T) {
	l := newLimiter()
	var mu sync.Mutex
	passed := 0
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if l.attempt(prefix(2, 1), t0) == 0 {
				mu.Lock()
				passed++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if passed != freeTries {
		t.Errorf("%d attempts pass; want %d", passed, freeTries)
	}
}

func TestAddressOf(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:1234":          "192.0.2.1/32",
		"[::ffff:192.0.2.1]:1234": "192.0.2.1/32",
		"[2001:db8:1:2:3::4]:1":   "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1":        "fe80::/64",
		"@":                       "invalid Prefix",
	} {
		if got := addressOf(&http.Request{RemoteAddr: in}).String(); got != want {
			t.Errorf("addressOf(%s) = %s; want %s", in, got, want)
		}
	}
}

func TestPassword(t *testing.T) {
	const pw = "correct horse"
	h := hashPassword(pw)
	if strings.Contains(h, pw) || !strings.HasPrefix(h, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("hashPassword = %s; want a PHC string with its cost", h)
	}
	if h == hashPassword(pw) {
		t.Error("hashing twice gives the same; want another salt")
	}
	for in, want := range map[string]bool{pw: true, "": false, "correct horsf": false, pw + " ": false} {
		if got, err := verifyPassword(h, in); got != want || err != nil {
			t.Errorf("verifyPassword(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	// A cost other than today's is honoured: 64 KiB, one pass.
	salt, b64 := []byte("somesaltsomesalt"), base64.RawStdEncoding
	old := "$argon2id$v=19$m=64,t=1,p=1$" + b64.EncodeToString(salt) + "$" + b64.EncodeToString(argon2.IDKey([]byte(pw), salt, 1, 64, 1, 32))
	if ok, err := verifyPassword(old, pw); !ok || err != nil {
		t.Errorf("verifyPassword(older cost) = %v, %v; want true", ok, err)
	}
	for _, bad := range []string{"", "x", "$argon2i$v=19$m=64,t=1,p=1$YQ$YQ", strings.Replace(h, "m=19456", "m=999999999", 1),
		strings.Replace(h, "t=2", "t=0", 1), strings.Replace(h, "p=1", "p=0", 1), h + "!"} {
		if ok, err := verifyPassword(bad, pw); ok || !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("verifyPassword(hash %q) = %v, %v; want %v", bad, ok, err, dsas.ErrInvalid)
		}
	}
}
