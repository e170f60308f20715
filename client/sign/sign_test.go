package sign_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dsas/client/sign"
)

var (
	key  = []byte("0123456789abcdef0123456789abcdef")
	when = time.Unix(1_800_000_000, 0)
)

const nonce = "00112233445566778899aabbccddeeff"

func signed(body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/node/events?x=1&y=%2F", strings.NewReader(body))
	sign.Sign(r, key, []byte(body), when, nonce)
	return r
}

// The text that is signed is part of the contract: a change of it locks out
// every node that boots an older initramfs.
func TestSignIsTheContract(t *testing.T) {
	// printf 'POST\n/node/events?x=1&y=%%2F\n1800000000\n00112233445566778899aabbccddeeff\n%s' \
	//   "$(printf hello | sha256sum | cut -d' ' -f1)" | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
	const want = "84bc18f51aff6e8c50af67cb6301d141902a3d595b5843df99d66fd399262818"
	r := signed("hello")
	if got := r.Header.Get(sign.HeaderSignature); got != want {
		t.Errorf("signature = %s; want %s", got, want)
	}
	if got := r.Header.Get(sign.HeaderTime); got != "1800000000" {
		t.Errorf("time = %s; want unix seconds", got)
	}
}

func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *http.Request)
		body   string
		key    []byte
		now    time.Time
		want   error
	}{
		"as signed":        {},
		"10 min later":     {now: when.Add(sign.MaxSkew)},
		"10 min before":    {now: when.Add(-sign.MaxSkew)},
		"later than that":  {now: when.Add(sign.MaxSkew + time.Second), want: sign.ErrSkew},
		"before that":      {now: when.Add(-sign.MaxSkew - time.Second), want: sign.ErrSkew},
		"another body":     {body: "other", want: sign.ErrSignature},
		"another key":      {key: []byte("x"), want: sign.ErrSignature},
		"another method":   {change: func(r *http.Request) { r.Method = http.MethodPut }, want: sign.ErrSignature},
		"another path":     {change: func(r *http.Request) { r.URL.Path = "/node/heartbeat" }, want: sign.ErrSignature},
		"another query":    {change: func(r *http.Request) { r.URL.RawQuery = "x=2" }, want: sign.ErrSignature},
		"another time":     {change: func(r *http.Request) { r.Header.Set(sign.HeaderTime, "1800000001") }, want: sign.ErrSignature},
		"absurd time":      {change: func(r *http.Request) { r.Header.Set(sign.HeaderTime, "-9223372036854775808") }, want: sign.ErrSignature},
		"no time":          {change: func(r *http.Request) { r.Header.Del(sign.HeaderTime) }, want: sign.ErrUnsigned},
		"another nonce":    {change: func(r *http.Request) { r.Header.Set(sign.HeaderNonce, strings.Repeat("0", 32)) }, want: sign.ErrSignature},
		"nonce not hex":    {change: func(r *http.Request) { r.Header.Set(sign.HeaderNonce, strings.Repeat("x", 32)) }, want: sign.ErrUnsigned},
		"nonce too long":   {change: func(r *http.Request) { r.Header.Set(sign.HeaderNonce, strings.Repeat("0", 130)) }, want: sign.ErrUnsigned},
		"no nonce":         {change: func(r *http.Request) { r.Header.Del(sign.HeaderNonce) }, want: sign.ErrUnsigned},
		"no signature":     {change: func(r *http.Request) { r.Header.Del(sign.HeaderSignature) }, want: sign.ErrUnsigned},
		"half a signature": {change: func(r *http.Request) { r.Header.Set(sign.HeaderSignature, "abcd") }, want: sign.ErrUnsigned},
	} {
		r := signed("hello")
		if c.change != nil {
			c.change(r)
		}
		body, k, now := "hello", key, when
		if c.body != "" {
			body = c.body
		}
		if c.key != nil {
			k = c.key
		}
		if !c.now.IsZero() {
			now = c.now
		}
		if err := sign.Verify(r, k, []byte(body), now); !errors.Is(err, c.want) {
			t.Errorf("Verify(%s) = %v; want %v", name, err, c.want)
		}
	}
}

// Without a key nobody may pass, who signs without one neither.
func TestVerifyEmptyKey(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/node/events", nil)
	sign.Sign(r, nil, nil, when, nonce)
	if err := sign.Verify(r, nil, nil, when); !errors.Is(err, sign.ErrSignature) {
		t.Errorf("Verify(no key) = %v; want %v", err, sign.ErrSignature)
	}
}

func TestNonce(t *testing.T) {
	if a, b := sign.NewNonce(), sign.NewNonce(); len(a) != 32 || a == b {
		t.Errorf("NewNonce() = %q, %q; want two of 32 digits", a, b)
	}
}

func TestReply(t *testing.T) {
	key, nonce, body := []byte("session key"), sign.NewNonce(), []byte(`{"tag":"a"}`)
	sig := sign.Reply(key, nonce, body)
	if err := sign.VerifyReply(key, nonce, body, sig); err != nil {
		t.Errorf("VerifyReply of a good answer = %v; want nil", err)
	}
	for what, err := range map[string]error{
		"another body":  sign.VerifyReply(key, nonce, []byte(`{"tag":"b"}`), sig),
		"another nonce": sign.VerifyReply(key, sign.NewNonce(), body, sig),
		"another key":   sign.VerifyReply([]byte("other"), nonce, body, sig),
		"no signature":  sign.VerifyReply(key, nonce, body, ""),
		"no key":        sign.VerifyReply(nil, nonce, body, sign.Reply(nil, nonce, body)),
	} {
		if !errors.Is(err, sign.ErrSignature) {
			t.Errorf("VerifyReply with %s = %v; want ErrSignature", what, err)
		}
	}
}
