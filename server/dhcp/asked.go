package dhcp

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// askers are those who wait to hear whether an address is in use, and by whom.
type askers[T any] struct {
	mu sync.Mutex
	by map[netip.Addr][]chan T
}

// tell passes on that addr is in use.
func (a *askers[T]) tell(addr netip.Addr, who T) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ch := range a.by[addr] {
		select {
		case ch <- who:
		default:
		}
	}
}

// ask sends a question for addr, and again after a while, and gives the first
// answer that counts; false where none comes, ctx ends, or there is no wire to
// send on.
func (a *askers[T]) ask(ctx context.Context, addr netip.Addr, send func() error, counts func(T) bool) (who T, used bool) {
	ch := make(chan T, 4)
	a.mu.Lock()
	if a.by == nil {
		a.by = map[netip.Addr][]chan T{}
	}
	a.by[addr] = append(a.by[addr], ch)
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if i := slices.Index(a.by[addr], ch); i >= 0 {
			a.by[addr] = slices.Delete(a.by[addr], i, i+1)
		}
		if len(a.by[addr]) == 0 {
			delete(a.by, addr)
		}
	}()
	for range probeTimes {
		if err := send(); err != nil {
			return who, false
		}
		wait := time.NewTimer(probeEvery)
		for waiting := true; waiting; {
			select {
			case got := <-ch:
				if counts(got) {
					wait.Stop()
					return got, true
				}
			case <-ctx.Done():
				wait.Stop()
				return who, false
			case <-wait.C:
				waiting = false
			}
		}
	}
	return who, false
}
