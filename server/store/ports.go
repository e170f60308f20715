package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"dsas"
)

// maxPorts bounds what made-up MACs can fill; nodes' ports go last.
const maxPorts = 16384

// RecordPort records where a MAC hangs. It does not wait for the disk.
func (s *Store) RecordPort(ctx context.Context, p dsas.Port) error {
	err := s.writeLax(ctx, func(ctx context.Context, tx *txn) error {
		var relay []byte
		if p.Relay.IsValid() {
			relay = addrKey(p.Relay)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO ports (mac, relay, circuit, remote, interface, seen) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
			ON CONFLICT (mac) DO UPDATE SET relay = ?2, circuit = ?3, remote = ?4, interface = ?5, seen = ?6`,
			p.MAC.String(), relay, head(p.CircuitID, 2*maxWord), head(p.RemoteID, 2*maxWord), head(p.Interface, maxWord), toNanos(s.orNow(p.Seen)))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM ports WHERE mac IN (
			SELECT mac FROM ports WHERE mac NOT IN (SELECT mac FROM nics) AND mac <> ?
			ORDER BY seen LIMIT max(0, (SELECT count(*) FROM ports) - ?))`, p.MAC.String(), maxPorts)
		return err
	})
	if err != nil {
		return fmt.Errorf("record port of %s: %w", p.MAC, err)
	}
	return nil
}

// Ports gives where each MAC hangs, those that relays or switches told of.
func (s *Store) Ports(ctx context.Context) (map[dsas.MAC]dsas.Port, error) {
	list, err := collect(ctx, s.read, func(scan func(...any) error) (p dsas.Port, err error) {
		var mac string
		var relay []byte
		var seen int64
		if err := scan(&mac, &relay, &p.CircuitID, &p.RemoteID, &p.Interface, &seen); err != nil {
			return p, err
		}
		p.Relay, p.Seen = fromAddrKey(relay), fromNanos(seen)
		p.MAC, err = fromMACText(mac)
		return p, err
	}, `SELECT mac, relay, circuit, remote, interface, seen FROM ports`)
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	out := make(map[dsas.MAC]dsas.Port, len(list))
	for _, p := range list {
		out[p.MAC] = p
	}
	return out, nil
}

// NodeByClientID gives the node with that DHCP client identifier (hex), or
// dsas.ErrNotFound.
func (s *Store) NodeByClientID(_ context.Context, id string) (dsas.Node, error) {
	if n, ok := s.nodes.withClientID(dsas.ClientID(id)); ok {
		return n, nil
	}
	return dsas.Node{}, fmt.Errorf("get node: %w", notFound("node with client id", id))
}

// checkClientID refuses a client identifier that another node has.
func checkClientID(ctx context.Context, tx *txn, id int64, n *dsas.Node) error {
	if n.ClientID == "" {
		return nil
	}
	var holder string
	err := tx.QueryRowContext(ctx, `SELECT name FROM client_ids c JOIN nodes ON nodes.id = c.node_id WHERE c.id = ? AND nodes.id <> ?`, string(n.ClientID), id).Scan(&holder)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("node %s: client id %s belongs to node %s: %w", n.Name, n.ClientID, holder, dsas.ErrConflict)
}

// putClientID writes a checked node's.
func putClientID(ctx context.Context, tx *txn, id int64, n *dsas.Node) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM client_ids WHERE node_id = ?`, id); err != nil || n.ClientID == "" {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO client_ids (id, node_id) VALUES (?, ?)`, string(n.ClientID), id)
	return err
}
