package web

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
)

// said is what an action did, or why not, on its way over a redirect.
type said struct {
	Text  string   `json:"text"`
	Lines []string `json:"lines,omitempty"` // one for each node that something is wrong with
	Bad   bool     `json:"bad,omitempty"`
}

const (
	saidCookie = "dsas-said"
	maxSaid    = 1500 // bytes of text; a cookie holds 4096, in base64
	saidTime   = 60   // seconds
)

// putSaid leaves s for the next page. It is a cookie and not a part of the
// URL: nobody can make a link that puts words in the server's mouth.
func putSaid(w http.ResponseWriter, r *http.Request, s said) {
	left := maxSaid - len(s.Text)
	if left < 0 {
		s.Text, s.Lines = s.Text[:maxSaid]+"…", nil
	}
	for i, l := range s.Lines {
		if left -= len(l) + 3; left < 0 {
			s.Lines = append(s.Lines[:i:i], "… and more; the nodes' events have it")
			break
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return // strings and a bool: cannot be
	}
	http.SetCookie(w, cookie(r, base64.RawURLEncoding.EncodeToString(b), saidTime))
}

// takeSaid gives what was left for this page, once.
func takeSaid(w http.ResponseWriter, r *http.Request) *said {
	c, err := r.Cookie(saidCookie)
	if err != nil {
		return nil
	}
	http.SetCookie(w, cookie(r, "", -1))
	b, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil {
		return nil
	}
	var s said
	if json.Unmarshal(b, &s) != nil || s.Text == "" {
		return nil
	}
	return &s
}

func cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: saidCookie, Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	}
}
