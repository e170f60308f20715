package httpboot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"dsas"
	"dsas/server/boot"
)

// menu gives the roles that may be picked at the node's loader now: those on
// its list, as long as they are built and could not harm a disk. That was
// checked when the list was made, and role definitions change.
func (s *Server) menu(node dsas.Node) ([]string, error) {
	if s.Role == nil {
		return nil, nil
	}
	var out []string
	for _, name := range node.Menu {
		r, err := s.Releases.Assigned(&node, name)
		if err != nil {
			return nil, err
		}
		if r == nil {
			continue // nothing to boot
		}
		why, err := s.menuRefusal(name, r.ID)
		if errors.Is(err, dsas.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		if why != "" {
			s.Log.Warn("role left out of a menu", "node", node.Name, "role", name, "why", why)
			continue
		}
		out = append(out, name)
	}
	return out, nil
}

// menuRefusal says why a role may not be offered: by the definition of the release
// that would boot, which obeys it, and by the server's own, which may have been
// changed since for that reason.
func (s *Server) menuRefusal(name string, release dsas.Digest) (string, error) {
	for _, id := range []dsas.Digest{"", release} {
		role, err := s.Role(name, id)
		if err != nil {
			return "", err
		}
		if why := role.MenuRefusal(); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// picked records that another role than the assigned one was picked for boot b.
func (s *Server) picked(ctx context.Context, plan boot.Plan, b dsas.Boot, from netip.Addr) {
	if !b.Picked {
		return
	}
	s.event(ctx, dsas.Event{Node: b.Node, MAC: b.MAC, Boot: b.ID, Kind: dsas.KindMenu,
		Message: fmt.Sprintf("role %s picked at the loader (%s, %s) for this boot; assigned is %s", plan.Pick, plan.Loader, from, plan.Node.Role)})
}

// refusedPick records that a role was asked for which the node may not pick.
// Anyone on the wire can ask: once a minute and node.
func (s *Server) refusedPick(ctx context.Context, req boot.Request, from netip.Addr) {
	if req.Pick == "" || req.Node == nil || req.Role() == req.Pick || !s.said.allow("pick "+req.MAC.String(), s.Now(), time.Minute) {
		return
	}
	s.event(ctx, dsas.Event{Node: req.Node.Name, MAC: req.MAC, Kind: dsas.KindWarning,
		Message: fmt.Sprintf("role %.63q was asked for at the loader, from %s, and is not on the node's menu", req.Pick, from)})
}
