package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"dsas"
)

// Nodes lists all nodes, sorted as people count: w9 before w10.
func (s *Store) Nodes(context.Context) ([]dsas.Node, error) { return s.nodes.all(), nil }

// Node gives the node called name, or dsas.ErrNotFound.
func (s *Store) Node(_ context.Context, name string) (dsas.Node, error) {
	n, ok := s.nodes.named(name)
	if !ok {
		return n, fmt.Errorf("get node: %w", notFound("node", name))
	}
	return n, nil
}

// SharedNode gives the node one of whose NICs has address m, nil where there is
// none. Others have the same one: nobody may change it. It waits for no disk and
// copies nothing.
func (s *Store) SharedNode(m dsas.MAC) *dsas.Node { return s.nodes.shared(m) }

// NodeByMAC gives the node one of whose NICs has address m, or dsas.ErrNotFound.
func (s *Store) NodeByMAC(_ context.Context, m dsas.MAC) (dsas.Node, error) {
	n, ok := s.nodes.withMAC(m)
	if !ok {
		return n, noNodeWith{m}
	}
	return n, nil
}

func scanNode(scan func(...any) error) (n dsas.Node, err error) {
	var doc []byte
	if err := scan(&doc); err != nil {
		return n, err
	}
	if err := json.Unmarshal(doc, &n); err != nil {
		return n, fmt.Errorf("decode node: %w", err)
	}
	return n, nil
}

// CreateNode adds n. A name, MAC or address that is taken is dsas.ErrConflict
// and says by whom. The answer has no BMC password.
func (s *Store) CreateNode(ctx context.Context, n dsas.Node) (dsas.Node, error) {
	made, _, err := s.CreateNodes(ctx, []dsas.Node{n}, nil)
	if err != nil {
		return dsas.Node{}, err
	}
	return made[0], nil
}

// CreateNodes adds all nodes or none, and the events with them. bad is the
// index of the node that an error speaks of.
func (s *Store) CreateNodes(ctx context.Context, nodes []dsas.Node, events []dsas.Event) (made []dsas.Node, bad int, err error) {
	made = make([]dsas.Node, len(nodes))
	for i := range events {
		if err := s.checkEvent(&events[i]); err != nil {
			return nil, 0, fmt.Errorf("create nodes: %w", err)
		}
	}
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		for i := range nodes {
			bad = i
			n := cloneNode(nodes[i])
			n.Created = s.orNow(n.Created)
			if err := s.createNode(ctx, tx, &n); err != nil {
				return err
			}
			made[i] = n
		}
		return s.addEvents(ctx, tx, events)
	})
	if err != nil {
		return nil, bad, fmt.Errorf("create node: %w", err)
	}
	return made, 0, nil
}

func (s *Store) createNode(ctx context.Context, tx *txn, n *dsas.Node) error {
	if err := s.checkNode(ctx, tx, 0, n); err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO nodes (name, doc) VALUES (?, '')`, n.Name)
	if err != nil {
		return err
	}
	id, err := res.LastInsertId()
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO statuses (node_id, phase) VALUES (?, ?)`, id, dsas.PhaseNew); err != nil {
		return err
	}
	return s.putNode(ctx, tx, id, n)
}

// UpdateNode changes the node called name with change, in a transaction; it may
// be renamed. change gets the node without the BMC's password, which stays as
// it is when change leaves it empty and goes when BMC is nil. While change runs
// nothing else is written: it must not call the store.
func (s *Store) UpdateNode(ctx context.Context, name string, change func(*dsas.Node) error) (dsas.Node, error) {
	var n dsas.Node
	err := s.write(ctx, func(ctx context.Context, tx *txn) (err error) {
		n, err = s.updateNode(ctx, tx, name, change)
		return err
	})
	if err != nil {
		return dsas.Node{}, fmt.Errorf("update node %s: %w", name, err)
	}
	return n, nil
}

