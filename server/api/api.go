// Package api is the operator's JSON API: what the CLI, the pages and other
// programs use to see and change things. docs/architecture.md has its table.
// It does not listen and does not ask who calls: whoever serves it puts that in
// front.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// Prefix is where the API lies.
const Prefix = "/api/v1"

const (
	maxBody     = 1 << 20 // bytes of a request
	requestTime = 30 * time.Second
	maxConf     = 64 << 10 // bytes of a node's own dsas.conf lines
	maxPerCall  = 10_000   // nodes in one request
)

// Store is the state that the API shows and changes. Errors wrap the
// sentinels of the root package.
type Store interface {
	Nodes(ctx context.Context) ([]dsas.Node, error)
	Node(ctx context.Context, name string) (dsas.Node, error)
	NodeByMAC(ctx context.Context, mac dsas.MAC) (dsas.Node, error)
	// CreateNodes adds all nodes and events or none; bad is the index of the
	// node that an error speaks of.
	CreateNodes(ctx context.Context, nodes []dsas.Node, events []dsas.Event) (made []dsas.Node, bad int, err error)
	// UpdateNodes makes all changes or none.
	UpdateNodes(ctx context.Context, changes []dsas.NodeChange) ([]dsas.Node, error)
	DeleteNode(ctx context.Context, name string) error

	Statuses(ctx context.Context) (map[string]dsas.NodeStatus, error)
	Status(ctx context.Context, name string) (dsas.NodeStatus, error)

	AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error)
	Events(ctx context.Context, f dsas.EventFilter) ([]dsas.Event, error)
	// Subscribe gives events as they are stored. A slow reader may lose some.
	Subscribe() (<-chan dsas.Event, func())

	Unknowns(ctx context.Context) ([]dsas.Unknown, error)
	DeleteUnknown(ctx context.Context, mac dsas.MAC) error
	Leases(ctx context.Context) ([]dsas.Lease, error)
	// Ports gives the switch ports that MACs were last heard at.
	Ports(ctx context.Context) (map[dsas.MAC]dsas.Port, error)

	// Published gives what a role's nodes boot, AllPublished of all roles.
	Published(role string) dsas.Published
	AllPublished() []dsas.Published
	// BootReleases gives the releases that boots begun since then may still fetch.
	BootReleases(ctx context.Context, since time.Time) ([]dsas.Digest, error)
	// Publish changes it, and stores the events that tell of it.
	Publish(ctx context.Context, role string, change func(*dsas.Published) ([]dsas.Event, error)) (dsas.Published, error)

	Sites(ctx context.Context) ([]dsas.Site, error)
	Site(ctx context.Context, name string) (dsas.Site, error)
	CreateSite(ctx context.Context, s dsas.Site) (dsas.Site, error)
	UpdateSite(ctx context.Context, name string, change func(*dsas.Site) error) (dsas.Site, error)
	DeleteSite(ctx context.Context, name string) error
}

// Power drives a node's power; action is one of the dsas.Power constants.
type Power interface {
	Power(ctx context.Context, node dsas.Node, action string) (state string, err error)
}

// Roles lists the role definitions there are.
type Roles interface {
	Roles(ctx context.Context) ([]dsas.RoleView, error)
}

// Deps is what the API is made of. Store and Log must be set; what else is
// nil answers that this server does not have it.
type Deps struct {
	Store    Store
	Power    Power
	Roles    Roles
	Releases Releases
	Tokens   Tokens
	Subnets  []dsas.Subnet
	// Explain tells what a MAC would be given; arch is "" or as dsas.Arch
	// writes it.
	Explain func(ctx context.Context, mac dsas.MAC, arch string) (any, error)
	// CheckConf says what is wrong with a node's own dsas.conf lines, by number;
	// nil: they are not looked at.
	CheckConf func(n dsas.Node) error
	// SSH tells how an operator reaches a node's sshd.
	SSH func(ctx context.Context, n dsas.Node) (dsas.SSHInfo, error)
	// Status is what the server says of itself; Nodes and Subnets are filled in here.
	Status func(ctx context.Context) (dsas.ServerStatus, error)
	// Who names a request's caller for events; default: "operator".
	Who func(ctx context.Context) string
	// Done is closed when the server stops, and ends the event streams, which
	// http.Server.Shutdown would wait for.
	Done <-chan struct{}
	Log  *slog.Logger
	// KeepAlive is how often a silent event stream gets a comment; default 15 s.
	KeepAlive time.Duration
	// PowerTime bounds one node's power action; default 60 s.
	PowerTime time.Duration
}

type api struct {
	Deps
	// changing is held while nodes or sites change: finding a free address
	// and taking it are two steps.
	changing sync.Mutex
}

