package netcfg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dsas"
)

// recheck is how often links are looked at although the kernel told nothing:
// its messages are lost when a socket's buffer is full.
const recheck = 2 * time.Second

// linkEvents sends on the channel after each change of a link, and now and
// then without one, until ctx ends. It carries no data: who is woken looks.
func linkEvents(ctx context.Context) (<-chan struct{}, error) {
	wake := make(chan struct{}, 1)
	updates, err := subscribe(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		tick := time.NewTicker(recheck)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-updates:
				if !ok {
					// The subscription ends when a message was lost.
					if updates, err = subscribe(ctx); err != nil {
						updates = nil
					}
				}
			case <-tick.C:
				if updates == nil {
					updates, _ = subscribe(ctx)
				}
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return wake, nil
}

// subscribe gives the kernel's link messages until ctx ends.
func subscribe(ctx context.Context) (<-chan netlink.LinkUpdate, error) {
	ch := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	if err := netlink.LinkSubscribe(ch, done); err != nil {
		return nil, fmt.Errorf("subscribe to link changes: %w", err)
	}
	out := make(chan netlink.LinkUpdate)
	go func() {
		defer close(out)
		defer func() {
			close(done)
			for range ch { // the library's sender must not hang on us
			}
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case u, ok := <-ch:
				if !ok {
					return
				}
				select {
				case out <- u:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// waitFor looks until ready says yes; on ctx's end the error is the last
// reason that ready gave, wrapped with ctx's.
func waitFor(ctx context.Context, ready func() (bool, error)) error {
	sub, cancel := context.WithCancel(ctx)
	defer cancel()
	wake, err := linkEvents(sub)
	if err != nil {
		return err
	}
	for {
		ok, why := ready()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(why, ctx.Err())
		case <-wake:
		}
	}
}

// WaitNICs waits until all the MACs are there as NICs (drivers find them some
// time after they were loaded); with no MACs, until there is any NIC. Its
// error names those that are missing when ctx ends.
func WaitNICs(ctx context.Context, h *netlink.Handle, macs []dsas.MAC) error {
	return waitFor(ctx, func() (bool, error) {
		all, err := listLinks(h)
		if err != nil {
			return false, err
		}
		if len(macs) == 0 {
			hw, err := listNICs(h)
			if err != nil {
				return false, err
			}
			return len(hw) > 0, fmt.Errorf("wait for NICs: there is none with a driver: %w", dsas.ErrNotFound)
		}
		var missing []dsas.MAC
		for _, m := range macs {
			if !slices.ContainsFunc(all, func(n nic) bool { return n.mac == m }) {
				missing = append(missing, m)
			}
		}
		return len(missing) == 0, fmt.Errorf("wait for NICs: none with MAC %v: %w", missing, dsas.ErrNotFound)
	})
}

// WaitUp waits until the device can send: it has a carrier and, where it is a
// bond whose mode uses one port at a time, an active port.
func WaitUp(ctx context.Context, h *netlink.Handle, device string) error {
	return waitFor(ctx, func() (bool, error) {
		l, err := h.LinkByName(device)
		if err != nil {
			return false, fmt.Errorf("wait for %s: %w", device, err)
		}
		if l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			return false, fmt.Errorf("wait for %s: no carrier; is a cable in, is the switch port on?", device)
		}
		if b, ok := l.(*netlink.Bond); ok && oneActive(b.Mode) && b.ActiveSlave <= 0 {
			return false, fmt.Errorf("wait for %s: no port is active; does the monitor see the links?", device)
		}
		return true, nil
	})
}

// oneActive tells whether a mode has one active port.
func oneActive(m netlink.BondMode) bool {
	return m == netlink.BOND_MODE_ACTIVE_BACKUP || m == netlink.BOND_MODE_BALANCE_TLB || m == netlink.BOND_MODE_BALANCE_ALB
}

// ActiveChange is a change of a bond's active port; "" is none.
type ActiveChange struct {
	Time     time.Time
	Bond     string
	Old, New string
}

// Watch reports each change of the bond's active port until ctx ends; then the
// channel is closed. The first report is the first change after the call.
// Changes that follow each other faster than the reader reads become one.
func Watch(ctx context.Context, bond string) (<-chan ActiveChange, error) {
	last, err := activePort(bond)
	if err != nil {
		return nil, err
	}
	wake, err := linkEvents(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan ActiveChange)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
			}
			now, err := activePort(bond)
			if err != nil || now == last {
				continue
			}
			select {
			case out <- ActiveChange{Time: time.Now(), Bond: bond, Old: last, New: now}:
				last = now
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// activePort gives the name of a bond's active port, "" where none is.
func activePort(bond string) (string, error) {
	l, err := netlink.LinkByName(bond)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", bond, err)
	}
	b, ok := l.(*netlink.Bond)
	if !ok {
		return "", fmt.Errorf("watch %s: it is a %s, not a bond: %w", bond, l.Type(), dsas.ErrInvalid)
	}
	if b.ActiveSlave <= 0 {
		return "", nil
	}
	p, err := netlink.LinkByIndex(b.ActiveSlave)
	if err != nil {
		return "", fmt.Errorf("find the active port of %s: %w", bond, err)
	}
	return p.Attrs().Name, nil
}
