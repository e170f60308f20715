package vmtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/disk"
	"dsas/initramfs/dsasconf"
	"dsas/initramfs/kmod"
	"dsas/initramfs/modindex"
	"dsas/initramfs/netcfg"
)

// guest is PID 1 of the virtual machine.
func guest() {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	g := &inGuest{ctx: ctx}
	for _, c := range []struct {
		name string
		run  func() error
	}{
		{"mounts", g.mounts}, {"modules", g.modules}, {"up", g.up}, {"names", g.names}, {"bond", g.bond}, {"idempotent", g.idempotent},
		{"failover by MII", g.failover}, {"vlan", g.vlan}, {"deferred", g.deferred}, {"failover by ARP", g.arp},
		{"dhcp", g.dhcp}, {"hotplug", g.hotplug},
	} {
		start := time.Now()
		if err := c.run(); err != nil {
			fmt.Printf("\n%sFAIL %s: %s\n", mark, c.name, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Printf("\n%sPASS %s\n", mark, c.name)
		fmt.Printf("%s took %s\n", c.name, time.Since(start).Round(time.Millisecond))
	}
	fmt.Printf("\n%sDONE\n", mark)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with -no-reboot QEMU ends
}

type inGuest struct {
	ctx  context.Context
	mods *kmod.Loader
	net  *netcfg.State
}

// host has the host do something to the hardware.
func host(command string) { fmt.Printf("\n%sHOST %s\n", mark, command) }

func (g *inGuest) mounts() error {
	return errors.Join(
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("sys", "/sys", "sysfs", 0, ""),
		unix.Mount("dev", "/dev", "devtmpfs", 0, ""),
	)
}

func (g *inGuest) modules() error {
	ix, err := modindex.ReadFile(filepath.Join("/etc", modindex.File))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g.mods = &kmod.Loader{Root: "/", Index: ix, Log: log}
	err = errors.Join(
		g.mods.Load("bonding", "max_bonds=0"),
		g.mods.Load("af_packet", ""),
		g.mods.Load("8021q", ""),
		g.mods.LoadFor(g.ctx, "/sys"),
	)
	if err != nil {
		return err
	}
	if _, err := netlink.LinkByName("bond0"); err == nil {
		return errors.New("bond0 is there; want none: max_bonds=0 was not taken")
	}
	for _, m := range []string{"virtio_pci", "virtio_net", "bonding"} {
		if _, err := os.Stat("/sys/module/" + m); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/sys/module/virtio_blk"); err == nil {
		return errors.New("virtio_blk is loaded and there is no disk yet")
	}
	second := &kmod.Loader{Root: "/", Index: ix}
	if err := second.Load("bonding", "max_bonds=3"); !errors.Is(err, dsas.ErrConflict) {
		return fmt.Errorf("Load(bonding) again with options: %v; want ErrConflict", err)
	}
	return second.Load("bonding", "")
}

func (g *inGuest) up() error {
	raw, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	p, err := netcfg.ParseCmdline(string(raw))
	if err != nil {
		return err
	}
	if g.net, err = netcfg.Up(g.ctx, p); err != nil {
		return err
	}
	for _, c := range g.net.Changes {
		fmt.Println("change:", c)
	}
	return errors.Join(g.net.Warnings...)
}

// names checks that MACs and names go together; the bus has them otherwise.
func (g *inGuest) names() error {
	for name, want := range map[string]string{"eth0": "52:54:00:00:01:01", "eth1": "52:54:00:00:01:02", "eth2": "52:54:00:00:01:09"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if got := l.Attrs().PermHWAddr.String(); got != want {
			return fmt.Errorf("%s has the permanent MAC %q; want %s", name, got, want)
		}
	}
	return nil
}

func option(name string) string {
	b, err := os.ReadFile("/sys/class/net/bond0/bonding/" + name)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func wantOptions(want map[string]string) error {
	var errs []error
	for name, v := range want {
		if got := option(name); got != v {
			errs = append(errs, fmt.Errorf("%s = %q; want %q", name, got, v))
		}
	}
	return errors.Join(errs...)
}

func (g *inGuest) bond() error {
	l, err := netlink.LinkByName("bond0")
	if err != nil {
		return err
	}
	if got := l.Attrs().HardwareAddr.String(); got != "52:54:00:00:01:01" {
		return fmt.Errorf("bond0 has MAC %s; want the first port's", got)
	}
	if g.net.Device != "bond0" || g.net.Bond != "bond0" {
		return fmt.Errorf("device %q, bond %q; want bond0", g.net.Device, g.net.Bond)
	}
	return errors.Join(
		// The driver has made 200 of the 250 ms: a multiple of miimon.
		wantOptions(map[string]string{"mode": "active-backup 1", "miimon": "100", "updelay": "200", "primary": "eth0", "slaves": "eth0 eth1"}),
		hasAddress("bond0", "10.77.0.101/24"),
		hasAddress("eth0", ""),
	)
}

// hasAddress checks that a device has an IPv4 address, or with "" none.
func hasAddress(dev, want string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	have, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	var all []string
	for _, a := range have {
		all = append(all, a.IPNet.String())
		if a.IPNet.String() == want {
			return nil
		}
	}
	if want == "" && len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%s has %v; want %q", dev, all, want)
}

func (g *inGuest) idempotent() error {
	again, err := netcfg.Restate(g.ctx, g.net.Plan)
	if err != nil {
		return err
	}
	if len(again) > 0 {
		return fmt.Errorf("changes %v; want none", again)
	}
	return nil
}

// restate applies a dsas.conf.
func (g *inGuest) restate(text string) (netcfg.Changes, error) {
	conf, wrong := dsasconf.Parse(text)
	if len(wrong) > 0 {
		return nil, wrong[0]
	}
	pl, errs := netcfg.FromConf(g.net.Plan, conf)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	changes, err := netcfg.Restate(g.ctx, pl)
	for _, c := range changes {
		fmt.Println("change:", c)
	}
	if err != nil {
		return changes, err
	}
	again, err := netcfg.Restate(g.ctx, pl)
	if err != nil {
		return changes, err
	}
	if len(again) != len(again.Deferred()) {
		return changes, fmt.Errorf("applied again, changes %v; want none made", again)
	}
	return changes, nil
}

func (g *inGuest) failover() error { return g.linkFails("100", "0") }

// linkFails pulls the active port's cable and puts it back.
func (g *inGuest) linkFails(miimon, arp string) error {
	if err := wantOptions(map[string]string{"miimon": miimon, "arp_interval": arp}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(g.ctx, 3*time.Minute)
	defer cancel()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := netcfg.WaitUp(ctx, h, "bond0"); err != nil {
		return err
	}
	changes, err := netcfg.Watch(ctx, "bond0")
	if err != nil {
		return err
	}
	await := func(port string) error {
		for c := range changes {
			fmt.Printf("active port %q, was %q\n", c.New, c.Old)
			if c.New == port {
				return nil
			}
		}
		return fmt.Errorf("%s did not become the active port: %w (it is %q)", port, ctx.Err(), option("active_slave"))
	}
	if active := option("active_slave"); active != "eth0" { // primary
		if err := await("eth0"); err != nil {
			return err
		}
	}
	host("set_link first off")
	if err := await("eth1"); err != nil {
		return err
	}
	host("set_link first on")
	return await("eth0")
}

func (g *inGuest) vlan() error {
	_, err := g.restate(`IPADDRESS0=10.77.0.101/24
IPADDRESS1=203.0.113.3/24
INTERFACE[1]=bond0.2
GATEWAY=(203.0.113.254 10.77.0.1)
SERVICEADDRESS=(10.77.0.80)
MTU=1400
BONDING=("bond0 eth0 eth1")
MODULES=("bond0 mode=active-backup miimon=100 primary=eth0 updelay=250")
`)
	if err != nil {
		return err
	}
	l, err := netlink.LinkByName("bond0.2")
	if err != nil {
		return err
	}
	v, ok := l.(*netlink.Vlan)
	if !ok || v.VlanId != 2 || l.Attrs().MTU != 1400 || l.Attrs().RawFlags&unix.IFF_UP == 0 {
		return fmt.Errorf("bond0.2 = %+v; want VLAN 2, MTU 1400, up", l)
	}
	port, err := netlink.LinkByName("eth1")
	if err != nil {
		return err
	}
	if port.Attrs().MTU != 1400 {
		return fmt.Errorf("eth1: MTU %d; want the bond's 1400", port.Attrs().MTU)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/bond0.2/arp_ignore")
	if err != nil || strings.TrimSpace(string(b)) != "1" {
		return fmt.Errorf("arp_ignore of bond0.2 = %q, %v; want 1", b, err)
	}
	return errors.Join(hasAddress("bond0.2", "203.0.113.3/24"), hasAddress("bond0", "10.77.0.101/24"), hasAddress("lo", "10.77.0.80/32"))
}

// deferred asks for what a running bond cannot become.
func (g *inGuest) deferred() error {
	changes, err := g.restate("MODULES=(\"bond0 mode=802.3ad fail_over_mac=active\")\nBONDING=(\"bond0 eth0\")")
	if err != nil {
		return err
	}
	text := fmt.Sprint(changes.Deferred())
	for _, want := range []string{"mode 802.3ad", "fail_over_mac active", "eth1 is a port"} {
		if !strings.Contains(text, want) {
			return fmt.Errorf("deferred = %s; want %q in it", text, want)
		}
	}
	return wantOptions(map[string]string{"mode": "active-backup 1", "slaves": "eth0 eth1"})
}

func (g *inGuest) arp() error {
	if _, err := g.restate("MODULES=(\"bond0 arp_interval=250 arp_ip_target=10.77.0.1,10.77.0.2\")"); err != nil {
		return err
	}
	if err := wantOptions(map[string]string{"arp_ip_target": "10.77.0.1 10.77.0.2"}); err != nil {
		return err
	}
	// One target leaves, another comes.
	if _, err := g.restate("MODULES=(\"bond0 arp_interval=250 arp_ip_target=10.77.0.3,10.77.0.1\")"); err != nil {
		return err
	}
	if got := option("arp_ip_target"); strings.Contains(got, "10.77.0.2") || !strings.Contains(got, "10.77.0.3") || !strings.Contains(got, "10.77.0.1") {
		return fmt.Errorf("arp_ip_target = %s; want 10.77.0.1 and 10.77.0.3", got)
	}
	return g.linkFails("0", "250")
}

func (g *inGuest) dhcp() error {
	ctx, cancel := context.WithTimeout(g.ctx, 3*time.Minute)
	defer cancel()
	l, err := netcfg.AskDHCP(ctx, "bond0")
	if err != nil {
		return err
	}
	if !netip.MustParsePrefix("10.77.0.0/24").Contains(l.Address.Addr()) || l.Address.Bits() != 24 {
		return fmt.Errorf("lease %+v; want one in 10.77.0.0/24", l)
	}
	return nil
}

// hotplug has a disk appear whose driver is not loaded yet.
func (g *inGuest) hotplug() error {
	ctx, cancel := context.WithTimeout(g.ctx, 3*time.Minute)
	defer cancel()
	plug := make(chan error, 1)
	go func() { plug <- g.mods.Hotplug(ctx, "/sys") }()
	host("device_add virtio-blk-pci,drive=d0,serial=HOT1,id=hot")
	node, err := disk.Finder{Sys: "/sys", Dev: "/dev"}.Wait(ctx, "/dev/disk/by-id/virtio-HOT1")
	if err != nil {
		return err
	}
	c, err := disk.Probe(node)
	if err != nil {
		return err
	}
	if !c.Blank() || c.Size != 16<<20 {
		return fmt.Errorf("%s holds %s, %d bytes; want it blank, 16 MiB", node, c, c.Size)
	}
	all, err := disk.Finder{Sys: "/sys", Dev: "/dev"}.List()
	if err != nil {
		return err
	}
	if len(all) != 1 || !strings.HasPrefix(fmt.Sprint(all[0].Names), "[by-path/pci-0000:00:") {
		return fmt.Errorf("disks %+v; want one with a name by path", all)
	}
	cancel()
	return <-plug
}
