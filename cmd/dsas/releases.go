package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"dsas"
	"dsas/internal/signing"
	"dsas/server/blobs"
	"dsas/server/store"
)

// releases is what nodes boot: the releases of the image store, and which of
// them the state says that a role's nodes are to have.
type releases struct {
	*blobs.Store
	state *store.Store
	log   *slog.Logger
	// keys gives the keys by one of which a release must be signed.
	keys func() (signing.Keys, error)

	syncing sync.Mutex
	told    map[string]bool // what syncAndTell logged last
}

// Assigned gives the release that a node, nil for a box that is none, boots as
// role; nil where there is none. It is asked with every packet of a booting box.
func (r *releases) Assigned(node *dsas.Node, role string) (*dsas.Release, error) {
	id := r.state.Published(role).Assigned(node)
	if id == "" {
		return nil, nil
	}
	rel, err := r.Release(id)
	if errors.Is(err, dsas.ErrNotFound) {
		return nil, nil // removed by hand; who asks is told that there is none
	}
	return rel, err
}

// Load reads what nodes boot, so that the first packets of a rack that powers up
// do not wait for the disk, and tells early of what cannot be read: an error for
// each release.
func (r *releases) Load(nodes []dsas.Node) []error {
	var errs []error
	seen := map[dsas.Digest]bool{}
	for i := range nodes {
		n := &nodes[i]
		id := r.state.Published(n.Role).Assigned(n)
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		if _, err := r.Release(id); err != nil {
			errs = append(errs, fmt.Errorf("node %s, as others of role %s, cannot boot: %w", n.Name, n.Role, err))
		}
	}
	return errs
}

// Releases gives what there is now, for operators: dsas image gc compares it with
// what it finds, and a build or another gc may have ended this moment.
func (r *releases) Releases() ([]dsas.Release, error) {
	r.Refresh()
	return r.Store.Releases()
}

// Bootable tells why a release cannot be published: nodes would refuse it.
func (r *releases) Bootable(rel *dsas.Release) error {
	trusted, err := r.keys()
	if err != nil {
		return err
	}
	err = bootable(rel, trusted)
	if err == nil {
		return nil
	}
	r.Refresh() // it may have been signed this moment
	if now, newer := r.Release(rel.ID); newer == nil {
		err = bootable(now, trusted)
	}
	return err
}

// builder is who publishes what an image build has proposed.
const builder = "dsas image build"

// Sync publishes what image builds have proposed since it was last called, and
// gives the roles that have another release now.
func (r *releases) Sync(ctx context.Context) ([]dsas.Published, error) {
	changed, errs := r.sync(ctx)
	return changed, errors.Join(errs...)
}

// sync is Sync with an error for each role that has one.
func (r *releases) sync(ctx context.Context) ([]dsas.Published, []error) {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	proposals, err := r.Proposals()
	if err != nil {
		return nil, []error{fmt.Errorf("publish what was built: %w", err)}
	}
	changed := []dsas.Published{}
	var errs []error
	for _, role := range slices.Sorted(maps.Keys(proposals)) {
		id := proposals[role]
		if r.state.Published(role).Proposed == id {
			continue
		}
		rel, err := r.Release(id)
		if err == nil {
			err = r.Bootable(rel)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p, err := r.state.Publish(ctx, role, func(p *dsas.Published) ([]dsas.Event, error) {
			p.Proposed = id
			if p.GivenUp == id || p.Current == id && p.Canary == nil {
				return nil, nil
			}
			was := *p
			p.Publish(id, builder, time.Now())
			return p.Changed(was, builder, r.name), nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		changed = append(changed, p)
	}
	return changed, errs
}

// name gives a release's name, or what of its ID can be shown.
func (r *releases) name(id dsas.Digest) string {
	if rel, err := r.Release(id); err == nil {
		return rel.Name()
	}
	return id.Short()
}

// syncEvery is how often it is looked whether something was built. A build that
// reaches the server says so itself.
const syncEvery = time.Second

// Run publishes what builds propose until ctx ends.
func (r *releases) Run(ctx context.Context) error {
	t := time.NewTicker(syncEvery)
	defer t.Stop()
	for {
		r.syncAndTell(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// syncAndTell is Sync that logs: each error on a line of its own, and not again
// before it was away. It is for one goroutine at a time.
func (r *releases) syncAndTell(ctx context.Context) {
	_, errs := r.sync(ctx)
	if ctx.Err() != nil {
		return
	}
	now := map[string]bool{}
	for _, err := range errs {
		text := err.Error()
		if !r.told[text] && !now[text] {
			r.log.Error("releases", "err", err)
		}
		now[text] = true
	}
	r.told = now
}
