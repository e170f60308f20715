package lab

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"dsas/server/netns"
)

// The server's address is answered for by the core alone. A switch that is an
// interface beside it would answer too, even while it forwards nothing.
func TestARPComesFromCore(t *testing.T) {
	l := testLab(t)
	var core net.HardwareAddr
	if err := netns.Do(l.Namespace(), func() error {
		link, err := netlink.LinkByName(l.Core())
		if err == nil {
			core = link.Attrs().HardwareAddr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var c *packet.Conn
	var ours net.HardwareAddr
	if err := netns.Do(rackName(l.Namespace()), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "probe-sw"}); err != nil {
			return err
		}
		sw, err := netlink.LinkByName(switchName(0))
		if err != nil {
			return err
		}
		if err := plug("probe-sw", sw); err != nil {
			return err
		}
		probe, err := netlink.LinkByName("probe")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(probe); err != nil {
			return err
		}
		ours = probe.Attrs().HardwareAddr
		ifi, err := net.InterfaceByName("probe")
		if err != nil {
			return err
		}
		c, err = packet.Listen(ifi, packet.Raw, 0x0806, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	// RFC 826: who has the server's address, tell 10.77.0.250.
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	server := l.Address().Addr().AsSlice()
	ask := bytes.Join([][]byte{broadcast, ours, {8, 6}, {0, 1, 8, 0, 6, 4, 0, 1}, ours, {10, 77, 0, 250}, make([]byte, 6), server}, nil)
	answerer := func() net.HardwareAddr {
		buf := make([]byte, 128)
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
			if _, err := c.WriteTo(ask, &packet.Addr{HardwareAddr: broadcast}); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(time.Second))
			n, _, err := c.ReadFrom(buf)
			if err == nil && n >= 42 && binary.BigEndian.Uint16(buf[20:]) == 2 {
				return net.HardwareAddr(bytes.Clone(buf[22:28]))
			}
		}
		t.Fatal("nobody answers ARP for the server's address")
		return nil
	}
	for range 3 {
		if got := answerer(); !bytes.Equal(got, core) {
			t.Errorf("%s answers for the server's address; want the core, %s", got, core)
		}
	}
}