// New makes the handler; it serves everything below Prefix.
func New(d Deps) http.Handler {
	if d.Who == nil {
		d.Who = func(context.Context) string { return "operator" }
	}
	if d.KeepAlive <= 0 {
		d.KeepAlive = 15 * time.Second
	}
	if d.PowerTime <= 0 {
		d.PowerTime = 60 * time.Second
	}
	a := &api{Deps: d}

	r := chi.NewRouter()
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, fmt.Errorf("%s: no such path in this API: %w", r.URL.Path, dsas.ErrNotFound))
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusMethodNotAllowed, errorBody{Error: r.Method + " is not possible on " + r.URL.Path})
	})
	r.Route(Prefix, func(r chi.Router) {
		r.Use(limitBody)
		// These two last as long as they last, and set their own limits.
		r.Get("/events/stream", a.streamEvents)
		r.Post("/power", a.handle(a.power))

		r.Group(func(r chi.Router) {
			r.Use(limitTime)
			r.Get("/nodes", a.handle(a.listNodes))
			r.Post("/nodes", a.handle(a.addNodes))
			r.Get("/nodes/{name}", a.handle(a.showNode))
			r.Patch("/nodes", a.handle(a.changeNodes))
			r.Patch("/nodes/{name}", a.handle(a.changeNode))
			r.Delete("/nodes/{name}", a.handle(a.removeNode))
			r.Get("/nodes/{name}/ssh", a.handle(a.sshInfo))

			r.Get("/sites", a.handle(a.listSites))
			r.Post("/sites", a.handle(a.addSite))
			r.Get("/sites/{name}", a.handle(a.showSite))
			r.Patch("/sites/{name}", a.handle(a.changeSite))
			r.Delete("/sites/{name}", a.handle(a.removeSite))

			r.Get("/unknown", a.handle(a.listUnknown))
			r.Delete("/unknown/{mac}", a.handle(a.removeUnknown))
			r.Get("/roles", a.handle(a.listRoles))
			r.Get("/releases", a.handle(a.listReleases))
			r.Get("/releases/{release}", a.handle(a.showRelease))
			r.Post("/releases/sync", a.handle(a.syncReleases))
			r.Get("/published", a.handle(a.listPublished))
			r.Get("/boots/releases", a.handle(a.bootReleases))
			r.Post("/roles/{role}/publish", a.handle(a.publish))
			r.Post("/roles/{role}/rollback", a.handle(a.rollBack))
			r.Get("/events", a.handle(a.listEvents))
			r.Get("/explain", a.handle(a.explain))
			r.Get("/leases", a.handle(a.listLeases))
			r.Get("/status", a.handle(a.status))

			r.Get("/tokens", a.handle(a.listTokens))
			r.Post("/tokens", a.handle(a.addToken))
			r.Delete("/tokens/{name}", a.handle(a.removeToken))
		})
	})
	// A browser that is logged in to the pages must not be made to send
	// changes here by another site.
	return http.NewCrossOriginProtection().Handler(r)
}

func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

func limitTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		rc := http.NewResponseController(w)
		_ = rc.SetReadDeadline(time.Now().Add(requestTime)) // not every test's writer can
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// answer is what a handler gives back: a status and what is written as JSON.
type answer struct {
	status int // 0: 200
	body   any // nil: none, and 204
}

// handle writes a handler's answer or error.
func (a *api) handle(h func(r *http.Request) (answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ans, err := h(r)
		switch {
		case err != nil:
			a.fail(w, r, err)
		case ans.body == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			if ans.status == 0 {
				ans.status = http.StatusOK
			}
			writeJSON(w, ans.status, ans.body)
		}
	}
}

// errorBody is how an error travels.
type errorBody struct {
	Error string `json:"error"`
	// Items: one for each bad item of a list that was sent; its place counts from 0.
	Items []dsas.ItemError `json:"items,omitempty"`
}

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	body := errorBody{Error: err.Error()}
	if list, ok := errors.AsType[*listError](err); ok {
		body.Items = list.items
	}
	status := statusOf(err)
	if status == http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		a.Log.ErrorContext(r.Context(), "api request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeJSON(w, status, body)
}

func statusOf(err error) int {
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge:
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, dsas.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, dsas.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, dsas.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, dsas.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader has gone: nobody to tell
}

// list makes a nil slice an empty JSON list.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func readBody(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, fmt.Errorf("request: larger than %d bytes: %w", maxBody, err)
		}
		return nil, fmt.Errorf("read request: %w", err)
	}
	return b, nil
}

// event records what an operator did. The change itself is done: that its
// event cannot be kept is logged and does not fail the request.
func (a *api) event(ctx context.Context, e dsas.Event) {
	e.Time = time.Now()
	if _, err := a.Store.AddEvent(context.WithoutCancel(ctx), e); err != nil {
		a.Log.ErrorContext(ctx, "event not kept", "kind", e.Kind, "node", e.Node, "err", err)
	}
}

// dryRun tells whether the caller only asks what would happen.
func dryRun(r *http.Request) bool {
	v := r.URL.Query().Get("dryRun")
	return v == "1" || v == "true"
}
