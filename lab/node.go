package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dsas"
)

// NodeSpec says what box a node is.
type NodeSpec struct {
	Name     string
	MACs     []dsas.MAC // one per port; default: two, made from the name
	Memory   int        // MiB, default 1024
	SMP      int        // CPUs, default 1
	Firmware Firmware   // default BIOS
	Disk     int64      // bytes; 0: diskless. A sparse file, on the node /dev/vda
	NICModel string     // QEMU's name, default virtio-net-pci
	NoBMC    bool
}

// MAC gives the address that port of the node of this name has by default: in
// QEMU's range, 52:54:00, with the name's hash and the port.
func MAC(name string, port int) dsas.MAC {
	h := fnv.New32a()
	io.WriteString(h, name)
	s := h.Sum32()
	return dsas.MAC{0x52, 0x54, 0x00, byte(s >> 8), byte(s), byte(port + 1)}
}

func (s NodeSpec) withDefaults() (NodeSpec, error) {
	if err := dsas.CheckName("node", s.Name); err != nil {
		return s, err
	}
	if len(s.MACs) == 0 {
		s.MACs = []dsas.MAC{MAC(s.Name, 0), MAC(s.Name, 1)}
	}
	s.MACs = slices.Clone(s.MACs)
	if s.Memory == 0 {
		s.Memory = 1024
	}
	if s.SMP == 0 {
		s.SMP = 1
	}
	if s.Firmware == "" {
		s.Firmware = BIOS
	}
	if s.NICModel == "" {
		s.NICModel = virtio
	}
	switch {
	case !slices.Contains(firmwares, s.Firmware):
		return s, fmt.Errorf("node %s: firmware %q: use bios, uefi, uefi-http or secureboot: %w", s.Name, s.Firmware, dsas.ErrInvalid)
	case s.Memory < 64 || s.SMP < 1 || s.Disk < 0:
		return s, fmt.Errorf("node %s: memory %d MiB, %d CPUs, disk %d: memory is at least 64 MiB: %w", s.Name, s.Memory, s.SMP, s.Disk, dsas.ErrInvalid)
	case len(s.MACs) > 8:
		return s, fmt.Errorf("node %s: %d NICs: at most 8: %w", s.Name, len(s.MACs), dsas.ErrInvalid)
	}
	return s, nil
}

// Node is one box of the rack.
type Node struct {
	lab   *Lab
	spec  NodeSpec
	index int
	bmc   *bmc // nil: none; set once, under mu

	// power is held over a whole power operation: one at a time.
	power sync.Mutex

	mu      sync.Mutex // the fields below
	proc    *process   // nil or ended: off
	links   []bool     // wanted state per port
	nextDev string     // boot device the BMC was told, "" or "none": firmware's order
	starts  int        // power-ons so far
	logFrom int64      // where in the serial log the latest power-on begins
}

// process is one QEMU, from power-on to power-off.
type process struct {
	cmd    *exec.Cmd
	qmp    *qmp
	done   chan struct{} // closed when it has ended
	killed atomic.Bool   // by us
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// AddNode puts a box into the rack, plugged into the switches and off, with
// its BMC on.
func (l *Lab) AddNode(ctx context.Context, spec NodeSpec) (*Node, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := need("qemu-system-x86_64"); err != nil {
		return nil, err
	}
	n := &Node{lab: l, spec: spec, links: make([]bool, len(spec.MACs))}
	for i := range n.links {
		n.links[i] = true
	}
	l.mu.Lock()
	if err := l.admit(n); err != nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("lab %s: %w", l.cfg.Name, err)
	}
	l.nodes[spec.Name] = n
	l.order = append(l.order, spec.Name)
	l.mu.Unlock()
	if err := n.make(ctx); err != nil {
		l.remove(spec.Name)
		return nil, errors.Join(fmt.Errorf("lab %s: add node %s: %w", l.cfg.Name, spec.Name, err), n.stop(ctx), l.save())
	}
	return n, nil
}

// admit checks n against the others and gives it an index; l.mu is held.
func (l *Lab) admit(n *Node) error {
	if l.down {
		return errClosed
	}
	if l.nodes[n.spec.Name] != nil {
		return fmt.Errorf("node %s: is there already: %w", n.spec.Name, dsas.ErrConflict)
	}
	used := map[int]bool{}
	macs := map[dsas.MAC]string{}
	for name, other := range l.nodes {
		used[other.index] = true
		for _, m := range other.spec.MACs {
			macs[m] = name
		}
	}
	for _, m := range n.spec.MACs {
		if other := macs[m]; other != "" {
			return fmt.Errorf("node %s: MAC %s is node %s's: %w", n.spec.Name, m, other, dsas.ErrConflict)
		}
		macs[m] = n.spec.Name
	}
	for used[n.index] {
		n.index++
	}
	return nil
}

