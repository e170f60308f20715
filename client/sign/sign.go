// Package sign signs and checks the requests that a node sends once it has a
// session key. Node and server share it, so that both hash the same bytes.
//
// The signed text is METHOD "\n" PATH?QUERY "\n" TIME "\n" NONCE "\n"
// hex(SHA256(body)), under HMAC-SHA256 with the boot's session key. It keeps
// accidents and other boxes out; it hides nothing.
package sign

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// The headers of a signed request.
const (
	HeaderBoot      = "Dsas-Boot"
	HeaderTime      = "Dsas-Time"
	HeaderNonce     = "Dsas-Nonce"
	HeaderSignature = "Dsas-Signature"
)

// MaxSkew is how far the time of a request may be from the server's clock.
const MaxSkew = 10 * time.Minute

// The reasons for which Verify refuses; met with errors.Is.
var (
	// ErrUnsigned: a header is missing or is not what its name says.
	ErrUnsigned = errors.New("request is not signed")
	// ErrSkew: signed well, but too long ago or in the future.
	ErrSkew = errors.New("request's time is too far from the server's clock")
	// ErrSignature: the signature does not fit request and key.
	ErrSignature = errors.New("signature does not fit")
)

// A nonce has 8 to 64 bytes, written in hex.
const minNonce, maxNonce = 16, 128

// NewNonce gives 16 random bytes in hex.
func NewNonce() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand, since Go 1.24)
	return hex.EncodeToString(b[:])
}

// Sign sets time, nonce and signature on req. Dsas-Boot is the caller's to
// set; body is what req will send. now is the server's time as the signer
// knows it.
func Sign(req *http.Request, key, body []byte, now time.Time, nonce string) {
	at := strconv.FormatInt(now.Unix(), 10)
	req.Header.Set(HeaderTime, at)
	req.Header.Set(HeaderNonce, nonce)
	req.Header.Set(HeaderSignature, hex.EncodeToString(mac(req, key, body, at, nonce)))
}

// Verify says whether r, whose body was read into body, was signed with key
// at most MaxSkew away from now. It keeps no state: a caller who wants each
// request to count only once remembers the nonces (HeaderNonce, valid hex after a nil
// error) of the last 2*MaxSkew.
func Verify(r *http.Request, key []byte, body []byte, now time.Time) error {
	at, nonce := r.Header.Get(HeaderTime), r.Header.Get(HeaderNonce)
	unix, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return fmt.Errorf("verify request: header %s %.40q is not unix seconds: %w", HeaderTime, at, ErrUnsigned)
	}
	if _, err := hex.DecodeString(nonce); err != nil || len(nonce) < minNonce || len(nonce) > maxNonce {
		return fmt.Errorf("verify request: header %s: want %d to %d hex digits: %w", HeaderNonce, minNonce, maxNonce, ErrUnsigned)
	}
	given, err := hex.DecodeString(r.Header.Get(HeaderSignature))
	if err != nil || len(given) != sha256.Size {
		return fmt.Errorf("verify request: header %s: want %d hex digits: %w", HeaderSignature, 2*sha256.Size, ErrUnsigned)
	}
	// An empty key would let anyone sign.
	if len(key) == 0 || !hmac.Equal(given, mac(r, key, body, at, nonce)) {
		return fmt.Errorf("verify request: %s %s: %w", r.Method, r.URL.Path, ErrSignature)
	}
	// Only now: the skew of a request that another box made says nothing.
	// Compared as integers, since a Duration overflows on an absurd time.
	limit := int64(MaxSkew / time.Second)
	if n := now.Unix(); unix < n-limit || unix > n+limit {
		return fmt.Errorf("verify request: time %d, clock here %d, at most %s apart: %w", unix, n, MaxSkew, ErrSkew)
	}
	return nil
}

// HeaderReply carries the signature of an answer's body.
const HeaderReply = "Dsas-Reply"

// Reply signs an answer to the request that carried nonce: HMAC-SHA256 over
// "reply\n" NONCE "\n" hex(SHA256(body)). What a running node takes from the
// server and writes as root must come from who knows its session key, and the
// nonce keeps an older answer from being played again.
func Reply(key []byte, nonce string, body []byte) string {
	sum := sha256.Sum256(body)
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "reply\n%s\n%s", nonce, hex.EncodeToString(sum[:]))
	return hex.EncodeToString(h.Sum(nil))
}

// VerifyReply says whether signature is Reply's.
func VerifyReply(key []byte, nonce string, body []byte, signature string) error {
	if len(key) == 0 || !hmac.Equal([]byte(signature), []byte(Reply(key, nonce, body))) {
		return fmt.Errorf("verify answer: %w", ErrSignature)
	}
	return nil
}

func mac(r *http.Request, key, body []byte, at, nonce string) []byte {
	sum := sha256.Sum256(body)
	h := hmac.New(sha256.New, key)
	// RequestURI is made from the parsed URL on both sides: no "?" without a query.
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s", r.Method, r.URL.RequestURI(), at, nonce, hex.EncodeToString(sum[:]))
	return h.Sum(nil)
}
