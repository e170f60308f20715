package store

import (
	"context"
	"net/netip"
	"time"

	"dsas"
)

// LeaseFor is Bind, and waits for the disk.
func (s *Store) LeaseFor(ctx context.Context, subnet dsas.Subnet, mac dsas.MAC, clientID string, want netip.Addr, now time.Time) (dsas.Lease, error) {
	l, onDisk, err := s.Bind(ctx, subnet, mac, clientID, want, now)
	if err != nil || onDisk == nil {
		return l, err
	}
	if err := onDisk(ctx); err != nil {
		return dsas.Lease{}, err
	}
	return l, nil
}
