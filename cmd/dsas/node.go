package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/client"
)

type nodeCmd struct {
	Ls   nodeLsCmd   `cmd:"" help:"List nodes."`
	Add  nodeAddCmd  `cmd:"" help:"Add a node, or many from a CSV file."`
	Set  nodeSetCmd  `cmd:"" help:"Change nodes: role, address, disks, ..."`
	Show nodeShowCmd `cmd:"" help:"Show a node and its latest boot as a timeline."`
	Rm   nodeRmCmd   `cmd:"" help:"Remove nodes."`
}

type nodeLsCmd struct {
	Nodes []string `arg:"" optional:"" help:"Nodes to list; none: all."`
	Role  string   `help:"Only nodes with this role." placeholder:"ROLE"`
	Phase string   `help:"Only nodes in this phase, as ready or failed." placeholder:"PHASE"`
	Names bool     `short:"1" help:"Print names alone, one in a line."`
}

func (*nodeLsCmd) Help() string {
	return `Examples:

    dsas node ls
    dsas node ls w[101-140] --phase failed
    dsas power cycle $(dsas node ls --role web --names)`
}

func (cmd *nodeLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if known := dsas.Phases(); cmd.Phase != "" && !slices.Contains(known, cmd.Phase) {
		return usagef("--phase %q: there is no such phase%s; there are: %s", cmd.Phase, dsas.DidYouMean(cmd.Phase, known), strings.Join(known, ", "))
	}
	views, err := a.nodes(ctx, c, cmd.Nodes)
	if err != nil {
		return err
	}
	all := len(views)
	views = slices.DeleteFunc(views, func(v dsas.NodeView) bool {
		return cmd.Role != "" && v.Node.Role != cmd.Role || cmd.Phase != "" && string(v.Status.Phase) != cmd.Phase
	})
	if len(views) == 0 && cmd.Role != "" {
		if err := checkRoleName(ctx, c, cmd.Role); err != nil {
			return err
		}
	}
	if cmd.Names {
		for _, n := range namesOf(views) {
			a.printf("%s\n", clean(n))
		}
		return nil
	}
	if a.JSON {
		return a.writeJSON(append([]dsas.NodeView{}, views...))
	}
	t := &table{head: []string{"NAME", "ROLE", "RELEASE", "PHASE", "SINCE", "ADDRESS", "MAC", "LAST EVENT"}}
	now := time.Now()
	for _, v := range views {
		t.cells(cell{text: v.Node.Name}, cell{text: roleText(v)}, releaseCell(v), phaseCell(v.Status.Phase), cell{text: ago(v.Status.Since, now)},
			cell{text: addressText(v.Node)}, cell{text: macText(v.Node)}, cell{text: lastEvent(v.Status)})
	}
	if all > 0 {
		return a.table(t, "No node is so.")
	}
	return a.table(t, "No nodes. Add one with: dsas node add NAME --mac MAC --role ROLE")
}

// checkRoleName refuses a role that there is not, by which nodes are looked for.
func checkRoleName(ctx context.Context, c *client.Client, role string) error {
	list, err := c.Roles(ctx)
	if err != nil {
		return err
	}
	var known []string
	for _, v := range list {
		known = append(known, v.Role.Name)
	}
	if slices.Contains(known, role) {
		return nil
	}
	return usagef("--role %q: there is no such role%s; there are: %s", role, dsas.DidYouMean(role, known), strings.Join(known, ", "))
}

// roleText is the assigned role, and the one that runs where it is another.
func roleText(v dsas.NodeView) string {
	if r := v.Status.Running; r != "" && r != v.Node.Role {
		if v.Status.Picked {
			r += ", picked at the loader"
		}
		return or(v.Node.Role) + " (runs " + r + ")"
	}
	return or(v.Node.Role)
}

// releaseCell is the release that runs, and the one that a boot now would give
// where that is another.
func releaseCell(v dsas.NodeView) cell {
	r := v.Release
	switch {
	case r == nil || r.Running == "" && r.Assigned == "":
		return cell{text: "-"}
	case r.Running == "":
		return cell{text: "next " + assignedText(r)}
	case !r.Changes && r.Canary:
		return cell{clean(r.Running) + " (canary)", yellow}
	case !r.Changes:
		return cell{text: clean(r.Running)}
	}
	return cell{clean(r.Running) + ", next " + assignedText(r), yellow}
}

func assignedText(r *dsas.NodeRelease) string {
	if r.Canary {
		return clean(r.Assigned) + " (canary)"
	}
	return clean(or(r.Assigned))
}

