package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"dsas"
)

// inventoryPath is where the inventory role's service leaves what the box is.
const inventoryPath = runDir + "/inventory.json"

// maxInventory is what the server takes.
const maxInventory = 16 << 10

// inventory gives the event that tells the server what the box is; ok is false
// where no service left a report.
func inventory(path string) (e dsas.Event, ok bool) {
	warn := func(err error) (dsas.Event, bool) {
		return dsas.Event{Kind: dsas.KindWarning, Message: "inventory: " + err.Error()}, true
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return e, false
	}
	if err != nil {
		return warn(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInventory+1))
	if err != nil {
		return warn(err)
	}
	var box struct {
		Vendor, Product, CPU string
		Threads              int
		Memory               int64
		NICs                 []port
	}
	if len(b) > maxInventory {
		return warn(fmt.Errorf("more than %d bytes, which the server does not take", maxInventory))
	}
	if err := json.Unmarshal(b, &box); err != nil {
		return warn(err)
	}
	return dsas.Event{Kind: dsas.KindInventory, Detail: string(b),
		Message: fmt.Sprintf("%s %s: %s, %d threads, %d MiB, ports %s", box.Vendor, box.Product, box.CPU, box.Threads, box.Memory>>20, macs(box.NICs))}, true
}

// port is a link as iproute2 lists it.
type port struct {
	Name    string `json:"ifname"`
	Type    string `json:"link_type"`
	Address string
	// Permanent is there where the link goes by another address, as a bond's
	// ports do.
	Permanent string `json:"permaddr"`
}

// macs lists the Ethernet ports' own addresses: what the box is added by. The
// firmware asks from one port alone, so the others are not known otherwise.
func macs(links []port) string {
	var list []string
	for _, l := range links {
		if l.Type == "ether" && strings.HasPrefix(l.Name, "eth") && !strings.Contains(l.Name, ".") {
			list = append(list, cmp.Or(l.Permanent, l.Address))
		}
	}
	return strings.Join(list, " ")
}
