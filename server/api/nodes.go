package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"dsas"
)

func (a *api) listNodes(r *http.Request) (answer, error) {
	views, err := Views(r.Context(), a.Store, a.Releases)
	return answer{body: views}, err
}

// Views gives all nodes, as GET /nodes does. rels may be nil.
func Views(ctx context.Context, s Store, rels Releases) ([]dsas.NodeView, error) {
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	statuses, err := s.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	ports, err := s.Ports(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]dsas.NodeView, len(nodes))
	for i, n := range nodes {
		if views[i], err = nodeView(s, rels, n, statuses[n.Name], ports); err != nil {
			return nil, err
		}
	}
	return views, nil
}

func (a *api) showNode(r *http.Request) (answer, error) {
	n, err := a.node(r)
	if err != nil {
		return answer{}, err
	}
	status, err := a.Store.Status(r.Context(), n.Name)
	if err != nil {
		return answer{}, err
	}
	ports, err := a.Store.Ports(r.Context())
	if err != nil {
		return answer{}, err
	}
	v, err := nodeView(a.Store, a.Releases, n, status, ports)
	return answer{body: v}, err
}

func nodeView(s Store, rels Releases, n dsas.Node, st dsas.NodeStatus, ports map[dsas.MAC]dsas.Port) (dsas.NodeView, error) {
	rel, err := nodeRelease(s, rels, &n, st)
	return dsas.NodeView{Node: withoutSecrets(n), Status: st, Ports: portsOf(n, ports), Release: rel}, err
}

// portsOf gives a node's, in the order of its NICs.
func portsOf(n dsas.Node, all map[dsas.MAC]dsas.Port) (out []dsas.Port) {
	for _, nic := range n.NICs {
		if p, ok := all[nic.MAC]; ok {
			out = append(out, p)
		}
	}
	return out
}

func (a *api) node(r *http.Request) (dsas.Node, error) {
	return a.Store.Node(r.Context(), chi.URLParam(r, "name"))
}

// withoutSecrets is a second lock: the store gives out no password either.
func withoutSecrets(n dsas.Node) dsas.Node {
	if n.BMC != nil && n.BMC.Password != "" {
		b := *n.BMC
		b.Password = ""
		n.BMC = &b
	}
	return n
}

// listError says what is wrong with a list that was sent, item by item.
type listError struct {
	items []dsas.ItemError
	first error
}

func (e *listError) Error() string {
	if len(e.items) == 1 {
		return e.items[0].Error
	}
	return fmt.Sprintf("%d of the nodes are not right, the first: %s", len(e.items), e.items[0].Error)
}

func (e *listError) Unwrap() error { return e.first }

func (e *listError) add(i int, err error) {
	if e.first == nil {
		e.first = err
	}
	e.items = append(e.items, dsas.ItemError{Index: i, Error: err.Error()})
}

