package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"dsas"
)

// get asks for a T.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var v T
	err := c.call(ctx, http.MethodGet, path, query, nil, &v)
	return v, err
}

// dry is the query that makes a change a rehearsal.
func dry(rehearse bool) url.Values {
	if !rehearse {
		return nil
	}
	return url.Values{"dryRun": {"1"}}
}

func at(collection, name string) string { return "/" + collection + "/" + url.PathEscape(name) }

// Nodes lists all nodes with their status.
func (c *Client) Nodes(ctx context.Context) ([]dsas.NodeView, error) {
	return get[[]dsas.NodeView](ctx, c, "/nodes", nil)
}

// Node gives one node with its status.
func (c *Client) Node(ctx context.Context, name string) (dsas.NodeView, error) {
	return get[dsas.NodeView](ctx, c, at("nodes", name), nil)
}

// AddNodes adds all of nodes or none. A refusal is an *Error whose Items say
// which are not right. With rehearse nothing is added.
func (c *Client) AddNodes(ctx context.Context, nodes []dsas.Node, rehearse bool) ([]dsas.Node, error) {
	var added []dsas.Node
	err := c.call(ctx, http.MethodPost, "/nodes", dry(rehearse), nodes, &added)
	return added, err
}

// ChangeNode applies a merge patch (RFC 7396): patch is a JSON object, with
// null for what is to go.
func (c *Client) ChangeNode(ctx context.Context, name string, patch map[string]any, rehearse bool) (dsas.Node, error) {
	var n dsas.Node
	err := c.call(ctx, http.MethodPatch, at("nodes", name), dry(rehearse), patch, &n)
	return n, err
}

// ChangeNodes applies one merge patch to many nodes, to all or none.
func (c *Client) ChangeNodes(ctx context.Context, names []string, patch map[string]any, rehearse bool) ([]dsas.Node, error) {
	var list []dsas.Node
	err := c.call(ctx, http.MethodPatch, "/nodes", dry(rehearse), map[string]any{"nodes": names, "patch": patch}, &list)
	return list, err
}

// RemoveNode removes a node.
func (c *Client) RemoveNode(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, at("nodes", name), nil, nil, nil)
}

// SSH tells how a node's sshd is reached.
func (c *Client) SSH(ctx context.Context, name string) (dsas.SSHInfo, error) {
	return get[dsas.SSHInfo](ctx, c, at("nodes", name)+"/ssh", nil)
}

// Sites lists the sites.
func (c *Client) Sites(ctx context.Context) ([]dsas.Site, error) {
	return get[[]dsas.Site](ctx, c, "/sites", nil)
}

// Site gives one site.
func (c *Client) Site(ctx context.Context, name string) (dsas.Site, error) {
	return get[dsas.Site](ctx, c, at("sites", name), nil)
}

// AddSite adds a site; what is left out gets its default.
func (c *Client) AddSite(ctx context.Context, s dsas.Site, rehearse bool) (dsas.Site, error) {
	var added dsas.Site
	err := c.call(ctx, http.MethodPost, "/sites", dry(rehearse), s, &added)
	return added, err
}

// ChangeSite applies a merge patch (RFC 7396).
func (c *Client) ChangeSite(ctx context.Context, name string, patch map[string]any, rehearse bool) (dsas.Site, error) {
	var s dsas.Site
	err := c.call(ctx, http.MethodPatch, at("sites", name), dry(rehearse), patch, &s)
	return s, err
}

// RemoveSite removes a site.
func (c *Client) RemoveSite(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, at("sites", name), nil, nil, nil)
}

// Roles lists the roles, each with its current image.
func (c *Client) Roles(ctx context.Context) ([]dsas.RoleView, error) {
	return get[[]dsas.RoleView](ctx, c, "/roles", nil)
}

// Releases lists the releases of a role, "" for all, with who uses them.
func (c *Client) Releases(ctx context.Context, role string) ([]dsas.ReleaseView, error) {
	var q url.Values
	if role != "" {
		q = url.Values{"role": {role}}
	}
	return get[[]dsas.ReleaseView](ctx, c, "/releases", q)
}

// Release gives one release; name is as dsas.ParseReleaseRef reads it.
func (c *Client) Release(ctx context.Context, name string) (dsas.ReleaseView, error) {
	return get[dsas.ReleaseView](ctx, c, at("releases", name), nil)
}

// Published tells what each role's nodes boot.
func (c *Client) Published(ctx context.Context) ([]dsas.Published, error) {
	return get[[]dsas.Published](ctx, c, "/published", nil)
}

