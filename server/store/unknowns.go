package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"dsas"
)

// maxUnknowns bounds what a boot network full of made-up MACs can fill.
const maxUnknowns = 4096

// unknowns are the recorded MACs in memory; what changed is written a moment
// later, all of it at once.
type unknowns struct {
	mu    sync.Mutex
	m     map[dsas.MAC]*dsas.Unknown
	dirty map[dsas.MAC]bool // to be written, or deleted where they are not in m
	due   bool              // a write is queued
}

func (u *unknowns) load(ctx context.Context, q querier) error {
	list, err := collect(ctx, q, scanUnknown, `SELECT mac, arch, vendor_class, guid, address, hardware, first, last, count FROM unknowns`)
	if err != nil {
		return fmt.Errorf("read unknown MACs: %w", err)
	}
	u.m, u.dirty = make(map[dsas.MAC]*dsas.Unknown, len(list)), map[dsas.MAC]bool{}
	for _, x := range list {
		u.m[x.MAC] = &x
	}
	return nil
}

// RecordUnknown records that a MAC which belongs to no node asked, at u.Last
// (now, where that is unset). Fields that are empty keep what was known; Count
// and First are kept by the store. first tells whether it is new. A MAC that
// has become a node's is not recorded. Above 4096 the longest silent one goes.
// It does not wait for the disk: the last moment is lost with the process.
func (s *Store) RecordUnknown(_ context.Context, u dsas.Unknown) (first bool, err error) {
	if s.nodes.shared(u.MAC) != nil {
		return false, nil
	}
	u.Last = s.orNow(u.Last)
	if u.First.IsZero() {
		u.First = u.Last
	}
	u.First = u.First.Round(0).UTC()
	u.Arch, u.VendorClass, u.GUID = head(u.Arch, maxWord), head(u.VendorClass, 2*maxWord), head(u.GUID, maxWord)
	k := &s.unknowns
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.m[u.MAC]; old != nil {
		old.Arch, old.VendorClass, old.GUID = cmp.Or(u.Arch, old.Arch), cmp.Or(u.VendorClass, old.VendorClass), cmp.Or(u.GUID, old.GUID)
		old.Address = cmp.Or(u.Address, old.Address)
		if u.Last.After(old.Last) {
			old.Last = u.Last
		}
		old.Count++
	} else {
		u.Count, first = 1, true
		k.m[u.MAC] = &u
		for len(k.m) > maxUnknowns {
			k.dropOldest(u.MAC)
		}
	}
	s.changedUnknown(u.MAC)
	return first, nil
}

// dropOldest forgets the one that was silent for longest, other than keep.
func (k *unknowns) dropOldest(keep dsas.MAC) {
	var oldest *dsas.Unknown
	for _, x := range k.m {
		if x.MAC != keep && (oldest == nil || x.Last.Before(oldest.Last)) {
			oldest = x
		}
	}
	delete(k.m, oldest.MAC)
	k.dirty[oldest.MAC] = true
}

// changedUnknown has a MAC written soon. unknowns is locked.
func (s *Store) changedUnknown(m dsas.MAC) {
	k := &s.unknowns
	k.dirty[m] = true
	if k.due {
		return
	}
	// Too many jobs wait already: the next change tries again.
	k.due = s.later(s.writeUnknowns) == nil
}

// writeUnknowns is the job that writes what changed.
func (s *Store) writeUnknowns(ctx context.Context, tx *txn) error {
	k := &s.unknowns
	k.mu.Lock()
	var put []dsas.Unknown
	var drop []dsas.MAC
	for m := range k.dirty {
		if u := k.m[m]; u != nil {
			put = append(put, *u)
		} else {
			drop = append(drop, m)
		}
	}
	taken := k.dirty
	k.dirty, k.due = map[dsas.MAC]bool{}, false
	k.mu.Unlock()
	tx.onUndo(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for m := range taken {
			k.dirty[m] = true
		}
	})
	for _, u := range put {
		_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO unknowns (mac, arch, vendor_class, guid, address, hardware, first, last, count) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			u.MAC.String(), u.Arch, u.VendorClass, u.GUID, addrKey(u.Address), u.Hardware, toNanos(u.First), toNanos(u.Last), u.Count)
		if err != nil {
			return err
		}
	}
	for _, m := range drop {
		if _, err := tx.ExecContext(ctx, `DELETE FROM unknowns WHERE mac = ?`, m.String()); err != nil {
			return err
		}
	}
	return nil
}

// forgetUnknown drops a MAC within a transaction.
func (s *Store) forgetUnknown(ctx context.Context, tx *txn, m dsas.MAC) (found bool, err error) {
	k := &s.unknowns
	k.mu.Lock()
	old := k.m[m]
	delete(k.m, m)
	k.mu.Unlock()
	if old != nil {
		tx.onUndo(func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.m[m] == nil {
				k.m[m] = old
			}
		})
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM unknowns WHERE mac = ?`, m.String())
	return old != nil, err
}

// Unknowns lists the recorded MACs, the most recent first.
func (s *Store) Unknowns(context.Context) ([]dsas.Unknown, error) {
	k := &s.unknowns
	k.mu.Lock()
	list := make([]dsas.Unknown, 0, len(k.m))
	for _, u := range k.m {
		list = append(list, *u)
	}
	k.mu.Unlock()
	slices.SortFunc(list, func(a, b dsas.Unknown) int {
		return cmp.Or(b.Last.Compare(a.Last), slices.Compare(a.MAC[:], b.MAC[:]))
	})
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
func (s *Store) noteHardware(tx *txn, e *dsas.Event) {
	if e.Kind != dsas.KindInventory || e.Node != "" {
		return
	}
	mac, found := e.MAC, head(e.Message, 4*maxWord)
	tx.onCommit(func() {
		k := &s.unknowns
		k.mu.Lock()
		defer k.mu.Unlock()
		if u := k.m[mac]; u != nil {
			u.Hardware = found
			s.changedUnknown(mac)
		}
	})
}

// DeleteUnknown forgets a recorded MAC.
func (s *Store) DeleteUnknown(ctx context.Context, m dsas.MAC) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		found, err := s.forgetUnknown(ctx, tx, m)
		if err == nil && !found {
			err = notFound("unknown MAC", m.String())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete unknown MAC: %w", err)
	}
	return nil
}
