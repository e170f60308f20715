package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"dsas"
)

func TestCreateNode(t *testing.T) {
	f := open(t)
	n := node("w1", "10.77.0.1/24", 1, 2)
	n.Role, n.Loader, n.Conf = "web", dsas.LoaderIPXE, "X=1\n"
	n.Interfaces = []dsas.Interface{{Device: "bond0.2", Address: netip.MustParsePrefix("198.51.100.1/24")}}
	n.Disks = map[string]string{"DBDEVICE": "/dev/vda"}
	got := must(f.CreateNode(f.ctx, n))(t)
	n.Created = t0
	if !reflect.DeepEqual(got, n) {
		t.Errorf("CreateNode = %+v; want %+v", got, n)
	}
	if got := must(f.Node(f.ctx, "w1"))(t); !reflect.DeepEqual(got, n) {
		t.Errorf("Node = %+v; want %+v", got, n)
	}
	for _, m := range []int{1, 2} {
		if got := must(f.NodeByMAC(f.ctx, mac(m)))(t); got.Name != "w1" {
			t.Errorf("NodeByMAC(%s) = %s; want w1", mac(m), got.Name)
		}
	}
	_, err := f.NodeByMAC(f.ctx, mac(3))
	wantErr(t, "NodeByMAC(unknown)", err, dsas.ErrNotFound, mac(3).String())
	_, err = f.Node(f.ctx, "w2")
	wantErr(t, "Node(unknown)", err, dsas.ErrNotFound, "w2")
	if got := must(f.Status(f.ctx, "w1"))(t); got != (dsas.NodeStatus{Phase: dsas.PhaseNew}) {
		t.Errorf("Status = %+v; want phase new and nothing else", got)
	}
}

func TestNodesAreSortedAsPeopleCount(t *testing.T) {
	f := open(t)
	want := []string{"db1", "w1", "w01", "w2", "w9", "w10", "w10a", "w10a2", "w100", "web"}
	for i := range want {
		must(f.CreateNode(f.ctx, node(want[(i*7+3)%len(want)], "", i+1)))(t)
	}
	// w1 and w01 have the same value; bytes decide, "0" before "1".
	want[1], want[2] = "w01", "w1"
	var got []string
	for _, n := range must(f.Nodes(f.ctx))(t) {
		got = append(got, n.Name)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Nodes = %v; want %v", got, want)
	}
}

func TestNodeConflicts(t *testing.T) {
	f := open(t)
	a := node("w1", "10.77.0.1/24", 1, 2)
	a.Interfaces = []dsas.Interface{{Device: "bond0.2", Address: netip.MustParsePrefix("198.51.100.1/24")}}
	must(f.CreateNode(f.ctx, a))(t)
	must(f.CreateNode(f.ctx, node("w2", "10.77.0.2/24", 3)))(t)
	must(f.CreateSite(f.ctx, dsas.Site{Name: "shop", Address: netip.MustParseAddr("10.77.0.200")}))(t)

	iface := node("w3", "10.77.0.3/24", 4)
	iface.Interfaces = []dsas.Interface{{Device: "eth1", Address: netip.MustParsePrefix("10.77.0.2/24")}}
	twice := node("w3", "10.77.0.3/24", 4)
	twice.Interfaces = []dsas.Interface{{Device: "eth1", Address: netip.MustParsePrefix("10.77.0.3/24")}}
	for _, c := range []struct {
		what  string
		node  dsas.Node
		kind  error
		words []string
	}{
		{"name", node("w1", "", 9), dsas.ErrConflict, []string{"w1"}},
		{"MAC", node("w3", "", 9, 2), dsas.ErrConflict, []string{"w1", mac(2).String()}},
		{"address", node("w3", "10.77.0.1/16", 4), dsas.ErrConflict, []string{"w1", "10.77.0.1"}},
		{"address of an interface", node("w3", "198.51.100.1/24", 4), dsas.ErrConflict, []string{"w1", "198.51.100.1"}},
		{"interface with a node's address", iface, dsas.ErrConflict, []string{"w2", "10.77.0.2"}},
		{"site's address", node("w3", "10.77.0.200/24", 4), dsas.ErrConflict, []string{"shop", "10.77.0.200"}},
		{"own address twice", twice, dsas.ErrInvalid, []string{"10.77.0.3"}},
		{"no MAC", node("w3", ""), dsas.ErrInvalid, []string{"w3"}},
		{"bad name", node("W 3", "", 4), dsas.ErrInvalid, []string{"W 3"}},
	} {
		_, err := f.CreateNode(f.ctx, c.node)
		wantErr(t, "CreateNode("+c.what+")", err, c.kind, c.words...)
		if c.what == "name" {
			continue
		}
		_, err = f.UpdateNode(f.ctx, "w2", func(n *dsas.Node) error {
			*n = c.node
			if c.what == "interface with a node's address" {
				n.Interfaces[0].Address = netip.MustParsePrefix("10.77.0.1/24")
			}
			return nil
		})
		wantErr(t, "UpdateNode("+c.what+")", err, c.kind)
	}
	if got := must(f.Nodes(f.ctx))(t); len(got) != 2 {
		t.Errorf("Nodes = %d; want 2", len(got))
	}
	if got := must(f.Node(f.ctx, "w2"))(t); got.NICs[0].MAC != mac(3) {
		t.Errorf("w2 has MAC %s; want %s", got.NICs[0].MAC, mac(3))
	}
}

