package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"dsas"
)

// changeNode applies a JSON merge patch (RFC 7396).
func (a *api) changeNode(r *http.Request) (answer, error) {
	patch, err := readRaw(r)
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
	raw, err := readRaw(r)
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
		now, err := a.patched(ctx, old, patch, taken, roles)
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
func (a *api) patched(ctx context.Context, old dsas.Node, patch any, taken *addresses, roles []dsas.Role) (dsas.Node, error) {
	now, err := mergeInto(old, patch)
	if err != nil {
		return now, err
	}
	if !now.Created.Equal(old.Created) {
		return now, fmt.Errorf("field \"created\": cannot be changed: %w", dsas.ErrInvalid)
	}
	if now.Role != old.Role && now.Release == old.Release {
		now.Release = "" // it was one of the old role's
	}
	if err := a.pin(ctx, &now, old.Release); err != nil {
		return now, err
	}
	if err := a.checkNode(&now, roles); err != nil {
		return now, err
	}
	if now.Conf != old.Conf {
		if err := a.checkConf(&now); err != nil {
			return now, err
		}
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
