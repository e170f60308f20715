package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"dsas"
	"dsas/client"
)

type nodeAddCmd struct {
	Name string `arg:"" optional:"" help:"Name of the node."`
	nodeFields
	CSV    string `name:"csv" help:"Add all nodes of a CSV file (- reads stdin), or none if a line is bad." placeholder:"FILE"`
	DryRun bool   `help:"Check everything and only say what would be added."`
}

func (*nodeAddCmd) Help() string {
	return `Without --address the node gets the one its name's number points at (w101: .101)
or the lowest that is free outside the pool.

A CSV file begins with a line that names its columns, in any order: name, mac,
mac2 (and so on), address, client-id, role, loader, menu, disk, interface, bmc,
bmc-password-file. menu, disk and interface may hold several values, parted by
spaces.

Examples:

    dsas node add w101 --mac 52:54:00:00:01:01 --mac 52:54:00:00:01:02 --role web
    dsas node add w104 --mac 525400000401 --bmc ipmi://admin@10.0.9.104
    dsas node add --csv nodes.csv --dry-run`
}

func (cmd *nodeAddCmd) Run(ctx context.Context, a *app) error {
	if cmd.CSV != "" {
		if f := cmd.nodeFields; cmd.Name != "" || len(f.MAC)+len(f.Menu)+len(f.Disk)+len(f.Interface) > 0 || f.ConfFile != "" ||
			f.Role != nil || f.Address != nil || f.ClientID != nil || f.Loader != nil || f.BMC != nil {
			return usagef("--csv says itself what the nodes are; leave NAME and the other flags out, but for --bmc-password-file")
		}
		return cmd.fromCSV(ctx, a)
	}
	if cmd.Name == "" || len(cmd.MAC) == 0 {
		return usagef("a node needs a name and a MAC: dsas node add w101 --mac 52:54:00:00:01:01; many are added with --csv FILE")
	}
	patch, err := cmd.patch(a)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := cmd.node(ctx, c, cmd.Name, patch)
	if err != nil {
		return err
	}
	added, err := c.AddNodes(ctx, []dsas.Node{n}, cmd.DryRun)
	if err != nil {
		return err
	}
	return cmd.print(a, added)
}

// node makes a node of what a patch says. An address without its prefix length
// gets it from the server's subnets.
func (cmd *nodeAddCmd) node(ctx context.Context, c *client.Client, name string, patch map[string]any) (dsas.Node, error) {
	patch["name"] = name
	if text, ok := patch["address"].(string); ok && !strings.Contains(text, "/") {
		status, err := c.Status(ctx)
		if err != nil {
			return dsas.Node{}, err
		}
		p, err := inSubnet(text, status.Subnets)
		if err != nil {
			return dsas.Node{}, fmt.Errorf("node %s: %w", name, err)
		}
		patch["address"] = p
	}
	for key, v := range patch {
		if v == nil {
			delete(patch, key)
		}
	}
	b, err := json.Marshal(patch)
	if err != nil {
		return dsas.Node{}, fmt.Errorf("node %s: %w", name, err)
	}
	var n dsas.Node
	if err := json.Unmarshal(b, &n); err != nil {
		return dsas.Node{}, fmt.Errorf("node %s: %w", name, err)
	}
	return n, n.Check()
}

// inSubnet gives an address its subnet's prefix length.
func inSubnet(text string, subnets []dsas.Subnet) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address %q: write it as 10.77.0.101: %w", text, dsas.ErrInvalid)
	}
	var all []string
	for _, s := range subnets {
		if s.Prefix.Contains(addr) {
			return netip.PrefixFrom(addr, s.Prefix.Bits()), nil
		}
		all = append(all, s.Prefix.String())
	}
	return netip.Prefix{}, fmt.Errorf("address %s: lies in no subnet of the server (%s): %w", addr, strings.Join(all, ", "), dsas.ErrInvalid)
}

func (cmd *nodeAddCmd) print(a *app, added []dsas.Node) error {
	if a.JSON {
		return a.writeJSON(added)
	}
	what := "added"
	if cmd.DryRun {
		what = "would be added"
	}
	for _, n := range added {
		a.printf("%s %s: %s, role %s\n", clean(n.Name), what, n.Address, or(clean(n.Role)))
	}
	return nil
}

