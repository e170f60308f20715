package sign

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzVerify: whatever the headers hold, only Sign's own signature passes, and
// only for what was signed.
func FuzzVerify(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	key := []byte("session key")
	good, err := http.NewRequest("POST", "http://h/node/events?a=b", nil)
	if err != nil {
		f.Fatal(err)
	}
	Sign(good, key, []byte("[]"), now, "0011223344556677")
	f.Add("POST", "/node/events?a=b", []byte("[]"), good.Header.Get(HeaderTime), "0011223344556677", good.Header.Get(HeaderSignature))
	f.Add("GET", "/", []byte{}, "9223372036854775807", "", strings.Repeat("00", 32))
	f.Add("GET", "/", []byte{}, "-9223372036854775808", strings.Repeat("f", 128), "zz")
	f.Add("GET", "/", []byte{}, "1e3", "0x", "")
	f.Fuzz(func(t *testing.T, method, path string, body []byte, at, nonce, signature string) {
		r, err := http.NewRequest(method, "http://h"+path, nil)
		if err != nil {
			return
		}
		r.Header = http.Header{HeaderTime: {at}, HeaderNonce: {nonce}, HeaderSignature: {signature}}
		if Verify(r, nil, body, now) == nil {
			t.Error("an empty key verifies")
		}
		same := method == good.Method && r.URL.RequestURI() == good.URL.RequestURI() && string(body) == "[]" && at == good.Header.Get(HeaderTime) && nonce == "0011223344556677"
		if Verify(r, key, body, now) == nil && !same {
			t.Errorf("Verify(%s %s, time %q, nonce %q) = nil; want an error: that was never signed", method, path, at, nonce)
		}
		if VerifyReply(key, nonce, body, signature) == nil && signature != Reply(key, nonce, body) {
			t.Error("VerifyReply took a signature that is not Reply's")
		}
	})
}
