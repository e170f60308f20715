// Package web is the operators' pages: what each box is, how far its boot is,
// and the few things one does to boxes by hand. They are rendered on the
// server and follow the fleet by server-sent events; everything they change
// goes through the same API calls as the CLI's, so the same rules hold.
//
// Much of what they show was said by whoever is on the boot network: it is
// text to be shown and nothing else.
package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5/middleware"

	"dsas"
)

// API is what the pages ask and do; the client package's Client has it.
type API interface {
	Nodes(ctx context.Context) ([]dsas.NodeView, error)
	Node(ctx context.Context, name string) (dsas.NodeView, error)
	AddNodes(ctx context.Context, nodes []dsas.Node, rehearse bool) ([]dsas.Node, error)
	ChangeNode(ctx context.Context, name string, patch map[string]any, rehearse bool) (dsas.Node, error)
	ChangeNodes(ctx context.Context, names []string, patch map[string]any, rehearse bool) ([]dsas.Node, error)
	RemoveNode(ctx context.Context, name string) error
	Power(ctx context.Context, action string, nodes []string, rehearse bool) ([]dsas.PowerResult, error)
	Events(ctx context.Context, f dsas.EventFilter) ([]dsas.Event, error)
	Unknown(ctx context.Context) ([]dsas.Unknown, error)
	RemoveUnknown(ctx context.Context, mac dsas.MAC) error
	Roles(ctx context.Context) ([]dsas.RoleView, error)
	Sites(ctx context.Context) ([]dsas.Site, error)
	Status(ctx context.Context) (dsas.ServerStatus, error)
}

// Deps is what the pages are made of.
type Deps struct {
	API API
	// Nodes, if set, is asked instead of API.Nodes: of a page with a thousand
	// nodes most was writing and reading their JSON.
	Nodes func(ctx context.Context) ([]dsas.NodeView, error)
	// Subscribe gives events as they happen; they only tell the pages that
	// there is something new to see.
	Subscribe func() (<-chan dsas.Event, func())
	// Done is closed when the server stops, and ends the event streams.
	Done <-chan struct{}
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

//go:embed pages/*.html
var pageFiles embed.FS

//go:embed static
var staticFiles embed.FS

type web struct {
	Deps
	pages map[string]*template.Template
	marks marks
	rows  rows
}

// New makes the pages' handler. Whoever serves it lets in only who is logged
// in; Static alone needs no log-in.
func New(d Deps) (http.Handler, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Nodes == nil {
		d.Nodes = d.API.Nodes
	}
	w := &web{Deps: d, pages: map[string]*template.Template{}, marks: newMarks()}
	for _, name := range []string{"nodes", "node", "events", "roles", "sure", "error"} {
		t, err := template.New("layout.html").Funcs(w.funcs()).ParseFS(pageFiles, "pages/layout.html", "pages/parts.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		w.pages[name] = t
	}
	mux := http.NewServeMux()
	// Not a chi router: the API behind InProcess is one, and would take the
	// route that chi leaves in a request's context for its own.
	mux.HandleFunc("GET /live", w.live)
	// A thousand rows are a megabyte, and a tenth of it packed.
	pack := middleware.Compress(1, "text/html")
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /{$}":           w.nodesPage,
		"GET /nodes/{name}":  w.nodePage,
		"GET /events":        w.eventsPage,
		"GET /roles":         w.rolesPage,
		"POST /act":          w.action(w.act),
		"POST /nodes":        w.action(w.addNode),
		"POST /nodes/{name}": w.action(w.changeNode),
		"POST /unknown":      w.action(w.takeIn),
		"/": func(rw http.ResponseWriter, r *http.Request) {
			w.fail(rw, r, fmt.Errorf("page %s: %w", r.URL.Path, dsas.ErrNotFound))
		},
	} {
		mux.Handle(pattern, pack(h))
	}
	return Headers(http.NewCrossOriginProtection().Handler(mux)), nil
}

// Static serves style and script, below /static/.
func Static() http.Handler {
	sub, err := fs.Sub(staticFiles, "static")
	if err != nil {
		panic(err) // the folder is embedded
	}
	files := http.StripPrefix("/static/", http.FileServerFS(sub))
	return Headers(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	}))
}

// Headers keeps the pages to themselves: no foreign and no inline script, no
// framing, no referrer to leak a node's name.
func Headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// page is what every page's template gets.
type page struct {
	Title string
	Path  string
	Said  *said // what an action did, or why not
	Data  any
}

// render writes a page, or only its live part where the script asks for it.
func (w *web) render(rw http.ResponseWriter, r *http.Request, code int, name string, p page) {
	p.Path = r.URL.Path
	block, live := "live", r.Header.Get("Dsas-Part") == "live"
	if !live {
		block = "layout.html"
		p.Said = takeSaid(rw, r)
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	var b bytes.Buffer // a page that fails is not half sent
	if err := w.pages[name].ExecuteTemplate(&b, block, p); err != nil {
		w.Log.Error("render page", "page", name, "err", err)
		http.Error(rw, "The server could not make this page; its log says why.", http.StatusInternalServerError)
		return
	}
	if live && code == http.StatusOK {
		// Ages and the clock, which the script counts on by itself, are no change.
		tag := fmt.Sprintf(`W/"%x"`, sha256.Sum256(b.Bytes()))
		rw.Header().Set("Etag", tag)
		if r.Header.Get("If-None-Match") == tag {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
	}
	rw.WriteHeader(code)
	w.marks.write(rw, b.Bytes(), w.Now())
}

// fail answers with a page that says what is wrong.
func (w *web) fail(rw http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, dsas.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, dsas.ErrInvalid):
		code = http.StatusBadRequest
	case errors.Is(err, dsas.ErrConflict):
		code = http.StatusConflict
	case r.Context().Err() == nil:
		w.Log.Error("page", "path", r.URL.Path, "err", err)
	}
	w.render(rw, r, code, "error", page{Title: http.StatusText(code), Data: words(err)})
}

// words gives an error's text for a person.
func words(err error) string { return plain(err.Error()) }

// plain takes off the sentinel at an error's end, which is for programs.
func plain(text string) string {
	for _, s := range []error{dsas.ErrInvalid, dsas.ErrConflict, dsas.ErrDenied} {
		text = strings.TrimSuffix(text, ": "+s.Error())
	}
	return clean(text)
}
