package storm

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"dsas"
)

// Lease is a pool address that a stranger was promised in an ACK.
type Lease struct {
	MAC     dsas.MAC   `json:"mac"`
	Address netip.Addr `json:"address"`
	Expires time.Time  `json:"expires"`
}

// stranger is a box that belongs to no node: it wants an address of the pool,
// and asks again for as long as the storm lasts.
type stranger struct {
	*storm
	mac  dsas.MAC
	acks []Lease // one for each address it was ever promised, the newest promise
}

// StrangerMAC is the MAC of stranger i: locally administered, and told from
// nodes' by its fourth byte.
func StrangerMAC(i int) dsas.MAC {
	m := dsas.MAC{0x02, 0xd5, 0xa5, 0xff}
	binary.BigEndian.PutUint16(m[4:], uint16(i+1))
	return m
}

// NodeMAC is the MAC that the simulated node i has, from 0.
func NodeMAC(i int) dsas.MAC {
	m := dsas.MAC{0x02, 0xd5, 0xa5, 0x00}
	binary.BigEndian.PutUint16(m[4:], uint16(i+1))
	return m
}

func newStranger(s *storm, i int) *stranger { return &stranger{storm: s, mac: StrangerMAC(i)} }

func (x *stranger) live(limit, running context.Context, after time.Duration, up func()) {
	sleep(limit, after)
	first := true
	for running.Err() == nil {
		ctx := running
		if first {
			ctx = limit
		}
		start := time.Now()
		ack, err := x.wire.dhcp(ctx, x.mac, asSystem, func(d time.Duration) { x.figures.retry("lease", d) })
		if err == nil {
			x.figures.add("lease", time.Since(start))
			addr, lease := given(ack)
			x.promised(Lease{MAC: x.mac, Address: addr, Expires: time.Now().Add(lease)})
		}
		if first {
			first = false
			up()
		}
		sleep(running, time.Second+spread(time.Second))
	}
}

func (x *stranger) promised(l Lease) {
	for i := range x.acks {
		if x.acks[i].Address == l.Address {
			x.acks[i] = l
			return
		}
	}
	x.acks = append(x.acks, l)
}
