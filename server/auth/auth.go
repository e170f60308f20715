// Package auth says who may use the operator's listener: the server's own root
// over the unix socket, programs with a token, and the operator who logged in
// with the password that a one-time link let them set.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"dsas"
)

const (
	setupTime = 24 * time.Hour // a setup link is good for
	idleTime  = 12 * time.Hour // a session ends when unused for
	// Password lengths: the least in characters, the most in bytes.
	minPassword = 10
	maxPassword = 1024
)

// Store is what auth keeps. Hashes are SHA-256 of random secrets, passwords are
// hashed by this package.
type Store interface {
	// PasswordHash: dsas.ErrNotFound while no password is set.
	PasswordHash(ctx context.Context) (string, error)
	// PutSetup replaces the setup token; dsas.ErrConflict where a password is set.
	PutSetup(ctx context.Context, hash []byte, expires time.Time) error
	// CheckSetup: dsas.ErrDenied for a token that may not set the password.
	CheckSetup(ctx context.Context, hash []byte, now time.Time) error
	// SetPassword uses the token up and sets the password, both or neither.
	SetPassword(ctx context.Context, setup []byte, now time.Time, passwordHash string) error
	// ClearPassword forgets the password and ends all sessions.
	ClearPassword(ctx context.Context) error

	AddSession(ctx context.Context, hash []byte, now time.Time, idle time.Duration) error
	// UseSession: dsas.ErrNotFound where there is none, or it was idle for too long.
	UseSession(ctx context.Context, hash []byte, now time.Time, idle time.Duration) error
	DeleteSession(ctx context.Context, hash []byte) error

	// TokenByHash gives an API token's name, or dsas.ErrNotFound.
	TokenByHash(ctx context.Context, hash []byte) (name string, err error)
}

// Auth decides who may pass. Its methods may be called concurrently.
type Auth struct {
	store  Store
	log    *slog.Logger
	now    func() time.Time
	uid    uint32 // our own
	socket bool   // whoever may connect to the unix socket may pass
	limit  *limiter
	hashes chan struct{} // held by whoever computes a password hash
}

// New makes an Auth over store.
func New(store Store, log *slog.Logger) *Auth {
	return &Auth{
		store: store, log: log, now: time.Now, uid: ownUID(), limit: newLimiter(),
		hashes: make(chan struct{}, 1), // argonMemory at a time is enough
	}
}

// TrustSocket lets everybody pass who can connect to the unix socket: its
// owner, group and mode then say who that is (unix(7)). Else only root and our
// own user may. Call it before the first request.
func (a *Auth) TrustSocket() { a.socket = true }

// SetupLink makes the one-time link below baseURL by which the first password is
// set: good for 24 hours, until used, or until the next link is made. It is ""
// when a password is set already. The link is a secret: print it, do not log it.
func (a *Auth) SetupLink(ctx context.Context, baseURL string) (string, error) {
	token, hash := newSecret()
	err := a.store.PutSetup(ctx, hash, a.now().Add(setupTime))
	if errors.Is(err, dsas.ErrConflict) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("make setup link: %w", err)
	}
	return strings.TrimSuffix(baseURL, "/") + "/setup?token=" + token, nil
}

// CheckSetup tells whether a link's token may set the password: nil, or
// dsas.ErrDenied with what to do. For showing the form; Setup checks again.
func (a *Auth) CheckSetup(ctx context.Context, token string) error {
	return a.store.CheckSetup(ctx, hashSecret(token), a.now())
}

// Setup answers the POST of a setup link: it sets the password and begins a
// session. dsas.ErrInvalid: the password is too short or too long;
// dsas.ErrDenied: the token is not good. It writes headers only.
func (a *Auth) Setup(w http.ResponseWriter, r *http.Request, token, password string) error {
	if err := notCrossSite(r); err != nil {
		return err
	}
	if err := CheckPassword(password); err != nil {
		return err
	}
	if err := a.CheckSetup(r.Context(), token); err != nil {
		return err // before the hash, which is dear
	}
	var hash string
	err := a.hashing(r.Context(), func() { hash = hashPassword(password) })
	if err != nil {
		return err
	}
	if err := a.store.SetPassword(r.Context(), hashSecret(token), a.now(), hash); err != nil {
		return err
	}
	a.log.Info("operator's password set", "from", r.RemoteAddr)
	return a.beginSession(w, r)
}

