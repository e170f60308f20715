package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"dsas"
	"dsas/lab"
)

// TestProxyDHCP boots a BIOS and a UEFI box beside a dnsmasq that gives the
// addresses and knows nothing of dsas. The BIOS box takes the whole way (its
// ROM's iPXE, our NBP's iPXE, script) and has the address reserved for it in
// both; the UEFI box, whose firmware does its own PXE, gets another than the one
// that dsas has for it.
func TestProxyDHCP(t *testing.T) {
	r := newRackWith(t, "proxyDHCP: true\n", "web")
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		t.Fatal(err)
	}
	p101 := r.add(t, lab.NodeSpec{Name: "p101"}, "--role", "web", "--loader", "nbp", "--address", "10.77.0.101")
	p102 := r.add(t, lab.NodeSpec{Name: "p102", Firmware: lab.UEFI}, "--role", "web", "--address", "10.77.0.102")
	other := r.startDnsmasq(t, fmt.Sprintf("--dhcp-host=%s,%s,10.77.0.101", p101.NICs()[0].MAC, p101.NICs()[1].MAC))
	for _, b := range []*box{p101, p102} {
		t.Run(b.Name(), func(t *testing.T) {
			t.Parallel()
			b.boot(t)
		})
	}
	t.Cleanup(func() {
		for _, b := range []*box{p101, p102} {
			b.saw(t, 0, dsas.KindDHCP, dsas.KindNBP, dsas.KindDHCP, dsas.KindScript, dsas.KindKernel, dsas.KindInitramfs,
				dsas.KindConfigTaken, dsas.KindInit, dsas.KindFetched, dsas.KindSwitched, dsas.KindReady)
			for _, e := range r.events(t, b.Name(), 0) {
				guest := strings.Contains(e.Message, "of another DHCP server")
				switch {
				case e.Kind == dsas.KindDHCP && !strings.HasPrefix(e.Message, "proxyDHCP: "):
					t.Errorf("%s: %s: %s; want proxyDHCP", b.Name(), e.Kind, e.Message)
				case e.Kind == dsas.KindScript && guest != (b == p102):
					t.Errorf("%s: %s; want a word on the other server's address for p102 alone", b.Name(), e.Message)
				case e.Kind == dsas.KindWarning || e.Kind == dsas.KindConfError:
					t.Errorf("%s: %s: %s", b.Name(), e.Kind, e.Message)
				}
			}
		}
		// It was dnsmasq that gave every address.
		log, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		for b, want := range map[*box]string{p101: `DHCPACK\(\S+\) 10\.77\.0\.101 `, p102: `DHCPACK\(\S+\) 10\.77\.0\.15\d `} {
			if !regexp.MustCompile(want + b.NICs()[0].MAC.String()).Match(log) {
				t.Errorf("dnsmasq's log holds no %s%s:\n%s", want, b.NICs()[0].MAC, log)
			}
		}
	})
}

// startDnsmasq runs the existing DHCP server, on a machine of its own; it gives
// its log's path.
func (r *rack) startDnsmasq(t *testing.T, args ...string) string {
	t.Helper()
	other := r.machine(t, "d", "10.77.0.2/24")
	log := filepath.Join(t.TempDir(), "dnsmasq.log")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", other, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
		"--interface=eth0", "--bind-interfaces", "--leasefile-ro", "--user=root", "--log-dhcp", "--log-facility=" + log, "--pid-file=",
		"--dhcp-range=10.77.0.150,10.77.0.159,5m"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	eventually(t, "dnsmasq", func() error {
		b, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(b), "DHCP, IP range") {
			err = fmt.Errorf("not up: %s", b)
		}
		return err
	})
	return log
}
