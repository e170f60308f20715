// Package httpboot is the boot listener's HTTP side: loader scripts, kernel,
// initramfs and image parts by digest, node configs for boot tokens, and the
// intake of what nodes report. Nothing here changes a node's assignment.
package httpboot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// Store is what this listener needs of the state.
type Store interface {
	Node(ctx context.Context, name string) (dsas.Node, error)
	NodeByMAC(ctx context.Context, mac dsas.MAC) (dsas.Node, error)
	CreateBoot(ctx context.Context, b dsas.Boot) error
	BootByToken(ctx context.Context, hash []byte) (dsas.Boot, error)
	Boot(ctx context.Context, id string) (dsas.Boot, error)
	// BootAt gives the newest boot whose box boots with this address.
	BootAt(ctx context.Context, addr netip.Addr) (dsas.Boot, error)
	MarkFirstEvent(ctx context.Context, id string, t time.Time) error
	AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error)
	// AddEvents stores all of a list, or none.
	AddEvents(ctx context.Context, list []dsas.Event) ([]dsas.Event, error)
	Seen(ctx context.Context, node string, t time.Time) error
	// Lease gives the lease that holds a pool address now.
	Lease(ctx context.Context, addr netip.Addr, now time.Time) (dsas.Lease, error)
}

// Blobs is content by digest.
type Blobs interface {
	Blob(d dsas.Digest) (*os.File, int64, error)
}

// Releases tells what boxes boot.
type Releases interface {
	// Assigned gives the release that a node, nil for a box that is none, boots
	// as role now; nil where there is none.
	Assigned(node *dsas.Node, role string) (*dsas.Release, error)
	// Release gives the one with this ID, that a boot began with.
	Release(id dsas.Digest) (*dsas.Release, error)
	// BootFile tells what d is to any release: "kernel", "initramfs",
	// "firmware", or "".
	BootFile(d dsas.Digest) (string, error)
}

// Rendered is what one node is to be right now, made from the role, the
// sites and the other nodes.
type Rendered struct {
	Role  dsas.Role
	Conf  string      // text of /etc/dsas.conf
	Files []dsas.File // templates and standard files, no secrets
	Tag   string      // changes when Files or Conf do
}

// Renderer makes node configs; Changed's channel is closed when something
// happened that may have changed some node's files.
type Renderer interface {
	// Render is for a box that boots or runs a release of role.
	Render(ctx context.Context, node dsas.Node, role string, release dsas.Digest) (Rendered, error)
	// Tag gives what Render's Tag of a known node is now. It is cheap where
	// nothing changed: all running nodes ask at every change.
	Tag(ctx context.Context, node, role string, release dsas.Digest) (string, error)
	// Secrets gives a box's own: a stranger belongs to no node and gets none
	// that others have too.
	Secrets(ctx context.Context, node dsas.Node, stranger bool) ([]dsas.File, error)
	Changed() <-chan struct{}
}

