package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"dsas"
)

type nodeSetCmd struct {
	Nodes []string `arg:"" help:"Nodes to change."`
	nodeFields
	Cycle   bool          `help:"Power-cycle the nodes after the change."`
	DryRun  bool          `help:"Check everything and only say what would be done."`
	Wait    string        `help:"Wait until the nodes' next boots are ready." enum:",ready" default:"" placeholder:"ready"`
	Timeout time.Duration `help:"How long to wait." default:"15m"`
}

func (*nodeSetCmd) Help() string {
	return `All changes are checked for all nodes before anything is changed. A role takes
effect at the next boot. Flags that are not given change nothing; "none" takes
a value away. MACs, menu and interfaces are replaced as a whole, disks key by
key.

Examples:

    dsas node set w102 --role db --disk DBDEVICE=/dev/vda
    dsas node set w[101-140] --role web --dry-run
    dsas node set w102 --role db --cycle --wait ready
    dsas node set w101 --menu rescue,inventory
    dsas node set w103 --interface bond0.2=192.0.2.5/24
    dsas node set w104 --bmc ipmi://admin@10.0.9.104 --bmc-password-file pw`
}

func (cmd *nodeSetCmd) Run(ctx context.Context, a *app) error {
	if err := checkTimeout(cmd.Timeout); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	views, err := a.nodes(ctx, c, cmd.Nodes)
	if err != nil {
		return err
	}
	if len(views) > 1 && (len(cmd.MAC) > 0 || cmd.Address != nil || cmd.ClientID != nil && *cmd.ClientID != none || len(cmd.Interface) > 0 && cmd.Interface[0] != none) {
		return usagef("%d nodes cannot have the same MAC or address; set them one by one", len(views))
	}
	patch, err := cmd.patch(a)
	if err != nil {
		return err
	}
	if len(patch) == 0 {
		return usagef("nothing to change; name what by a flag, as --role db")
	}
	names := namesOf(views)
	if cmd.DryRun {
		if _, err := c.ChangeNodes(ctx, names, patch, true); err != nil {
			return err
		}
		what := "would get " + patchText(patch)
		if cmd.Cycle {
			what += " and be power-cycled"
		}
		return a.done(names, what)
	}
	mark, err := c.LastEvent(ctx)
	if err != nil {
		return err
	}
	changed, err := c.ChangeNodes(ctx, names, patch, false)
	if err != nil {
		return err
	}
	if !cmd.Cycle && cmd.Wait == "" {
		if a.JSON {
			return a.writeJSON(changed)
		}
		return a.done(names, "changed: "+patchText(patch))
	}
	if !a.JSON {
		if err := a.done(names, "changed: "+patchText(patch)); err != nil {
			return err
		}
	}
	p := powerRun{action: dsas.PowerCycle, views: views, wait: cmd.Wait != "", timeout: cmd.Timeout, mark: mark}
	if !cmd.Cycle {
		return p.waitOnly(ctx, a, c)
	}
	return p.run(ctx, a, c)
}

// patchText says what a patch sets, without secrets.
func patchText(patch map[string]any) string {
	var parts []string
	for _, key := range sortedKeys(patch) {
		v := patch[key]
		if bmc, ok := v.(map[string]any); ok && key == "bmc" {
			parts = append(parts, bmcPatchText(bmc))
			continue
		}
		switch v := v.(type) {
		case nil:
			parts = append(parts, "no "+key)
		case string:
			if strings.Contains(v, "\n") {
				v = fmt.Sprintf("(%d lines)", strings.Count(v, "\n"))
			}
			parts = append(parts, key+" "+clean(v))
		case []string:
			if len(v) == 0 {
				parts = append(parts, "no "+key)
			} else {
				parts = append(parts, key+" "+clean(strings.Join(v, ", ")))
			}
		case []dsas.Interface:
			if len(v) == 0 {
				parts = append(parts, "no "+key)
				break
			}
			var list []string
			for _, i := range v {
				list = append(list, fmt.Sprintf("%s=%s", i.Device, i.Address))
			}
			parts = append(parts, key+" "+clean(strings.Join(list, ", ")))
		default:
			b, err := json.Marshal(v)
			if err != nil {
				continue
			}
			parts = append(parts, key+" "+clean(string(b)))
		}
	}
	return strings.Join(parts, ", ")
}

// bmcPatchText says what of a BMC is set; of its password only that it is.
func bmcPatchText(bmc map[string]any) string {
	text := "bmc"
	if kind, ok := bmc["kind"].(string); ok {
		b := dsas.BMC{Kind: kind}
		b.Address, _ = bmc["address"].(string)
		b.User, _ = bmc["user"].(string)
		text += " " + clean(bmcText(&b))
	}
	if _, has := bmc["password"]; has {
		text += " with a password"
	}
	return text
}
