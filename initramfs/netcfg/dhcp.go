package netcfg

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"dsas"
)

// Lease is what DHCP gave a node that has no address on its command line.
type Lease struct {
	Address netip.Prefix
	Gateway netip.Addr   // option 3; may be invalid
	DNS     []netip.Addr // option 6
	Server  netip.Addr   // option 54
	Time    time.Duration
}

// AskDHCP gets a lease over device, which must be up. It asks until ctx ends.
func AskDHCP(ctx context.Context, device string) (Lease, error) {
	// Each try of the library is short, since a bond's first frames may go
	// into a switch port that does not forward yet.
	c, err := nclient4.New(device, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return Lease{}, fmt.Errorf("ask DHCP over %s: %w", device, err)
	}
	defer c.Close()
	var last error
	for {
		got, err := c.Request(ctx, dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer))
		if err == nil {
			return leaseOf(got.ACK)
		}
		if ctx.Err() == nil {
			last = err
			if err := pause(ctx, 500*time.Millisecond); err == nil {
				continue
			}
		}
		if last == nil {
			last = err
		}
		return Lease{}, fmt.Errorf("ask DHCP over %s: %w", device, last)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leaseOf reads a DHCPACK (RFC 2131, options of RFC 2132).
func leaseOf(ack *dhcpv4.DHCPv4) (Lease, error) {
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || ip.IsUnspecified() {
		return Lease{}, fmt.Errorf("DHCP lease: yiaddr %v is no address: %w", ack.YourIPAddr, dsas.ErrInvalid)
	}
	bits, size := ack.SubnetMask().Size()
	if size != 32 {
		bits = 24 // no or a broken option 1; most boot networks are this size
	}
	l := Lease{Address: netip.PrefixFrom(ip, bits), Time: ack.IPAddressLeaseTime(0)}
	for _, r := range ack.Router() {
		if a, ok := netip.AddrFromSlice(r.To4()); ok {
			l.Gateway = a
			break
		}
	}
	for _, d := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(d.To4()); ok {
			l.DNS = append(l.DNS, a)
		}
	}
	if a, ok := netip.AddrFromSlice(ack.ServerIdentifier().To4()); ok {
		l.Server = a
	}
	return l, nil
}
