package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"dsas/server/netns"
)

// Switches is how many switches the rack has. Port p of a node hangs on
// switch p modulo Switches.
const Switches = 2

// coreName is the bridge where the server and the tests' clients hang.
const coreName = "core"

func switchName(sw int) string { return fmt.Sprintf("sw%d", sw) }

// rackName names the second namespace of a lab: that of the switches and the
// nodes.
func rackName(lab string) string { return lab + "-sw" }

// buildNetwork makes
//
//	namespace NAME                        namespace NAME-sw
//	core (server's address) ── core0 ════ up0 ── sw0 ── taps of port 0
//	                        └─ core1 ════ up1 ── sw1 ── taps of port 1
//
// The switches have a namespace of their own, with no address in it: a bridge
// is an interface too, and beside the server's address it would answer ARP for
// it (arp_ignore is 0, and an address belongs to the machine), and take the
// server's packets itself.
//
// The switches meet only at core, so there is no loop and no need of STP,
// which on Linux bridges is off by default; without it a port forwards at once
// whatever the forward delay is (br_make_forwarding in the kernel).
func buildNetwork(lab string, addr netip.Prefix) error {
	rack := rackName(lab)
	err := netns.Do(rack, func() error {
		// Before any interface: a switch says nothing by itself.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("no IPv6 on switches: %w", err)
		}
		for sw := range Switches {
			br, err := addBridge(switchName(sw))
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = fmt.Sprintf("up%d", sw)
			veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName(sw)}
			if err := netlink.LinkAdd(veth); err != nil {
				return fmt.Errorf("add link %s: %w", attrs.Name, err)
			}
			if err := plug(veth.Name, br); err != nil {
				return err
			}
			if err := moveTo(lab, veth.PeerName); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return netns.Do(lab, func() error {
		core, err := addBridge(coreName)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr.String())
		if err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		if err := netlink.AddrAdd(core, a); err != nil {
			return fmt.Errorf("address %s on %s: %w", addr, coreName, err)
		}
		for sw := range Switches {
			if err := plug(peerName(sw), core); err != nil {
				return err
			}
		}
		return nil
	})
}

// peerName is the core's port for a switch.
func peerName(sw int) string { return fmt.Sprintf("core%d", sw) }

// moveTo moves a link of the namespace the thread is in to another one.
func moveTo(namespace, link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	f, err := os.Open(filepath.Join("/run/netns", namespace))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := netlink.LinkSetNsFd(l, int(f.Fd())); err != nil {
		return fmt.Errorf("move %s to network namespace %s: %w", link, namespace, err)
	}
	return nil
}

func addBridge(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// With snooping and no querier, multicast (VRRP, router solicitations)
	// would be lost after some minutes.
	off := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := netlink.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bridge %s up: %w", name, err)
	}
	return netlink.LinkByName(name)
}

// plug puts an interface into a bridge and brings it up.
func plug(name string, bridge netlink.Link) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.LinkSetMaster(l, bridge); err != nil {
		return fmt.Errorf("plug %s into %s: %w", name, bridge.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}

// addTap makes a tap that stays while QEMU comes and goes; without a QEMU it
// has no carrier, as a cable to a box that is off.
func addTap(namespace, name string, sw int, forwards bool) error {
	return netns.Do(namespace, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		// One queue and a packet at a time, as QEMU opens it; the flags
		// must agree (TUNSETIFF).
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("add tap %s: %w", name, err)
		}
		br, err := netlink.LinkByName(switchName(sw))
		if err != nil {
			return fmt.Errorf("bridge %s: %w", switchName(sw), err)
		}
		if err := plug(name, br); err != nil {
			return err
		}
		if forwards {
			return nil
		}
		return isolate(name, true)
	})
}

func isolate(name string, on bool) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.LinkSetIsolated(l, on); err != nil {
		return fmt.Errorf("isolate %s: %w", name, err)
	}
	return nil
}

// setForwarding isolates every port of a switch, uplink included: isolated
// bridge ports reach none but ports that are not isolated (bridge(8)), so the
// switch passes nothing while every link on it stays up.
func setForwarding(namespace string, sw int, on bool) error {
	return netns.Do(namespace, func() error {
		br, err := netlink.LinkByName(switchName(sw))
		if err != nil {
			return fmt.Errorf("bridge %s: %w", switchName(sw), err)
		}
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		var errs []error
		for _, l := range links {
			if l.Attrs().MasterIndex == br.Attrs().Index {
				errs = append(errs, isolate(l.Attrs().Name, !on))
			}
		}
		return errors.Join(errs...)
	})
}

func delLink(namespace, name string) error {
	return netns.Do(namespace, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		return netlink.LinkDel(l)
	})
}
