package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"dsas"
)

func (a *api) listNodes(r *http.Request) (answer, error) {
	nodes, err := a.Store.Nodes(r.Context())
	if err != nil {
		return answer{}, err
	}
	statuses, err := a.Store.Statuses(r.Context())
	if err != nil {
		return answer{}, err
	}
	views := make([]dsas.NodeView, len(nodes))
	ports, err := a.ports(r.Context())
	if err != nil {
		return answer{}, err
	}
	for i, n := range nodes {
		views[i] = dsas.NodeView{Node: withoutSecrets(n), Status: statuses[n.Name], Ports: portsOf(n, ports)}
	}
	return answer{body: views}, nil
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
	ports, err := a.ports(r.Context())
	if err != nil {
		return answer{}, err
	}
	return answer{body: dsas.NodeView{Node: withoutSecrets(n), Status: status, Ports: portsOf(n, ports)}}, nil
}

// ports gives where MACs hang, if the store knows.
func (a *api) ports(ctx context.Context) (map[dsas.MAC]dsas.Port, error) {
	s, ok := a.Store.(interface {
		Ports(ctx context.Context) (map[dsas.MAC]dsas.Port, error)
	})
	if !ok {
		return nil, nil
	}
	return s.Ports(ctx)
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
	body, err := readBody(r)
	if err != nil {
		return answer{}, err
	}
	raw, err := decodeRaw(body)
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
			err = a.checkNode(&n, roles)
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

// changeNode applies a JSON merge patch (RFC 7396).
func (a *api) changeNode(r *http.Request) (answer, error) {
	body, err := readBody(r)
	if err != nil {
		return answer{}, err
	}
	patch, err := decodeRaw(body)
	if err != nil {
		return answer{}, err
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	old, err := a.node(r)
	if err != nil {
		return answer{}, err
	}
	now, err := a.change(r, []dsas.Node{old}, patch)
	if err != nil {
		return answer{}, err
	}
	return answer{body: now[0]}, nil
}

// changeNodes applies one merge patch to many nodes, to all or none.
func (a *api) changeNodes(r *http.Request) (answer, error) {
	body, err := readBody(r)
	if err != nil {
		return answer{}, err
	}
	raw, err := decodeRaw(body)
	if err != nil {
		return answer{}, err
	}
	req, ok := raw.(map[string]any)
	names, isList := req["nodes"].([]any)
	patch, isPatch := req["patch"].(map[string]any)
	if !ok || !isList || !isPatch || len(req) != 2 {
		return answer{}, fmt.Errorf(`request: want {"nodes": [names], "patch": {fields}}: %w`, dsas.ErrInvalid)
	}
	if len(names) == 0 || len(names) > maxPerCall {
		return answer{}, fmt.Errorf("request: %d nodes; name from 1 to %d: %w", len(names), maxPerCall, dsas.ErrInvalid)
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	bad := &listError{}
	olds := make([]dsas.Node, len(names))
	seen := map[string]bool{}
	for i, n := range names {
		name, _ := n.(string)
		if seen[name] {
			bad.add(i, fmt.Errorf("node %q is named twice: %w", name, dsas.ErrInvalid))
			continue
		}
		seen[name] = true
		if olds[i], err = a.Store.Node(r.Context(), name); err != nil {
			bad.add(i, err)
		}
	}
	if len(bad.items) > 0 {
		return answer{}, bad
	}
	now, err := a.change(r, olds, patch)
	if err != nil {
		return answer{}, err
	}
	return answer{body: list(now)}, nil
}

// change gives nodes what patch says, all or none, and reads what they are
// checked against once. changing is held.
func (a *api) change(r *http.Request, olds []dsas.Node, patch any) ([]dsas.Node, error) {
	ctx := r.Context()
	a.addPrefixLength(patch)
	taken, roles, err := a.surroundings(ctx)
	if err != nil {
		return nil, err
	}
	bad := &listError{}
	changes := make([]dsas.NodeChange, len(olds))
	nows := make([]dsas.Node, len(olds))
	for i, old := range olds {
		taken.release(old.Name)
		now, err := a.patched(old, patch, taken, roles)
		if err != nil {
			bad.add(i, err)
			continue
		}
		taken.take(&now)
		nows[i] = now
		changes[i] = dsas.NodeChange{Name: old.Name, Node: now, Events: a.changeEvents(ctx, old, now)}
	}
	switch {
	case len(olds) == 1 && bad.first != nil:
		return nil, bad.first
	case bad.first != nil:
		return nil, bad
	}
	if !dryRun(r) {
		if nows, err = a.Store.UpdateNodes(ctx, changes); err != nil {
			return nil, err
		}
	}
	for i := range nows {
		nows[i] = withoutSecrets(nows[i])
	}
	return nows, nil
}

// patched gives old as patch makes it, checked.
func (a *api) patched(old dsas.Node, patch any, taken *addresses, roles []dsas.Role) (dsas.Node, error) {
	now, err := mergeInto(old, patch)
	if err != nil {
		return now, err
	}
	if !now.Created.Equal(old.Created) {
		return now, fmt.Errorf("field \"created\": cannot be changed: %w", dsas.ErrInvalid)
	}
	if err := a.checkNode(&now, roles); err != nil {
		return now, err
	}
	if err := taken.conflict(&now); err != nil {
		return now, err
	}
	if !now.Address.IsValid() {
		if now.Address, err = taken.free(a.Subnets, now.Name); err != nil {
			return now, fmt.Errorf("node %s: %w", now.Name, err)
		}
	}
	return now, nil
}

// changeEvents tells what differs.
func (a *api) changeEvents(ctx context.Context, old, now dsas.Node) (events []dsas.Event) {
	if old.Role != now.Role {
		events = append(events, dsas.Event{Node: now.Name, Kind: dsas.KindAssigned,
			Message: fmt.Sprintf("role %s, was %s, by %s", orNone(now.Role), orNone(old.Role), a.Who(ctx))})
	}
	changed := slices.DeleteFunc(changedFields(old, now), func(f string) bool { return f == "role" })
	if len(changed) > 0 {
		events = append(events, dsas.Event{Node: now.Name, Kind: dsas.KindChanged,
			Message: fmt.Sprintf("changed %s, by %s", strings.Join(changed, ", "), a.Who(ctx))})
	}
	return events
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
	if n.BMC != nil && (n.BMC.Kind == "" || n.BMC.Address == "" || strings.ContainsAny(n.BMC.Address+n.BMC.User, " \t\r\n\x00")) {
		return fmt.Errorf("node %s: bmc: needs kind (ipmi) and address (host or host:port), without spaces: %w", n.Name, dsas.ErrInvalid)
	}
	return a.checkAddress(n)
}

func unknownRole(role string, roles []string) error {
	return fmt.Errorf("role %q: does not exist%s; there are: %s: %w",
		role, dsas.DidYouMean(role, roles), strings.Join(roles, ", "), dsas.ErrInvalid)
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

// changedFields names the JSON fields that differ.
func changedFields(old, now dsas.Node) []string {
	a, b := fieldValues(old), fieldValues(now)
	var names []string
	for name := range fieldsOf(reflect.TypeFor[dsas.Node]()) {
		if string(a[name]) != string(b[name]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func fieldValues(n dsas.Node) map[string]json.RawMessage {
	values := map[string]json.RawMessage{}
	if b, err := json.Marshal(n); err == nil {
		_ = json.Unmarshal(b, &values) // it is our own
	}
	return values
}

func orNone(role string) string {
	if role == "" {
		return "none"
	}
	return role
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
