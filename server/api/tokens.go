package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// Tokens keeps what lets callers from elsewhere in. Who looks at a caller's
// token is whoever serves the API.
type Tokens interface {
	// AddToken keeps the SHA-256 of a token's secret.
	AddToken(ctx context.Context, name string, hash []byte) error
	Tokens(ctx context.Context) ([]dsas.Token, error)
	DeleteToken(ctx context.Context, name string) error
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
	req, err := decode[struct {
		Name string `json:"name"`
	}](r)
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
