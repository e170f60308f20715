// Package web is the operators' pages: what each box is, how far its boot is,
// and the few things one does to boxes by hand. They are rendered on the
// server and follow the fleet by server-sent events; everything they change
// goes through the same API calls as the CLI's, so the same rules hold.
package web

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// API is what the pages ask and do; the client package's Client has it.
type API interface {
	Nodes(ctx context.Context) ([]dsas.NodeView, error)
	Node(ctx context.Context, name string) (dsas.NodeView, error)
	AddNodes(ctx context.Context, nodes []dsas.Node, rehearse bool) ([]dsas.Node, error)
	ChangeNode(ctx context.Context, name string, patch map[string]any, rehearse bool) (dsas.Node, error)
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
}

// New makes the pages' handler. Whoever serves it lets in only who is logged
// in; Static alone needs no log-in.
func New(d Deps) (http.Handler, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	w := &web{Deps: d, pages: map[string]*template.Template{}}
	for _, name := range []string{"nodes", "node", "events"} {
		t, err := template.New("layout.html").Funcs(w.funcs()).ParseFS(pageFiles, "pages/layout.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		w.pages[name] = t
	}
	r := chi.NewRouter()
	r.Use(Headers)
	r.Get("/", w.nodesPage)
	r.Get("/nodes/{name}", w.nodePage)
	r.Get("/events", w.eventsPage)
	r.Get("/live", w.live)
	r.Post("/act", w.act)
	r.Post("/unknown/{mac}", w.takeIn)
	return http.NewCrossOriginProtection().Handler(r), nil
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

// Headers keeps the pages to themselves: no foreign script, no framing, no
// referrer to leak a node's name.
func Headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// page is what every page's template gets.
type page struct {
	Title  string
	Path   string
	Notice string // what an action did, or why not
	Bad    bool   // the notice is an error
	Data   any
}

// render writes a page, or only its live part where the script asks for it.
func (w *web) render(rw http.ResponseWriter, r *http.Request, name string, p page) {
	p.Path = r.URL.Path
	if n := r.URL.Query().Get("notice"); n != "" {
		p.Notice, p.Bad = n, r.URL.Query().Get("bad") != ""
	}
	block := "layout.html"
	if r.Header.Get("Dsas-Part") == "live" {
		block = "live"
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	if err := w.pages[name].ExecuteTemplate(rw, block, p); err != nil && r.Context().Err() == nil {
		w.Log.Error("render page", "page", name, "err", err)
	}
}

// fail shows an error as a page's answer.
func (w *web) fail(rw http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, dsas.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, dsas.ErrInvalid):
		code = http.StatusBadRequest
	case errors.Is(err, dsas.ErrConflict):
		code = http.StatusConflict
	}
	http.Error(rw, err.Error(), code)
}

// live sends a line for each burst of events; the script then fetches the
// page's live part anew. The page is right even when a line is lost.
func (w *web) live(rw http.ResponseWriter, r *http.Request) {
	events, cancel := w.Subscribe()
	defer cancel()
	rc := http.NewResponseController(rw)
	rw.Header().Set("Content-Type", "text/event-stream")
	rw.Header().Set("Cache-Control", "no-store")
	fmt.Fprint(rw, "retry: 2000\n\n")
	tick := time.NewTicker(20 * time.Second) // ages are shown; and proxies cut silence
	defer tick.Stop()
	for {
		if rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-w.Done:
			return
		case <-tick.C:
			fmt.Fprint(rw, "data: tick\n\n")
		case e := <-events:
			fmt.Fprintf(rw, "data: %d\n\n", e.ID)
		}
	}
}
