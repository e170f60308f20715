package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// Tokens keeps what lets callers from elsewhere in.
type Tokens interface {
	// AddToken keeps the SHA-256 of a token's secret.
	AddToken(ctx context.Context, name string, hash []byte) error
	Tokens(ctx context.Context) ([]dsas.Token, error)
	// TokenByHash gives the name of the token with this hash, and may record
	// that it was used.
	TokenByHash(ctx context.Context, hash []byte) (name string, err error)
	DeleteToken(ctx context.Context, name string) error
}

type whoKey struct{}

// WithWho says in ctx who calls, for events.
func WithWho(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, whoKey{}, who)
}

// Who gives what WithWho said, or "operator".
func Who(ctx context.Context) string {
	if who, ok := ctx.Value(whoKey{}).(string); ok && who != "" {
		return who
	}
	return "operator"
}

// PeerCredentials is an http.Server's ConnContext for a unix socket: the
// caller is whom the kernel says it is (unix(7), SO_PEERCRED). Who may connect
// at all is the matter of the socket file's mode.
func PeerCredentials(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *syscall.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || cred == nil {
		return ctx
	}
	uid := strconv.FormatUint(uint64(cred.Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		return WithWho(ctx, u.Username)
	}
	return WithWho(ctx, "uid "+uid)
}

// RequireToken lets requests through that carry a known token
// (Authorization: Bearer SECRET); the others get 401.
func RequireToken(tokens Tokens, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := Authenticate(r, tokens)
		if err != nil {
			status := http.StatusUnauthorized
			if !errors.Is(err, dsas.ErrDenied) {
				status = http.StatusInternalServerError
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="dsas"`)
			writeJSON(w, status, errorBody{Error: err.Error()})
			return
		}
		next.ServeHTTP(w, r.WithContext(WithWho(r.Context(), "token "+name)))
	})
}

// Authenticate gives the name of the token that r carries. dsas.ErrDenied: it carries
// none that is known.
func Authenticate(r *http.Request, tokens Tokens) (name string, err error) {
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || secret == "" {
		return "", fmt.Errorf("no token given; make one on the server with `dsas token add NAME` and send it as Authorization: Bearer: %w", dsas.ErrDenied)
	}
	// The look-up is by hash, so its time tells nothing about the secret.
	hash := sha256.Sum256([]byte(secret))
	name, err = tokens.TokenByHash(r.Context(), hash[:])
	if errors.Is(err, dsas.ErrNotFound) {
		return "", fmt.Errorf("this token is not known here (any more): %w", dsas.ErrDenied)
	}
	if err != nil {
		return "", fmt.Errorf("look up token: %w", err)
	}
	return name, nil
}

func (a *api) needTokens() error {
	if a.Tokens == nil {
		return fmt.Errorf("tokens: this server keeps none: %w", dsas.ErrInvalid)
	}
	return nil
}

func (a *api) listTokens(r *http.Request) (answer, error) {
	if err := a.needTokens(); err != nil {
		return answer{}, err
	}
	ts, err := a.Tokens.Tokens(r.Context())
	return answer{body: list(ts)}, err
}

func (a *api) addToken(r *http.Request) (answer, error) {
	if err := a.needTokens(); err != nil {
		return answer{}, err
	}
	body, err := readBody(r)
	if err != nil {
		return answer{}, err
	}
	req, err := decode[struct {
		Name string `json:"name"`
	}](body)
	if err != nil {
		return answer{}, err
	}
	if err := dsas.CheckName("token", req.Name); err != nil {
		return answer{}, err
	}
	var random [32]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	secret := "dsas_" + base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(secret))
	t := dsas.Token{Name: req.Name, Created: time.Now()}
	if err := a.Tokens.AddToken(r.Context(), t.Name, hash[:]); err != nil {
		return answer{}, err
	}
	a.event(r.Context(), dsas.Event{Kind: dsas.KindServer, Message: fmt.Sprintf("token %s made, by %s", t.Name, a.Who(r.Context()))})
	return answer{status: http.StatusCreated, body: dsas.NewToken{Token: t, Secret: secret}}, nil
}

func (a *api) removeToken(r *http.Request) (answer, error) {
	if err := a.needTokens(); err != nil {
		return answer{}, err
	}
	name := chi.URLParam(r, "name")
	if err := a.Tokens.DeleteToken(r.Context(), name); err != nil {
		return answer{}, err
	}
	a.event(r.Context(), dsas.Event{Kind: dsas.KindServer, Message: fmt.Sprintf("token %s removed, by %s", name, a.Who(r.Context()))})
	return answer{}, nil
}