func addressText(n dsas.Node) string {
	if !n.Address.IsValid() {
		return "-"
	}
	return n.Address.Addr().String()
}

func macText(n dsas.Node) string {
	if len(n.NICs) == 0 {
		return "-"
	}
	return n.NICs[0].MAC.String()
}

func lastEvent(s dsas.NodeStatus) string {
	if s.LastEvent == nil {
		return "-"
	}
	return strings.TrimSpace(string(s.LastEvent.Kind) + " " + messageOf(*s.LastEvent))
}

// messageOf is an event's message; a power command's says nothing but the
// action, and who gave it stands beside.
func messageOf(e dsas.Event) string {
	if e.Kind == dsas.KindPower && e.Detail != "" {
		return e.Message + ", " + e.Detail
	}
	return e.Message
}

type nodeShowCmd struct {
	Node string `arg:"" help:"Node to show."`
}

func (*nodeShowCmd) Help() string {
	return `Examples:

    dsas node show w101
    dsas node show w101 --json | jq .events`
}

// nodeShow is what node show prints as JSON.
type nodeShow struct {
	dsas.NodeView
	Events []dsas.Event `json:"events"` // of the latest boot
}

// timelineEvents is how far back the latest boot's beginning is looked for.
const timelineEvents = 500

func (cmd *nodeShowCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := a.oneNode(ctx, c, cmd.Node)
	if err != nil {
		return err
	}
	events, err := c.Events(ctx, dsas.EventFilter{Node: v.Node.Name, Last: true, Limit: timelineEvents})
	if err != nil {
		return err
	}
	events = latestBoot(events, v.Status.Boot)
	if a.JSON {
		return a.writeJSON(nodeShow{v, append([]dsas.Event{}, events...)})
	}
	if err := describe(v).write(a.stdout, 0, a.colours()); err != nil {
		return err
	}
	if len(events) == 0 {
		a.printf("\nNothing has been heard of it yet.\n")
		return nil
	}
	a.printf("\nLatest boot, from %s:\n", events[0].Time.Local().Format(time.DateTime))
	return a.timeline(events)
}

// oneNode gives the one node that name names.
func (a *app) oneNode(ctx context.Context, c *client.Client, name string) (dsas.NodeView, error) {
	views, err := a.nodes(ctx, c, []string{name})
	if err != nil {
		return dsas.NodeView{}, err
	}
	if len(views) != 1 {
		return dsas.NodeView{}, usagef("%q names %d nodes; name one", name, len(views))
	}
	return views[0], nil
}

func describe(v dsas.NodeView) *table {
	t := &table{}
	add := func(key, value string) {
		if value != "" {
			t.cells(cell{key, bold}, cell{text: value})
		}
	}
	n := v.Node
	add("node", n.Name)
	add("role", or(n.Role))
	if v.Status.Running != n.Role {
		if runs := v.Status.Running; runs != "" && v.Status.Picked {
			add("runs", runs+", picked at the loader for this boot")
		} else {
			add("runs", runs)
		}
	}
	phase := phaseCell(v.Status.Phase)
	if !v.Status.Since.IsZero() {
		phase.text += " for " + ago(v.Status.Since, time.Now())
	}
	t.cells(cell{"phase", bold}, phase)
	if !v.Status.LastSeen.IsZero() {
		add("last seen", ago(v.Status.LastSeen, time.Now())+" ago")
	}
	if n.Address.IsValid() {
		add("address", n.Address.String())
	}
	for i, nic := range n.NICs {
		add(fmt.Sprintf("eth%d", i), nic.MAC.String())
	}
	for _, p := range v.Ports {
		add("hangs at", fmt.Sprintf("%s (%s, %s ago)", clean(p.String()), p.MAC, ago(p.Seen, time.Now())))
	}
	add("client id", string(n.ClientID))
	for _, i := range n.Interfaces {
		add(i.Device, i.Address.String())
	}
	for _, key := range sortedKeys(n.Disks) {
		add(key, n.Disks[key])
	}
	add("loader", string(n.Loader))
	add("menu", strings.Join(n.Menu, ", "))
	if n.BMC != nil {
		add("bmc", bmcText(n.BMC))
	}
	add("boot", v.Status.Boot)
	add("image", v.Status.Image.Short())
	if r := v.Release; r != nil && (r.Running != "" || r.Assigned != "") {
		add("release", releaseCell(v).text)
	}
	for i, line := range strings.Split(strings.TrimRight(n.Conf, "\n"), "\n") {
		if key := "conf"; line != "" {
			if i > 0 {
				key = ""
			}
			add(key, line)
		}
	}
	return t
}