// BootReleases gives the releases, by ID, that boots may still fetch.
func (c *Client) BootReleases(ctx context.Context) ([]dsas.Digest, error) {
	return get[[]dsas.Digest](ctx, c, "/boots/releases", nil)
}

// Publish makes a release what its role's nodes boot. With rehearse nothing is
// changed.
func (c *Client) Publish(ctx context.Context, role string, req dsas.PublishRequest, rehearse bool) (dsas.Published, error) {
	var p dsas.Published
	err := c.call(ctx, http.MethodPost, at("roles", role)+"/publish", dry(rehearse), req, &p)
	return p, err
}

// RollBack makes what a role's nodes booted before current again.
func (c *Client) RollBack(ctx context.Context, role string, rehearse bool) (dsas.Published, error) {
	var p dsas.Published
	err := c.call(ctx, http.MethodPost, at("roles", role)+"/rollback", dry(rehearse), nil, &p)
	return p, err
}

// SyncReleases has the server publish what image builds have proposed, now and
// not at its next look. It gives the roles that changed.
func (c *Client) SyncReleases(ctx context.Context) ([]dsas.Published, error) {
	var list []dsas.Published
	err := c.call(ctx, http.MethodPost, "/releases/sync", nil, nil, &list)
	return list, err
}

// Power does one action (a dsas.Power constant) on nodes. What became of each
// is in its result; err is about the request as a whole.
func (c *Client) Power(ctx context.Context, action string, nodes []string, rehearse bool) ([]dsas.PowerResult, error) {
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	var results []dsas.PowerResult
	err := c.callFor(ctx, http.MethodPost, "/power", dry(rehearse), dsas.PowerRequest{Nodes: nodes, Action: action}, &results)
	return results, err
}

// Events lists events, ascending: the last ones where f.Last is set, else the
// first ones after f.After.
func (c *Client) Events(ctx context.Context, f dsas.EventFilter) ([]dsas.Event, error) {
	q := url.Values{}
	if f.Node != "" {
		q.Set("node", f.Node)
	}
	if f.Boot != "" {
		q.Set("boot", f.Boot)
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if !f.Last {
		q.Set("after", strconv.FormatInt(f.After, 10))
	}
	return get[[]dsas.Event](ctx, c, "/events", q)
}

// LastEvent gives the ID of the newest event, 0 when there is none: what
// follows a change made now has a greater one.
func (c *Client) LastEvent(ctx context.Context) (int64, error) {
	events, err := c.Events(ctx, dsas.EventFilter{Last: true, Limit: 1})
	if err != nil || len(events) == 0 {
		return 0, err
	}
	return events[0].ID, nil
}

// Unknown lists the MACs that asked and belong to no node.
func (c *Client) Unknown(ctx context.Context) ([]dsas.Unknown, error) {
	return get[[]dsas.Unknown](ctx, c, "/unknown", nil)
}

// RemoveUnknown forgets one.
func (c *Client) RemoveUnknown(ctx context.Context, mac dsas.MAC) error {
	return c.call(ctx, http.MethodDelete, at("unknown", mac.String()), nil, nil, nil)
}

// Leases lists the timed holds on pool addresses.
func (c *Client) Leases(ctx context.Context) ([]dsas.Lease, error) {
	return get[[]dsas.Lease](ctx, c, "/leases", nil)
}

// Explain tells what mac would be given at each step of a boot, and why. arch
// is "" or as dsas.Arch writes it. The answer's shape is the server's.
func (c *Client) Explain(ctx context.Context, mac dsas.MAC, arch string) (json.RawMessage, error) {
	q := url.Values{"mac": {mac.String()}}
	if arch != "" {
		q.Set("arch", arch)
	}
	return get[json.RawMessage](ctx, c, "/explain", q)
}

// Status is what the server says of itself.
func (c *Client) Status(ctx context.Context) (dsas.ServerStatus, error) {
	return get[dsas.ServerStatus](ctx, c, "/status", nil)
}

// Tokens lists the API tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]dsas.Token, error) {
	return get[[]dsas.Token](ctx, c, "/tokens", nil)
}

// AddToken makes a token; its secret is given this once.
func (c *Client) AddToken(ctx context.Context, name string) (dsas.NewToken, error) {
	var t dsas.NewToken
	err := c.call(ctx, http.MethodPost, "/tokens", nil, map[string]string{"name": name}, &t)
	return t, err
}

// RemoveToken makes a token worthless.
func (c *Client) RemoveToken(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, at("tokens", name), nil, nil, nil)
}