// fromCSV adds all nodes of a file, or none.
func (cmd *nodeAddCmd) fromCSV(ctx context.Context, a *app) error {
	text, err := a.readFile(cmd.CSV, maxInputFile)
	if err != nil {
		return fmt.Errorf("read CSV: %w", err)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	var bad badLines
	var nodes []dsas.Node
	var lines []int // of each node
	err = readCSV(text, func(line int, columns map[string]string) {
		n, err := cmd.fromLine(ctx, a, c, columns)
		if err != nil {
			bad.add(line, err)
			return
		}
		nodes, lines = append(nodes, n), append(lines, line)
	}, bad.add)
	if err != nil {
		return err
	}
	if len(nodes) > 0 {
		// The server looks at the good lines even when others are bad, so
		// that all that is wrong is said at once.
		_, err = c.AddNodes(ctx, nodes, true)
		if refused, ok := errors.AsType[*client.Error](err); ok && len(refused.Items) > 0 {
			for _, item := range refused.Items {
				if item.Index >= 0 && item.Index < len(lines) {
					bad.add(lines[item.Index], errors.New(item.Error))
				}
			}
		} else if err != nil {
			return err
		}
	}
	if len(bad.lines) > 0 {
		return bad.err()
	}
	if len(nodes) == 0 {
		return fmt.Errorf("CSV: no node in it")
	}
	added, err := c.AddNodes(ctx, nodes, cmd.DryRun)
	if err != nil {
		return err
	}
	return cmd.print(a, added)
}

// badLines gathers what is wrong with a file.
type badLines struct {
	lines []badLine
}

type badLine struct {
	number int
	err    error
}

func (b *badLines) add(number int, err error) { b.lines = append(b.lines, badLine{number, err}) }

func (b *badLines) err() error {
	slices.SortStableFunc(b.lines, func(x, y badLine) int { return x.number - y.number })
	var out []string
	for _, l := range b.lines {
		out = append(out, fmt.Sprintf("line %d: %s", l.number, message(l.err)))
	}
	return fmt.Errorf("%s\nnothing was added", strings.Join(out, "\n"))
}

// csvColumns are the columns there may be, beside mac2, mac3, ...
func csvColumns() []string {
	return []string{"name", "mac", "address", "client-id", "role", "loader", "menu", "disk", "interface", "bmc", "bmc-password-file"}
}

// readCSV calls good with the columns of each line, by name, and bad for lines
// that cannot be read; its own error is about the file as a whole.
func readCSV(text []byte, good func(line int, columns map[string]string), bad func(line int, err error)) error {
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")))) // a spreadsheet's byte order mark
	r.FieldsPerRecord = -1
	r.TrimLeadingSpace = true
	r.Comment = '#'
	head, err := r.Read()
	if err == io.EOF {
		return fmt.Errorf("CSV: it is empty; begin with a line such as name,mac,role")
	}
	if err != nil {
		return fmt.Errorf("CSV: %w", err)
	}
	seen := map[string]bool{}
	for i, h := range head {
		h = strings.ToLower(strings.TrimSpace(h))
		head[i] = h
		if len(head) == 1 && strings.ContainsAny(h, ";\t") {
			return fmt.Errorf("CSV: line 1: %q is one column; part columns by commas, not by semicolons or tabs", h)
		}
		if !slices.Contains(csvColumns(), h) && !isMACColumn(h) {
			return fmt.Errorf("CSV: line 1: column %q: does not exist%s; there are: %s, mac2", h, dsas.DidYouMean(h, csvColumns()), strings.Join(csvColumns(), ", "))
		}
		if seen[h] {
			return fmt.Errorf("CSV: line 1: column %q is there twice", h)
		}
		seen[h] = true
	}
	if !seen["name"] || !seen["mac"] {
		return fmt.Errorf("CSV: line 1: has to name the columns, name and mac among them")
	}
	for {
		record, err := r.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if p, ok := errors.AsType[*csv.ParseError](err); ok {
				bad(p.Line, p.Err)
				continue
			}
			return fmt.Errorf("CSV: %w", err)
		}
		line, _ := r.FieldPos(0)
		if len(record) > len(head) {
			bad(line, fmt.Errorf("has %d fields, and there are %d columns", len(record), len(head)))
			continue
		}
		columns := map[string]string{}
		for i, v := range record {
			columns[head[i]] = strings.TrimSpace(v)
		}
		good(line, columns)
	}
}

func isMACColumn(name string) bool {
	n, ok := strings.CutPrefix(name, "mac")
	return ok && len(n) == 1 && n[0] >= '2' && n[0] <= '9'
}

// fromLine makes a node of a line, by way of the same flags that a single node
// would have been given.
func (cmd *nodeAddCmd) fromLine(ctx context.Context, a *app, c *client.Client, columns map[string]string) (dsas.Node, error) {
	var f nodeFields
	text := func(column string) *string {
		if v := columns[column]; v != "" {
			return &v
		}
		return nil
	}
	f.Role, f.Address, f.Loader, f.ClientID = text("role"), text("address"), text("loader"), text("client-id")
	f.Menu = strings.Fields(columns["menu"])
	f.Disk, f.Interface = strings.Fields(columns["disk"]), strings.Fields(columns["interface"])
	f.BMCPasswordFile = columns["bmc-password-file"]
	for _, key := range sortedKeys(columns) {
		if v := columns[key]; v != "" && (key == "mac" || isMACColumn(key)) {
			f.MAC = append(f.MAC, v)
		}
	}
	quiet := *a
	quiet.stdin = strings.NewReader("") // nobody is asked for passwords line by line
	patch, err := f.patch(&quiet)
	if err == nil && columns["bmc"] != "" {
		// The password of a whole file of BMCs may be one for all, by flag.
		f.BMC = text("bmc")
		if f.BMCPasswordFile == "" {
			f.BMCPasswordFile = cmd.BMCPasswordFile
		}
		err = f.patchBMC(&quiet, patch)
	}
	if err != nil {
		return dsas.Node{}, err
	}
	return cmd.node(ctx, c, columns["name"], patch)
}
