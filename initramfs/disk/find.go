package disk

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/uevent"
)

// Finder finds block devices by the names that udev would have given them;
// there is no udev on a node, only the kernel's /dev and /sys.
type Finder struct {
	Sys string // "/sys"
	Dev string // "/dev"
}

// Found is a block device of this node.
type Found struct {
	Name  string   // the kernel's: "vda", "sda1"
	Size  int64    // bytes
	Names []string // stable ones, below /dev/disk: "by-path/pci-0000:00:05.0"
}

// String gives it for people.
func (f Found) String() string {
	s := fmt.Sprintf("/dev/%s (%s)", f.Name, sizeText(f.Size))
	if len(f.Names) > 0 {
		s += " = /dev/disk/" + f.Names[0]
	}
	return s
}

func sizeText(n int64) string {
	switch {
	case n >= 10<<30:
		return strconv.FormatInt(n>>30, 10) + " GiB"
	case n >= 10<<20:
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}

// List gives the node's disks and their partitions.
func (f Finder) List() ([]Found, error) {
	entries, err := os.ReadDir(filepath.Join(f.Sys, "class/block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var out []Found
	for _, e := range entries {
		path, err := filepath.EvalSymlinks(filepath.Join(f.Sys, "class/block", e.Name()))
		if err != nil {
			continue
		}
		sectors, _ := strconv.ParseInt(attr(path, "size"), 10, 64)
		if sectors == 0 || strings.HasPrefix(e.Name(), "ram") {
			continue
		}
		out = append(out, Found{Name: e.Name(), Size: sectors * 512, Names: f.names(path)})
	}
	return out, nil
}

// attr reads a file of sysfs, trimmed; "" where there is none.
func attr(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b), ""))
}

