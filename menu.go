package dsas

import (
	"fmt"
	"slices"
)

// MaxMenu bounds a node's menu: what fits a screen of 25 lines.
const MaxMenu = 16

// WipeRole is the role that erases a box's disks before it leaves: it runs
// where an operator assigned it, and nowhere by a key pressed at a box.
const WipeRole = "wipe"

// checkMenu says what is wrong with a node's menu by itself. What its roles may
// do is not known here: see MenuRefusal.
func checkMenu(menu []string) error {
	if len(menu) > MaxMenu {
		return fmt.Errorf("menu: %d roles; at most %d: %w", len(menu), MaxMenu, ErrInvalid)
	}
	for i, r := range menu {
		if err := CheckName("role", r); err != nil {
			return fmt.Errorf("menu: %w", err)
		}
		if slices.Contains(menu[:i], r) {
			return fmt.Errorf("menu: role %s is there twice: %w", r, ErrInvalid)
		}
		if why := (&Role{Name: r}).MenuRefusal(); why != "" {
			return fmt.Errorf("menu: %s: %w", why, ErrInvalid)
		}
	}
	return nil
}

// MenuRefusal says why the role is never offered in a loader's menu, "" where
// it may be: whoever stands at a box, or sends packets in its name, must not
// be able to make it lose a disk's content.
func (r *Role) MenuRefusal() string {
	const way = "assign it instead: dsas node set NODE --role "
	if r.Name == WipeRole || r.Erases {
		return fmt.Sprintf("role %s erases disks and is never offered at a loader; %s%s", r.Name, way, r.Name)
	}
	for _, d := range r.Devices {
		if d.Format {
			return fmt.Sprintf("role %s may format a disk (%s) and is never offered at a loader; %s%s", r.Name, d.Key, way, r.Name)
		}
	}
	return ""
}