func (n *Node) make(ctx context.Context) error {
	if err := os.MkdirAll(n.dir(), 0o755); err != nil {
		return err
	}
	if err := n.makeDisk(); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	for port := range n.spec.MACs {
		sw := port % Switches
		n.lab.mu.Lock() // against SwitchForwarding
		err := addTap(rackName(n.lab.cfg.Name), n.tap(port), sw, n.lab.forwards[sw])
		n.lab.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if !n.spec.NoBMC {
		b, err := n.lab.startBMC(ctx, n)
		if err != nil {
			return fmt.Errorf("BMC: %w", err)
		}
		n.mu.Lock()
		n.bmc = b
		n.mu.Unlock()
	}
	return n.lab.save()
}

func (n *Node) makeDisk() error {
	if n.spec.Disk == 0 {
		return nil
	}
	path := n.diskPath()
	if st, err := os.Stat(path); err == nil && n.lab.cfg.KeepDisks {
		if st.Size() != n.spec.Disk {
			return fmt.Errorf("%s has %d bytes and not %d: remove it, or ask for its size: %w", path, st.Size(), n.spec.Disk, dsas.ErrConflict)
		}
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(n.spec.Disk), f.Close())
}

// stop ends the node for good, with its BMC and taps.
func (n *Node) stop(ctx context.Context) error {
	var errs []error
	n.mu.Lock()
	b := n.bmc
	n.mu.Unlock()
	if b != nil {
		b.stop()
	}
	errs = append(errs, n.PowerOff(ctx, true))
	for port := range n.spec.MACs {
		err := delLink(rackName(n.lab.cfg.Name), n.tap(port))
		if err != nil && !isNoLink(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove takes the node out of the rack; its disk and log stay.
func (n *Node) Remove(ctx context.Context) error {
	err := n.stop(ctx)
	n.lab.remove(n.spec.Name)
	return errors.Join(err, n.lab.save())
}

// Name gives the node's name.
func (n *Node) Name() string { return n.spec.Name }

// Spec gives the node's specification, defaults filled in.
func (n *Node) Spec() NodeSpec { return n.spec }

// NICs gives the node's ports as the domain has them.
func (n *Node) NICs() []dsas.NIC {
	nics := make([]dsas.NIC, len(n.spec.MACs))
	for i, m := range n.spec.MACs {
		nics[i].MAC = m
	}
	return nics
}

// Tap names the interface at the switch's end of a port, for Capture.
func (n *Node) Tap(port int) string { return n.tap(port) }

// tap is unique in the namespace and at most 15 bytes (IFNAMSIZ).
func (n *Node) tap(port int) string {
	if len(n.spec.Name) <= 10 {
		return fmt.Sprintf("t-%s-%d", n.spec.Name, port)
	}
	return fmt.Sprintf("tap%d-%d", n.index, port)
}

func (n *Node) dir() string        { return filepath.Join(n.lab.cfg.Dir, n.spec.Name) }
func (n *Node) diskPath() string   { return filepath.Join(n.dir(), "disk.raw") }
func (n *Node) varsPath() string   { return filepath.Join(n.dir(), "vars.fd") }
func (n *Node) serialPath() string { return filepath.Join(n.dir(), "serial.log") }
func (n *Node) qemuLog() string    { return filepath.Join(n.dir(), "qemu.log") }

// Sockets go by index: names may be long.
func (n *Node) qmpPath() string {
	return filepath.Join(n.lab.cfg.runDir(), fmt.Sprintf("qmp%d", n.index))
}
func (n *Node) consolePath() string {
	return filepath.Join(n.lab.cfg.runDir(), fmt.Sprintf("con%d", n.index))
}

// Console gives the path of the socket at which the node's serial console can
// be typed at; one connection at a time.
func (n *Node) Console() string { return n.consolePath() }

// SerialPath gives the path of the serial log, over all boots.
func (n *Node) SerialPath() string { return n.serialPath() }

// DiskPath gives the path of the disk's file.
func (n *Node) DiskPath() string { return n.diskPath() }

// BMC tells how the node's power is driven, password included; nil: by
// nothing but the lab.
func (n *Node) BMC() *dsas.BMC {
	if n.bmc == nil {
		return nil
	}
	return &dsas.BMC{Kind: "ipmi", Address: n.bmc.addr, User: bmcUser, Password: n.lab.cfg.BMCPassword}
}

// logMark writes a separator to the serial log and gives its offset.
func (n *Node) logMark() (int64, error) {
	f, err := os.OpenFile(n.serialPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(f, "\n===== %s: power on %d, %s =====\n", n.spec.Name, n.starts, time.Now().Format(time.RFC3339))
	return at, err
}
