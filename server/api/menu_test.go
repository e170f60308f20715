package api_test

import (
	"slices"
	"strings"
	"testing"

	"dsas"
)

// TestMenu: a list of roles that a node may pick at its loader.
func TestMenu(t *testing.T) {
	f := newFixture(t)
	var n dsas.Node
	f.want(201, "POST", "/nodes", `{"name":"w101","nics":[{"mac":"52:54:00:00:01:01"}],"role":"db","menu":["web"]}`, &n)
	f.want(200, "PATCH", "/nodes/w101", `{"menu":["lb","web"]}`, &n)
	if !slices.Equal(n.Menu, []string{"lb", "web"}) || n.Role != "db" {
		t.Errorf("node = role %q, menu %v; want db and [lb web]", n.Role, n.Menu)
	}
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["db"]}`, "role db may format a disk (DBDEVICE)", "assign it instead")
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["wipe"]}`, "role wipe erases disks")
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["wbe"]}`, `role "wbe": does not exist`, `did you mean "web"`)
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["web","web"]}`, "is there twice")
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["../x"]}`, "menu: role name")
	f.refused(400, "PATCH", "/nodes/w101", `{"menu":["`+strings.Repeat(`web","`, 20)+`web"]}`, "at most 16")
	f.refused(400, "POST", "/nodes", `{"name":"w102","nics":[{"mac":"52:54:00:00:01:02"}],"menu":["db"]}`, "may format a disk")
	f.want(200, "GET", "/nodes/w101", "", nil)
	n = dsas.Node{}
	f.want(200, "PATCH", "/nodes/w101", `{"menu":null}`, &n)
	if len(n.Menu) != 0 {
		t.Errorf("menu = %v after it was taken away", n.Menu)
	}
}