func TestUpdateNode(t *testing.T) {
	f := open(t)
	n := node("w1", "10.77.0.1/24", 1)
	n.BMC = &dsas.BMC{Kind: "ipmi", Address: "192.0.2.1", Password: "geheim"}
	must(f.CreateNode(f.ctx, n))(t)
	must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Kind: dsas.KindScript}))(t)
	noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: "b1", Node: "w1", MAC: mac(1), Role: "web", TokenHash: []byte("h"), Session: []byte("s")}))
	hostKey := must(f.HostKey(f.ctx, "w1", func() ([]byte, error) { return []byte("key"), nil }))(t)

	got := must(f.UpdateNode(f.ctx, "w1", func(n *dsas.Node) error {
		if n.BMC.Password != "" {
			t.Errorf("UpdateNode hands out password %q; want none", n.BMC.Password)
		}
		n.Name, n.Role = "db1", "db"
		n.NICs = []dsas.NIC{{MAC: mac(5)}}
		n.Address = netip.MustParsePrefix("10.77.0.5/24")
		n.BMC.User = "root"
		n.Created = n.Created.AddDate(1, 0, 0)
		return nil
	}))(t)
	if got.Name != "db1" || got.Role != "db" || !got.Created.Equal(t0) || got.BMC.User != "root" || got.BMC.Password != "" {
		t.Errorf("UpdateNode = %+v; want db1, role db, created %s, BMC user root", got, t0)
	}
	_, err := f.Node(f.ctx, "w1")
	wantErr(t, "Node(old name)", err, dsas.ErrNotFound)
	_, err = f.NodeByMAC(f.ctx, mac(1))
	wantErr(t, "NodeByMAC(old MAC)", err, dsas.ErrNotFound)
	if got := must(f.BMCPassword(f.ctx, "db1"))(t); got != "geheim" {
		t.Errorf("BMCPassword = %q; want %q", got, "geheim")
	}
	// Everything that was the node's goes with it.
	if got := must(f.Status(f.ctx, "db1"))(t); got.Phase != dsas.PhaseLoader || got.Boot != "b1" || got.LastEvent == nil || got.LastEvent.Node != "db1" {
		t.Errorf("Status = %+v; want loader, boot b1, an event of db1", got)
	}
	if got := must(f.Boot(f.ctx, "b1"))(t); got.Node != "db1" {
		t.Errorf("Boot.Node = %s; want db1", got.Node)
	}
	again := must(f.HostKey(f.ctx, "db1", func() ([]byte, error) { return []byte("other"), nil }))(t)
	if !bytes.Equal(again, hostKey) {
		t.Errorf("HostKey after renaming = %q; want %q", again, hostKey)
	}
	// The old address and MAC are free again.
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.1/24", 1)))(t)

	must(f.UpdateNode(f.ctx, "db1", func(n *dsas.Node) error { n.BMC.Password = "neu"; return nil }))(t)
	if got := must(f.BMCPassword(f.ctx, "db1"))(t); got != "neu" {
		t.Errorf("BMCPassword = %q; want %q", got, "neu")
	}
	must(f.UpdateNode(f.ctx, "db1", func(n *dsas.Node) error { n.BMC = nil; return nil }))(t)
	_, err = f.BMCPassword(f.ctx, "db1")
	wantErr(t, "BMCPassword(no BMC)", err, dsas.ErrNotFound, "db1")

	_, err = f.UpdateNode(f.ctx, "db1", func(n *dsas.Node) error { n.Name = "w1"; return nil })
	wantErr(t, "UpdateNode(name taken)", err, dsas.ErrConflict, "w1")
	_, err = f.UpdateNode(f.ctx, "nil", func(n *dsas.Node) error { return nil })
	wantErr(t, "UpdateNode(unknown)", err, dsas.ErrNotFound, "nil")
	stop := errors.New("stop")
	_, err = f.UpdateNode(f.ctx, "db1", func(n *dsas.Node) error { n.Role = "lb"; return stop })
	wantErr(t, "UpdateNode(change fails)", err, stop)
	if got := must(f.Node(f.ctx, "db1"))(t); got.Role != "db" {
		t.Errorf("role = %q; want db", got.Role)
	}
}

