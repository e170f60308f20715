package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"dsas"
)

// checkNode checks n by itself and against everything else; id is its own, 0
// for a new one.
func (s *Store) checkNode(ctx context.Context, tx *txn, id int64, n *dsas.Node) error {
	if err := n.Check(); err != nil {
		return err
	}
	var other int64
	err := tx.QueryRowContext(ctx, `SELECT id FROM nodes WHERE name = ? AND id <> ?`, n.Name, id).Scan(&other)
	if err == nil {
		return fmt.Errorf("node %s exists already: %w", n.Name, dsas.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	for _, nic := range n.NICs {
		var holder string
		err := tx.QueryRowContext(ctx, `SELECT name FROM nics JOIN nodes ON id = node_id WHERE mac = ? AND id <> ?`, nic.MAC.String(), id).Scan(&holder)
		if err == nil {
			return fmt.Errorf("node %s: MAC %s belongs to node %s: %w", n.Name, nic.MAC, holder, dsas.ErrConflict)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	if err := checkClientID(ctx, tx, id, n); err != nil {
		return err
	}
	seen := map[netip.Addr]bool{}
	for _, a := range nodeAddresses(n) {
		if seen[a] {
			return fmt.Errorf("node %s: address %s is given twice: %w", n.Name, a, dsas.ErrInvalid)
		}
		seen[a] = true
		if err := s.checkAddress(ctx, tx, id, n, a); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return nil
}

// nodeAddresses gives n's own address and those of its interfaces.
func nodeAddresses(n *dsas.Node) []netip.Addr {
	var out []netip.Addr
	if n.Address.IsValid() {
		out = append(out, n.Address.Addr().Unmap())
	}
	for _, i := range n.Interfaces {
		out = append(out, i.Address.Addr().Unmap())
	}
	return out
}

func (s *Store) checkAddress(ctx context.Context, tx *txn, id int64, n *dsas.Node, a netip.Addr) error {
	if err := addressFree(ctx, tx, id, a); err != nil {
		return err
	}
	var holder string
	err := tx.QueryRowContext(ctx, `SELECT name FROM sites WHERE address = ?`, addrKey(a)).Scan(&holder)
	if err == nil {
		return fmt.Errorf("address %s is site %s's service address: %w", a, holder, dsas.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	l := s.pools.held(a)
	if l == nil || !l.holds(s.now()) || n.HasMAC(l.MAC) && !l.Declined {
		return nil
	}
	return l.conflict()
}

// addressFree refuses an address that a node other than id holds.
func addressFree(ctx context.Context, tx *txn, id int64, a netip.Addr) error {
	var holder string
	err := tx.QueryRowContext(ctx, `SELECT name FROM addresses JOIN nodes ON id = node_id WHERE address = ? AND id <> ?`, addrKey(a), id).Scan(&holder)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("address %s belongs to node %s: %w", a, holder, dsas.ErrConflict)
}
