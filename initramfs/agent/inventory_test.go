package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
)

func TestInventory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory.json")
	if e, ok := inventory(path); ok {
		t.Errorf("inventory without a report = %+v; want none", e)
	}
	for _, c := range []struct {
		name, text string
		kind       dsas.Kind
		message    string
	}{
		{"a report", `{"vendor":"ACME","product":"X1","serial":"","cpu":"Fast CPU","threads":8,"memory":8589934592,"disks":null,"nics":[]}` + "\n", dsas.KindInventory, "ACME X1: Fast CPU, 8 threads, 8192 MiB"},
		{"its ports", `{"vendor":"A","product":"B","cpu":"C","nics":[{"ifname":"lo","link_type":"loopback","address":"00:00:00:00:00:00"},` +
			`{"ifname":"eth0","link_type":"ether","address":"52:54:00:00:00:01"},{"ifname":"eth1","link_type":"ether","address":"52:54:00:00:00:01","permaddr":"52:54:00:00:00:02"},` +
			`{"ifname":"bond0","link_type":"ether","address":"52:54:00:00:00:01"}]}`, dsas.KindInventory, "ports 52:54:00:00:00:01 52:54:00:00:00:02"},
		{"half a report", `{"vendor":"ACME`, dsas.KindWarning, "inventory: unexpected end of JSON"},
		{"an empty one", "", dsas.KindWarning, "inventory: "},
		{"a long one", `{"vendor":"` + strings.Repeat("x", maxInventory) + `"}`, dsas.KindWarning, "more than 16384 bytes"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		e, ok := inventory(path)
		if !ok || e.Kind != c.kind || !strings.Contains(e.Message, c.message) {
			t.Errorf("%s: inventory = %+v, %v; want %s, %q", c.name, e, ok, c.kind, c.message)
		}
		if c.kind == dsas.KindInventory && e.Detail != c.text {
			t.Errorf("%s: detail = %q; want the report as it is", c.name, e.Detail)
		}
	}
}
