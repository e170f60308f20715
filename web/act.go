package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"dsas"
)

const maxForm = 256 << 10

// done is what became of a form.
type done struct {
	said
	Go   string `json:"go,omitempty"`   // the page to go on to; "": where the form was
	Sure *sure  `json:"sure,omitempty"` // nothing happened: a question first
}

// sure is a question that is asked before something is done.
type sure struct {
	Text   string `json:"text"`
	Nodes  string `json:"nodes"`
	Button string `json:"button"`
}

// action answers a form. The script gets JSON and shows it in place; a browser
// without the script is sent back with the same words, or shown the question
// as a page.
func (w *web) action(do func(r *http.Request) (done, error)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(rw, r.Body, maxForm)
		d, err := done{}, r.ParseForm()
		if err != nil {
			err = fmt.Errorf("form: %w: %w", err, dsas.ErrInvalid)
		} else {
			d, err = do(r)
		}
		if err != nil {
			d = done{said: said{Text: words(err), Bad: true}}
		}
		if r.Header.Get("Dsas-Part") == "act" {
			if d.Go != "" {
				putSaid(rw, r, d.said)
			}
			rw.Header().Set("Content-Type", "application/json")
			rw.Header().Set("Cache-Control", "no-store")
			if err := json.NewEncoder(rw).Encode(d); err != nil && r.Context().Err() == nil {
				w.Log.Error("answer form", "path", r.URL.Path, "err", err)
			}
			return
		}
		back := localPath(r.PostForm.Get("back"))
		if d.Sure != nil {
			w.render(rw, r, http.StatusOK, "sure", page{Title: "Are you sure?", Data: surePage{*d.Sure, r.URL.Path, back, r.PostForm}})
			return
		}
		putSaid(rw, r, d.said)
		if d.Go != "" {
			back = d.Go
		}
		http.Redirect(rw, r, back, http.StatusSeeOther)
	}
}

// surePage is a question with the form that is sent again when it is answered.
type surePage struct {
	sure
	Action, Back string
	Form         map[string][]string
}

// noRole is the form's value for taking a node's role away; no role can have
// this name.
const noRole = "-"

// act does what the fleet's form asks of the chosen nodes: a role, power, or
// both, in this order. What fails on one node does not keep it from the others.
func (w *web) act(r *http.Request) (done, error) {
	ctx := r.Context()
	role, power := r.PostForm.Get("role"), r.PostForm.Get("power")
	nodes, err := w.chosen(ctx, r.PostForm["node"])
	if err != nil {
		return done{}, err
	}
	if role == "" && power == "" {
		return done{}, fmt.Errorf("choose a role or what to do with the power first")
	}
	if power != "" && !slices.Contains([]string{dsas.PowerOn, dsas.PowerOff, dsas.PowerCycle}, power) {
		return done{}, fmt.Errorf("power %q: use on, off or cycle: %w", power, dsas.ErrInvalid)
	}
	if q := w.askPower(nodes, role, power); q != nil && r.PostForm.Get("sure") == "" {
		return done{Sure: q}, nil
	}
	var d done
	var did []string
	if role != "" {
		text, failed, err := w.assign(ctx, nodes, role)
		if err != nil {
			return done{}, err
		}
		// What did not get its role is not power-cycled: it would come up as
		// what it was.
		nodes = slices.DeleteFunc(nodes, func(v dsas.NodeView) bool { return failed[v.Node.Name] != "" })
		d.Lines, did = append(d.Lines, lines(failed)...), append(did, text...)
	}
	if power != "" && len(nodes) > 0 {
		text, failed, err := w.power(ctx, nodes, power)
		if err != nil {
			return done{}, err
		}
		d.Lines, did = append(d.Lines, lines(failed)...), append(did, text...)
	}
	d.Bad = len(d.Lines) > 0
	if d.Text = strings.Join(did, "; "); d.Text == "" {
		d.Text = "Nothing was done."
	}
	return d, nil
}

// chosen looks up the nodes that a form names.
func (w *web) chosen(ctx context.Context, names []string) ([]dsas.NodeView, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("choose at least one node first")
	}
	all, err := w.API.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for _, n := range names {
		want[n] = true
	}
	all = slices.DeleteFunc(all, func(v dsas.NodeView) bool { return !want[v.Node.Name] })
	for _, v := range all {
		delete(want, v.Node.Name)
	}
	for n := range want {
		return nil, fmt.Errorf("node %s: %w; it was removed or renamed meanwhile", n, dsas.ErrNotFound)
	}
	return all, nil
}

