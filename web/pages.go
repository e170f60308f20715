package web

import (
	"cmp"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"dsas"
)

// nodesData is the front page.
type nodesData struct {
	Nodes   []dsas.NodeView
	Rows    template.HTML // the table's
	Names   template.HTML // of all nodes, to choose from
	Filter  string
	Shown   int
	Boxes   []box
	Hidden  int // boxes beyond maxBoxes
	Roles   []dsas.RoleView
	Sites   []siteRow
	Counts  []count
	Loaders []dsas.Loader
}

// siteRow is a site with how many of its nodes serve.
type siteRow struct {
	dsas.Site
	Servers, Balancers share
}

// share tells how many of the nodes with a role are ready with it.
type share struct{ Ready, Of int }

func shareOf(nodes []dsas.NodeView, role string) (s share) {
	for _, v := range nodes {
		if v.Node.Role == role {
			s.Of++
		}
		// One that was given another role serves until its next boot.
		if v.Status.Serving == role && v.Status.Phase == dsas.PhaseReady {
			s.Ready++
		}
	}
	s.Of = max(s.Of, s.Ready)
	return s
}

type count struct {
	Phase dsas.Phase
	N     int
	On    bool // the filter shows this phase alone
}

func (w *web) nodesPage(rw http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	d := nodesData{Filter: clean(r.URL.Query().Get("q")), Loaders: dsas.Loaders()}
	nodes, err := w.Nodes(ctx)
	var unknown []dsas.Unknown
	var sites []dsas.Site
	if err == nil {
		unknown, err = w.API.Unknown(ctx)
	}
	if err == nil {
		d.Roles, err = w.API.Roles(ctx)
	}
	if err == nil {
		sites, err = w.API.Sites(ctx)
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	d.Nodes = nodes
	for _, s := range sites {
		d.Sites = append(d.Sites, siteRow{s, shareOf(nodes, s.Role), shareOf(nodes, s.Balancer)})
	}
	d.Counts = counts(nodes, d.Filter)
	d.Boxes = boxes(unknown)
	if len(d.Boxes) > maxBoxes {
		d.Boxes, d.Hidden = d.Boxes[:maxBoxes], len(d.Boxes)-maxBoxes
	}
	if err := w.rows.fill(&d, w.pages["nodes"], parseFilter(d.Filter)); err != nil {
		w.fail(rw, r, err)
		return
	}
	w.render(rw, r, http.StatusOK, "nodes", page{Title: "Nodes", Data: d})
}

// counts tells how many nodes are in each phase, the bad ones first.
func counts(nodes []dsas.NodeView, filter string) []count {
	order := []dsas.Phase{dsas.PhaseFailed, dsas.PhaseLost, dsas.PhaseReady, dsas.PhaseServices, dsas.PhaseFetch, dsas.PhaseInit,
		dsas.PhaseKernel, dsas.PhaseLoader, dsas.PhaseDHCP, dsas.PhasePower, dsas.PhaseOff, dsas.PhaseNew}
	n := map[dsas.Phase]int{}
	for _, v := range nodes {
		n[v.Status.Phase]++
	}
	var out []count
	for _, p := range order {
		if n[p] > 0 {
			out = append(out, count{p, n[p], filter == "phase:"+string(p)})
		}
	}
	return out
}

// maxBoxes bounds what a boot network full of made-up MACs puts on the page.
const maxBoxes = 50

// box is what is known of a box that is no node: MACs that sent the same GUID
// (option 97) are ports of one box, by its own word.
type box struct {
	ID    string // for the page
	MACs  []dsas.Unknown
	Last  time.Time
	Count int
	Arch  string
	About []string
}

// boxes puts recorded MACs together by GUID, in their order.
func boxes(unknown []dsas.Unknown) []box {
	var out []box
	at := map[string]int{}
	for _, u := range unknown {
		key := u.MAC.String()
		// Firmware without a number of its own sends all zeros or all ones.
		if digits := strings.Trim(strings.ToLower(u.GUID), "0f-{} :"); len(digits) > 0 {
			key = u.GUID
		}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, box{ID: u.MAC.Dashed()})
		}
		b := &out[i]
		b.MACs = append(b.MACs, u)
		b.Count += u.Count
		if u.Last.After(b.Last) {
			b.Last = u.Last
		}
		b.Arch = cmp.Or(b.Arch, clean(u.Arch))
		for _, v := range []string{clean(u.Hardware), clean(u.VendorClass)} {
			if v != "" && !slices.Contains(b.About, v) {
				b.About = append(b.About, v)
			}
		}
	}
	for _, b := range out {
		// A box's ports mostly have MACs in the order of their numbers; the
		// first becomes eth0.
		slices.SortFunc(b.MACs, func(x, y dsas.Unknown) int { return slices.Compare(x.MAC[:], y.MAC[:]) })
	}
	return out
}

