package api

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/go-chi/chi/v5"

	"dsas"
)

func (a *api) listUnknown(r *http.Request) (answer, error) {
	unknown, err := a.Store.Unknowns(r.Context())
	if err != nil {
		return answer{}, err
	}
	ports, err := a.Store.Ports(r.Context())
	for i, u := range unknown {
		if p, ok := ports[u.MAC]; ok {
			unknown[i].Port = &p
		}
	}
	return answer{body: list(unknown)}, err
}

func (a *api) removeUnknown(r *http.Request) (answer, error) {
	mac, err := dsas.ParseMAC(chi.URLParam(r, "mac"))
	if err != nil {
		return answer{}, err
	}
	return answer{}, a.Store.DeleteUnknown(r.Context(), mac)
}

func (a *api) listLeases(r *http.Request) (answer, error) {
	leases, err := a.Store.Leases(r.Context())
	return answer{body: list(leases)}, err
}

// listRoles gives the roles, each with the release that its nodes follow.
func (a *api) listRoles(r *http.Request) (answer, error) {
	if a.Roles == nil {
		return answer{body: []dsas.RoleView{}}, nil
	}
	views, err := a.Roles.Roles(r.Context())
	if err != nil {
		return answer{}, fmt.Errorf("list roles: %w", err)
	}
	out := slices.Clone(views)
	for i, v := range out {
		if v.Release == nil && a.Releases != nil {
			if out[i].Release, err = a.Releases.Assigned(nil, v.Role.Name); err != nil {
				return answer{}, fmt.Errorf("release of role %s: %w", v.Role.Name, err)
			}
		}
		if c := a.Store.Published(v.Role.Name).Canary; c != nil && a.Releases != nil {
			out[i].Canary = &dsas.CanaryView{Name: a.releaseName(c.Release), Canary: *c}
		}
	}
	return answer{body: list(out)}, nil
}

func (a *api) explain(r *http.Request) (answer, error) {
	q := r.URL.Query()
	mac, err := dsas.ParseMAC(q.Get("mac"))
	if err != nil {
		return answer{}, err
	}
	if a.Explain == nil {
		return answer{}, fmt.Errorf("explain: this server cannot: %w", dsas.ErrInvalid)
	}
	v, err := a.Explain(r.Context(), mac, q.Get("arch"))
	return answer{body: v}, err
}

func (a *api) sshInfo(r *http.Request) (answer, error) {
	n, err := a.node(r)
	if err != nil {
		return answer{}, err
	}
	if a.SSH == nil {
		return answer{}, fmt.Errorf("node %s: this server keeps no host keys: %w", n.Name, dsas.ErrInvalid)
	}
	info, err := a.SSH(r.Context(), n)
	return answer{body: info}, err
}

func (a *api) status(r *http.Request) (answer, error) {
	var s dsas.ServerStatus
	var err error
	if a.Status != nil {
		if s, err = a.Status(r.Context()); err != nil {
			return answer{}, err
		}
	}
	statuses, err := a.Store.Statuses(r.Context())
	if err != nil {
		return answer{}, err
	}
	s.Subnets = a.Subnets
	s.Nodes = map[dsas.Phase]int{}
	for _, st := range statuses {
		s.Nodes[st.Phase]++
	}
	return answer{body: s}, nil
}
