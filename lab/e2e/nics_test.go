package e2e

import (
	"cmp"
	"fmt"
	"os"
	"testing"

	"dsas"
	"dsas/lab"
)

// TestNICs boots boxes whose NICs are of the models that QEMU has: their ROMs'
// drivers, on BIOS and UEFI, and the kernel's. All are followed until our init
// has the network up with the model's own driver, some until they are ready. It
// takes a quarter of an hour: DSAS_LONG=1 (make test-long). Of all but virtio
// the ROM is iPXE on UEFI too, since OVMF has no driver for them.
func TestNICs(t *testing.T) {
	if os.Getenv("DSAS_LONG") == "" {
		t.Skip("set DSAS_LONG=1 (make test-long) to boot every NIC model")
	}
	r := newRack(t)
	n := 0
	for _, c := range []struct {
		model, driver string // of QEMU; the kernel's name
		ready         bool   // follow it to the end
	}{
		{"virtio-net-pci", "virtio_net", false},
		{"e1000", "e1000", false},
		{"e1000e", "e1000e", true},
		{"rtl8139", "8139cp", true},
		{"vmxnet3", "vmxnet3", true},
	} {
		for _, firmware := range []lab.Firmware{lab.BIOS, lab.UEFI} {
			n++
			name := fmt.Sprintf("n%d", 100+n)
			t.Run(fmt.Sprintf("%s on %s", c.model, firmware), func(t *testing.T) {
				b := r.add(t, lab.NodeSpec{Name: name, Firmware: firmware, NICModel: c.model}, "--role", "web")
				defer func() {
					b.PowerOff(t.Context(), true)
					r.dsas(t, "node", "rm", "--yes", name)
					if err := b.Remove(t.Context()); err != nil {
						t.Error(err)
					}
				}()
				full := c.ready && firmware == lab.BIOS
				mark := r.mark(t, name)
				r.dsas(t, "power", "cycle", name)
				want := dsas.KindInit
				if full {
					want = dsas.KindReady
				}
				e := b.wait(t, mark, string(want), kind(want))
				t.Logf("%s: %s", e.Kind, cmp.Or(e.Message, "reached"))
				b.saw(t, mark, dsas.KindDHCP, dsas.KindScript, dsas.KindKernel, dsas.KindInitramfs, dsas.KindConfigTaken, dsas.KindInit)
				if full {
					for port := range b.NICs() {
						if got := b.ssh(t, fmt.Sprintf("basename $(readlink /sys/class/net/eth%d/device/driver)", port)); got != c.driver {
							t.Errorf("driver of eth%d = %q; want %s", port, got, c.driver)
						}
					}
				}
			})
		}
	}
}