// Config holds the parts and figures of a Server.
type Config struct {
	Store    Store
	Blobs    Blobs
	Releases Releases
	Renderer Renderer
	// Images are what the registry's side lists; nil: content by digest alone.
	Images Images
	// Registry is a base URL from which nodes are to fetch image parts first;
	// "": they fetch them here.
	Registry string
	Log      *slog.Logger
	// Subnets are asked for the server's address, gateway of a node.
	Subnets []dsas.Subnet
	// LoaderDir holds the loaders that UEFI HTTP Boot is given.
	LoaderDir string
	// Port of the boot listener, as nodes reach it: 8080.
	Port int
	// BondOptions is the cmdline's bond, "bond0:mode=active-backup:miimon=100".
	BondOptions string
	// ExtraCmdline is appended to every node's kernel command line.
	ExtraCmdline string
	// Discovery: unknown MACs boot the inventory role.
	Discovery bool
	// OtherDHCP: another DHCP server gives the addresses, so a box need not
	// have the one that is reserved for it before its own kernel runs.
	OtherDHCP bool
	// Neighbour gives the MAC that an address of a segment of ours is at, as
	// ARP found it; false where that is not known. It says who asks when the
	// addresses are another server's. nil: never known.
	Neighbour func(netip.Addr) (dsas.MAC, bool)
	// Role gives a role's definition as a release has it, with "" the server's own: what may be offered in a loader's menu
	// hangs on it. nil: there are no menus.
	Role func(name string, release dsas.Digest) (dsas.Role, error)
	// MenuTimeout is how long a menu waits for a key; 0: boot.DefaultMenuTimeout.
	MenuTimeout time.Duration
	// Heartbeat is how often a running node says that it lives.
	Heartbeat time.Duration
	// MaxConns and MaxConnsPerAddress bound the connections that are open at
	// the same time, in all and of one address. 0: 16384, or fewer where the
	// process may not have so many files open, and 512.
	MaxConns, MaxConnsPerAddress int
	// PieceTime is what a reader may take for 256 KiB of content; 0: 64 s.
	PieceTime time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// tokenLife bounds how long a boot's token is answered when its node never
// reports (DESIGN.md, "One boot, end to end", 6).
const tokenLife = 15 * time.Minute

// Server answers the boot listener's requests.
type Server struct {
	Config
	nonces nonces
	said   limiter // what unproven senders make us record
	begun  budget  // boots begun, by MAC and by address
	failed budget  // requests with a token or signature that is none, by address
	conns  conns
	stats  counters

	maxConns, maxPerAddress int

	guests guests // with OtherDHCP: loaders that have another address than their node
}

// New checks nothing but fills in defaults.
func New(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = 10 * time.Second
	}
	if c.PieceTime <= 0 {
		c.PieceTime = pieceTime
	}
	s := &Server{Config: c}
	s.maxConns, s.maxPerAddress = s.limits()
	return s
}

// Handler gives the routes of docs/architecture.md, "Boot listener".
func (s *Server) Handler() http.Handler {
	r := chi.NewRouter()
	r.Get("/boot/script.ipxe", s.counted("script", s.anyScript))
	r.Get("/boot/{mac}/script.ipxe", s.counted("script", s.script))
	r.Get("/nbp/{mac}/{file}", s.counted("nbp", s.loader))
	r.Head("/nbp/{mac}/{file}", s.counted("nbp", s.loader))
	r.Get("/nbp/{file}", s.counted("nbp", s.loader)) // an existing DHCP server's one boot file
	r.Head("/nbp/{file}", s.counted("nbp", s.loader))
	r.Get("/boot/{mac}/failed", s.counted("failed", s.loaderFailed))
	s.registryRoutes(r)
	r.Get("/node/config", s.counted("config", s.nodeConfig))
	r.Post("/node/events", s.counted("events", s.signed(s.events)))
	r.Post("/node/heartbeat", s.counted("heartbeat", s.signed(s.heartbeat)))
	r.Get("/node/files", s.counted("files", s.signed(s.files)))
	return r
}

// writeTime bounds an answer, with a long poll's wait before it. Content by
// digest has as long as its reader keeps up.
const writeTime = maxWait + time.Minute

// Run serves l until ctx ends. Limits of connections hold for all listeners
// together.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      writeTime,
		IdleTimeout:       60 * time.Second,
		ConnState:         s.connState,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		// A boot in the middle of a download resumes by itself: no long wait.
		c, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(c) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve boot HTTP: %w", err)
	}
	return nil
}

// fail answers a request that cannot be served; what the boot network may
// read of an error is its text for people, never a path or a secret.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, dsas.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, dsas.ErrInvalid):
		code = http.StatusBadRequest
	case errors.Is(err, dsas.ErrDenied):
		code = http.StatusForbidden
	}
	s.countError(code)
	if code == http.StatusInternalServerError && r.Context().Err() == nil {
		s.Log.Error("boot request failed", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		http.Error(w, "internal error; the server's log says more", code)
		return
	}
	http.Error(w, err.Error(), code)
}

// event records e and only logs when that fails: a boot goes on without it. It
// is recorded even if whoever brought it about has gone.
func (s *Server) event(ctx context.Context, e dsas.Event) {
	if e.Time.IsZero() {
		e.Time = s.Now()
	}
	if _, err := s.Store.AddEvent(context.WithoutCancel(ctx), e); err != nil {
		s.Log.Error("record event", "node", e.Node, "kind", e.Kind, "err", err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand since Go 1.24)
	return b
}
