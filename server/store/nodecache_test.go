package store

import (
	"testing"

	"dsas"
)

// Two nodes swap their MACs in one change: whoever is put last must not take
// the other's away.
func TestNodeCacheSwap(t *testing.T) {
	c := nodeCache{byID: map[int64]*dsas.Node{}, byName: map[string]*dsas.Node{}, byMAC: map[dsas.MAC]*dsas.Node{}, byClient: map[dsas.ClientID]*dsas.Node{}}
	m1, m2 := dsas.MAC{2, 0, 0, 0, 0, 1}, dsas.MAC{2, 0, 0, 0, 0, 2}
	node := func(name string, m dsas.MAC) dsas.Node { return dsas.Node{Name: name, NICs: []dsas.NIC{{MAC: m}}} }
	c.put(1, node("w1", m1))
	c.put(2, node("w2", m2))
	c.put(1, node("w1", m2))
	c.put(2, node("w2", m1))
	for m, want := range map[dsas.MAC]string{m1: "w2", m2: "w1"} {
		if n, ok := c.withMAC(m); !ok || n.Name != want {
			t.Errorf("withMAC(%s) = %q, %v; want %s", m, n.Name, ok, want)
		}
	}
	c.remove(1)
	if _, ok := c.withMAC(m2); ok {
		t.Errorf("withMAC(%s) after its node's removal: want none", m2)
	}
}
