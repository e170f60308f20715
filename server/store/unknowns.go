package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"dsas"
)

// maxUnknowns bounds what a boot network full of made-up MACs can fill.
const maxUnknowns = 4096

// RecordUnknown records that a MAC which belongs to no node asked, at u.Last
// (now, where that is unset). Fields that are empty keep what was known; Count
// and First are kept by the store. first tells whether it is new. A MAC that
// has become a node's is not recorded. Above 4096 the longest silent one goes.
func (s *Store) RecordUnknown(ctx context.Context, u dsas.Unknown) (first bool, err error) {
	last := toNanos(s.orNow(u.Last))
	since := toNanos(u.First)
	if since == 0 {
		since = last
	}
	err = s.writeLax(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var count int
		err := tx.QueryRowContext(ctx, `SELECT 1 FROM nics WHERE mac = ?`, u.MAC.String()).Scan(&count)
		if !errors.Is(err, sql.ErrNoRows) {
			return err // nil: it is a node's
		}
		err = tx.QueryRowContext(ctx, `INSERT INTO unknowns (mac, arch, vendor_class, guid, address, first, last, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)
			ON CONFLICT (mac) DO UPDATE SET
				arch = iif(?2 = '', arch, ?2), vendor_class = iif(?3 = '', vendor_class, ?3), guid = iif(?4 = '', guid, ?4),
				address = coalesce(?5, address), last = max(last, ?7), count = count + 1
			RETURNING count`,
			u.MAC.String(), head(u.Arch, maxWord), head(u.VendorClass, 2*maxWord), head(u.GUID, maxWord), addrKey(u.Address), since, last).Scan(&count)
		if err != nil {
			return err
		}
		if first = count == 1; !first {
			return nil
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM unknowns WHERE mac IN (
			SELECT mac FROM unknowns WHERE mac <> ? ORDER BY last LIMIT max(0, (SELECT count(*) FROM unknowns) - ?))`, u.MAC.String(), maxUnknowns)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("record unknown MAC %s: %w", u.MAC, err)
	}
	return first, nil
}

// Unknowns lists the recorded MACs, the most recent first.
func (s *Store) Unknowns(ctx context.Context) ([]dsas.Unknown, error) {
	list, err := collect(ctx, s.read, scanUnknown, `SELECT mac, arch, vendor_class, guid, address, hardware, first, last, count FROM unknowns ORDER BY last DESC, mac`)
	if err != nil {
		return nil, fmt.Errorf("list unknown MACs: %w", err)
	}
	return list, nil
}

func scanUnknown(scan func(...any) error) (u dsas.Unknown, err error) {
	var mac string
	var address []byte
	var first, last int64
	if err := scan(&mac, &u.Arch, &u.VendorClass, &u.GUID, &address, &u.Hardware, &first, &last, &u.Count); err != nil {
		return u, err
	}
	u.Address, u.First, u.Last = fromAddrKey(address), fromNanos(first), fromNanos(last)
	u.MAC, err = fromMACText(mac)
	return u, err
}

// noteHardware keeps what the inventory of a box that is no node found.
func noteHardware(ctx context.Context, tx *sql.Tx, e dsas.Event) error {
	if e.Kind != dsas.KindInventory || e.Node != "" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE unknowns SET hardware = ? WHERE mac = ?`, head(e.Message, 4*maxWord), macText(e.MAC))
	return err
}

// DeleteUnknown forgets a recorded MAC.
func (s *Store) DeleteUnknown(ctx context.Context, m dsas.MAC) error {
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM unknowns WHERE mac = ?`, m.String())
		return must1(res, err, "unknown MAC", m.String())
	})
	if err != nil {
		return fmt.Errorf("delete unknown MAC: %w", err)
	}
	return nil
}
