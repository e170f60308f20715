package web

import (
	"bytes"
	"fmt"
	"html/template"
	"strings"
	"sync"
	"time"

	"dsas"
)

// nodeRow is one node of the table, as it is shown: the template sees nothing
// else, and two that are equal look the same.
type nodeRow struct {
	Name, Role, Address string
	MAC, AllMACs        string
	More                int // MACs beside the first
	Phase               dsas.Phase
	Since               time.Time // in milliseconds
	Running             string
	Picked              bool
	Release, Next       string // what it runs, and what a boot now would give where that is another
	Canary              bool   // Next, or Release, is being tried
	Kind, What          string // of the last event
	Bad                 bool
	Find                string // what the filter looks through
	Hidden              bool   // does not fit the filter
}

func rowOf(v dsas.NodeView) nodeRow {
	n, st := &v.Node, &v.Status
	row := nodeRow{Name: n.Name, Role: n.Role, Phase: st.Phase, Running: st.Running, Picked: st.Picked, Find: findText(v)}
	if n.Address.IsValid() {
		row.Address = n.Address.Addr().String()
	}
	for i, nic := range n.NICs {
		if i == 0 {
			row.MAC = nic.MAC.String()
		}
		row.AllMACs += nic.MAC.String() + " "
		row.More = i
	}
	if !st.Since.IsZero() {
		row.Since = time.UnixMilli(st.Since.UnixMilli()) // comparable with ==
	}
	if r := v.Release; r != nil {
		row.Canary = r.Canary
		if row.Release = r.Running; r.Changes && r.Running != "" {
			row.Next = r.Assigned
		}
	}
	if e := st.LastEvent; e != nil {
		row.Kind, row.What, row.Bad = clean(string(e.Kind)), what(*e), bad(e.Kind)
	}
	return row
}

// rows keeps the table's rows as they were written last: of a thousand nodes a
// few change from one look at the page to the next, and to run a template
// costs fifty times what copying its output does.
type rows struct {
	mu   sync.Mutex
	made map[string]*madeRow // by node name
}

type madeRow struct {
	row    nodeRow
	shown  []byte
	hidden []byte // where it does not fit the filter
	option []byte
}

// fill writes the rows and names of d's nodes.
func (c *rows) fill(d *nodesData, t *template.Template, f filter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	made := make(map[string]*madeRow, len(d.Nodes))
	var table, names strings.Builder
	table.Grow(len(d.Nodes) << 10)
	for _, v := range d.Nodes {
		row := rowOf(v)
		m := c.made[row.Name]
		if m == nil || m.row != row {
			m = &madeRow{row: row}
		}
		made[row.Name] = m
		at := &m.shown
		if f.fits(v) {
			d.Shown++
		} else {
			at, row.Hidden = &m.hidden, true
		}
		if err := once(at, t, "row", row); err != nil {
			return err
		}
		table.Write(*at)
		if len(d.Boxes) > 0 {
			if err := once(&m.option, t, "name-option", row.Name); err != nil {
				return err
			}
			names.Write(m.option)
		}
	}
	c.made = made // without those of nodes that are gone
	d.Rows, d.Names = template.HTML(table.String()), template.HTML(names.String())
	return nil
}

// once runs a template into to, where that is empty.
func once(to *[]byte, t *template.Template, name string, data any) error {
	if *to != nil {
		return nil
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("write %s of the nodes' table: %w", name, err)
	}
	*to = bytes.Clone(b.Bytes())
	return nil
}
