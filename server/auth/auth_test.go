package auth_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dsas"
	"dsas/server/auth"
	"dsas/server/store"
)

const password = "correct horse battery"

var t0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// fixture is an operator's listener as cmd wires it, over a real store.
type fixture struct {
	t     *testing.T
	auth  *auth.Auth
	store *store.Store
	dir   string
	srv   *httptest.Server
	http  *http.Client // a browser: cookies, follows no redirect
	log   lockedBuffer

	mu   sync.Mutex
	time time.Time
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, tls bool) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), time: t0}
	s, err := store.Open(t.Context(), filepath.Join(f.dir, "dsas.db"), filepath.Join(f.dir, "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	f.store = s
	f.auth = auth.New(s, slog.New(slog.NewTextHandler(&f.log, nil)))
	f.auth.SetClock(f.now)
	f.srv = httptest.NewUnstartedServer(f.handler())
	if tls {
		f.srv.StartTLS()
	} else {
		f.srv.Start()
	}
	t.Cleanup(f.srv.Close)
	f.http = f.browser()
	return f
}

func (f *fixture) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return &http.Client{Transport: f.srv.Client().Transport, Jar: jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.time
}

func (f *fixture) later(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.time = f.time.Add(d)
}

// handler answers what needs a log-in with the caller's name.
func (f *fixture) handler() http.Handler {
	answer := func(w http.ResponseWriter, err error) {
		var many *auth.TooManyError
		switch {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.As(err, &many):
			w.Header().Set("Retry-After", fmt.Sprint(int(many.RetryAfter.Seconds())))
			http.Error(w, err.Error(), http.StatusTooManyRequests)
		case errors.Is(err, dsas.ErrDenied):
			http.Error(w, err.Error(), http.StatusForbidden)
		case errors.Is(err, dsas.ErrInvalid):
			http.Error(w, err.Error(), http.StatusBadRequest)
		default:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		answer(w, f.auth.Login(w, r, r.FormValue("password")))
	})
	mux.HandleFunc("POST /setup", func(w http.ResponseWriter, r *http.Request) {
		answer(w, f.auth.Setup(w, r, r.FormValue("token"), r.FormValue("password")))
	})
	mux.Handle("POST /logout", f.auth.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, f.auth.Logout(w, r))
	})))
	mux.Handle("/", f.auth.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, auth.Who(r.Context()))
	})))
	return mux
}

// do sends a request with headers "Name: value" and gives status and body.
func (f *fixture) do(c *http.Client, method, path string, form url.Values, headers ...string) (*http.Response, string) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.srv.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, strings.TrimSpace(string(body))
}

// want does a request and wants a status and a body that contains words.
func (f *fixture) want(status int, words string, c *http.Client, method, path string, form url.Values, headers ...string) *http.Response {
	f.t.Helper()
	resp, body := f.do(c, method, path, form, headers...)
	if resp.StatusCode != status || !strings.Contains(body, words) {
		f.t.Errorf("%s %s %v = %d %q; want %d with %q", method, path, headers, resp.StatusCode, body, status, words)
	}
	return resp
}

func (f *fixture) setupToken() string {
	f.t.Helper()
	link, err := f.auth.SetupLink(f.t.Context(), "https://dsas.example:8443/")
	if err != nil {
		f.t.Fatal(err)
	}
	token, ok := strings.CutPrefix(link, "https://dsas.example:8443/setup?token=")
	if !ok || len(token) != 43 {
		f.t.Fatalf("SetupLink = %q; want https://dsas.example:8443/setup?token= and 32 bytes in base64", link)
	}
	return token
}

func pass(token, pw string) url.Values { return url.Values{"token": {token}, "password": {pw}} }

func (f *fixture) setUp() {
	f.t.Helper()
	f.want(204, "", f.http, "POST", "/setup", pass(f.setupToken(), password))
}

