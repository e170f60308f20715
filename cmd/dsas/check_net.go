package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/dhcp"
)

// network looks at the interfaces and what the configuration makes of them.
func (c *checker) network() {
	const check = "interfaces"
	if len(c.cfg.Interfaces) == 0 {
		c.fail(check, "none is named", "dsas answers on the interfaces it is given and on no other.", "dsas check --interface eth1, or interfaces: [eth1] in "+defaultConfigPath)
		return
	}
	good := true
	for _, name := range c.cfg.Interfaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			c.fail("interface "+name, "there is none of that name", "", "`ip -br link` lists what there is")
			good = false
			continue
		}
		addrs, err := interfaceAddrs([]string{name})
		switch {
		case err != nil:
			c.fail("interface "+name, err.Error(), "", "sudo dsas check")
		case ifi.Flags&net.FlagUp == 0:
			c.fail("interface "+name, "it is down", "No packet comes or goes.", "ip link set "+name+" up")
		case len(addrs) == 0:
			c.fail("interface "+name, "it has no IPv4 address", "Nodes need an address to fetch from, and the subnet is taken from it.", "ip addr add 10.0.0.1/22 dev "+name+" (one of your nodes' network)")
			good = false
		case ifi.Flags&net.FlagRunning == 0:
			c.fail("interface "+name, "it has no carrier", "No packet comes or goes.", "plug the cable in, or switch the port on")
		default:
			var list []string
			for _, a := range addrs {
				list = append(list, a.String())
			}
			c.ok("interface "+name, "up, %s", strings.Join(list, ", "))
		}
	}
	if !good {
		return
	}
	subnets, err := c.cfg.subnets()
	if err != nil {
		c.fail("subnets", err.Error(), "dsas serve refuses to start.", "correct it in "+defaultConfigPath+" or on the command line")
		return
	}
	c.subnets = subnets
	for _, s := range subnets {
		c.subnet(s)
	}
}

// subnet looks for what is allowed and yet rarely meant.
func (c *checker) subnet(s dsas.Subnet) {
	check := "subnet " + s.Prefix.String()
	switch {
	case s.Pool.First.IsValid() && s.PoolSize() == 0:
		c.warn(check, fmt.Sprintf("pool %s has no address to give", s.Pool), "All of it is excluded or our own: machines that are not known get nothing.", "give a larger one, or pool: none")
	case s.Prefix.Bits() < 16:
		c.warn(check, "it is larger than a /16", "So large a network is most often a mistyped prefix length.", "check the prefix length of the interface's address")
	case s.Prefix.Bits() > 30:
		c.fail(check, "it is too small for a node", "", "check the prefix length of the interface's address")
	case s.Relayed && noRoute(s.Gateway):
		// What goes to the relay agent, a node that renews, and all of a boot.
		c.fail(check, "there is no route to "+s.Gateway.String(), "It is behind a relay: no answer of ours gets there.", fmt.Sprintf("ip route add %s via (the router on our side)", s.Prefix))
	default:
		c.ok(check, "server %s, %d pool addresses", s.Server, s.PoolSize())
	}
}

// noRoute tells whether the kernel has no way to a.
func noRoute(a netip.Addr) bool {
	_, err := netlink.RouteGet(a.AsSlice())
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}

// wanted is a socket that dsas serve opens.
type wanted struct {
	proto string // "udp", "tcp"
	port  int
	addrs []netip.Addr // it binds to; none: all
	iface bool         // bound to the boot interfaces
	what  string
	local bool // opened outside of the boot network
	// setting names another port to listen on, of a local one
	setting string
}

func (c *checker) wanted() []wanted {
	var servers []netip.Addr
	for _, s := range c.subnets {
		servers = append(servers, s.Server)
	}
	list := []wanted{{proto: "udp", port: 69, iface: true, what: "TFTP"}, {proto: "tcp", port: c.cfg.HTTPPort, addrs: servers, what: "boot HTTP"}}
	if !c.cfg.NoDHCP {
		list = append([]wanted{{proto: "udp", port: 67, iface: true, what: "DHCP"}}, list...)
	}
	if c.cfg.ProxyDHCP {
		list = append(list, wanted{proto: "udp", port: dhcp.BootPort, iface: true, what: "proxyDHCP"})
	}
	for _, l := range []struct{ addr, what, setting string }{{c.cfg.Listen, "pages and API", "--listen"}, {c.cfg.MetricsListen, "monitoring", "metricsListen in " + defaultConfigPath}} {
		host, port, err := net.SplitHostPort(l.addr)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(port); err == nil && n != 0 {
			w := wanted{proto: "tcp", port: n, what: l.what, setting: l.setting, local: true}
			if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
				w.addrs = []netip.Addr{a}
			}
			list = append(list, w)
		}
	}
	return list
}

// ports looks whether somebody has the ports that we need. It runs in the boot
// network; the operators' port is outside of it.
func (c *checker) ports() {
	inside, err := sockets()
	if err != nil {
		c.warn("ports", "not checked: "+err.Error(), "", "ss -lntup shows them")
		return
	}
	for _, w := range c.wanted() {
		if w.local && c.cfg.Netns != "" {
			continue // of another network than the one we are in
		}
		c.port(w, inside)
	}
}

