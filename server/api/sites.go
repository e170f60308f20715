package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/go-chi/chi/v5"

	"dsas"
)

func (a *api) listSites(r *http.Request) (answer, error) {
	sites, err := a.Store.Sites(r.Context())
	return answer{body: list(sites)}, err
}

func (a *api) showSite(r *http.Request) (answer, error) {
	s, err := a.Store.Site(r.Context(), chi.URLParam(r, "name"))
	return answer{body: s}, err
}

func (a *api) addSite(r *http.Request) (answer, error) {
	s, err := decode[dsas.Site](r)
	if err != nil {
		return answer{}, err
	}
	s = s.WithDefaults()
	a.changing.Lock()
	defer a.changing.Unlock()
	if err := a.checkSite(r.Context(), &s); err != nil {
		return answer{}, err
	}
	sites, err := a.Store.Sites(r.Context())
	if err != nil {
		return answer{}, err
	}
	for _, o := range sites {
		if o.Name == s.Name {
			return answer{}, fmt.Errorf("site %s: exists already; change it with `dsas site set %s`: %w", s.Name, s.Name, dsas.ErrConflict)
		}
		if o.Address == s.Address && o.Port == s.Port {
			return answer{}, fmt.Errorf("site %s: %s port %d belongs to site %s: %w", s.Name, s.Address, s.Port, o.Name, dsas.ErrConflict)
		}
	}
	if !dryRun(r) {
		if s, err = a.Store.CreateSite(r.Context(), s); err != nil {
			return answer{}, err
		}
		a.siteEvent(r.Context(), s.Name, "added")
	}
	return answer{status: http.StatusCreated, body: s}, nil
}

func (a *api) changeSite(r *http.Request) (answer, error) {
	ctx := r.Context()
	patch, err := readRaw(r)
	if err != nil {
		return answer{}, err
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	old, err := a.Store.Site(ctx, chi.URLParam(r, "name"))
	if err != nil {
		return answer{}, err
	}
	now, err := mergeInto(old, patch)
	if err != nil {
		return answer{}, err
	}
	if now.Check.Kind == "tcp" {
		now.Check = dsas.SiteCheck{Kind: "tcp"} // path and status are of http alone
	}
	now = now.WithDefaults()
	if err := a.checkSite(ctx, &now); err != nil {
		return answer{}, err
	}
	if !dryRun(r) {
		if now, err = a.Store.UpdateSite(ctx, old.Name, func(s *dsas.Site) error { *s = now; return nil }); err != nil {
			return answer{}, err
		}
		a.siteEvent(ctx, now.Name, "changed")
	}
	return answer{body: now}, nil
}

func (a *api) removeSite(r *http.Request) (answer, error) {
	s, err := a.Store.Site(r.Context(), chi.URLParam(r, "name"))
	if err != nil {
		return answer{}, err
	}
	if dryRun(r) {
		return answer{body: s}, nil
	}
	if err := a.Store.DeleteSite(r.Context(), s.Name); err != nil {
		return answer{}, err
	}
	a.siteEvent(r.Context(), s.Name, "removed")
	return answer{}, nil
}

func (a *api) siteEvent(ctx context.Context, name, what string) {
	a.event(ctx, dsas.Event{Kind: dsas.KindSiteChanged, Message: fmt.Sprintf("site %s %s, by %s", name, what, a.Who(ctx))})
}

// checkSite says what is wrong with s by itself and beside nodes and subnets.
func (a *api) checkSite(ctx context.Context, s *dsas.Site) error {
	if err := s.CheckFields(); err != nil {
		return err
	}
	roles, err := a.roleNames(ctx)
	if err != nil {
		return err
	}
	for _, role := range []string{s.Role, s.Balancer} {
		if a.Roles != nil && !slices.Contains(roles, role) {
			return fmt.Errorf("site %s: %w", s.Name, unknownRole(role, roles))
		}
	}
	for _, sub := range a.Subnets {
		if sub.Prefix.Contains(s.Address) {
			if why := reserved(sub, s.Address); why != "" {
				return fmt.Errorf("site %s: address %s: %s: %w", s.Name, s.Address, why, dsas.ErrInvalid)
			}
		}
	}
	nodes, err := a.Store.Nodes(ctx)
	if err != nil {
		return err
	}
	for i := range nodes {
		if slices.Contains(all(&nodes[i]), s.Address) {
			return fmt.Errorf("site %s: address %s belongs to node %s: %w", s.Name, s.Address, nodes[i].Name, dsas.ErrConflict)
		}
	}
	return nil
}