func TestSetup(t *testing.T) {
	f := start(t, false)
	f.want(403, "no password is set", f.http, "POST", "/login", pass("", password))
	old, token := f.setupToken(), f.setupToken()
	f.want(403, "setup link", f.http, "POST", "/setup", pass(old, password))
	f.want(403, "setup link", f.http, "POST", "/setup", pass("", password))
	f.want(400, "at least 10", f.http, "POST", "/setup", pass(token, "ten_chars"))
	f.want(400, "at most 1024", f.http, "POST", "/setup", pass(token, strings.Repeat("x", 1025)))
	f.want(403, "another site", f.http, "POST", "/setup", pass(token, password), "Sec-Fetch-Site: cross-site")
	f.later(24 * time.Hour)
	if err := f.auth.CheckSetup(t.Context(), token); !errors.Is(err, dsas.ErrDenied) {
		t.Errorf("CheckSetup(a day old) = %v; want %v", err, dsas.ErrDenied)
	}
	f.want(403, "setup link", f.http, "POST", "/setup", pass(token, password))
	token = f.setupToken()
	if err := f.auth.CheckSetup(t.Context(), token); err != nil {
		t.Errorf("CheckSetup = %v; want nil", err)
	}
	f.want(204, "", f.http, "POST", "/setup", pass(token, password), "Sec-Fetch-Site: same-origin")
	f.want(200, "operator", f.http, "GET", "/", nil) // and logs in
	f.want(403, "setup link", f.http, "POST", "/setup", pass(token, "another password"))
	link, err := f.auth.SetupLink(t.Context(), "http://x")
	if link != "" || err != nil {
		t.Errorf("SetupLink(password set) = %q, %v; want none", link, err)
	}

	if err := f.auth.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(303, "", f.http, "GET", "/", nil)
	f.want(403, "no password is set", f.http, "POST", "/login", pass("", password))
	f.want(204, "", f.http, "POST", "/setup", pass(f.setupToken(), "another password"))
	f.want(204, "", f.browser(), "POST", "/login", pass("", "another password"))
}

func TestLoginAndLogout(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			f := start(t, tls)
			f.setUp()
			b := f.browser()
			f.want(403, "wrong password", b, "POST", "/login", pass("", password+"x"))
			f.want(403, "wrong password", b, "POST", "/login", pass("", strings.Repeat("x", 5000)))
			f.want(303, "", b, "GET", "/", nil)
			f.want(403, "another site", b, "POST", "/login", pass("", password), "Origin: https://evil.example")
			resp := f.want(204, "", b, "POST", "/login", pass("", password), "Origin: "+f.srv.URL)
			if len(resp.Cookies()) != 1 {
				t.Fatalf("log-in sets %d cookies; want 1", len(resp.Cookies()))
			}
			c := resp.Cookies()[0]
			if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure != tls || c.Path != "/" || len(c.Value) != 43 ||
				strings.HasPrefix(c.Name, "__Host-") != tls {
				t.Errorf("cookie = %s; want HttpOnly, SameSite=Strict, Path=/, 32 bytes, Secure and __Host- %v", c, tls)
			}
			f.want(200, "operator", b, "GET", "/api/v1/nodes", nil)

			// Logging in again ends the session that was.
			f.want(204, "", b, "POST", "/login", pass("", password))
			f.want(303, "", f.browser(), "GET", "/", nil, "Cookie: "+c.Name+"="+c.Value)
			f.want(200, "operator", b, "GET", "/", nil)

			resp = f.want(204, "", b, "POST", "/logout", nil, "Sec-Fetch-Site: same-origin")
			if len(resp.Cookies()) != 1 || resp.Cookies()[0].MaxAge >= 0 {
				t.Errorf("log-out sets cookies %v; want one removed", resp.Cookies())
			}
			f.want(303, "", b, "GET", "/", nil)
		})
	}
}

func TestSessionEndsWhenIdle(t *testing.T) {
	f := start(t, false)
	f.setUp()
	for range 3 {
		f.later(12*time.Hour - time.Minute)
		f.want(200, "operator", f.http, "GET", "/", nil)
	}
	f.later(12 * time.Hour)
	f.want(303, "", f.http, "GET", "/", nil)
}

func TestLoginIsLimited(t *testing.T) {
	f := start(t, false)
	f.setUp()
	b := f.browser()
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for range 20 {
		wg.Go(func() {
			resp, _ := f.do(b, "POST", "/login", pass("", "wrong password"))
			mu.Lock()
			defer mu.Unlock()
			got[resp.StatusCode]++
			if resp.StatusCode == 429 && resp.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After = %q; want 1", resp.Header.Get("Retry-After"))
			}
		})
	}
	wg.Wait()
	if got[403] != 5 || got[429] != 15 {
		t.Errorf("20 wrong log-ins = %v; want 5 times 403, 15 times 429", got)
	}
	f.want(429, "try again in 1s", b, "POST", "/login", pass("", password)) // the right one as well
	f.want(200, "operator", f.http, "GET", "/", nil)                        // who is in stays in
	f.later(time.Second)
	f.want(204, "", b, "POST", "/login", pass("", password))
	for range 5 { // and that made it begin anew
		f.want(403, "wrong", b, "POST", "/login", pass("", "wrong password"))
	}
	f.want(429, "", b, "POST", "/login", pass("", password))
}

