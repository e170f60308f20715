package dhcp

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
)

// Stats is what the server counted since it started.
type Stats struct {
	Received map[string]uint64 // requests by message type: "discover", "request", ...
	Answered map[string]uint64 // answers by message type: "offer", "ack", "nak"
	Dropped  map[string]uint64 // packets that got no answer for a reason, by reason (Drop*)
	Pools    []PoolUse         // of the subnets that have a pool
}

// PoolUse is how full a subnet's pool is.
type PoolUse struct {
	Subnet   netip.Prefix
	Size     int // addresses that may be given out
	Leased   int // held by a lease that has not run out
	Declined int // in use by a box that is not ours
}

// The reasons for which a packet gets no answer.
const (
	DropMalformed  = "malformed"   // not a DHCP request that can be read
	DropQueue      = "queue"       // more packets than could be worked on
	DropNoSubnet   = "no-subnet"   // from a relay of no subnet of ours
	DropNoAddress  = "no-address"  // the pool is used up, or there is none
	DropLimit      = "limit"       // a port or interface wants too many pool addresses
	DropScarce     = "scarce"      // the pool is half full, and it is to ask a second time
	DropOther      = "other"       // for another server, or of a type nobody asks a server
	DropError      = "error"       // the state or the network failed
	DropSuperseded = "in-progress" // the same client's question before it is still being worked on
)

var (
	receivedTypes = []string{"discover", "request", "decline", "release", "inform", "other"}
	answeredTypes = []string{"offer", "ack", "nak"}
	dropReasons   = []string{DropMalformed, DropQueue, DropNoSubnet, DropNoAddress, DropLimit, DropScarce, DropOther, DropError, DropSuperseded}
)

// counters are the figures behind Stats. The maps are filled once and only
// read after that; what they point at is counted atomically.
type counters struct {
	received, answered, dropped map[string]*atomic.Uint64
}

func newCounters() *counters {
	fresh := func(keys []string) map[string]*atomic.Uint64 {
		m := make(map[string]*atomic.Uint64, len(keys))
		for _, k := range keys {
			m[k] = new(atomic.Uint64)
		}
		return m
	}
	return &counters{fresh(receivedTypes), fresh(answeredTypes), fresh(dropReasons)}
}

func (c *counters) drop(why string) { c.dropped[why].Add(1) }

// receivedType gives a request's label.
func receivedType(req *dhcpv4.DHCPv4) string {
	switch t := typeName(typeOf(req)); t {
	case "offer", "ack", "nak":
		return "other"
	default:
		return t
	}
}

// typeName gives a message type's label.
func typeName(t dhcpv4.MessageType) string {
	switch t {
	case dhcpv4.MessageTypeDiscover:
		return "discover"
	case dhcpv4.MessageTypeRequest:
		return "request"
	case dhcpv4.MessageTypeDecline:
		return "decline"
	case dhcpv4.MessageTypeRelease:
		return "release"
	case dhcpv4.MessageTypeInform:
		return "inform"
	case dhcpv4.MessageTypeOffer:
		return "offer"
	case dhcpv4.MessageTypeAck:
		return "ack"
	case dhcpv4.MessageTypeNak:
		return "nak"
	}
	return "other"
}

// lister is a Store that can tell its leases; without it Stats has no Pools.
type lister interface {
	Leases(ctx context.Context) ([]dsas.Lease, error)
}

// Stats gives the figures now.
func (s *Server) Stats() Stats {
	read := func(m map[string]*atomic.Uint64) map[string]uint64 {
		out := make(map[string]uint64, len(m))
		for k, v := range m {
			out[k] = v.Load()
		}
		return out
	}
	st := Stats{Received: read(s.count.received), Answered: read(s.count.answered), Dropped: read(s.count.dropped)}
	l, ok := s.Store.(lister)
	if !ok {
		return st
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	leases, err := l.Leases(ctx)
	if err != nil {
		return st // the counters are worth having all the same
	}
	now := s.Now()
	for i := range s.Subnets {
		sub := &s.Subnets[i]
		if !sub.Pool.First.IsValid() {
			continue
		}
		use := PoolUse{Subnet: sub.Prefix, Size: s.poolSize[i]}
		for _, l := range leases {
			switch {
			case !sub.MayLease(l.Address) || !l.Expires.After(now):
			case l.Declined:
				use.Declined++
			default:
				use.Leased++
			}
		}
		st.Pools = append(st.Pools, use)
	}
	return st
}