// UpdateNodes makes all changes or none, their events with them.
func (s *Store) UpdateNodes(ctx context.Context, changes []dsas.NodeChange) ([]dsas.Node, error) {
	for i := range changes {
		for j := range changes[i].Events {
			if err := s.checkEvent(&changes[i].Events[j]); err != nil {
				return nil, fmt.Errorf("update node %s: %w", changes[i].Name, err)
			}
		}
	}
	out := make([]dsas.Node, len(changes))
	err := s.write(ctx, func(ctx context.Context, tx *txn) (err error) {
		for i, c := range changes {
			out[i], err = s.updateNode(ctx, tx, c.Name, func(n *dsas.Node) error { *n = cloneNode(c.Node); return nil })
			if err == nil {
				err = s.addEvents(ctx, tx, c.Events)
			}
			if err != nil {
				return fmt.Errorf("update node %s: %w", c.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Store) updateNode(ctx context.Context, tx *txn, name string, change func(*dsas.Node) error) (dsas.Node, error) {
	var n dsas.Node
	id, err := nodeID(ctx, tx, name)
	if err != nil {
		return n, err
	}
	n, err = scanNode(tx.QueryRowContext(ctx, `SELECT doc FROM nodes WHERE id = ?`, id).Scan)
	if err != nil {
		return n, err
	}
	created := n.Created
	if err := change(&n); err != nil {
		return n, err
	}
	n = cloneNode(n)
	n.Created = created
	if err := s.checkNode(ctx, tx, id, &n); err != nil {
		return n, err
	}
	if n.Name != name {
		// A node's history goes with it under its new name.
		if _, err := tx.ExecContext(ctx, `UPDATE events SET node = ? WHERE node = ?`, n.Name, name); err != nil {
			return n, err
		}
	}
	return n, s.putNode(ctx, tx, id, &n)
}

// DeleteNode removes a node with its status, boots and secrets. Its events stay.
func (s *Store) DeleteNode(ctx context.Context, name string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		id, err := nodeID(ctx, tx, name)
		if err != nil {
			return err
		}
		if err := s.dropAddresses(ctx, tx, id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM nodes WHERE id = ?`, id); err != nil {
			return err
		}
		tx.onCommit(func() { s.nodes.remove(id) })
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete node: %w", err)
	}
	return nil
}

// BMCPassword decrypts the password of node's BMC; dsas.ErrNotFound where it
// has none.
func (s *Store) BMCPassword(ctx context.Context, node string) (string, error) {
	var id int64
	var sealed []byte
	err := s.read.QueryRowContext(ctx, `SELECT id, bmc_password FROM nodes WHERE name = ?`, node).Scan(&id, &sealed)
	if err != nil {
		return "", fmt.Errorf("get BMC password: %w", orNotFound(err, "node", node))
	}
	if sealed == nil {
		return "", fmt.Errorf("get BMC password: %w", notFound("BMC password for node", node))
	}
	plain, err := s.box.open(bmcOwner(id), sealed)
	return string(plain), err
}

func bmcOwner(id int64) string { return fmt.Sprintf("node/%d/bmc-password", id) }

func nodeID(ctx context.Context, q querier, name string) (id int64, err error) {
	err = q.QueryRowContext(ctx, `SELECT id FROM nodes WHERE name = ?`, name).Scan(&id)
	return id, orNotFound(err, "node", name)
}

// cloneNode cuts what caller and store would otherwise share.
func cloneNode(n dsas.Node) dsas.Node {
	n.NICs = slices.Clone(n.NICs)
	n.Interfaces = slices.Clone(n.Interfaces)
	n.Disks = maps.Clone(n.Disks)
	n.Menu = slices.Clone(n.Menu)
	if n.BMC != nil {
		b := *n.BMC
		n.BMC = &b
	}
	return n
}

// putNode writes a checked node; the password goes from n into its own column.
func (s *Store) putNode(ctx context.Context, tx *txn, id int64, n *dsas.Node) error {
	exec := func(query string, args ...any) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	}
	switch {
	case n.BMC == nil:
		if err := exec(`UPDATE nodes SET bmc_password = NULL WHERE id = ?`, id); err != nil {
			return err
		}
	case n.BMC.Password != "":
		if err := exec(`UPDATE nodes SET bmc_password = ? WHERE id = ?`, s.box.seal(bmcOwner(id), []byte(n.BMC.Password)), id); err != nil {
			return err
		}
		n.BMC.Password = ""
	}
	doc, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode node: %w", err)
	}
	if err := exec(`UPDATE nodes SET name = ?, doc = ? WHERE id = ?`, n.Name, string(doc), id); err != nil {
		return err
	}
	if err := exec(`DELETE FROM nics WHERE node_id = ?`, id); err != nil {
		return err
	}
	for _, nic := range n.NICs {
		if err := exec(`INSERT INTO nics (mac, node_id) VALUES (?, ?)`, nic.MAC.String(), id); err != nil {
			return err
		}
		if _, err := s.forgetUnknown(ctx, tx, nic.MAC); err != nil {
			return err
		}
	}
	if err := putClientID(ctx, tx, id, n); err != nil {
		return err
	}
	if err := s.dropAddresses(ctx, tx, id); err != nil {
		return err
	}
	for _, a := range nodeAddresses(n) {
		if err := exec(`INSERT INTO addresses (address, node_id) VALUES (?, ?)`, addrKey(a), id); err != nil {
			return err
		}
		// What is left there is the node's own lease or one that ran out.
		if err := s.takeAddress(ctx, tx, a); err != nil {
			return err
		}
	}
	kept := cloneNode(*n)
	tx.onCommit(func() { s.nodes.put(id, kept) })
	return nil
}

// takeAddress takes a out of the pools, from this moment on, and ends a lease
// of it.
func (s *Store) takeAddress(ctx context.Context, tx *txn, a netip.Addr) error {
	p := &s.pools
	p.mu.Lock()
	p.count(1, a)
	old := p.remove(a)
	p.mu.Unlock()
	tx.onUndo(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.count(-1, a) // at once with what follows: else it is free in between
		if old != nil && p.leases[a] == nil {
			old.gone = false
			p.add(old)
		}
	})
	_, err := tx.ExecContext(ctx, `DELETE FROM leases WHERE address = ?`, addrKey(a))
	return err
}

// dropAddresses deletes a node's addresses; when that is on disk they may be
// given to others.
func (s *Store) dropAddresses(ctx context.Context, tx *txn, id int64) error {
	old, err := collect(ctx, tx, scanAddr, `DELETE FROM addresses WHERE node_id = ? RETURNING address`, id)
	if err != nil {
		return err
	}
	tx.onCommit(func() { s.pools.reserve(-1, old...) })
	return nil
}

// naturalCompare orders digits by value and the rest by bytes; names equal by
// value (w1, w01) are ordered by bytes, so the order is total.
func naturalCompare(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		dx, dy := digits(x), digits(y)
		if dx > 0 && dy > 0 {
			nx, ny := strings.TrimLeft(x[:dx], "0"), strings.TrimLeft(y[:dy], "0")
			if len(nx) != len(ny) {
				return len(nx) - len(ny)
			}
			if c := strings.Compare(nx, ny); c != 0 {
				return c
			}
			x, y = x[dx:], y[dy:]
			continue
		}
		if x[0] != y[0] {
			return int(x[0]) - int(y[0])
		}
		x, y = x[1:], y[1:]
	}
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	return strings.Compare(a, b)
}

// digits counts the leading digits of s.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