// addNodes takes one node or a list; of a list all are added or none.
func (a *api) addNodes(r *http.Request) (answer, error) {
	raw, err := readRaw(r)
	if err != nil {
		return answer{}, err
	}
	items, many := raw.([]any)
	if !many {
		items = []any{raw}
	}
	if len(items) > maxPerCall {
		return answer{}, fmt.Errorf("request: %d nodes; at most %d at once: %w", len(items), maxPerCall, dsas.ErrInvalid)
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	added, err := a.planNodes(r.Context(), items)
	if err != nil {
		return answer{}, err
	}
	if !dryRun(r) {
		if added, err = a.createAll(r.Context(), added); err != nil {
			return answer{}, err
		}
	}
	for i := range added {
		added[i] = withoutSecrets(added[i])
	}
	if many {
		return answer{status: http.StatusCreated, body: list(added)}, nil
	}
	return answer{status: http.StatusCreated, body: added[0]}, nil
}

// planNodes checks all new nodes, against what there is and each other, and
// gives those without an address one.
func (a *api) planNodes(ctx context.Context, items []any) ([]dsas.Node, error) {
	taken, roles, err := a.surroundings(ctx)
	if err != nil {
		return nil, err
	}
	bad := &listError{}
	nodes := make([]dsas.Node, len(items))
	for i, item := range items {
		a.addPrefixLength(item)
		n, err := fromRaw[dsas.Node](item)
		if err == nil {
			err = a.pin(ctx, &n, "")
		}
		if err == nil {
			err = a.checkNode(&n, roles)
		}
		if err == nil {
			err = a.checkConf(&n)
		}
		if err == nil {
			err = taken.conflict(&n)
		}
		if err != nil {
			bad.add(i, err)
			continue
		}
		nodes[i] = n
		taken.take(&n)
	}
	// Addresses are given out once all the wanted ones are known.
	for i := range nodes {
		if nodes[i].Name == "" || nodes[i].Address.IsValid() {
			continue
		}
		free, err := taken.free(a.Subnets, nodes[i].Name)
		if err != nil {
			bad.add(i, fmt.Errorf("node %s: %w", nodes[i].Name, err))
			continue
		}
		nodes[i].Address = free
		taken.take(&nodes[i])
	}
	if len(bad.items) > 0 {
		slices.SortFunc(bad.items, func(a, b dsas.ItemError) int { return a.Index - b.Index })
		return nil, bad
	}
	return nodes, nil
}

// createAll adds checked nodes, all or none.
func (a *api) createAll(ctx context.Context, nodes []dsas.Node) ([]dsas.Node, error) {
	var events []dsas.Event
	for _, n := range nodes {
		msg := "added"
		if n.Role != "" {
			msg += " with role " + n.Role
		}
		events = append(events, dsas.Event{Node: n.Name, Kind: dsas.KindChanged, Message: msg + ", by " + a.Who(ctx)})
	}
	created, i, err := a.Store.CreateNodes(ctx, nodes, events)
	if err != nil {
		bad := &listError{}
		bad.add(i, err)
		return nil, bad
	}
	return created, nil
}

func (a *api) removeNode(r *http.Request) (answer, error) {
	ctx := r.Context()
	a.changing.Lock()
	defer a.changing.Unlock()
	n, err := a.node(r)
	if err != nil {
		return answer{}, err
	}
	if dryRun(r) {
		return answer{body: withoutSecrets(n)}, nil
	}
	if err := a.Store.DeleteNode(ctx, n.Name); err != nil {
		return answer{}, err
	}
	a.event(ctx, dsas.Event{Node: n.Name, Kind: dsas.KindChanged, Message: "removed, by " + a.Who(ctx)})
	return answer{}, nil
}

// checkNode says what is wrong with n by itself.
func (a *api) checkNode(n *dsas.Node, roles []dsas.Role) error {
	if err := n.Check(); err != nil {
		return err
	}
	if n.BMC != nil && n.BMC.Kind != "ipmi" {
		return fmt.Errorf("node %s: BMC kind %q: use ipmi, as ipmi://admin@10.0.9.101: %w", n.Name, n.BMC.Kind, dsas.ErrInvalid)
	}
	names := namesOf(roles)
	if n.Role != "" && a.Roles != nil && !slices.Contains(names, n.Role) {
		return fmt.Errorf("node %s: %w", n.Name, unknownRole(n.Role, names))
	}
	for _, m := range n.Menu {
		if a.Roles == nil {
			break
		}
		i := slices.IndexFunc(roles, func(r dsas.Role) bool { return r.Name == m })
		if i < 0 {
			return fmt.Errorf("node %s: menu: %w", n.Name, unknownRole(m, names))
		}
		if why := roles[i].MenuRefusal(); why != "" {
			return fmt.Errorf("node %s: menu: %s: %w", n.Name, why, dsas.ErrInvalid)
		}
	}
	if len(n.Conf) > maxConf {
		return fmt.Errorf("node %s: %d bytes of conf; at most %d: %w", n.Name, len(n.Conf), maxConf, dsas.ErrInvalid)
	}
	if strings.ContainsRune(n.Conf, 0) {
		return fmt.Errorf("node %s: conf holds a NUL byte: %w", n.Name, dsas.ErrInvalid)
	}
	if n.BMC != nil && (n.BMC.Address == "" || strings.ContainsAny(n.BMC.Address+n.BMC.User, " \t\r\n\x00")) {
		return fmt.Errorf("node %s: bmc: needs kind (ipmi) and address (host or host:port), without spaces: %w", n.Name, dsas.ErrInvalid)
	}
	return a.checkAddress(n)
}

// checkConf says what is wrong with n's own dsas.conf lines. It is asked when
// they are set: what is stored is no reason to refuse another change.
func (a *api) checkConf(n *dsas.Node) error {
	if n.Conf == "" || a.CheckConf == nil {
		return nil
	}
	if err := a.CheckConf(*n); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

func unknownRole(role string, roles []string) error {
	return fmt.Errorf("%s: %w", noSuchRole(role, roles), dsas.ErrInvalid)
}

func noSuchRole(role string, roles []string) string {
	return fmt.Sprintf("role %q: does not exist%s; there are: %s", role, dsas.DidYouMean(role, roles), strings.Join(roles, ", "))
}

// surroundings gives what a changed node is checked against.
func (a *api) surroundings(ctx context.Context) (*addresses, []dsas.Role, error) {
	nodes, err := a.Store.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	sites, err := a.Store.Sites(ctx)
	if err != nil {
		return nil, nil, err
	}
	leases, err := a.Store.Leases(ctx)
	if err != nil {
		return nil, nil, err
	}
	roles, err := a.roles(ctx)
	if err != nil {
		return nil, nil, err
	}
	return newAddresses(nodes, sites, leases), roles, nil
}

// roles gives the role definitions there are; none where nobody knows them.
func (a *api) roles(ctx context.Context) ([]dsas.Role, error) {
	if a.Roles == nil {
		return nil, nil
	}
	views, err := a.Roles.Roles(ctx)
	if err != nil {
		return nil, fmt.Errorf("list roles: %w", err)
	}
	roles := make([]dsas.Role, len(views))
	for i, v := range views {
		roles[i] = v.Role
	}
	return roles, nil
}

func (a *api) roleNames(ctx context.Context) ([]string, error) {
	roles, err := a.roles(ctx)
	return namesOf(roles), err
}

func namesOf(roles []dsas.Role) []string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = r.Name
	}
	return names
}

// addPrefixLength lets an address be written without its prefix length, which
// the subnet it lies in knows.
func (a *api) addPrefixLength(raw any) {
	obj, ok := raw.(map[string]any)
	if !ok {
		return
	}
	text, ok := obj["address"].(string)
	if !ok {
		return
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return
	}
	for _, s := range a.Subnets {
		if s.Prefix.Contains(addr) {
			obj["address"] = netip.PrefixFrom(addr, s.Prefix.Bits()).String()
			return
		}
	}
	// Outside of all subnets: /32 lets the check say so in its own words.
	obj["address"] = netip.PrefixFrom(addr, addr.BitLen()).String()
}
