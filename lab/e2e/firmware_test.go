package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dsas"
	"dsas/lab"
)

// fetchLoaders gets optional boot loaders into the server's folder, while it
// runs; one that an earlier run left there is used again.
func (r *rack) fetchLoaders(t *testing.T, set, file string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(r.state, "loaders", file)); err == nil {
		return
	}
	if out, err := exec.Command(r.bin(), "loader", "fetch", "--config", r.conf, set).CombinedOutput(); err != nil {
		t.Fatalf("dsas loader fetch %s: %v: %s", set, err, out)
	}
}

// nbps gives the boot loaders that a node took after mark, in order.
func (b *box) nbps(t *testing.T, mark int64) string {
	var list []string
	for _, e := range b.r.events(t, b.Name(), mark) {
		if e.Kind == dsas.KindNBP {
			list = append(list, e.Message)
		}
	}
	return strings.Join(list, " ")
}

// bootFile gives the first boot file that DHCP gave to a node after mark.
func (b *box) bootFile(t *testing.T, mark int64) string {
	for _, e := range b.r.events(t, b.Name(), mark) {
		if _, file, ok := strings.Cut(e.Message, "boot file "); ok && e.Kind == dsas.KindDHCP {
			return file
		}
	}
	return ""
}

var wholeBoot = []dsas.Kind{dsas.KindPower, dsas.KindDHCP, dsas.KindNBP, dsas.KindScript, dsas.KindKernel, dsas.KindInitramfs,
	dsas.KindConfigTaken, dsas.KindInit, dsas.KindFetch, dsas.KindFetched, dsas.KindConf, dsas.KindSwitched, dsas.KindReady}

// testFirmware boots the two ways of UEFI that are not PXE and iPXE: HTTP Boot,
// and Secure Boot through shim, GRUB and Debian's signed kernel. GRUB shows a
// menu: without a key the assigned role boots, and with one another.
func testFirmware(t *testing.T, r *rack) {
	r.fetchLoaders(t, "secureboot", "shimx64.efi")
	http := r.add(t, lab.NodeSpec{Name: "w105", Firmware: lab.UEFIHTTP}, "--role", "web")
	secure := r.add(t, lab.NodeSpec{Name: "w106", Firmware: lab.SecureBoot}, "--role", "web", "--loader", "grub")
	defer func() {
		for _, b := range []*box{http, secure} {
			b.PowerOff(t.Context(), true)
			r.dsas(t, "node", "rm", "--yes", b.Name())
			if err := b.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Run("boot", func(t *testing.T) {
		t.Run("HTTP", func(t *testing.T) {
			t.Parallel()
			http.boot(t)
			http.saw(t, 0, wholeBoot...)
			url := fmt.Sprintf("http://%s:8080/nbp/%s/snponly.efi", r.lab.Address().Addr(), http.NICs()[0].MAC.Dashed())
			if got := http.bootFile(t, 0); got != url {
				t.Errorf("boot file = %q; want %q", got, url)
			}
			if got := http.nbps(t, 0); got != "snponly.efi" {
				t.Errorf("boot loaders = %q; want snponly.efi alone", got)
			}
		})
		t.Run("Secure Boot", func(t *testing.T) {
			t.Parallel()
			r.dsas(t, "node", "set", secure.Name(), "--menu", "rescue")
			secure.boot(t)
			secure.saw(t, 0, wholeBoot...)
			const menu = `rescue \(for this boot only\)`
			if st := r.node(t, secure.Name()).Status; st.Running != "web" || st.Picked {
				t.Errorf("without a key: runs %q, picked %v; want web", st.Running, st.Picked)
			}
			if !regexp.MustCompile(menu).MatchString(secure.screen(t)) {
				t.Errorf("the first boot showed no menu\n%s", secure.story(t, 0))
			}
			if got := secure.nbps(t, 0); got != "shimx64.efi grubx64.efi" {
				t.Errorf("boot loaders = %q; want shimx64.efi grubx64.efi", got)
			}
			// What the kernel found: the variable SecureBoot (UEFI specification 2.10,
			// section 3.3; 4 bytes of attributes stand before the value), and, for it
			// locks itself down then, that it believes it.
			if out := secure.ssh(t, "dmesg | grep -i 'secure boot'"); !strings.Contains(out, "Secure boot enabled") {
				t.Errorf("the kernel says %q; want Secure boot enabled", out)
			}
			if out := secure.ssh(t, "cat /sys/kernel/security/lockdown 2>/dev/null || { mount -t securityfs none /mnt && cat /mnt/lockdown; umount /mnt; }"); !strings.Contains(out, "[integrity]") {
				t.Errorf("lockdown = %q; want integrity, which Debian's kernel turns on with Secure Boot", out)
			}
			// c would be GRUB's command line, and with it any kernel argument: it asks
			// for a superuser, whom nobody is. 2 is the second entry's key.
			secure.pickRescue(t, typed{menu, "c"}, typed{"Enter username:", "root\r"}, typed{"Enter password:", "\r"},
				typed{`(?s)Enter password:.*` + menu, "2"})
		})
	})
}