// A secret put in another node's place does not open.
func TestDeletedNodesSecretsAreGone(t *testing.T) {
	f := open(t)
	n := node("w1", "10.77.0.1/24", 1)
	n.BMC = &dsas.BMC{Kind: "ipmi", Address: "192.0.2.1", Password: "geheim"}
	must(f.CreateNode(f.ctx, n))(t)
	must(f.HostKey(f.ctx, "w1", func() ([]byte, error) { return []byte("old"), nil }))(t)
	noErr(t, f.CreateBoot(f.ctx, dsas.Boot{ID: "b1", Node: "w1", TokenHash: []byte("h"), Session: []byte("s")}))
	must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Kind: dsas.KindReady}))(t)
	noErr(t, f.DeleteNode(f.ctx, "w1"))
	wantErr(t, "DeleteNode(gone)", f.DeleteNode(f.ctx, "w1"), dsas.ErrNotFound, "w1")
	n.BMC.Password = ""
	must(f.CreateNode(f.ctx, n))(t)
	_, err := f.BMCPassword(f.ctx, "w1")
	wantErr(t, "BMCPassword(new node)", err, dsas.ErrNotFound)
	_, err = f.Boot(f.ctx, "b1")
	wantErr(t, "Boot(deleted node's)", err, dsas.ErrNotFound)
	if got := must(f.HostKey(f.ctx, "w1", func() ([]byte, error) { return []byte("new"), nil }))(t); string(got) != "new" {
		t.Errorf("HostKey(new node) = %q; want new", got)
	}
	if got := must(f.Status(f.ctx, "w1"))(t); got.Phase != dsas.PhaseNew {
		t.Errorf("phase of a new node = %s; want new", got.Phase)
	}
}

func TestHostKeyIsMadeOnce(t *testing.T) {
	f := open(t)
	must(f.CreateNode(f.ctx, node("w1", "", 1)))(t)
	_, err := f.HostKey(f.ctx, "w2", func() ([]byte, error) { return []byte("k"), nil })
	wantErr(t, "HostKey(no node)", err, dsas.ErrNotFound, "w2")
	broken := errors.New("no entropy")
	_, err = f.HostKey(f.ctx, "w1", func() ([]byte, error) { return nil, broken })
	wantErr(t, "HostKey(make fails)", err, broken)

	var made atomic.Int32
	keys := make([]string, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := f.HostKey(f.ctx, "w1", func() ([]byte, error) {
				return fmt.Appendf(nil, "key %d", made.Add(1)), nil
			})
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d keys; want 1", made.Load())
	}
	for _, k := range keys {
		if k != "key 1" {
			t.Errorf("HostKey = %q; want %q", k, "key 1")
		}
	}
}

// Of many who want the same MAC and address, one gets it.
func TestCreateNodeInParallel(t *testing.T) {
	f := open(t)
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := f.CreateNode(f.ctx, node(fmt.Sprintf("w%d", i), "10.77.0.1/24", 100+i))
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, dsas.ErrConflict):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 19 {
		t.Errorf("won %d, lost %d; want 1, 19", won.Load(), lost.Load())
	}
}