// names gives the stable names of the device at a resolved path in sysfs.
func (f Finder) names(path string) []string {
	disk, part := path, ""
	if n := attr(path, "partition"); n != "" {
		disk, part = filepath.Dir(path), "-part"+n
	}
	var out []string
	add := func(dir, prefix, id string) {
		if id = sanitize(id); id != "" {
			name := dir + "/" + prefix + id + part
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	for _, p := range f.pathIDs(disk) {
		add("by-path", "", p)
	}
	base := filepath.Base(disk)
	serial := attr(disk, "serial") // virtio
	switch {
	case strings.HasPrefix(base, "vd"):
		add("by-id", "virtio-", serial)
	case strings.HasPrefix(base, "nvme"):
		add("by-id", "nvme-", attr(disk, "wwid"))
		serial = attr(disk, "device/serial")
		if model := attr(disk, "device/model"); model != "" && serial != "" {
			add("by-id", "nvme-", sanitize(model)+"_"+sanitize(serial))
		}
	default:
		serial = f.scsiIDs(disk, add)
	}
	add("by-serial", "", serial)
	return out
}

// scsiIDs adds the names of a SCSI or ATA disk and gives its serial number.
func (f Finder) scsiIDs(disk string, add func(dir, prefix, id string)) string {
	if wwid := attr(disk, "device/wwid"); wwid != "" {
		if naa, ok := strings.CutPrefix(wwid, "naa."); ok {
			add("by-id", "wwn-0x", naa)
			add("by-id", "scsi-3", naa)
		}
	}
	// Page 0x80 is the unit's serial number, page 0x89 holds the answer to an
	// ATA disk's IDENTIFY from byte 60 on (SPC-4 7.8.15, SAT-3 12.4.2).
	serial := ""
	if b, err := os.ReadFile(filepath.Join(disk, "device/vpd_pg80")); err == nil && len(b) > 4 {
		serial = strings.TrimSpace(strings.ToValidUTF8(string(b[4:]), ""))
	}
	if b, err := os.ReadFile(filepath.Join(disk, "device/vpd_pg89")); err == nil && len(b) >= 60+94 {
		id := b[60:]
		ata := func(from, to int) string { // words, whose bytes are swapped
			s := slices.Clone(id[2*from : 2*to])
			for i := 0; i+1 < len(s); i += 2 {
				s[i], s[i+1] = s[i+1], s[i]
			}
			return strings.TrimSpace(strings.ToValidUTF8(string(s), ""))
		}
		model, sn := ata(27, 47), ata(10, 20)
		if model != "" && sn != "" {
			add("by-id", "ata-", sanitize(model)+"_"+sanitize(sn))
			serial = sn
		}
	}
	if vendor, model := attr(disk, "device/vendor"), attr(disk, "device/model"); serial != "" && vendor != "" && vendor != "ATA" {
		add("by-id", "scsi-0", sanitize(vendor)+"_"+sanitize(model)+"_"+sanitize(serial))
		add("by-id", "scsi-S", sanitize(vendor)+"_"+sanitize(model)+"_"+sanitize(serial))
	}
	return serial
}

// pathIDs gives a disk's place by the wiring, as udev's path_id builds it:
// "pci-0000:00:05.0", "pci-0000:00:1f.2-ata-1", "pci-0000:01:00.0-nvme-1".
func (f Finder) pathIDs(disk string) []string {
	var parts []string // from the disk up to the root
	var alt string     // another form that older udevs had
	virtio, scsi := false, false
	for dir := disk; len(dir) > len(f.Sys) && dir != "/"; dir = filepath.Dir(dir) {
		sub, err := os.Readlink(filepath.Join(dir, "subsystem"))
		if err != nil {
			continue
		}
		base := filepath.Base(dir)
		switch filepath.Base(sub) {
		case "scsi":
			if scsi || strings.Count(base, ":") != 3 {
				continue
			}
			scsi = true
			if port := f.ataPort(dir); port != "" {
				parts = append(parts, "ata-"+port)
				alt = "ata-" + port + ".0"
				continue
			}
			parts = append(parts, "scsi-"+relativeHCTL(dir, base))
		case "nvme":
			if nsid := attr(disk, "nsid"); nsid != "" && !scsi {
				scsi = true
				parts = append(parts, "nvme-"+nsid)
			}
		case "usb":
			if attr(dir, "bInterfaceNumber") != "" { // "1-2:1.0" is port 2, interface 1.0
				_, port, ok := strings.Cut(base, "-")
				if ok {
					parts = append(parts, "usb-0:"+port)
				}
			}
		case "virtio":
			virtio = true
		case "pci":
			parts = append(parts, "pci-"+base)
			slices.Reverse(parts)
			id := strings.Join(parts, "-")
			out := []string{id}
			if alt != "" {
				out = append(out, "pci-"+base+"-"+alt)
			}
			if virtio {
				out = append(out, "virtio-"+id)
			}
			return out
		}
	}
	return nil
}

// ataPort gives the number of the ATA port that the SCSI device at dir hangs
// on, or "".
func (f Finder) ataPort(dir string) string {
	for d := dir; len(d) > len(f.Sys); d = filepath.Dir(d) {
		base := filepath.Base(d)
		if n, ok := strings.CutPrefix(base, "ata"); ok && strings.Trim(n, "0123456789") == "" && n != "" {
			if p := attr(d, "ata_port", base, "port_no"); p != "" {
				return p
			}
			return n
		}
	}
	return ""
}

// relativeHCTL writes host:channel:target:lun with the host's number counted
// from the first of its adapter, since the kernel's numbers depend on the
// order in which drivers came.
func relativeHCTL(dir, hctl string) string {
	host, rest, _ := strings.Cut(hctl, ":")
	for d := dir; d != "/" && d != "."; d = filepath.Dir(d) {
		if filepath.Base(d) != "host"+host {
			continue
		}
		n, err := strconv.Atoi(host)
		if err != nil {
			break
		}
		lowest := n
		siblings, _ := filepath.Glob(filepath.Join(filepath.Dir(d), "host*"))
		for _, s := range siblings {
			if m, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(s), "host")); err == nil {
				lowest = min(lowest, m)
			}
		}
		return strconv.Itoa(n-lowest) + ":" + rest
	}
	return hctl
}

