package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"path"
	"reflect"
	"regexp"
	"sync"

	"dsas"
	"dsas/roles"
	"dsas/server/store"
)

// fleet is what all nodes' files are made from, as it was at one version of the
// store's. It is read once for all that ask meanwhile: a thousand nodes which
// each read a thousand were most of what a storm cost.
type fleet struct {
	version int64
	nodes   map[string]dsas.Node
	peers   map[string][]roles.Peer // by assigned role
	sites   []roles.Site            // with the nodes that serve them

	mu    sync.Mutex
	signs map[string][sha256.Size]byte // by a definition's digest, of what its role sees
}

// fleetCache gives the present fleet, and remembers tags.
type fleetCache struct {
	mu   sync.Mutex // held while the store is read: one reads, the others wait
	last *fleet

	tags sync.Map // node name: madeTag
}

// madeTag is the tag of what was rendered from some inputs.
type madeTag struct {
	node dsas.Node
	def  string // digest of the definition
	sign [sha256.Size]byte
	tag  string
}

func (c *fleetCache) get(ctx context.Context, s *store.Store) (*fleet, error) {
	v, err := s.FleetVersion(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that was read later is as good, since it was read after we were asked.
	if c.last != nil && c.last.version >= v {
		return c.last, nil
	}
	f, err := readFleet(ctx, s)
	if err != nil {
		return nil, err
	}
	c.last = f
	return f, nil
}

func readFleet(ctx context.Context, s *store.Store) (*fleet, error) {
	// The version first: what changes while we read is read again next time.
	v, err := s.FleetVersion(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	serves, err := s.Serving(ctx)
	if err != nil {
		return nil, err
	}
	sites, err := s.Sites(ctx)
	if err != nil {
		return nil, err
	}
	f := &fleet{version: v, nodes: make(map[string]dsas.Node, len(nodes)), peers: map[string][]roles.Peer{}, signs: map[string][sha256.Size]byte{}}
	for _, n := range nodes {
		f.nodes[n.Name] = n
		f.peers[n.Role] = append(f.peers[n.Role], peer(n))
	}
	for _, site := range sites {
		f.sites = append(f.sites, roles.Site{Site: site, Servers: serving(site, nodes, serves)})
	}
	return f, nil
}

// visible gives the sites as a role's templates are shown them.
func (f *fleet) visible(def roles.Definition) []roles.Site {
	out := make([]roles.Site, len(f.sites))
	copy(out, f.sites)
	if !seesServers(def) {
		for i := range out {
			out[i].Servers = nil
		}
	}
	return out
}

// serversRE finds the ways that lead a template to the nodes which serve a site.
var serversRE = regexp.MustCompile(`Servers|Sites|Served|Balanced`)

// seesServers tells whether a role's files may depend on which nodes serve. To a
// role whose templates do not speak of it the list is not shown, so that its
// nodes need not render again each time that another node becomes ready.
func seesServers(def roles.Definition) bool {
	for _, t := range def.Role.Templates {
		text, err := fs.ReadFile(def.FS, path.Join("templates", t.Source))
		if err != nil || serversRE.Match(text) {
			return true // rendering will tell what is wrong
		}
	}
	return false
}

// sign names all that the files of a role's nodes are made from, but for the
// node itself and the configuration.
func (f *fleet) sign(def roles.Definition) [sha256.Size]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, ok := f.signs[def.Digest]; ok {
		return s
	}
	h := sha256.New()
	enc := json.NewEncoder(h)
	enc.Encode(f.visible(def))
	enc.Encode(f.peers[def.Role.Name])
	s := [sha256.Size]byte(h.Sum(nil))
	f.signs[def.Digest] = s
	return s
}

// Tag implements httpboot.Renderer.
func (r *renderer) Tag(ctx context.Context, name, role string, release dsas.Digest) (string, error) {
	def, err := r.definition(role, release)
	if err != nil {
		return "", err
	}
	f, err := r.fleet.get(ctx, r.store)
	if err != nil {
		return "", err
	}
	node, ok := f.nodes[name]
	if !ok {
		if node, err = r.store.Node(ctx, name); err != nil {
			return "", err
		}
	}
	sign := f.sign(def)
	if v, ok := r.fleet.tags.Load(name); ok {
		if m := v.(madeTag); m.def == def.Digest && m.sign == sign && reflect.DeepEqual(m.node, node) {
			return m.tag, nil
		}
	}
	out, err := r.renderFrom(f, node, def)
	if err != nil {
		return "", err
	}
	r.fleet.tags.Store(name, madeTag{node, def.Digest, sign, out.Tag})
	return out.Tag, nil
}
