package rootfs

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"dsas"
)

const (
	// Overhead bounds what Fetch takes beside the tree, in bytes: 9 MiB of
	// buffers, the decoder's window of at most 32 MiB and what the garbage
	// collector has not taken back yet.
	Overhead = 64 << 20
	// guess is how many times its size a part that does not say Unpacked is
	// taken for: zstd and gzip make a root file system of Debian 2.5 to 3.5 times
	// smaller.
	guess = 4
)

// Demand is the memory in bytes that a node needs to become a role.
type Demand struct {
	// Root is what the tree takes in tmpfs: content in whole pages, and a
	// sixteenth for inodes and names.
	Root int64
	// AtLeast is Root, or less where parts do not say what they take (an
	// imported image's may not): then it counts their compressed size, and Root
	// four times that.
	AtLeast int64
	Role    int64 // what the role says that its programs need
}

// Need reads the demand off a manifest. A file that a later part replaces or
// removes is counted, since it is there for a while.
func Need(m dsas.Manifest) Demand {
	d := Demand{Role: m.Memory}
	for _, p := range m.Parts {
		switch {
		case p.Unpacked > 0:
			d.Root += p.Unpacked
			d.AtLeast += p.Unpacked
		case strings.HasSuffix(p.MediaType, ".tar"):
			d.Root += p.Size
			d.AtLeast += p.Size
		default:
			d.Root += guess * p.Size
			d.AtLeast += p.Size
		}
	}
	d.Root += d.Root / 16
	d.AtLeast += d.AtLeast / 16
	return d
}

// Guessed says whether a part does not say what it takes.
func (d Demand) Guessed() bool { return d.AtLeast < d.Root }

// with is root and what is needed beside it: Fetch's own memory is free again
// when the programs start.
func (d Demand) with(root int64) int64 { return root + max(d.Role, Overhead) }

// Memory is what a node has, in bytes, by proc(5).
type Memory struct {
	Total     int64 // MemTotal
	Available int64 // MemAvailable: free, or easily made so
}

// ReadMemory reads the file meminfo ("" is /proc/meminfo).
func ReadMemory(meminfo string) (Memory, error) {
	if meminfo == "" {
		meminfo = "/proc/meminfo"
	}
	f, err := os.Open(meminfo)
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	defer f.Close()
	m := Memory{Total: -1, Available: -1}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		into := map[string]*int64{"MemTotal": &m.Total, "MemAvailable": &m.Available}[name]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("read memory: %s: %q: %w", meminfo, lines.Text(), err)
		}
		*into = kib << 10
	}
	if m.Total < 0 || m.Available < 0 {
		return Memory{}, fmt.Errorf("read memory: no MemTotal or MemAvailable in %s: is it the kernel's?", meminfo)
	}
	return m, nil
}

// MemoryError: the node has too little memory for its role. Nothing was
// fetched yet.
type MemoryError struct {
	Demand Demand
	Memory Memory
	Limit  int64 // the role's own limit of its root, in bytes, where that is what is too small; else 0
}

func (e *MemoryError) Error() string {
	d, about := e.Demand, ""
	if d.Guessed() {
		about = " at least"
	}
	if e.Limit > 0 {
		return fmt.Sprintf("the role's root may have %d MiB (rootSize) and its image takes%s %d MiB: raise rootSize in the role, or take packages out of it",
			e.Limit>>20, about, mib(d.AtLeast))
	}
	beside := fmt.Sprintf("its programs %d MiB (memory in the role)", mib(d.Role))
	if d.Role < Overhead {
		beside = fmt.Sprintf("fetching it %d MiB", mib(Overhead))
	}
	return fmt.Sprintf("not enough memory: %d MiB are needed%s (the root file system takes %d MiB, %s) and %d of the node's %d MiB are available: give the node %d MiB more, or another role",
		mib(d.with(d.AtLeast)), about, mib(d.AtLeast), beside, e.Memory.Available>>20, e.Memory.Total>>20, mib(d.with(d.AtLeast)-e.Memory.Available))
}

// mib rounds up: what is needed is not to be less than what is asked for.
func mib(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// Plan is what Room found.
type Plan struct {
	Size    int64  // of the tmpfs to mount, in bytes
	Warning string // memory may not suffice, and why that is not sure; "": it does
}

// Room decides, before anything is fetched, whether a node has the memory for a
// role, and how large its root may grow. limit is the role's own (rootSize, in
// bytes; 0: none); without it a root may take what the role's programs do not
// need, and 80 % of the memory at most, so that no log file takes the last page.
// It gives a *MemoryError where the memory cannot suffice. Where it only
// may not, since a part does not say what it takes, Plan.Warning says so.
func Room(d Demand, m Memory, limit int64) (Plan, error) {
	if d.with(d.AtLeast) > m.Available {
		return Plan{}, &MemoryError{Demand: d, Memory: m}
	}
	if limit > 0 && d.AtLeast > limit {
		return Plan{}, &MemoryError{Demand: d, Memory: m, Limit: limit}
	}
	p := Plan{Size: limit}
	if limit <= 0 {
		p.Size = max(min(m.Available-d.Role, m.Total/5*4), d.AtLeast)
	}
	switch {
	case d.with(d.Root) > m.Available:
		p.Warning = fmt.Sprintf("memory may not suffice: parts of the image do not say what they take; by their size it is about %d MiB, which with what else is needed makes %d, and %d MiB are available",
			mib(d.Root), mib(d.with(d.Root)), m.Available>>20)
	case d.Root > p.Size:
		p.Warning = fmt.Sprintf("the root may not suffice: parts of the image do not say what they take; by their size it is about %d MiB, and it may have %d MiB",
			mib(d.Root), p.Size>>20)
	}
	return p, nil
}