// sanitize writes a name as udev does: white space becomes one underscore,
// and so does what has no place in a file name.
func sanitize(s string) string {
	s = strings.Join(strings.Fields(s), "_")
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("#+-.:=@_", r) {
			return r
		}
		return '_'
	}, s)
}

// Find gives the kernel's name ("vda") of the device that path names: a node
// below /dev, or a name below /dev/disk/by-id, by-path, by-serial, by-uuid or
// by-label. ErrNotFound: it is not there (yet); the error lists what is.
func (f Finder) Find(path string) (string, error) {
	stable, ok := strings.CutPrefix(path, "/dev/disk/")
	if !ok {
		name, ok := strings.CutPrefix(filepath.Clean(path), "/dev/")
		if !ok || strings.Contains(name, "/") {
			return "", fmt.Errorf("find disk %q: give /dev/NAME or a name below /dev/disk/: %w", path, dsas.ErrInvalid)
		}
		// A drive without a medium, or a device that is being set up, has no size.
		if size := attr(f.Sys, "class/block", name, "size"); size != "" && size != "0" {
			return name, nil
		}
	}
	all, err := f.List()
	if err != nil {
		return "", err
	}
	var hits []string
	for _, d := range all {
		if stable != "" && (slices.Contains(d.Names, stable) || f.hasContentName(d, stable)) {
			hits = append(hits, d.Name)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		var here []string
		for _, d := range all {
			if !strings.HasPrefix(d.Name, "loop") {
				here = append(here, d.String())
			}
		}
		if len(here) == 0 {
			here = []string{"no disk"}
		}
		return "", fmt.Errorf("find disk %s: this node has %s: %w", path, strings.Join(here, ", "), dsas.ErrNotFound)
	}
	return "", fmt.Errorf("find disk %s: %s have this name; use one below /dev/disk/by-path/: %w", path, strings.Join(hits, " and "), dsas.ErrConflict)
}

// hasContentName tells whether stable names d by what is on it.
func (f Finder) hasContentName(d Found, stable string) bool {
	dir, name, _ := strings.Cut(stable, "/")
	if name == "" || dir != "by-uuid" && dir != "by-label" {
		return false
	}
	if strings.HasPrefix(d.Name, "fd") || strings.HasPrefix(d.Name, "sr") {
		return false // a drive whose medium would have to spin up
	}
	c, err := Probe(filepath.Join(f.Dev, d.Name))
	if err != nil {
		return false
	}
	if dir == "by-uuid" {
		return strings.EqualFold(c.UUID, name)
	}
	return c.Label != "" && (c.Label == name || escape(c.Label) == name)
}

// escape writes a label as udev does in a link's name: a blank is \x20.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if r := rune(s[i]); sanitize(string(r)) == string(r) || s[i] >= 0x80 {
			b.WriteByte(s[i])
		} else {
			b.WriteString(`\x` + hex.EncodeToString([]byte{s[i]}))
		}
	}
	return b.String()
}

// Wait waits for the device that path names and gives the node below Dev. When
// ctx ends the error says what the node has instead.
func (f Finder) Wait(ctx context.Context, path string) (string, error) {
	conn, err := uevent.Listen()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	for {
		name, err := f.Find(path)
		if err == nil {
			node := filepath.Join(f.Dev, name)
			var st unix.Stat_t
			if err = unix.Stat(node, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
				return node, nil
			}
			err = fmt.Errorf("find disk %s: %s is no block device: %w", path, node, dsas.ErrNotFound)
		}
		if !errors.Is(err, dsas.ErrNotFound) {
			return "", err
		}
		if !next(ctx, conn) {
			return "", errors.Join(err, ctx.Err())
		}
	}
}

// next waits for news of a block device; false when ctx has ended. It also
// returns now and then without any, in case one was lost.
func next(ctx context.Context, conn *uevent.Conn) bool {
	lap, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		e, err := conn.Next(lap)
		if ctx.Err() != nil {
			return false
		}
		if err != nil || e.Env["SUBSYSTEM"] == "block" {
			return true
		}
	}
}
