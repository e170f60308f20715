package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"dsas"
)

// Sites lists all sites, sorted as people count.
func (s *Store) Sites(ctx context.Context) ([]dsas.Site, error) {
	sites, err := collect(ctx, s.read, scanSite, `SELECT doc FROM sites`)
	if err != nil {
		return nil, fmt.Errorf("list sites: %w", err)
	}
	slices.SortFunc(sites, func(a, b dsas.Site) int { return naturalCompare(a.Name, b.Name) })
	return sites, nil
}

// Site gives the site called name, or dsas.ErrNotFound.
func (s *Store) Site(ctx context.Context, name string) (dsas.Site, error) {
	site, err := getSite(ctx, s.read, name)
	if err != nil {
		return dsas.Site{}, fmt.Errorf("get site: %w", err)
	}
	return site, nil
}

func getSite(ctx context.Context, q querier, name string) (dsas.Site, error) {
	site, err := scanSite(q.QueryRowContext(ctx, `SELECT doc FROM sites WHERE name = ?`, name).Scan)
	return site, orNotFound(err, "site", name)
}

func scanSite(scan func(...any) error) (site dsas.Site, err error) {
	var doc []byte
	if err := scan(&doc); err != nil {
		return site, err
	}
	if err := json.Unmarshal(doc, &site); err != nil {
		return site, fmt.Errorf("decode site: %w", err)
	}
	return site, nil
}

// CreateSite adds a site, its defaults filled in. A name, or an address and
// port, that is taken is dsas.ErrConflict and says by whom.
func (s *Store) CreateSite(ctx context.Context, site dsas.Site) (dsas.Site, error) {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		return s.putSite(ctx, tx, "", &site)
	})
	if err != nil {
		return dsas.Site{}, fmt.Errorf("create site: %w", err)
	}
	return site, nil
}

// UpdateSite changes the site called name with change, in a transaction; it may
// be renamed. change must not call the store.
func (s *Store) UpdateSite(ctx context.Context, name string, change func(*dsas.Site) error) (dsas.Site, error) {
	var site dsas.Site
	err := s.write(ctx, func(ctx context.Context, tx *txn) (err error) {
		if site, err = getSite(ctx, tx, name); err != nil {
			return err
		}
		if err := change(&site); err != nil {
			return err
		}
		return s.putSite(ctx, tx, name, &site)
	})
	if err != nil {
		return dsas.Site{}, fmt.Errorf("update site %s: %w", name, err)
	}
	return site, nil
}

// putSite checks site and writes it in the place of the one called old, "" for
// a new one.
func (s *Store) putSite(ctx context.Context, tx *txn, old string, site *dsas.Site) error {
	site.Address = site.Address.Unmap()
	*site = site.WithDefaults()
	if err := site.CheckFields(); err != nil {
		return err
	}
	key := addrKey(site.Address)
	var holder string
	err := tx.QueryRowContext(ctx, `SELECT name FROM sites WHERE name = ? AND name <> ?`, site.Name, old).Scan(&holder)
	if err == nil {
		return fmt.Errorf("site %s exists already: %w", site.Name, dsas.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	err = tx.QueryRowContext(ctx, `SELECT name FROM sites WHERE address = ? AND port = ? AND name <> ?`, key, site.Port, old).Scan(&holder)
	if err == nil {
		return fmt.Errorf("site %s: %s port %d belongs to site %s: %w", site.Name, site.Address, site.Port, holder, dsas.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err := addressFree(ctx, tx, 0, site.Address); err != nil {
		return fmt.Errorf("site %s: %w", site.Name, err)
	}
	if l := s.pools.held(site.Address); l != nil && l.holds(s.now()) {
		return fmt.Errorf("site %s: %w", site.Name, l.conflict())
	}
	doc, err := json.Marshal(site)
	if err != nil {
		return fmt.Errorf("encode site: %w", err)
	}
	if err := s.takeAddress(ctx, tx, site.Address); err != nil {
		return err
	}
	if _, err := s.dropSite(ctx, tx, old); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO sites (name, address, port, doc) VALUES (?, ?, ?, ?)`, site.Name, key, site.Port, string(doc))
	return err
}

// DeleteSite removes the site called name.
func (s *Store) DeleteSite(ctx context.Context, name string) error {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		found, err := s.dropSite(ctx, tx, name)
		if err == nil && !found {
			err = notFound("site", name)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete site: %w", err)
	}
	return nil
}

// dropSite deletes a site; when that is on disk its address may be given to
// others.
func (s *Store) dropSite(ctx context.Context, tx *txn, name string) (found bool, err error) {
	old, err := collect(ctx, tx, scanAddr, `DELETE FROM sites WHERE name = ? RETURNING address`, name)
	if err != nil {
		return false, err
	}
	tx.onCommit(func() { s.pools.reserve(-1, old...) })
	return len(old) > 0, nil
}
