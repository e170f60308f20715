package main

import (
	"sync"
	"time"
)

// loaderTrust is how long DHCP believes what it knows of the loaders without a
// look at the disk: hundreds of nodes may ask in the same moment.
const loaderTrust = 100 * time.Millisecond

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
	if c, ok := r.m[name]; ok && now.Sub(c.at) < loaderTrust {
		return c.there
	}
	if r.m == nil {
		r.m = map[string]recentLoader{}
	}
	there := r.has(name)
	r.m[name] = recentLoader{there, now} // names are our own: not many
	return there
}