func bmcText(b *dsas.BMC) string {
	if b.User == "" {
		return b.Kind + "://" + b.Address
	}
	return b.Kind + "://" + b.User + "@" + b.Address
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// latestBoot keeps the events from the latest boot's beginning on: from the
// power command or the firmware's first DHCP that led to it, which belong to
// no boot yet.
func latestBoot(events []dsas.Event, boot string) []dsas.Event {
	first := slices.IndexFunc(events, func(e dsas.Event) bool { return boot != "" && e.Boot == boot })
	if first < 0 {
		// No boot has begun: what there is since the last power command.
		first = len(events)
	}
	for first > 0 {
		e := events[first-1]
		if e.Boot != "" || !before(e.Kind) {
			break
		}
		first--
		if e.Kind == dsas.KindPower {
			break
		}
	}
	return events[first:]
}

// before tells what comes before the script, at which a boot gets its id.
func before(k dsas.Kind) bool {
	switch k {
	case dsas.KindPower, dsas.KindDHCP, dsas.KindNBP, dsas.KindRefused, dsas.KindLoaderFailed:
		return true
	}
	return false
}

// detailLines is how much of an event's detail (the end of a log) is shown.
const detailLines = 15

func (a *app) timeline(events []dsas.Event) error {
	t := &table{head: []string{"AT", "EVENT", "TOOK", "BYTES", "MESSAGE"}}
	for _, e := range events {
		took, bytes := "", ""
		if e.Duration > 0 {
			took = short(e.Duration)
		}
		if e.Bytes > 0 {
			bytes = size(e.Bytes)
		}
		t.cells(cell{"+" + short(e.Time.Sub(events[0].Time)), dim}, cell{string(e.Kind), kindStyle(e.Kind)},
			cell{text: took}, cell{text: bytes}, cell{text: messageOf(e)})
		if e.Detail == "" || e.Kind == dsas.KindPower {
			continue
		}
		lines := strings.Split(strings.TrimRight(e.Detail, "\n"), "\n")
		for _, line := range lines[max(0, len(lines)-detailLines):] {
			t.cells(cell{}, cell{}, cell{}, cell{}, cell{"  " + line, dim})
		}
	}
	return t.write(a.stdout, a.width(), a.colours())
}

func kindStyle(k dsas.Kind) style {
	switch k {
	case dsas.KindReady, dsas.KindBack:
		return green
	case dsas.KindFailed, dsas.KindPartBad, dsas.KindLoaderFailed, dsas.KindLost, dsas.KindConfError, dsas.KindRefused, dsas.KindRolledBack:
		return red
	case dsas.KindWarning:
		return yellow
	}
	return plain
}

type nodeRmCmd struct {
	Nodes  []string `arg:"" help:"Nodes to remove."`
	Yes    bool     `short:"y" help:"Do not ask."`
	DryRun bool     `help:"Only say what would be done."`
}

func (*nodeRmCmd) Help() string {
	return `The server forgets the node, its host key and its BMC password. A node that
runs goes on running; when it boots again, it is unknown.

Examples:

    dsas node rm w101
    dsas node rm w[101-140] --yes`
}

func (cmd *nodeRmCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	views, err := a.nodes(ctx, c, cmd.Nodes)
	if err != nil {
		return err
	}
	names := namesOf(views)
	if cmd.DryRun {
		return a.done(names, "would be removed")
	}
	if err := a.confirm(fmt.Sprintf("Remove %s?", nodesText(names)), cmd.Yes); err != nil {
		return err
	}
	for i, n := range names {
		if err := c.RemoveNode(ctx, n); err != nil {
			return partly(names[:i], "removed", err)
		}
	}
	return a.done(names, "removed")
}

// nodesText names a few nodes in full and counts many.
func nodesText(names []string) string {
	if len(names) <= 5 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%d nodes (%s ... %s)", len(names), names[0], names[len(names)-1])
}

// done says what was done to which nodes.
func (a *app) done(names []string, what string) error {
	if a.JSON {
		return a.writeJSON(append([]string{}, names...))
	}
	for _, n := range names {
		a.printf("%s %s\n", clean(n), what)
	}
	return nil
}

// partly adds to an error in the middle of a list how far it came.
func partly(done []string, what string, err error) error {
	if len(done) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s %s before that", err, nodesText(done), what)
}
