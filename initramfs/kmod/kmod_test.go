package kmod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/modindex"
)

func testIndex() *modindex.Index {
	return &modindex.Index{
		Release: "6.1.0-test",
		Modules: map[string]modindex.Module{
			"virtio_net":    {Path: "kernel/drivers/net/virtio_net.ko", Depends: []string{"net_failover"}},
			"net_failover":  {Path: "kernel/drivers/net/net_failover.ko", Depends: []string{"failover"}},
			"failover":      {Path: "kernel/net/core/failover.ko"},
			"virtio_pci":    {Path: "kernel/drivers/virtio/virtio_pci.ko"},
			"bonding":       {Path: "kernel/drivers/net/bonding/bonding.ko"},
			"ip_vs":         {Path: "kernel/net/netfilter/ipvs/ip_vs.ko", SoftPre: []string{"crc32c"}},
			"crc32c_intel":  {Path: "kernel/crypto/crc32c_intel.ko"},
			"kvm_intel":     {Path: "kernel/kvm_intel.ko"},
			"broken":        {Path: "kernel/broken.ko"},
			"needs_broken":  {Path: "kernel/needs_broken.ko", Depends: []string{"broken"}},
			"cpu_something": {Path: "kernel/cpu_something.ko"},
		},
		Aliases: []modindex.Alias{
			{Pattern: "pci:v00001AF4d*sv*sd*bc*sc*i*", Module: "virtio_pci"},
			{Pattern: "virtio:d00000001v*", Module: "virtio_net"},
			{Pattern: "crc32c", Module: "crc32c_intel"},
			{Pattern: "cpu:type:x86,*feature:*0085*", Module: "kvm_intel"},
			{Pattern: "usb:v0BADp*", Module: "broken"},
			{Pattern: "*:wild", Module: "cpu_something"},
		},
		Builtin: []string{"ext4"},
	}
}

// kernel stands for the kernel: the order of what was put in, and what it
// refuses.
type kernel struct {
	mu      sync.Mutex
	loaded  []string
	refuse  map[string]error
	present map[string]bool
	after   map[string]func() // run when a module is in
}

func (k *kernel) insert(path, options string) error {
	name := strings.TrimSuffix(filepath.Base(path), ".ko")
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.refuse[name]; err != nil {
		return err
	}
	if k.present[name] {
		return unix.EEXIST
	}
	if k.present == nil {
		k.present = map[string]bool{}
	}
	k.present[name] = true
	if options != "" {
		name += " " + options
	}
	k.loaded = append(k.loaded, name)
	if f := k.after[name]; f != nil {
		f()
	}
	return nil
}

func TestLoad(t *testing.T) {
	cases := []struct {
		name, options string
		refuse        map[string]error
		present       []string
		want          string
		wantErr       error
		inErr         []string
	}{
		{name: "virtio_net", want: "failover net_failover virtio_net"},
		{name: "virtio-net", want: "failover net_failover virtio_net"},
		{name: "bonding", options: "max_bonds=0", want: "bonding max_bonds=0"},
		{name: "bonding", present: []string{"bonding"}},
		{name: "bonding", options: "max_bonds=0", present: []string{"bonding"}, wantErr: dsas.ErrConflict, inErr: []string{"bonding", "max_bonds=0"}},
		{name: "ip_vs", want: "crc32c_intel ip_vs"},
		{name: "ip_vs", refuse: map[string]error{"crc32c_intel": unix.ENODEV}, want: "ip_vs"},
		{name: "ext4"},
		{name: "nosuch", wantErr: dsas.ErrNotFound, inErr: []string{"nosuch", "6.1.0-test"}},
		{name: "needs_broken", refuse: map[string]error{"broken": unix.ENOEXEC, "needs_broken": unix.ENOENT}, wantErr: unix.ENOENT,
			inErr: []string{"module broken: it was built for another kernel", "module needs_broken: it needs a symbol"}},
	}
	for _, c := range cases {
		k := &kernel{refuse: c.refuse, present: map[string]bool{}}
		for _, p := range c.present {
			k.present[p] = true
		}
		l := &Loader{Root: "/", Index: testIndex(), insert: k.insert}
		err := l.Load(c.name, c.options)
		if !errors.Is(err, c.wantErr) {
			t.Errorf("Load(%s, %q): error %v; want %v", c.name, c.options, err, c.wantErr)
		}
		for _, s := range c.inErr {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("Load(%s, %q): error %v; want %q in it", c.name, c.options, err, s)
			}
		}
		if got := strings.Join(k.loaded, " "); got != c.want {
			t.Errorf("Load(%s, %q) loaded %q; want %q", c.name, c.options, got, c.want)
		}
	}
}

