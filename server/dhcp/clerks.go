package dhcp

import (
	"sync"
	"sync/atomic"

	"dsas"
)

const (
	// workers is how many clerks a desk has. One waits while its client's lease
	// gets to disk, and all that wait get there together: so there are many
	// (docs/adr/0015).
	workers = 128
	queue   = 16 // things to do that wait for one of them
)

// clerks do what has to wait, a box's things one after the other: always the
// same clerk does them.
type clerks struct {
	desks [workers]struct {
		lanes
		busy atomic.Int32 // things that are not done yet
	}
	end chan struct{}
	wg  sync.WaitGroup
}

// lanes are one clerk's queues: what is for known nodes does not wait behind a
// flood of others.
type lanes struct{ known, others chan func() }

func newClerks() *clerks {
	c := &clerks{end: make(chan struct{})}
	for i := range c.desks {
		d := &c.desks[i]
		d.lanes = lanes{make(chan func(), queue), make(chan func(), queue)}
		c.wg.Go(func() {
			for {
				do := d.next(c.end)
				if do == nil {
					return
				}
				do()
				d.busy.Add(-1)
			}
		})
	}
	return c
}

// next gives what is to be done next, nil when there is an end.
func (q *lanes) next(end <-chan struct{}) func() {
	select {
	case do := <-q.known:
		return do
	default:
	}
	select {
	case do := <-q.known:
		return do
	case do := <-q.others:
		return do
	case <-end:
		return nil
	}
}

// busy tells whether something that may be mac's is not done yet.
func (c *clerks) busy(mac dsas.MAC) bool { return c.desks[workerOf(mac)].busy.Load() > 0 }

// hand gives mac's clerk something to do; false: it has too much already.
func (c *clerks) hand(mac dsas.MAC, known bool, do func()) bool {
	d := &c.desks[workerOf(mac)]
	lane := d.others
	if known {
		lane = d.known
	}
	d.busy.Add(1)
	select {
	case lane <- do:
		return true
	default:
		d.busy.Add(-1)
		return false
	}
}

// close ends them after what they are at; what waits is left undone.
func (c *clerks) close() {
	close(c.end)
	c.wg.Wait()
}

// workerOf deals MACs (chaddr) to workers. All bytes count: the boxes of a rack
// are often numbered in steps of 4 or 16.
func workerOf(m dsas.MAC) int {
	h := uint32(2166136261) // FNV-1a
	for _, b := range m {
		h = (h ^ uint32(b)) * 16777619
	}
	return int((h>>16 ^ h) % workers)
}
