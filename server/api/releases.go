package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// Releases is what there is to boot. What is not there wraps dsas.ErrNotFound.
type Releases interface {
	// Releases lists all, by role and number.
	Releases() ([]dsas.Release, error)
	Release(id dsas.Digest) (*dsas.Release, error)
	Find(ref dsas.ReleaseRef) (*dsas.Release, error)
	// Assigned gives what a node, nil for a box that is none, boots as role;
	// nil where there is none.
	Assigned(node *dsas.Node, role string) (*dsas.Release, error)
	// Bootable tells why a release cannot be published, as one that is not
	// signed; nil where it can. It wraps dsas.ErrConflict.
	Bootable(r *dsas.Release) error
	// Sync publishes what image builds have proposed, and gives the roles that
	// have another release now.
	Sync(ctx context.Context) ([]dsas.Published, error)
}

// errNoReleases is the answer of a server that keeps no images.
var errNoReleases = fmt.Errorf("releases: this server keeps none: %w", dsas.ErrInvalid)

func (a *api) listReleases(r *http.Request) (answer, error) {
	views, err := a.releaseViews(r.Context())
	if err != nil {
		return answer{}, err
	}
	if role := r.URL.Query().Get("role"); role != "" {
		if err := a.hasRole(r.Context(), role); err != nil {
			return answer{}, err
		}
		views = slices.DeleteFunc(views, func(v dsas.ReleaseView) bool { return v.Role != role })
	}
	return answer{body: list(views)}, nil
}

func (a *api) showRelease(r *http.Request) (answer, error) {
	rel, err := a.findRelease(r.Context(), chi.URLParam(r, "release"))
	if err != nil {
		return answer{}, err
	}
	views, err := a.releaseViews(r.Context())
	if err != nil {
		return answer{}, err
	}
	for _, v := range views {
		if v.ID == rel.ID {
			return answer{body: v}, nil
		}
	}
	return answer{}, fmt.Errorf("release %s: removed just now: %w", rel.Name(), dsas.ErrNotFound)
}

func (a *api) findRelease(ctx context.Context, text string) (*dsas.Release, error) {
	if a.Releases == nil {
		return nil, errNoReleases
	}
	ref, err := dsas.ParseReleaseRef(text)
	if err != nil {
		return nil, err
	}
	rel, err := a.Releases.Find(ref)
	if errors.Is(err, dsas.ErrNotFound) && ref.Role != "" {
		if noRole := a.hasRole(ctx, ref.Role); noRole != nil {
			return nil, noRole
		}
	}
	return rel, err
}

// hasRole wants a role to be one that the server knows, or has releases of: one
// whose definition came, or went, since the server started.
func (a *api) hasRole(ctx context.Context, role string) error {
	if err := dsas.CheckName("role", role); err != nil {
		return err
	}
	if a.Roles == nil {
		return nil
	}
	known, err := a.roleNames(ctx)
	if err != nil || slices.Contains(known, role) {
		return err
	}
	if a.Releases != nil {
		rels, err := a.Releases.Releases()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(rels, func(r dsas.Release) bool { return r.Role == role }) {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", noSuchRole(role, known), dsas.ErrNotFound)
}

// releaseViews lists all releases with who uses them.
func (a *api) releaseViews(ctx context.Context) ([]dsas.ReleaseView, error) {
	if a.Releases == nil {
		return nil, nil
	}
	rels, err := a.Releases.Releases()
	if err != nil {
		return nil, err
	}
	nodes, err := a.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	statuses, err := a.Store.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]dsas.ReleaseView, len(rels))
	at := map[dsas.Digest]*dsas.ReleaseView{}
	for i, r := range rels {
		views[i] = dsas.ReleaseView{Name: r.Name(), Release: r}
		at[r.ID] = &views[i]
		if err := a.Releases.Bootable(&r); err != nil {
			views[i].Refused = err.Error()
		}
		p := a.Store.Published(r.Role)
		views[i].Current = p.Current == r.ID
		if j := slices.Index(p.Before, r.ID); j >= 0 {
			views[i].Before = len(p.Before) - j
		}
		if p.Canary != nil && p.Canary.Release == r.ID {
			views[i].Canary, views[i].Ready = p.Canary.Nodes, p.Canary.Ready
		}
	}
	for _, n := range nodes {
		if v := at[n.Release]; v != nil {
			v.Pinned = append(v.Pinned, n.Name)
		}
		if n.Role != "" {
			if v := at[a.Store.Published(n.Role).Assigned(&n)]; v != nil {
				v.Assigned = append(v.Assigned, n.Name)
			}
		}
		if v := at[statuses[n.Name].Image]; v != nil {
			v.Running = append(v.Running, n.Name)
		}
	}
	return views, nil
}

