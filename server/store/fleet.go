package store

import (
	"context"
	"fmt"
)

// FleetVersion changes whenever a node, a site, or the role that some node
// serves has changed: what was made of Nodes, Sites and Serving under one
// version is right for as long as it lasts. Heartbeats do not change it.
func (s *Store) FleetVersion(ctx context.Context) (int64, error) {
	var v int64
	if err := s.read.QueryRowContext(ctx, `SELECT version FROM fleet`).Scan(&v); err != nil {
		return 0, fmt.Errorf("fleet version: %w", err)
	}
	return v, nil
}

// Serving gives, by node name, the role whose services the node said last to be
// ready (dsas.NodeStatus.Serving); nodes that serve nothing are left out.
func (s *Store) Serving(ctx context.Context) (map[string]string, error) {
	list, err := collect(ctx, s.read, func(scan func(...any) error) (v [2]string, err error) {
		err = scan(&v[0], &v[1])
		return v, err
	}, `SELECT n.name, coalesce(p.role, s.running) FROM statuses s JOIN nodes n ON n.id = s.node_id
		LEFT JOIN boots p ON p.id = s.proven_boot AND p.node_id = n.id WHERE s.proven_phase = 'ready' AND s.ended = 0`)
	if err != nil {
		return nil, fmt.Errorf("list serving nodes: %w", err)
	}
	out := make(map[string]string, len(list))
	for _, v := range list {
		out[v[0]] = v[1]
	}
	return out, nil
}
