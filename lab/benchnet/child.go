package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"dsas"
	"dsas/lab/load"
	"dsas/server/dhcp"
)

// runChild makes this process one of the servers that are measured. profile is
// the folder for its processor profile, or "".
func runChild(ctx context.Context, name, profile string, args []string) error {
	switch {
	case name == "dhcp" && len(args) == 1:
		return memoryDHCPServer(ctx, args[0])
	case name == "dhcp-floor" && len(args) == 0:
		return floorChild(ctx)
	case name == "tftp" && len(args) == 1:
		return tftpChild(ctx, args[0], profile)
	case name == "http" && len(args) == 1:
		return httpChild(ctx, args[0], profile)
	case name == "tftp-pin" && len(args) == 1:
		return pinChild(ctx, args[0])
	}
	return fmt.Errorf("no child %q: %w", name, dsas.ErrInvalid)
}

// memoryDHCPServer answers from maps, and forgets all with the process.
func memoryDHCPServer(ctx context.Context, nodes string) error {
	n, err := strconv.Atoi(nodes)
	if err != nil {
		return err
	}
	c, err := dhcp.Listen(linkName)
	if err != nil {
		return err
	}
	m := &memoryStore{nodes: make(map[dsas.MAC]*dsas.Node, n), leases: map[dsas.MAC]netip.Addr{}, next: netip.MustParseAddr(poolFirst), boots: benchRelease()}
	for i := range n {
		mac := load.MAC(i)
		m.nodes[mac] = &dsas.Node{Name: "n" + strconv.Itoa(i), NICs: []dsas.NIC{{MAC: mac}}, Address: netip.PrefixFrom(nodeAddr(i), 16), Role: "web"}
	}
	s, err := dhcp.New(dhcp.Config{Store: m, Releases: m, NoProbe: true, Listeners: []net.PacketConn{c}, Subnets: []dsas.Subnet{{
		Prefix: netip.MustParsePrefix(subnetPrefix), Server: netip.MustParseAddr(serverAddr), Lease: time.Hour,
		Pool: dsas.Range{First: netip.MustParseAddr(poolFirst), Last: netip.MustParseAddr(poolLast)},
	}}})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// memoryStore is a dhcp.Store without a disk, and dhcp.Releases of one release.
type memoryStore struct {
	nodes  map[dsas.MAC]*dsas.Node
	mu     sync.Mutex
	leases map[dsas.MAC]netip.Addr
	next   netip.Addr
	boots  dsas.Release
}

func (m *memoryStore) Nodes(context.Context) (list []dsas.Node, err error) {
	for _, n := range m.nodes {
		list = append(list, *n)
	}
	return list, nil
}

func (m *memoryStore) SharedNode(mac dsas.MAC) *dsas.Node { return m.nodes[mac] }

func (m *memoryStore) Bind(ctx context.Context, sub dsas.Subnet, mac dsas.MAC, id string, want netip.Addr, now time.Time) (dsas.Lease, func(context.Context) error, error) {
	l, err := m.Offer(ctx, sub, mac, id, want, now)
	return l, nil, err
}

func (m *memoryStore) Offer(_ context.Context, sub dsas.Subnet, mac dsas.MAC, _ string, _ netip.Addr, now time.Time) (dsas.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.leases[mac]
	if !ok {
		if m.next = m.next.Next(); !sub.Pool.Contains(m.next) {
			return dsas.Lease{}, dsas.ErrNotFound
		}
		a = m.next
		m.leases[mac] = a
	}
	return dsas.Lease{Address: a, MAC: mac, Expires: now.Add(sub.Lease), Held: ok, Proven: true}, nil
}

func (m *memoryStore) MayHave(_ context.Context, sub dsas.Subnet, mac dsas.MAC, _ string, a netip.Addr, _ time.Time) (may, has bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own, has := m.leases[mac]
	return own == a || !has && sub.MayLease(a), own == a, nil
}

func (m *memoryStore) InUse(context.Context, dsas.Subnet, time.Time) (int, error) { return 0, nil }

func (m *memoryStore) Standing(context.Context, dsas.Subnet, dsas.MAC, time.Time) (dsas.Standing, error) {
	return dsas.Standing{Leased: true, Proven: true}, nil
}

func (m *memoryStore) Prove(context.Context, dsas.MAC, netip.Addr) {}

func (m *memoryStore) Unproven(context.Context, dsas.Subnet, time.Time, time.Time) (dsas.Lease, error) {
	return dsas.Lease{}, dsas.ErrNotFound
}

func (m *memoryStore) TakeBack(context.Context, dsas.Lease, dsas.MAC, string, time.Time) error {
	return dsas.ErrNotFound
}

func (m *memoryStore) Release(context.Context, dsas.MAC, netip.Addr) error { return nil }

func (m *memoryStore) Decline(context.Context, netip.Addr, time.Time) error { return nil }

func (m *memoryStore) RecordUnknown(context.Context, dsas.Unknown) (bool, error) { return false, nil }

func (m *memoryStore) RecordPort(context.Context, dsas.Port) error { return nil }

func (m *memoryStore) NodeByClientID(context.Context, string) (dsas.Node, error) {
	return dsas.Node{}, dsas.ErrNotFound
}

func (m *memoryStore) Event(context.Context, dsas.Event) error { return nil }

func (m *memoryStore) Assigned(*dsas.Node, string) (*dsas.Release, error) { return &m.boots, nil }

// benchRelease is one that the decision takes for whole.
func benchRelease() dsas.Release {
	part := func(title, digit string) dsas.Part {
		d := dsas.Digest("sha256:" + strings.Repeat(digit, 64))
		return dsas.Part{Digest: d, DiffID: d, Size: 1, Title: title}
	}
	return dsas.Release{
		ID: part("", "a").Digest, Role: "web", Number: 1, Manifest: dsas.Manifest{Role: "web", Parts: []dsas.Part{part("base", "b")}},
		Boot: dsas.BootSet{Release: "0-bench", Kernel: part("kernel", "c"), Initramfs: part("initramfs", "d")},
	}
}

// startProfile writes the processor profile of a child that serves as what into
// folder dir, until stop is called; "" for none.
func startProfile(dir, what string) (stop func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.pprof", what, os.Getpid())))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}