// nodeRelease tells what a node runs and would boot.
func nodeRelease(s Store, rels Releases, n *dsas.Node, st dsas.NodeStatus) (*dsas.NodeRelease, error) {
	if rels == nil {
		return nil, nil
	}
	out := &dsas.NodeRelease{}
	if st.Image != "" {
		running, err := rels.Release(st.Image)
		switch {
		case err == nil:
			out.Running = running.Name()
		case errors.Is(err, dsas.ErrNotFound):
			out.Running = st.Image.Short() // removed meanwhile
		default:
			return nil, err
		}
	}
	if n.Role == "" {
		out.Changes = st.Image != ""
		return out, nil
	}
	next, err := rels.Assigned(n, n.Role)
	if err != nil || next == nil {
		return out, err
	}
	out.Assigned, out.Changes = next.Name(), next.ID != st.Image
	c := s.Published(n.Role).Canary
	out.Canary = c != nil && n.Release == "" && c.Release == next.ID && slices.Contains(c.Nodes, n.Name)
	return out, nil
}

// pin makes of the release that a node is pinned to, named in any way, its ID,
// where it is not the one that it was pinned to before.
func (a *api) pin(ctx context.Context, n *dsas.Node, before dsas.Digest) error {
	if n.Release == "" || n.Release == before {
		return nil
	}
	rel, err := a.findRelease(ctx, string(n.Release))
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	if rel.Role != n.Role {
		return fmt.Errorf("node %s: release %s is of role %s, and the node's role is %s: %w", n.Name, rel.Name(), rel.Role, orNone(n.Role), dsas.ErrInvalid)
	}
	if err := a.Releases.Bootable(rel); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	n.Release = rel.ID
	return nil
}

// publish makes a release what its role's nodes boot.
func (a *api) publish(r *http.Request) (answer, error) {
	req, err := decode[dsas.PublishRequest](r)
	if err != nil {
		return answer{}, err
	}
	role := chi.URLParam(r, "role")
	rel, err := a.findRelease(r.Context(), req.Release)
	if err != nil {
		return answer{}, err
	}
	if rel.Role != role {
		return answer{}, fmt.Errorf("release %s is of role %s, not of %s: %w", rel.Name(), rel.Role, role, dsas.ErrInvalid)
	}
	if req.Canary != nil {
		return a.publishCanary(r, rel, *req.Canary)
	}
	return a.changePublished(r, role, func(p *dsas.Published, by string) error {
		p.Publish(rel.ID, by, time.Now())
		return nil
	})
}

// rollBack makes current what was so before.
func (a *api) rollBack(r *http.Request) (answer, error) {
	role := chi.URLParam(r, "role")
	if a.Releases == nil {
		return answer{}, errNoReleases
	}
	if err := a.hasRole(r.Context(), role); err != nil {
		return answer{}, err
	}
	return a.changePublished(r, role, func(p *dsas.Published, by string) error {
		ends := p.Canary != nil
		if err := p.RollBack(by, time.Now()); err != nil || ends {
			return err
		}
		if _, err := a.Releases.Release(p.Current); err != nil {
			return fmt.Errorf("roll back role %s: %w", role, err)
		}
		return nil
	})
}

// checkSigned wants what nodes are to boot, and did not before, to be signed. What
// they boot already is not taken from them.
func (a *api) checkSigned(was, now dsas.Published) error {
	var ids []dsas.Digest
	if now.Current != was.Current {
		ids = append(ids, now.Current)
	}
	if now.Canary != nil && (was.Canary == nil || was.Canary.Release != now.Canary.Release) {
		ids = append(ids, now.Canary.Release)
	}
	for _, id := range ids {
		r, err := a.Releases.Release(id)
		if err != nil {
			return err
		}
		if err := a.Releases.Bootable(r); err != nil {
			return err
		}
	}
	return nil
}

// errDryRun ends a change that is only tried.
var errDryRun = errors.New("dry run")

// changePublished changes what role's nodes boot, and tells of it.
func (a *api) changePublished(r *http.Request, role string, change func(p *dsas.Published, by string) error) (answer, error) {
	ctx := r.Context()
	by := a.Who(ctx)
	var tried dsas.Published
	p, err := a.Store.Publish(ctx, role, func(p *dsas.Published) ([]dsas.Event, error) {
		was := *p
		if err := change(p, by); err != nil {
			return nil, err
		}
		if err := a.checkSigned(was, *p); err != nil {
			return nil, err
		}
		tried = *p
		if dryRun(r) {
			return nil, errDryRun
		}
		return p.Changed(was, by, a.releaseName), nil
	})
	if errors.Is(err, errDryRun) {
		return answer{body: tried}, nil
	}
	if err != nil {
		return answer{}, err
	}
	return answer{body: p}, nil
}

// releaseName gives a release's name, or what of its ID can be shown.
func (a *api) releaseName(id dsas.Digest) string {
	if rel, err := a.Releases.Release(id); err == nil {
		return rel.Name()
	}
	return id.Short()
}

func (a *api) syncReleases(r *http.Request) (answer, error) {
	if a.Releases == nil {
		return answer{}, errNoReleases
	}
	changed, err := a.Releases.Sync(r.Context())
	return answer{body: list(changed)}, err
}

func (a *api) listPublished(*http.Request) (answer, error) {
	return answer{body: list(a.Store.AllPublished())}, nil
}