func (c *checker) port(w wanted, all []socket) {
	check := fmt.Sprintf("port %d/%s", w.port, w.proto)
	for _, s := range all {
		if s.proto != w.proto || s.port != w.port || !c.collides(w, s) {
			continue
		}
		pid, name := c.owner(s.inode)
		switch {
		case pid != 0 && pid == c.running:
			c.ok(check, "%s: the dsas serve that runs (pid %d)", w.what, pid)
		case pid == 0 && os.Geteuid() != 0:
			c.warn(check, w.what+": taken, and only root may see by whom", "If it is not dsas serve, dsas cannot start.", "sudo dsas check")
		default:
			by := "somebody"
			if pid != 0 {
				by = fmt.Sprintf("%s (pid %d)", name, pid)
			}
			mend := "stop it"
			if pid != 0 {
				mend = fmt.Sprintf("stop it (systemctl status %d tells its unit)", pid)
			}
			if w.port == 67 {
				mend += ", or let it give the addresses: --no-dhcp"
			}
			if w.port == c.cfg.HTTPPort && w.proto == "tcp" && !w.local {
				mend += ", or give dsas another: httpPort in " + defaultConfigPath
			}
			if w.local {
				mend += ", or give dsas another: " + w.setting
			}
			c.fail(check, w.what+": taken by "+by, "dsas cannot listen there.", mend)
		}
		return
	}
	c.ok(check, "%s: free", w.what)
}

// collides tells whether the socket keeps us from opening ours.
func (c *checker) collides(w wanted, s socket) bool {
	if w.iface {
		return s.iface == "" && s.addr.IsUnspecified() || slices.Contains(c.cfg.Interfaces, s.iface)
	}
	return len(w.addrs) == 0 || s.addr.IsUnspecified() || slices.Contains(w.addrs, s.addr)
}

// socket is one that is bound.
type socket struct {
	proto string
	addr  netip.Addr
	port  int
	iface string // SO_BINDTODEVICE; "" none
	inode uint32
}

// tcpListen is TCP_LISTEN of the kernel's include/net/tcp_states.h.
const tcpListen = 10

// sockets lists UDP sockets and listening TCP ones of this network namespace,
// by the kernel's sock_diag(7).
func sockets() ([]socket, error) {
	var out []socket
	take := func(proto string, list []*netlink.Socket, err error) error {
		if err != nil {
			return fmt.Errorf("list %s sockets: %w", proto, err)
		}
		for _, s := range list {
			if proto == "tcp" && s.State != tcpListen {
				continue
			}
			addr, _ := netip.AddrFromSlice(s.ID.Source)
			x := socket{proto: proto, addr: addr.Unmap(), port: int(s.ID.SourcePort), inode: s.INode}
			if s.ID.Interface != 0 {
				x.iface = strconv.Itoa(int(s.ID.Interface))
				if ifi, err := net.InterfaceByIndex(int(s.ID.Interface)); err == nil {
					x.iface = ifi.Name
				}
			}
			out = append(out, x)
		}
		return nil
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		udp, err := netlink.SocketDiagUDP(family)
		if err := take("udp", udp, err); err != nil {
			return nil, err
		}
		tcp, err := netlink.SocketDiagTCP(family)
		if err := take("tcp", tcp, err); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// owner finds the process that has a socket open; 0: none that we may see.
func (c *checker) owner(inode uint32) (pid int, name string) {
	want := fmt.Sprintf("socket:[%d]", inode)
	procs, _ := filepath.Glob(filepath.Join(c.proc, "[0-9]*"))
	for _, p := range procs {
		fds, err := os.ReadDir(filepath.Join(p, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(p, "fd", fd.Name())); err == nil && to == want {
				comm, _ := os.ReadFile(filepath.Join(p, "comm"))
				pid, _ = strconv.Atoi(filepath.Base(p))
				return pid, strings.TrimSpace(string(comm))
			}
		}
	}
	return 0, ""
}

// otherServers asks the boot network who else gives addresses.
func (c *checker) otherServers(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	for _, name := range c.cfg.Interfaces {
		check := "other DHCP servers on " + name
		var ear *dhcp.Ear
		err := c.inNetwork(func() (err error) {
			ear, err = dhcp.OpenEar(name)
			return err
		})
		if err != nil {
			mu.Lock()
			c.notAsked(check, err)
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			defer ear.Close()
			found, err := ear.Probe(ctx)
			mu.Lock()
			defer mu.Unlock()
			c.judgeOthers(check, found, err)
		})
	}
}

func (c *checker) notAsked(check string, err error) {
	mend := "see what is said of the interface"
	if errors.Is(err, unix.EPERM) {
		mend = "sudo dsas check"
	}
	c.warn(check, "not asked: "+err.Error(), "Two servers that give addresses make a network in which nothing is certain.", mend)
}

func (c *checker) judgeOthers(check string, found []dhcp.Other, err error) {
	if err != nil {
		c.notAsked(check, err)
		return
	}
	var said []string
	for _, o := range found {
		said = append(said, fmt.Sprintf("%s (MAC %s)", o.Server, o.MAC))
	}
	who := strings.Join(said, ", ")
	switch {
	case len(found) == 0 && c.cfg.otherDHCP():
		c.fail(check, "none answers", "dsas is told to give no addresses, so nobody does. (One that knows all its clients by MAC is not found this way.)", "start the existing server, or leave --no-dhcp or --proxy-dhcp out")
	case len(found) == 0:
		c.ok(check, "none answers")
	case c.cfg.otherDHCP():
		c.ok(check, "%s gives the addresses", who)
	case c.cfg.AllowOtherDHCP:
		c.ok(check, "%s answers too, as allowed", who)
	default:
		c.fail(check, who+" answers", "Two servers would give the boxes of one segment different answers; dsas serve refuses to start.",
			"switch it off; or leave the addresses to it (--proxy-dhcp); or, if the two never answer the same box, --allow-other-dhcp")
	}
}
