package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"dsas"
)

const (
	apiPrefix   = "/api/v1"
	callTime    = 60 * time.Second
	powerTime   = 30 * time.Minute // many BMCs, some of them dead
	maxAnswer   = 256 << 20        // bytes
	connectTime = 10 * time.Second
)

// Options say how a server elsewhere is known to be the right one. The zero
// value trusts the system's certificate authorities.
type Options struct {
	CAFile string // PEM file of the authority, or of the server's own certificate
	// Fingerprint is the SHA-256 of the server's certificate in hex, colons
	// allowed: it alone is then trusted, whatever its name and authority.
	Fingerprint string
}

// Client is the operator's side of a server's API. It is safe for concurrent use.
type Client struct {
	http  *http.Client
	base  string // URL up to and without apiPrefix
	token string
	addr  string // as given, for messages
}

// New makes a client for the server at addr: the path of its unix socket
// ("/run/dsas/dsas.sock"), or "https://server:8443" with a token. Plain http is
// for loopback alone, since the token would travel readable.
func New(addr, token string, opts Options) (*Client, error) {
	dialer := &net.Dialer{Timeout: connectTime, KeepAlive: 15 * time.Second}
	tr := &http.Transport{
		DialContext:         dialer.DialContext,
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: connectTime,
		IdleConnTimeout:     60 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	c := &Client{addr: addr, token: token, http: &http.Client{
		Transport: tr,
		// A redirect would carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if path, ok := socketPath(addr); ok {
		tr.Proxy = nil
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
		c.base = "http://dsas.socket"
		return c, nil
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || (u.Path != "" && u.Path != "/") || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("server %q: give a socket's path or https://name:8443: %w", addr, dsas.ErrInvalid)
	}
	switch u.Scheme {
	case "https":
		if tr.TLSClientConfig, err = tlsConfig(opts); err != nil {
			return nil, fmt.Errorf("server %s: %w", addr, err)
		}
	case "http":
		if !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("server %s: plain http is for this machine alone, the token would be readable on the way; use https: %w", addr, dsas.ErrInvalid)
		}
		tr.Proxy = nil
	default:
		return nil, fmt.Errorf("server %q: scheme %q: use https: %w", addr, u.Scheme, dsas.ErrInvalid)
	}
	c.base = u.Scheme + "://" + u.Host
	return c, nil
}

func socketPath(addr string) (string, bool) {
	path, marked := strings.CutPrefix(addr, "unix:")
	return strings.TrimPrefix(path, "//"), marked || strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, ".")
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && a.IsLoopback())
}

func tlsConfig(opts Options) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if opts.CAFile != "" {
		pem, err := os.ReadFile(opts.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificate authority: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authority %s: holds no PEM certificate: %w", opts.CAFile, dsas.ErrInvalid)
		}
	}
	if opts.Fingerprint == "" {
		return cfg, nil
	}
	text := strings.TrimPrefix(strings.ToLower(opts.Fingerprint), "sha256:")
	want, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("fingerprint %q: want the certificate's SHA-256, 64 hex digits: %w", opts.Fingerprint, dsas.ErrInvalid)
	}
	// Name and authority are not looked at: the certificate itself is known.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		if got := sha256.Sum256(cs.PeerCertificates[0].Raw); !bytes.Equal(got[:], want) {
			return fmt.Errorf("the server's certificate has the fingerprint %x, not the one wanted", got)
		}
		return nil
	}
	return cfg, nil
}

// Error is a server's refusal. errors.Is finds the root package's sentinel.
type Error struct {
	Status  int              // HTTP
	Message string           // for a person
	Items   []dsas.ItemError // of a list that was sent
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the sentinel that the status stands for, nil for others.
func (e *Error) Unwrap() error {
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return dsas.ErrInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return dsas.ErrDenied
	case http.StatusNotFound:
		return dsas.ErrNotFound
	case http.StatusConflict:
		return dsas.ErrConflict
	}
	return nil
}

// call does one request; body and into may be nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return c.callFor(ctx, method, path, query, body, into)
}

func (c *Client) callFor(ctx context.Context, method, path string, query url.Values, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		r = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, query, r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	return nil
}

// send does a request and turns a refusal into an *Error. The caller closes
// the answer's body.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body io.Reader, header http.Header) (*http.Response, error) {
	u := c.base + apiPrefix + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.connectError(ctx, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

func refusal(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	var body struct {
		Error string           `json:"error"`
		Items []dsas.ItemError `json:"items"`
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if json.Unmarshal(b, &body) == nil && body.Error != "" {
		e.Message, e.Items = body.Error, body.Items
		return e
	}
	e.Message = fmt.Sprintf("the server answered %s, and not as a dsas server does", resp.Status)
	return e
}

// connectError says what to do when the server is not reached.
func (c *Client) connectError(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL that the socket's requests have
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = "; is `dsas serve` running there? Another server is named by --server or DSAS_SERVER"
	case errors.Is(err, fs.ErrPermission):
		hint = "; run this as root, or name a server by --server with a token"
	case isUnknownAuthority(err):
		hint = "; name its authority with --ca-file, or its certificate with --fingerprint"
	}
	return fmt.Errorf("reach the server at %s: %w%s", c.addr, err, hint)
}

func isUnknownAuthority(err error) bool {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	return unknown || name
}
