package rootfs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How long a registry may take to be reached and to begin its answer, before the
// server is asked in its place: together less than Options.Stall.
const (
	registryDial   = 3 * time.Second
	registryAnswer = 8 * time.Second
	// maxBreaks of transfers, and the rest comes from the server.
	maxBreaks = 2
)

// fetchVia is Fetch with a registry before the server. What the registry does
// not have comes from the server, part by part; one that does not answer is not
// asked again; and one that gave something else than the manifest names costs
// the time it took, not the boot: all is fetched anew without it.
func fetchVia(ctx context.Context, o Options) (Stats, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	base, err := url.Parse(o.Registry)
	if err != nil || base.Host == "" {
		return Stats{}, fmt.Errorf("fetch image: registry %q is no URL as http://10.0.0.9:5000", o.Registry)
	}
	if o.Client == nil {
		o.Client = defaultClient()
		defer o.Client.CloseIdleConnections()
	}
	reg := newRegistry(base, o.Client, o.Log)
	defer reg.client.CloseIdleConnections()
	direct, through := o, o
	direct.Registry, through.Registry = "", ""
	through.Client = &http.Client{Transport: reg}
	stats, err := Fetch(ctx, through)
	// Whatever it is: what is unpacked is not checked before its end, so that other
	// content can fill the root, too.
	if err != nil && reg.used.Load() && ctx.Err() == nil {
		o.Log.Warn("the image that the registry has part in cannot be had; fetching it from the server", "registry", o.Registry, "err", err)
		return Fetch(ctx, direct)
	}
	stats.FromRegistry = reg.bytes.Load()
	return stats, err
}

// registry is the transport of a Fetch that asks a registry first.
type registry struct {
	base   *url.URL
	client *http.Client // to the registry
	server *http.Client
	log    *slog.Logger

	used  atomic.Bool  // it gave something
	bytes atomic.Int64 // that it gave

	mu     sync.Mutex
	breaks int
	down   bool // not asked any more
}

func newRegistry(base *url.URL, server *http.Client, log *slog.Logger) *registry {
	return &registry{base: base, server: server, log: log, client: &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: registryDial, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   registryDial,
		ResponseHeaderTimeout: registryAnswer,
		DisableCompression:    true,
		ReadBufferSize:        64 << 10,
		// Nothing of it is trusted: a part is what its digest says, or refused.
		// There are no authorities in an initramfs, and parts are public.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}}
}

// RoundTrip implements http.RoundTripper: an answer of the registry with
// content, else whatever the server answers.
func (r *registry) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.isDown() {
		return r.server.Do(direct(req))
	}
	resp, err := r.client.Do(r.at(req))
	switch {
	case err != nil && req.Context().Err() != nil:
		r.broke(context.Cause(req.Context())) // stalled, or nobody wants it any more
		return nil, err
	case err != nil:
		r.give(err)
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
		r.used.Store(true)
		resp.Body = &registryBody{ReadCloser: resp.Body, r: r}
		return resp, nil
	default:
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			r.log.Info("the registry does not have a part; fetching it from the server", "url", resp.Request.URL.Redacted())
		} else {
			r.give(fmt.Errorf("it answers %s", resp.Status))
		}
	}
	return r.server.Do(direct(req))
}

// direct is a copy of a request that a client may send: none that one got as
// its transport's.
func direct(req *http.Request) *http.Request {
	out := req.Clone(req.Context())
	out.RequestURI = ""
	return out
}

// at is req, asked of the registry: /v2/NAME/blobs/DIGEST below its host, with
// the registry's own folder before NAME.
func (r *registry) at(req *http.Request) *http.Request {
	out := direct(req)
	u := *r.base
	u.Path = "/v2" + strings.TrimRight(r.base.Path, "/") + strings.TrimPrefix(req.URL.Path, "/v2")
	u.RawPath = ""
	out.URL, out.Host = &u, ""
	return out
}

func (r *registry) isDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}

// give gives the registry up, for this Fetch.
func (r *registry) give(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.down {
		r.down = true
		r.log.Warn("the registry is of no use; fetching from the server", "registry", r.base.Redacted(), "err", why)
	}
}

// broke counts a transfer that did not end.
func (r *registry) broke(why error) {
	r.mu.Lock()
	r.breaks++
	many := r.breaks >= maxBreaks
	r.mu.Unlock()
	if many {
		r.give(why)
	}
}

// registryBody counts what comes, and notices where it breaks off.
type registryBody struct {
	io.ReadCloser
	r *registry
}

func (b *registryBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.r.bytes.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		b.r.broke(err)
	}
	return n, err
}