// addDevice puts a device with a modalias on a bus below sysfs.
func addDevice(t *testing.T, sysfs, bus, name, modalias string) {
	t.Helper()
	dir := filepath.Join(sysfs, "bus", bus, "devices", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(modalias+"\n"), 0o644); err != nil {
		t.Error(err)
	}
}

// TestLoadFor has a bus appear with its driver: virtio_pci brings the virtio
// device that virtio_net is for.
func TestLoadFor(t *testing.T) {
	sysfs := t.TempDir()
	addDevice(t, sysfs, "pci", "0000:00:03.0", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00")
	addDevice(t, sysfs, "pci", "0000:00:04.0", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00")
	addDevice(t, sysfs, "cpu", "cpu0", "cpu:type:x86,ven0000fam0006mod000F:feature:,0000,0085")
	addDevice(t, sysfs, "usb", "1-1", "usb:v0BADp0001")
	addDevice(t, sysfs, "platform", "x", "platform:unknown")
	addDevice(t, sysfs, "odd", "y", "odd:wild")
	k := &kernel{
		refuse: map[string]error{"kvm_intel": unix.ENODEV, "broken": unix.EINVAL},
		after:  map[string]func(){"virtio_pci": func() { addDevice(t, sysfs, "virtio", "virtio0", "virtio:d00000001v00001AF4") }},
	}
	l := &Loader{Root: "/", Index: testIndex(), insert: k.insert}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := l.LoadFor(ctx, sysfs)
	if err == nil || !strings.Contains(err.Error(), "module broken") || strings.Contains(err.Error(), "kvm_intel") {
		t.Errorf("LoadFor: error %v; want one about broken alone", err)
	}
	for _, want := range []string{"virtio_pci", "virtio_net", "net_failover", "failover", "cpu_something"} {
		if !slices.Contains(k.loaded, want) {
			t.Errorf("LoadFor loaded %q; want %s among them", k.loaded, want)
		}
	}
	if i, j := slices.Index(k.loaded, "net_failover"), slices.Index(k.loaded, "virtio_net"); i > j {
		t.Errorf("LoadFor loaded %q; want net_failover before virtio_net", k.loaded)
	}
	if len(k.loaded) != 5 {
		t.Errorf("LoadFor loaded %q; want each once", k.loaded)
	}
}

// TestLoadConcurrently is for the race detector, and for a deadlock.
func TestLoadConcurrently(t *testing.T) {
	k := &kernel{}
	l := &Loader{Root: "/", Index: testIndex(), insert: k.insert}
	var wg sync.WaitGroup
	for range 8 {
		for name := range l.Index.Modules {
			wg.Go(func() {
				if err := l.Load(name, ""); err != nil {
					t.Errorf("Load(%s): %v", name, err)
				}
				l.match("virtio:d00000001v00001AF4")
			})
		}
	}
	wg.Wait()
	if len(k.loaded) != len(l.Index.Modules) {
		t.Errorf("loaded %q; want each of %d once", k.loaded, len(l.Index.Modules))
	}
}

// TestMatchAgrees checks the split by bus against the whole index.
func TestMatchAgrees(t *testing.T) {
	l := &Loader{Index: testIndex()}
	for _, m := range []string{"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", "virtio:d00000001v00001AF4", "crc32c", "odd:wild", "pci:wild", "nothing", "bonding", "usb:v0BADp1"} {
		if got, want := l.match(m), l.Index.Match(m); !slices.Equal(got, want) {
			t.Errorf("match(%s) = %v; want %v", m, got, want)
		}
	}
}

func TestInsertFileErrors(t *testing.T) {
	l := &Loader{Root: t.TempDir(), Index: testIndex()}
	err := l.Load("failover", "")
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "failover.ko") {
		t.Errorf("Load without the file: %v; want one that names it", err)
	}
	if got := fmt.Sprint(explain(unix.EKEYREJECTED)); !strings.Contains(got, "signature") {
		t.Errorf("explain(EKEYREJECTED) = %s; want it to speak of the signature", got)
	}
}