// CheckPassword says what is wrong with a new password, or nil.
func CheckPassword(p string) error {
	if n := utf8.RuneCountInString(p); n < minPassword {
		return fmt.Errorf("the password has %d characters; use at least %d: %w", n, minPassword, dsas.ErrInvalid)
	}
	if len(p) > maxPassword {
		return fmt.Errorf("the password has %d bytes; use at most %d: %w", len(p), maxPassword, dsas.ErrInvalid)
	}
	return nil
}

// Reset forgets the password and ends all sessions; SetupLink then gives the way
// to a new one. For the server's own root alone.
func (a *Auth) Reset(ctx context.Context) error { return a.store.ClearPassword(ctx) }

// Login checks the password and begins a session. dsas.ErrDenied: it is wrong,
// or not set; a *TooManyError, which is dsas.ErrDenied too: there were too many
// attempts. It writes headers only.
func (a *Auth) Login(w http.ResponseWriter, r *http.Request, password string) error {
	if err := notCrossSite(r); err != nil {
		return err
	}
	from := addressOf(r)
	// Counted before the password is looked at: attempts in parallel count too.
	if wait := a.limit.attempt(from, a.now()); wait > 0 {
		a.log.Warn("log-in refused: too many attempts", "from", from, "wait", wait)
		return &TooManyError{RetryAfter: wait}
	}
	hash, err := a.store.PasswordHash(r.Context())
	if errors.Is(err, dsas.ErrNotFound) {
		return fmt.Errorf("no password is set yet: open the link that the server printed when it started: %w", dsas.ErrDenied)
	}
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	ok := false
	if len(password) <= maxPassword {
		if err := a.hashing(r.Context(), func() { ok, err = verifyPassword(hash, password) }); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("log in: %w", err)
		}
	}
	if !ok {
		a.log.Warn("log-in refused: wrong password", "from", from)
		return fmt.Errorf("wrong password: %w", dsas.ErrDenied)
	}
	a.limit.forget(from)
	a.log.Info("operator logged in", "from", from)
	return a.beginSession(w, r)
}

// Logout ends r's session, if it has one, and removes its cookie. Serve it below
// Require, which keeps other sites from calling it. It writes headers only.
func (a *Auth) Logout(w http.ResponseWriter, r *http.Request) error {
	c, err := r.Cookie(cookieName(r))
	if err != nil {
		return nil
	}
	http.SetCookie(w, a.cookie(r, "", -1))
	return a.store.DeleteSession(r.Context(), hashSecret(c.Value))
}

// hashing runs f, one at a time: each takes argonMemory.
func (a *Auth) hashing(ctx context.Context, f func()) error {
	select {
	case a.hashes <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.hashes }()
	f()
	return nil
}

func (a *Auth) beginSession(w http.ResponseWriter, r *http.Request) error {
	if c, err := r.Cookie(cookieName(r)); err == nil {
		if err := a.store.DeleteSession(r.Context(), hashSecret(c.Value)); err != nil {
			return err
		}
	}
	secret, hash := newSecret()
	if err := a.store.AddSession(r.Context(), hash, a.now(), idleTime); err != nil {
		return err
	}
	http.SetCookie(w, a.cookie(r, secret, 0))
	return nil
}

// cookieName is one that only a secure response of this very host can set,
// where there is TLS ("__Host-", RFC 6265bis section 4.1.3.2).
func cookieName(r *http.Request) string {
	if r.TLS != nil {
		return "__Host-dsas"
	}
	return "dsas"
}

func (a *Auth) cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: cookieName(r), Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	}
}

// newSecret gives 32 random bytes in base64url and the hash that is kept.
func newSecret() (secret string, hash []byte) {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	secret = base64.RawURLEncoding.EncodeToString(b)
	return secret, hashSecret(secret)
}

// hashSecret is good enough for secrets that are random; passwords are not.
func hashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}