func TestSites(t *testing.T) {
	f := open(t)
	addr := netip.MustParseAddr("10.77.0.200")
	shop := must(f.CreateSite(f.ctx, dsas.Site{Name: "shop", Address: addr}))(t)
	if want := (dsas.Site{Name: "shop", Address: addr}).WithDefaults(); shop != want {
		t.Errorf("CreateSite = %+v; want %+v", shop, want)
	}
	if got := must(f.Site(f.ctx, "shop"))(t); got != shop {
		t.Errorf("Site = %+v; want %+v", got, shop)
	}
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.1/24", 1)))(t)
	_, err := f.CreateSite(f.ctx, dsas.Site{Name: "shop", Address: addr.Next()})
	wantErr(t, "CreateSite(name)", err, dsas.ErrConflict, "shop")
	_, err = f.CreateSite(f.ctx, dsas.Site{Name: "blog", Address: addr})
	wantErr(t, "CreateSite(address, port)", err, dsas.ErrConflict, "shop", "10.77.0.200", "80")
	_, err = f.CreateSite(f.ctx, dsas.Site{Name: "blog", Address: netip.MustParseAddr("10.77.0.1")})
	wantErr(t, "CreateSite(node's address)", err, dsas.ErrConflict, "w1")
	_, err = f.CreateSite(f.ctx, dsas.Site{Name: "blog"})
	wantErr(t, "CreateSite(no address)", err, dsas.ErrInvalid, "blog")
	// Another port on the same address is another service.
	must(f.CreateSite(f.ctx, dsas.Site{Name: "blog", Address: addr, Port: 8080}))(t)

	_, err = f.UpdateSite(f.ctx, "blog", func(s *dsas.Site) error { s.Port = 80; return nil })
	wantErr(t, "UpdateSite(port taken)", err, dsas.ErrConflict, "shop")
	_, err = f.UpdateSite(f.ctx, "blog", func(s *dsas.Site) error { s.Name = "shop"; return nil })
	wantErr(t, "UpdateSite(name taken)", err, dsas.ErrConflict, "shop")
	_, err = f.UpdateSite(f.ctx, "none", func(s *dsas.Site) error { return nil })
	wantErr(t, "UpdateSite(unknown)", err, dsas.ErrNotFound, "none")
	got := must(f.UpdateSite(f.ctx, "blog", func(s *dsas.Site) error { s.Name, s.Scheduler = "a10", "rr"; return nil }))(t)
	if got.Name != "a10" || got.Scheduler != "rr" || got.Port != 8080 {
		t.Errorf("UpdateSite = %+v; want a10, rr, 8080", got)
	}
	must(f.CreateSite(f.ctx, dsas.Site{Name: "a9", Address: addr, Port: 81}))(t)
	var names []string
	for _, s := range must(f.Sites(f.ctx))(t) {
		names = append(names, s.Name)
	}
	if want := []string{"a9", "a10", "shop"}; !reflect.DeepEqual(names, want) {
		t.Errorf("Sites = %v; want %v", names, want)
	}
	noErr(t, f.DeleteSite(f.ctx, "shop"))
	wantErr(t, "DeleteSite(gone)", f.DeleteSite(f.ctx, "shop"), dsas.ErrNotFound, "shop")
	_, err = f.Site(f.ctx, "shop")
	wantErr(t, "Site(gone)", err, dsas.ErrNotFound)
}

func TestUnknowns(t *testing.T) {
	f := open(t)
	u := dsas.Unknown{MAC: mac(1), Arch: "bios", VendorClass: "PXEClient\xff", GUID: "ab", Last: t0}
	for i, want := range []bool{true, false} {
		if got := must(f.RecordUnknown(f.ctx, u))(t); got != want {
			t.Errorf("RecordUnknown #%d = %v; want %v", i, got, want)
		}
		// The second time from iPXE, which says less, and with an address.
		u = dsas.Unknown{MAC: mac(1), Address: netip.MustParseAddr("10.77.0.50"), Last: t0.Add(1)}
	}
	must(f.RecordUnknown(f.ctx, dsas.Unknown{MAC: mac(2), Last: t0.Add(2)}))(t)
	got := must(f.Unknowns(f.ctx))(t)
	want := dsas.Unknown{MAC: mac(1), Arch: "bios", VendorClass: "PXEClient", GUID: "ab", Address: u.Address, First: t0, Last: t0.Add(1), Count: 2}
	if len(got) != 2 || got[0].MAC != mac(2) || got[1] != want {
		t.Errorf("Unknowns = %+v; want %s, then %+v", got, mac(2), want)
	}
	must(f.CreateNode(f.ctx, node("w1", "", 2)))(t)
	if got := must(f.RecordUnknown(f.ctx, dsas.Unknown{MAC: mac(2)}))(t); got {
		t.Error("RecordUnknown(a node's MAC) = true; want false")
	}
	if got := must(f.Unknowns(f.ctx))(t); len(got) != 1 || got[0].MAC != mac(1) {
		t.Errorf("Unknowns = %+v; want %s alone", got, mac(1))
	}
	noErr(t, f.DeleteUnknown(f.ctx, mac(1)))
	wantErr(t, "DeleteUnknown(gone)", f.DeleteUnknown(f.ctx, mac(1)), dsas.ErrNotFound)
}

func TestUnknownsAreBounded(t *testing.T) {
	f := open(t)
	const most, more = 4096, 10
	for i := range most + more {
		if !must(f.RecordUnknown(f.ctx, dsas.Unknown{MAC: mac(i + 1), Last: t0}))(t) && i > 0 {
			t.Fatalf("RecordUnknown(%s) = false; want true", mac(i+1))
		}
		if i == 0 { // the first asks again, later than all others
			must(f.RecordUnknown(f.ctx, dsas.Unknown{MAC: mac(1), Last: t0.Add(1)}))(t)
		}
	}
	got := must(f.Unknowns(f.ctx))(t)
	if len(got) != most || got[0].MAC != mac(1) {
		t.Errorf("Unknowns = %d, newest %s; want %d, %s", len(got), got[0].MAC, most, mac(1))
	}
}
