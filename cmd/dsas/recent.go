package main

import (
	"sync"
	"time"

	"dsas"
	"dsas/server/blobs"
)

// imageTrust is how long DHCP believes what it knows of the images without a
// look at the disk. Which of them a node boots is decided when it asks for its
// script, and that always looks.
const imageTrust = 100 * time.Millisecond

// recentImages is blobs' current images for DHCP, where hundreds of nodes may
// ask in the same moment.
type recentImages struct {
	blobs *blobs.Store

	mu     sync.Mutex
	roles  map[string]recentImage
	boot   dsas.BootSet
	bootOK error
	bootAt time.Time
}

type recentImage struct {
	manifest dsas.Manifest
	err      error
	at       time.Time
}

// Current implements dhcp.Images.
func (r *recentImages) Current(role string) (dsas.Manifest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if c, ok := r.roles[role]; ok && now.Sub(c.at) < imageTrust {
		return c.manifest, c.err
	}
	m, err := r.blobs.Current(role)
	if r.roles == nil {
		r.roles = map[string]recentImage{}
	}
	r.roles[role] = recentImage{m, err, now} // roles are nodes' own: not many
	return m, err
}

// Boot implements dhcp.Images.
func (r *recentImages) Boot() (dsas.BootSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.bootAt) >= imageTrust {
		r.boot, r.bootOK = r.blobs.Boot()
		r.bootAt = now
	}
	return r.boot, r.bootOK
}

// recentLoaders remembers for as long which boot loaders are there.
type recentLoaders struct {
	has func(name string) bool

	mu sync.Mutex
	m  map[string]recentLoader
}

type recentLoader struct {
	there bool
	at    time.Time
}

// Has implements dhcp.Config's HasLoader.
func (r *recentLoaders) Has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if c, ok := r.m[name]; ok && now.Sub(c.at) < imageTrust {
		return c.there
	}
	if r.m == nil {
		r.m = map[string]recentLoader{}
	}
	there := r.has(name)
	r.m[name] = recentLoader{there, now} // names are our own: not many
	return there
}