// askPower asks before the power goes off at nodes that serve; nil: no need.
func (w *web) askPower(nodes []dsas.NodeView, role, power string) *sure {
	if power != dsas.PowerOff && power != dsas.PowerCycle {
		return nil
	}
	var ready []string
	for _, v := range nodes {
		if v.Status.Phase == dsas.PhaseReady {
			ready = append(ready, v.Node.Name)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	text, button := "is ready and serving. Power-cycle it?", "Power-cycle"
	if len(ready) > 1 {
		text = fmt.Sprintf("%d nodes are ready and serving. Power-cycle them?", len(ready))
	} else {
		text = ready[0] + " " + text
	}
	if power == dsas.PowerOff {
		text, button = strings.Replace(text, "Power-cycle", "Switch", 1), "Switch off"
		text = strings.TrimSuffix(text, "?") + " off?"
	}
	if role != "" && role != noRole {
		button = "Assign " + role + ", then " + strings.ToLower(button)
	}
	return &sure{Text: text, Nodes: foldNames(ready), Button: button}
}

// assign gives the nodes a role. failed says why not, by node.
func (w *web) assign(ctx context.Context, nodes []dsas.NodeView, role string) (did []string, failed map[string]string, err error) {
	var to any = role
	if role == noRole {
		role, to = "", nil
	} else if err := w.roleExists(ctx, role); err != nil {
		return nil, nil, err
	}
	failed = map[string]string{}
	patch := map[string]any{"role": to}
	var others, changed, same []string
	for _, v := range nodes {
		if v.Node.Role == role {
			same = append(same, v.Node.Name)
		} else {
			others = append(others, v.Node.Name)
		}
	}
	if len(others) > 0 {
		if _, err := w.API.ChangeNodes(ctx, others, patch, false); err == nil {
			changed, others = others, nil
		}
	}
	for _, name := range others { // one of them will not do: the rest all the same
		if _, err := w.API.ChangeNode(ctx, name, patch, false); err != nil {
			failed[name] = words(err)
			continue
		}
		changed = append(changed, name)
	}
	if len(changed) > 0 {
		did = append(did, foldNames(changed)+": role "+orNone(role))
	}
	if len(same) > 0 {
		did = append(did, foldNames(same)+": role "+orNone(role)+" as before")
	}
	return did, failed, nil
}

// roleExists is asked once and not for each node.
func (w *web) roleExists(ctx context.Context, role string) error {
	roles, err := w.API.Roles(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, v := range roles {
		if v.Role.Name == role {
			return nil
		}
		names = append(names, v.Role.Name)
	}
	return fmt.Errorf("role %q: does not exist%s: %w", role, dsas.DidYouMean(role, names), dsas.ErrInvalid)
}

func (w *web) power(ctx context.Context, nodes []dsas.NodeView, action string) (did []string, failed map[string]string, err error) {
	names := make([]string, len(nodes))
	for i, v := range nodes {
		names[i] = v.Node.Name
	}
	results, err := w.API.Power(ctx, action, names, false)
	if err != nil {
		return nil, nil, err
	}
	failed = map[string]string{}
	var ok []string
	for _, res := range results {
		if res.Error != "" {
			failed[res.Node] = plain(res.Error)
		} else {
			ok = append(ok, res.Node)
		}
	}
	if len(ok) > 0 {
		did = append(did, foldNames(ok)+": "+map[string]string{dsas.PowerOn: "switched on", dsas.PowerOff: "switched off", dsas.PowerCycle: "power-cycled"}[action])
	}
	return did, failed, nil
}

// lines says what failed, a line for each reason.
func lines(failed map[string]string) []string {
	byWhy := map[string][]string{}
	for node, why := range failed {
		byWhy[why] = append(byWhy[why], node)
	}
	var out []string
	for why, nodes := range byWhy {
		slices.Sort(nodes)
		out = append(out, foldNames(nodes)+": "+why)
	}
	slices.Sort(out)
	return out
}

// addNode makes a node of what was typed.
func (w *web) addNode(r *http.Request) (done, error) {
	n, err := w.nodeForm(r)
	if err != nil {
		return done{}, err
	}
	made, err := w.API.AddNodes(r.Context(), []dsas.Node{n}, false)
	if err != nil {
		return done{}, err
	}
	return done{said: said{Text: fmt.Sprintf("%s is added, at %s", n.Name, made[0].Address.Addr())}}, nil
}

// changeNode changes or removes a node by the form of its page.
func (w *web) changeNode(r *http.Request) (done, error) {
	ctx, name := r.Context(), r.PathValue("name")
	if r.PostForm.Get("do") == "remove" {
		if r.PostForm.Get("sure") == "" {
			return done{Sure: &sure{Text: "Remove " + name + "? A box that runs goes on running; the next time it boots, it is an unknown one.", Nodes: name, Button: "Remove"}}, nil
		}
		if err := w.API.RemoveNode(ctx, name); err != nil {
			return done{}, err
		}
		return done{said: said{Text: name + " is removed"}, Go: "/"}, nil
	}
	old, err := w.API.Node(ctx, name)
	if err != nil {
		return done{}, err
	}
	r.PostForm.Set("name", name)
	n, err := w.nodeForm(r)
	if err != nil {
		return done{}, err
	}
	patch := map[string]any{"nics": n.NICs, "loader": n.Loader, "bmc": nil}
	if r.PostForm.Has("menu") {
		patch["menu"] = listed(r.PostForm.Get("menu"))
	}
	if n.Address.IsValid() {
		patch["address"] = n.Address.String()
	}
	if n.BMC != nil {
		bmc := map[string]any{"kind": n.BMC.Kind, "address": n.BMC.Address, "user": n.BMC.User}
		if old.Node.BMC != nil {
			bmc["kind"] = old.Node.BMC.Kind
		}
		if n.BMC.Password != "" { // left empty it stays as it is
			bmc["password"] = n.BMC.Password
		}
		patch["bmc"] = bmc
	}
	if _, err := w.API.ChangeNode(ctx, name, patch, false); err != nil {
		return done{}, err
	}
	return done{said: said{Text: name + " is changed; it takes effect at its next boot"}}, nil
}

// listed parts a list that a person wrote.
func listed(s string) []string {
	return append([]string{}, strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(", ;\t\r\n", r) })...)
}

// nodeForm reads the fields that parts.html has for a node.
func (w *web) nodeForm(r *http.Request) (dsas.Node, error) {
	field := func(name string) string { return strings.TrimSpace(r.PostForm.Get(name)) }
	n := dsas.Node{Name: field("name"), Role: field("new-role"), Loader: dsas.Loader(field("loader"))}
	if err := dsas.CheckName("node", n.Name); err != nil {
		return n, err
	}
	for _, m := range listed(field("macs")) {
		mac, err := dsas.ParseMAC(m)
		if err != nil {
			return n, err
		}
		n.NICs = append(n.NICs, dsas.NIC{MAC: mac})
	}
	if text := field("address"); text != "" {
		var err error
		if n.Address, err = w.address(r.Context(), text); err != nil {
			return n, err
		}
	}
	if addr := field("bmc"); addr != "" {
		n.BMC = &dsas.BMC{Kind: "ipmi", Address: addr, User: field("bmc-user"), Password: r.PostForm.Get("bmc-password")}
	}
	return n, n.Check()
}

// address reads an address; its prefix length is the subnet's where none is given.
func (w *web) address(ctx context.Context, text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address %q: write it as 192.0.2.17: %w", text, dsas.ErrInvalid)
	}
	status, err := w.API.Status(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, s := range status.Subnets {
		if s.Prefix.Contains(addr) {
			return netip.PrefixFrom(addr, s.Prefix.Bits()), nil
		}
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil // the API says what is wrong with it
}

// takeIn makes a node of recorded MACs, adds them to one, or forgets them.
func (w *web) takeIn(r *http.Request) (done, error) {
	ctx := r.Context()
	var nics []dsas.NIC
	var text []string
	for _, m := range r.PostForm["mac"] {
		mac, err := dsas.ParseMAC(m)
		if err != nil {
			return done{}, err
		}
		nics = append(nics, dsas.NIC{MAC: mac})
		text = append(text, mac.String())
	}
	if len(nics) == 0 {
		return done{}, fmt.Errorf("choose at least one MAC of the box")
	}
	name, macs := strings.TrimSpace(r.PostForm.Get("name")), strings.Join(text, " ")
	if r.PostForm.Get("do") == "forget" {
		for _, n := range nics {
			if err := w.API.RemoveUnknown(ctx, n.MAC); err != nil {
				return done{}, err
			}
		}
		return done{said: said{Text: macs + ": forgotten, until it asks again"}}, nil
	}
	if name == "" {
		return done{}, fmt.Errorf("give the box a name, or the name of the node that it is a part of")
	}
	if r.PostForm.Get("do") == "join" {
		v, err := w.API.Node(ctx, name)
		if err != nil {
			return done{}, err
		}
		if _, err := w.API.ChangeNode(ctx, name, map[string]any{"nics": append(slices.Clone(v.Node.NICs), nics...)}, false); err != nil {
			return done{}, err
		}
		return done{said: said{Text: fmt.Sprintf("%s: added to %s", macs, name)}}, nil
	}
	made, err := w.API.AddNodes(ctx, []dsas.Node{{Name: name, NICs: nics, Role: r.PostForm.Get("role")}}, false)
	if err != nil {
		return done{}, err
	}
	return done{said: said{Text: fmt.Sprintf("%s is node %s at %s", macs, name, made[0].Address.Addr())}}, nil
}
