package store

import (
	"context"
	"maps"
	"slices"
	"sync"

	"dsas"
)

// nodeCache is all nodes in memory. The writer alone changes it, after a commit
// and before anybody hears of it, in commit order: so it is never older than
// what was answered, nor newer than what is on disk.
type nodeCache struct {
	mu       sync.RWMutex
	byID     map[int64]*dsas.Node
	byName   map[string]*dsas.Node
	byMAC    map[dsas.MAC]*dsas.Node
	byClient map[dsas.ClientID]*dsas.Node
	sorted   []*dsas.Node // as people count; nil: to be made
}

type nodeRow struct {
	id   int64
	node dsas.Node
}

func (c *nodeCache) load(ctx context.Context, q querier) error {
	rows, err := collect(ctx, q, func(scan func(...any) error) (r nodeRow, err error) {
		r.node, err = scanNode(func(to ...any) error { return scan(append([]any{&r.id}, to...)...) })
		return r, err
	}, `SELECT id, doc FROM nodes`)
	if err != nil {
		return err
	}
	c.byID = make(map[int64]*dsas.Node, len(rows))
	c.byName = make(map[string]*dsas.Node, len(rows))
	c.byMAC = make(map[dsas.MAC]*dsas.Node, len(rows))
	c.byClient = map[dsas.ClientID]*dsas.Node{}
	for _, r := range rows {
		c.put(r.id, r.node)
	}
	return nil
}

// put adds or replaces a node.
func (c *nodeCache) put(id int64, n dsas.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
	c.byID[id], c.byName[n.Name] = &n, &n
	for _, nic := range n.NICs {
		c.byMAC[nic.MAC] = &n
	}
	if n.ClientID != "" {
		c.byClient[n.ClientID] = &n
	}
}

func (c *nodeCache) remove(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
}

func (c *nodeCache) drop(id int64) {
	old := c.byID[id]
	c.sorted = nil
	if old == nil {
		return
	}
	delete(c.byID, id)
	// What has become another node's by now is left to it: two nodes may swap
	// theirs in one change.
	if c.byName[old.Name] == old {
		delete(c.byName, old.Name)
	}
	if c.byClient[old.ClientID] == old {
		delete(c.byClient, old.ClientID)
	}
	for _, nic := range old.NICs {
		if c.byMAC[nic.MAC] == old {
			delete(c.byMAC, nic.MAC)
		}
	}
}

func (c *nodeCache) named(name string) (dsas.Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := c.byName[name]; n != nil {
		return cloneNode(*n), true
	}
	return dsas.Node{}, false
}

// shared gives the cache's own: what is put there is never changed, but replaced.
func (c *nodeCache) shared(m dsas.MAC) *dsas.Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byMAC[m]
}

func (c *nodeCache) withMAC(m dsas.MAC) (dsas.Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := c.byMAC[m]; n != nil {
		return cloneNode(*n), true
	}
	return dsas.Node{}, false
}

func (c *nodeCache) withClientID(id dsas.ClientID) (dsas.Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := c.byClient[id]; n != nil {
		return cloneNode(*n), true
	}
	return dsas.Node{}, false
}

func (c *nodeCache) all() []dsas.Node {
	c.mu.Lock()
	if c.sorted == nil {
		c.sorted = slices.SortedFunc(maps.Values(c.byID), func(a, b *dsas.Node) int { return naturalCompare(a.Name, b.Name) })
	}
	list := c.sorted // made anew when a node changes, never changed
	c.mu.Unlock()
	// DHCP looks nodes up for each packet: it does not wait for this.
	out := make([]dsas.Node, len(list))
	for i, n := range list {
		out[i] = cloneNode(*n)
	}
	return out
}
