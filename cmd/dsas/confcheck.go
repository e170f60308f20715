package main

import (
	"fmt"
	"net/netip"
	"strings"

	"dsas"
	"dsas/initramfs/dsasconf"
	"dsas/roles"
)

// maxConfErrors is how many wrong lines are told at once.
const maxConfErrors = 5

// checkConf says which of a node's own dsas.conf lines the node would refuse, by
// their numbers in what the operator wrote. They are read as the node will read
// them: after all that stands above them in its dsas.conf, the site variables
// and the role's lines among it.
func (r *renderer) checkConf(node dsas.Node) error {
	def, err := r.roles.Get(node.Role)
	if err != nil {
		def = roles.Definition{Role: dsas.Role{Name: "none"}} // it boots nothing yet
	}
	if !node.Address.IsValid() { // it gets one after this check
		node.Address = netip.MustParsePrefix("192.0.2.1/24")
	}
	full, err := roles.Conf(def, r.input(&fleet{}, node, def))
	if err != nil {
		return nil // not for its own lines; the boot tells
	}
	own := strings.TrimRight(strings.ReplaceAll(node.Conf, "\r\n", "\n"), "\n")
	above := strings.Count(strings.TrimRight(full, "\n"), "\n") - strings.Count(own, "\n")
	_, wrong := dsasconf.Parse(full)
	var said []string
	for _, e := range wrong {
		if e.Line <= above {
			continue // of somebody else's
		}
		if len(said) == maxConfErrors {
			said = append(said, "and more")
			break
		}
		e.Line -= above
		said = append(said, strings.TrimPrefix(e.Error(), "dsas.conf "))
	}
	if said == nil {
		return nil
	}
	return fmt.Errorf("conf: %s: %w", strings.Join(said, "; "), dsas.ErrInvalid)
}