func TestRequireRefuses(t *testing.T) {
	f := start(t, false)
	f.setUp()
	b := f.browser()
	for _, c := range []struct {
		method, path string
		headers      []string
		status       int
		location     string
	}{
		{"GET", "/", nil, 303, "/login"},
		{"GET", "/nodes/w1?a=b&c=d", nil, 303, "/login?next=%2Fnodes%2Fw1%3Fa%3Db%26c%3Dd"},
		{"POST", "/nodes/w1", nil, 303, "/login"},
		{"GET", "/", []string{"Cookie: dsas=made-up"}, 303, "/login"},
		{"GET", "/", []string{"Cookie: __Host-dsas=made-up"}, 303, "/login"},
		{"GET", "/stream", []string{"Accept: text/event-stream"}, 401, ""},
		{"POST", "/nodes", []string{"HX-Request: true"}, 401, ""},
		{"GET", "/api/v1/nodes", nil, 401, ""},
		{"GET", "/api", nil, 401, ""},
		{"POST", "/api/v1/power", nil, 401, ""},
		{"GET", "/api/v1/nodes", []string{"Authorization: Bearer made-up"}, 401, ""},
		{"GET", "/nodes", []string{"Authorization: Bearer made-up"}, 401, ""}, // a program: no use in a log-in page
		{"GET", "/api/v1/nodes", []string{"Authorization: Basic cm9vdDpyb290"}, 401, ""},
		{"GET", "/api/v1/nodes", []string{"Authorization: Bearer"}, 401, ""},
	} {
		resp, body := f.do(b, c.method, c.path, nil, c.headers...)
		if resp.StatusCode != c.status || resp.Header.Get("Location") != c.location {
			t.Errorf("%s %s %v = %d to %q; want %d to %q", c.method, c.path, c.headers, resp.StatusCode, resp.Header.Get("Location"), c.status, c.location)
		}
		if strings.HasPrefix(c.path, "/api") {
			var e struct{ Error string }
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == "" || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s %s = %q, %q; want a JSON error and WWW-Authenticate", c.method, c.path, body, resp.Header.Get("WWW-Authenticate"))
			}
		}
		if c.headers != nil && c.headers[0] == "HX-Request: true" && resp.Header.Get("HX-Redirect") != "/login" {
			t.Errorf("HX-Redirect = %q; want /login", resp.Header.Get("HX-Redirect"))
		}
	}
	if got := auth.Who(t.Context()); got != "nobody" {
		t.Errorf("Who = %q; want nobody", got)
	}
}

func TestToken(t *testing.T) {
	f := start(t, false)
	const secret = "dsas_s3cret"
	hash := sha256.Sum256([]byte(secret))
	if err := f.store.AddToken(t.Context(), "ci", hash[:]); err != nil {
		t.Fatal(err)
	}
	b := f.browser()
	// A browser would not send it on its own, so where it comes from is no matter.
	f.want(200, "token ci", b, "POST", "/api/v1/power", nil, "Authorization: Bearer "+secret, "Sec-Fetch-Site: cross-site")
	f.want(200, "token ci", b, "GET", "/", nil, "Authorization: bearer "+secret)
	f.want(401, "not known", b, "GET", "/api/v1/nodes", nil, "Authorization: Bearer "+secret+"x")
	if err := f.store.DeleteToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	f.want(401, "not known", b, "GET", "/api/v1/nodes", nil, "Authorization: Bearer "+secret)
}

