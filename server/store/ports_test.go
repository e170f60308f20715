package store_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"dsas"
)

func TestPorts(t *testing.T) {
	ctx := context.Background()
	s := open(t).Store
	m := dsas.MAC{0x52, 0x54, 0, 0, 1, 1}
	p := dsas.Port{MAC: m, Relay: netip.MustParseAddr("10.5.0.254"), CircuitID: "ge5", RemoteID: "sw1", Interface: "eth1", Seen: time.Unix(1_800_000_000, 0).UTC()}
	for _, circuit := range []string{"ge4", "ge5"} {
		p.CircuitID = circuit
		if err := s.RecordPort(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Ports(ctx)
	if err != nil || len(got) != 1 || got[m] != p {
		t.Errorf("Ports = %+v, %v; want the newer one, %+v", got, err, p)
	}
}

// TestClientIDs: one node each, found while the node has it.
func TestClientIDs(t *testing.T) {
	ctx := context.Background()
	s := open(t).Store
	node := func(name string, last byte) dsas.Node {
		return dsas.Node{Name: name, NICs: []dsas.NIC{{MAC: dsas.MAC{0x52, 0x54, 0, 0, 1, last}}}, ClientID: "ff00aa"}
	}
	if _, err := s.CreateNode(ctx, node("w1", 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateNode(ctx, node("w2", 2)); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("CreateNode with a client id that is taken = %v; want ErrConflict", err)
	}
	if n, err := s.NodeByClientID(ctx, "ff00aa"); err != nil || n.Name != "w1" {
		t.Errorf("NodeByClientID = %s, %v; want w1", n.Name, err)
	}
	if _, err := s.UpdateNode(ctx, "w1", func(n *dsas.Node) error { n.ClientID = ""; return nil }); err != nil {
		t.Fatal(err)
	}
	if n, err := s.NodeByClientID(ctx, "ff00aa"); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("NodeByClientID after it was taken away = %s, %v; want ErrNotFound", n.Name, err)
	}
	if _, err := s.CreateNode(ctx, node("w2", 2)); err != nil {
		t.Errorf("CreateNode with a client id that is free again = %v", err)
	}
}

// TestLeaseFollowsClientID: another MAC with the same identifier of RFC 4361 has
// the same lease; one that holds a MAC itself has not.
func TestLeaseFollowsClientID(t *testing.T) {
	ctx := context.Background()
	s := open(t).Store
	a := netip.MustParseAddr
	sub := dsas.Subnet{
		Prefix: netip.MustParsePrefix("10.0.0.0/24"), Server: a("10.0.0.1"), Lease: time.Hour,
		Pool: dsas.Range{First: a("10.0.0.10"), Last: a("10.0.0.19")}, Exclude: []dsas.Range{{First: a("10.0.0.10"), Last: a("10.0.0.14")}},
	}
	now := time.Now()
	first, err := s.LeaseFor(ctx, sub, dsas.MAC{2, 0, 0, 0, 0, 1}, "ff0001", netip.Addr{}, now)
	if err != nil || first.Address != a("10.0.0.15") {
		t.Fatalf("LeaseFor = %+v, %v; want 10.0.0.15, the first that is not excluded", first, err)
	}
	if l, err := s.LeaseFor(ctx, sub, dsas.MAC{2, 0, 0, 0, 0, 2}, "ff0001", netip.Addr{}, now); err != nil || l.Address != first.Address {
		t.Errorf("LeaseFor another MAC, same id = %+v, %v; want %s", l, err, first.Address)
	}
	for i, id := range []string{"01020000000001", "01020000000001"} {
		l, err := s.LeaseFor(ctx, sub, dsas.MAC{2, 0, 0, 0, 1, byte(i)}, id, netip.Addr{}, now)
		if want := []string{"10.0.0.16", "10.0.0.17"}[i]; err != nil || l.Address != a(want) {
			t.Errorf("LeaseFor MAC %d with id %s = %+v, %v; want %s", i, id, l, err, want)
		}
	}
}
