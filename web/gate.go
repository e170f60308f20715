package web

import (
	"context"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"strings"

	"dsas"
)

// Gatekeeper lets operators in; package auth's Auth is one.
type Gatekeeper interface {
	CheckSetup(ctx context.Context, token string) error
	Setup(w http.ResponseWriter, r *http.Request, token, password string) error
	Login(w http.ResponseWriter, r *http.Request, password string) error
	Logout(w http.ResponseWriter, r *http.Request) error
}

// gatePage is what the log-in and set-up pages show.
type gatePage struct {
	Title, Action, Button, Token, Next, Error, Hint string
	New                                             bool // a password is being chosen
}

// Gate serves /login, /setup and, for those inside, /logout.
func Gate(k Gatekeeper, log *slog.Logger) http.Handler {
	tmpl := template.Must(template.ParseFS(pageFiles, "pages/gate.html"))
	show := func(w http.ResponseWriter, code int, p gatePage) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		if err := tmpl.Execute(w, p); err != nil {
			log.Error("render page", "page", "gate", "err", err)
		}
	}
	mux := http.NewServeMux()
	login := gatePage{Title: "Log in", Action: "/login", Button: "Log in"}
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		p := login
		p.Next = localPath(r.URL.Query().Get("next"))
		show(w, http.StatusOK, p)
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next := localPath(r.PostFormValue("next"))
		if err := k.Login(w, r, r.PostFormValue("password")); err != nil {
			p := login
			p.Error, p.Next = gateError(log, err), next
			show(w, statusOf(err), p)
			return
		}
		http.Redirect(w, r, next, http.StatusSeeOther)
	})
	setup := gatePage{Title: "Welcome: choose the operators' password", Action: "/setup", Button: "Set password", New: true, Hint: "At least 10 characters."}
	mux.HandleFunc("GET /setup", func(w http.ResponseWriter, r *http.Request) {
		p := setup
		p.Token = r.URL.Query().Get("token")
		code := http.StatusOK
		if err := k.CheckSetup(r.Context(), p.Token); err != nil {
			p.Error, p.Button, code = gateError(log, err), "", statusOf(err)
		}
		show(w, code, p)
	})
	mux.HandleFunc("POST /setup", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		p := setup
		p.Token = r.PostFormValue("token")
		if r.PostFormValue("password") != r.PostFormValue("again") {
			p.Error = "The two passwords differ."
			show(w, http.StatusBadRequest, p)
			return
		}
		if err := k.Setup(w, r, p.Token, r.PostFormValue("password")); err != nil {
			p.Error = gateError(log, err)
			show(w, statusOf(err), p)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := k.Logout(w, r); err != nil {
			log.Error("log out", "err", err)
		}
		http.Redirect(w, r, "/login", http.StatusSeeOther)
	})
	return Headers(http.NewCrossOriginProtection().Handler(mux))
}

// localPath keeps a redirect on this server. Browsers drop control signs from
// a URL and take \ for /.
func localPath(p string) string {
	if !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == '\\' }) {
		return "/"
	}
	return p
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, dsas.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, dsas.ErrInvalid):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// gateError is what somebody who is not let in may read of an error.
func gateError(log *slog.Logger, err error) string {
	if statusOf(err) == http.StatusInternalServerError {
		log.Error("log in", "err", err)
		return "The server could not check that; its log says why."
	}
	text := words(err)
	return strings.ToUpper(text[:1]) + text[1:] + "."
}
