package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"dsas"
)

type (
	whoKey  struct{}
	peerKey struct{}
)

// peer is who is at the other end of a unix socket.
type peer struct {
	uid  uint32
	name string
}

func ownUID() uint32 { return uint32(os.Geteuid()) }

// Who names the caller, for events: "root via socket", "token ci", "operator";
// "nobody" for a request that did not pass Require.
func Who(ctx context.Context) string {
	if who, ok := ctx.Value(whoKey{}).(string); ok {
		return who
	}
	return "nobody"
}

// ConnContext is an http.Server's ConnContext: for a unix socket it notes who is
// at the other end, as the kernel says (unix(7), SO_PEERCRED).
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	sc, ok := c.(syscall.Conn)
	if !ok || c.LocalAddr().Network() != "unix" {
		return ctx
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return ctx
	}
	p := peer{uid: cred.Uid, name: "uid " + strconv.FormatUint(uint64(cred.Uid), 10)}
	if cred.Uid == 0 {
		p.name = "root"
	} else if u, err := user.LookupId(strconv.FormatUint(uint64(cred.Uid), 10)); err == nil {
		p.name = u.Username
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// Require lets a request pass to next that comes from root or our own user over
// the unix socket (from anybody over it, after TrustSocket), carries a valid token (Authorization: Bearer), or has the
// cookie of a session; next finds the caller's name with Who. Any other gets
// 401 and a JSON error below /api, and else is sent to /login. With a cookie, a
// request that changes something must come from our own pages: 403 otherwise.
func (a *Auth) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := a.identify(r)
		var no *refusal
		switch {
		case err == nil:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), whoKey{}, who)))
		case !errors.As(err, &no):
			// A failure of ours, whose text is not for everybody.
			a.log.Error("authenticate", "err", err)
			writeError(w, http.StatusInternalServerError, "the server could not check who you are; its log says why")
		case no.login && !isAPI(r):
			a.sendToLogin(w, r, no)
		default:
			if no.status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="dsas"`)
			}
			writeError(w, no.status, no.why)
		}
	})
}

// refusal says why a request does not pass.
type refusal struct {
	status int
	why    string
	login  bool // a person may log in and try again
}

func (e *refusal) Error() string { return e.why }

func (a *Auth) identify(r *http.Request) (who string, err error) {
	if p, ok := r.Context().Value(peerKey{}).(peer); ok && (p.uid == 0 || p.uid == a.uid || a.socket) {
		return p.name + " via socket", nil
	}
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return "", &refusal{status: http.StatusUnauthorized, why: "write the token as Authorization: Bearer TOKEN"}
		}
		name, err := a.store.TokenByHash(r.Context(), hashSecret(token))
		if errors.Is(err, dsas.ErrNotFound) {
			return "", &refusal{status: http.StatusUnauthorized, why: "this token is not known here (any more); make one on the server with `dsas token add NAME`"}
		}
		if err != nil {
			return "", fmt.Errorf("look up token: %w", err)
		}
		return "token " + name, nil
	}
	c, err := r.Cookie(cookieName(r))
	if err == nil {
		err = a.store.UseSession(r.Context(), hashSecret(c.Value), a.now(), idleTime)
		if err != nil && !errors.Is(err, dsas.ErrNotFound) {
			return "", fmt.Errorf("look up session: %w", err)
		}
	}
	if err != nil {
		return "", &refusal{status: http.StatusUnauthorized, login: true,
			why: "log in at /login, or send a token (dsas --token-file, else Authorization: Bearer), made on the server with `dsas token add NAME`"}
	}
	if !isSafe(r) && !fromOwnPage(r) {
		return "", &refusal{status: http.StatusForbidden, why: "this request came from another site; open the page itself and try again there"}
	}
	return "operator", nil
}

// sendToLogin answers a page's request as its kind can follow.
func (a *Auth) sendToLogin(w http.ResponseWriter, r *http.Request, no *refusal) {
	to := "/login"
	if isSafe(r) && r.URL.Path != "/" {
		to += "?next=" + url.QueryEscape(r.URL.RequestURI())
	}
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case r.Header.Get("HX-Request") != "":
		// htmx would put the log-in page into the middle of ours.
		w.Header().Set("HX-Redirect", "/login")
		http.Error(w, no.why, no.status)
	case strings.HasPrefix(r.Header.Get("Accept"), "text/event-stream"):
		http.Error(w, no.why, no.status)
	default:
		http.Redirect(w, r, to, http.StatusSeeOther)
	}
}

// isAPI tells whether a program asks, for which a log-in page is no answer.
func isAPI(r *http.Request) bool {
	return r.URL.Path == "/metrics" || r.URL.Path == "/readyz" || r.URL.Path == "/api" || strings.HasPrefix(r.URL.Path, "/api/")
}

// isSafe: the method changes nothing (RFC 9110 section 9.2.1).
func isSafe(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
}

// fromOwnPage tells whether a browser says that a page of ours, or the user's
// own hand, made the request. Sec-Fetch-Site decides where it is there;
// browsers leave it out over plain HTTP, where Origin must do.
func fromOwnPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "same-origin", "none":
		return true
	case "":
		u, err := url.Parse(r.Header.Get("Origin"))
		return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
	}
	return false
}

// notCrossSite refuses what a browser sends for another site. Without a cookie
// to misuse, a program that is no browser and says nothing may pass.
func notCrossSite(r *http.Request) error {
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" || fromOwnPage(r) {
		return nil
	}
	return fmt.Errorf("this request came from another site: %w", dsas.ErrDenied)
}

func writeError(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": why})
}