func TestCSRF(t *testing.T) {
	f := start(t, false)
	f.setUp()
	host := strings.TrimPrefix(f.srv.URL, "http://")
	for _, c := range []struct {
		headers []string
		ok      bool
	}{
		{[]string{"Sec-Fetch-Site: same-origin"}, true},
		{[]string{"Sec-Fetch-Site: none"}, true},
		{[]string{"Sec-Fetch-Site: same-site"}, false},
		{[]string{"Sec-Fetch-Site: cross-site"}, false},
		{[]string{"Sec-Fetch-Site: cross-site", "Origin: http://" + host}, false},
		{[]string{"Origin: http://" + host}, true},
		{[]string{"Origin: https://" + host}, true}, // TLS may end before us
		{[]string{"Origin: http://evil.example"}, false},
		{[]string{"Origin: http://evil.example/" + host}, false},
		{[]string{"Origin: http://" + host + ".evil.example"}, false},
		{[]string{"Origin: http://127.0.0.1:1"}, false},
		{[]string{"Origin: null"}, false},
		{[]string{"Referer: http://" + host + "/"}, false},
		{nil, false},
	} {
		for _, path := range []string{"/api/v1/power", "/nodes/w1"} {
			for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
				status, words := 403, "another site"
				if c.ok {
					status, words = 200, "operator"
				}
				f.want(status, words, f.http, method, path, nil, c.headers...)
			}
			f.want(200, "operator", f.http, "GET", path, nil, c.headers...)
		}
	}
}

// unixClient speaks HTTP over connections that dial gives.
func unixClient(dial func() (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return dial() }}}
}

// dialAs connects to the abstract socket name as another user: SO_PEERCRED has
// the user of the thread that called connect.
func dialAs(name string, uid int) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its user
		var r result
		defer func() { done <- r }()
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			r.err = e
			return
		}
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			r.err = err
			return
		}
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		if r.err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: name}); r.err == nil {
			r.c, r.err = net.FileConn(file)
		}
	}()
	r := <-done
	return r.c, r.err
}

func TestSocket(t *testing.T) {
	f := start(t, false)
	name := fmt.Sprintf("@dsas-auth-test-%d", os.Getpid())
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f.handler(), ConnContext: auth.ConnContext, ReadHeaderTimeout: time.Minute}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	self := unixClient(func() (net.Conn, error) { return net.Dial("unix", name) })
	f.want(200, " via socket", self, "GET", "/api/v1/nodes", nil)
	f.want(200, " via socket", self, "POST", "/api/v1/power", nil, "Sec-Fetch-Site: cross-site") // no cookie in use

	if os.Getuid() != 0 {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal("not root: cannot connect as other users")
		}
		t.Skip("not root: cannot connect as other users")
	}
	f.want(200, "root via socket", self, "GET", "/", nil)
	const stranger = 54321
	other := unixClient(func() (net.Conn, error) { return dialAs(name, stranger) })
	f.want(401, "log in", other, "GET", "/api/v1/nodes", nil)
	f.auth.SetUID(stranger) // now it is the server's own
	f.want(200, "uid 54321 via socket", other, "GET", "/api/v1/nodes", nil)
	f.want(200, "root via socket", self, "GET", "/", nil) // root still
	// Over TCP nobody is anybody.
	f.want(401, "log in", f.http, "GET", "/api/v1/nodes", nil)
}

// Neither password, token nor cookie is in the log or in a file.
func TestNothingSecretIsKept(t *testing.T) {
	f := start(t, false)
	token := f.setupToken()
	resp := f.want(204, "", f.http, "POST", "/setup", pass(token, password))
	f.want(403, "", f.browser(), "POST", "/login", pass("", "wrong "+password))
	f.want(200, "", f.http, "GET", "/", nil)
	secrets := []string{password, token, resp.Cookies()[0].Value, "$argon2id"}
	check := func(where, text string) {
		for i, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s holds secret %d", where, i)
			}
		}
	}
	check("log", f.log.String())
	if !strings.Contains(f.log.String(), "wrong password") {
		t.Errorf("log = %q; want it to tell of the wrong password", f.log.String())
	}
	files, err := os.ReadDir(f.dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("ReadDir = %v, %v; want the store's files", files, err)
	}
	for _, e := range files {
		data, err := os.ReadFile(filepath.Join(f.dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		check(e.Name(), string(data))
	}
}

// A store that fails lets nobody in, and says nothing of why.
func TestStoreFails(t *testing.T) {
	f := start(t, false)
	f.setUp()
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, headers := range [][]string{nil, {"Authorization: Bearer x"}} {
		resp, body := f.do(f.http, "GET", "/api/v1/nodes", nil, headers...)
		if resp.StatusCode != 500 || strings.Contains(body, "sql") {
			t.Errorf("GET with %v = %d %q; want 500 without the reason", headers, resp.StatusCode, body)
		}
	}
	if !strings.Contains(f.log.String(), "closed") {
		t.Errorf("log = %q; want the reason", f.log.String())
	}
}