// nodeData is one node's page.
type nodeData struct {
	dsas.NodeView
	Boot
	Trouble *dsas.Event // why it failed or is lost
	Roles   []dsas.RoleView
	Loaders []dsas.Loader
}

// PortOf gives where one of the node's NICs hangs; nil: nobody said.
func (d nodeData) PortOf(mac dsas.MAC) *dsas.Port {
	for i := range d.Ports {
		if d.Ports[i].MAC == mac {
			return &d.Ports[i]
		}
	}
	return nil
}

// nodeEvents is how many of a node's latest events its page looks at.
const nodeEvents = 400

func (w *web) nodePage(rw http.ResponseWriter, r *http.Request) {
	v, err := w.API.Node(r.Context(), r.PathValue("name"))
	var events []dsas.Event
	var roles []dsas.RoleView
	if err == nil {
		events, err = w.API.Events(r.Context(), dsas.EventFilter{Node: v.Node.Name, Last: true, Limit: nodeEvents})
	}
	if err == nil {
		roles, err = w.API.Roles(r.Context())
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	goesOn := pips(v.Status.Phase) != nil
	boot := latestBoot(events, goesOn, w.Now())
	if len(boot.Steps) == 0 && v.Status.Boot != "" {
		// So much happened since that its boot is further back.
		if first, err := w.API.Events(r.Context(), dsas.EventFilter{Node: v.Node.Name, Boot: v.Status.Boot, Limit: nodeEvents}); err == nil && len(first) > 0 {
			since := boot.Earlier
			boot = latestBoot(first, goesOn, w.Now())
			boot.Since, boot.Earlier = since, nil
		}
	}
	d := nodeData{NodeView: v, Boot: boot, Roles: roles, Loaders: dsas.Loaders()}
	d.Trouble = trouble(v.Status.Phase, events)
	w.render(rw, r, http.StatusOK, "node", page{Title: v.Node.Name, Data: d})
}

// trouble gives the event that says why a node failed or is lost.
func trouble(p dsas.Phase, events []dsas.Event) *dsas.Event {
	kinds := map[dsas.Phase][]dsas.Kind{
		dsas.PhaseFailed: {dsas.KindFailed, dsas.KindPartBad, dsas.KindLoaderFailed},
		dsas.PhaseLost:   {dsas.KindLost},
	}[p]
	for _, e := range slices.Backward(events) {
		if slices.Contains(kinds, e.Kind) {
			return &e
		}
	}
	return nil
}

// eventsData is the page of events.
type eventsData struct {
	Events []dsas.Event
	Node   string
	Bad    bool // only those to look at
	Limit  int
}

const pageEvents = 300

func (w *web) eventsPage(rw http.ResponseWriter, r *http.Request) {
	d := eventsData{Node: r.URL.Query().Get("node"), Bad: r.URL.Query().Get("bad") != "", Limit: pageEvents}
	limit := d.Limit
	if d.Bad {
		limit = 5000 // the API's most
	}
	events, err := w.API.Events(r.Context(), dsas.EventFilter{Node: d.Node, Last: true, Limit: limit})
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	slices.Reverse(events)
	if d.Bad {
		events = slices.DeleteFunc(events, func(e dsas.Event) bool { return !bad(e.Kind) })
	}
	d.Events = events[:min(len(events), d.Limit)]
	w.render(rw, r, http.StatusOK, "events", page{Title: "Events", Data: d})
}

// roleRow is a role with the nodes that have it.
type roleRow struct {
	dsas.RoleView
	Size       int64
	Share      share
	NodeFilter string
}

func (w *web) rolesPage(rw http.ResponseWriter, r *http.Request) {
	roles, err := w.API.Roles(r.Context())
	var nodes []dsas.NodeView
	if err == nil {
		nodes, err = w.Nodes(r.Context())
	}
	if err != nil {
		w.fail(rw, r, err)
		return
	}
	var rows []roleRow
	for _, v := range roles {
		row := roleRow{RoleView: v, NodeFilter: "/?" + url.Values{"q": {"role:" + v.Role.Name}}.Encode()}
		if v.Release != nil {
			row.Size = v.Release.Manifest.Size()
		}
		row.Share = shareOf(nodes, v.Role.Name)
		rows = append(rows, row)
	}
	w.render(rw, r, http.StatusOK, "roles", page{Title: "Roles", Data: rows})
}
