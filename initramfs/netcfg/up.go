package netcfg

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Timeouts of Up; ctx may be shorter.
const (
	nicTimeout     = 20 * time.Second // for all NICs to appear; then with those that are there
	carrierTimeout = 60 * time.Second // spanning tree keeps a port shut for up to 30 s
	dhcpTimeout    = 60 * time.Second
)

// State is a network that is up.
type State struct {
	Plan    Plan   // as it was applied, with what DHCP gave
	Device  string // that carries the node's address: "bond0"
	Bond    string // the same, where it is a bond, else ""
	Lease   *Lease // nil: the address was on the command line
	Changes Changes
	// Warnings are what went wrong and did not matter enough to stop.
	Warnings []error
}

// Up brings up the network of the command line: it waits for the NICs, applies
// the plan, waits until a port is active and, without dsas.ip, asks DHCP. An
// error means that the network cannot be used.
func Up(ctx context.Context, p Params) (*State, error) {
	pl, err := FromCmdline(p)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	st := &State{}
	if err := within(ctx, nicTimeout, func(ctx context.Context) error { return WaitNICs(ctx, h, p.Ports) }); err != nil {
		st.Warnings = append(st.Warnings, err)
	}
	apply := func() error {
		changes, err := Apply(ctx, h, pl)
		st.Changes = append(st.Changes, changes...)
		return err
	}
	applyErr := apply()
	if st.Device, err = DeviceOf(h, pl); err != nil {
		return nil, errors.Join(applyErr, err)
	}
	pl.Device = st.Device
	if len(pl.Bonds) > 0 {
		st.Bond = st.Device
	}
	err = within(ctx, carrierTimeout, func(ctx context.Context) error { return WaitUp(ctx, h, st.Device) })
	if err != nil {
		return nil, errors.Join(applyErr, err)
	}
	if applyErr != nil { // it can send, so go on; what failed is told
		st.Warnings = append(st.Warnings, applyErr)
	}
	if !p.IP.IsValid() {
		var lease Lease
		err := within(ctx, dhcpTimeout, func(ctx context.Context) error {
			lease, err = AskDHCP(ctx, st.Device)
			return err
		})
		if err != nil {
			return nil, err
		}
		st.Lease = &lease
		pl.Addresses = []Address{{Prefix: lease.Address}}
		if lease.Gateway.IsValid() && !p.Gateway.IsValid() {
			pl.Gateways = []netip.Addr{lease.Gateway}
		}
		if err := apply(); err != nil {
			st.Warnings = append(st.Warnings, err)
		}
	}
	st.Plan = pl
	return st, nil
}

// Restate applies a plan of dsas.conf over the network of st.
func Restate(ctx context.Context, pl Plan) (Changes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return Apply(ctx, h, pl)
}

func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}

// ResolvConf writes resolv.conf(5).
func ResolvConf(servers []netip.Addr, search []string) string {
	var b strings.Builder
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for i, s := range servers {
		if i == 3 { // MAXNS: the resolver reads no more
			break
		}
		b.WriteString("nameserver " + s.String() + "\n")
	}
	return b.String()
}
