// Package disk finds a node's block devices by their stable names, says what
// is on them, and mounts them. A file system is made only where the role
// allows it and the disk is blank; a disk that holds anything at all is never
// written to.
package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// area is how much of a device's beginning and of its end must be zero for it
// to be blank, in bytes. Everything that identifies itself does so there (the
// deepest is ZFS, whose two labels take 512 KiB at either end).
const area = 1 << 20

// Kind says what sort of thing is on a device.
type Kind string

// The kinds.
const (
	KindBlank     Kind = "blank"
	KindFS        Kind = "file system"
	KindPartition Kind = "partition table"
	KindRAID      Kind = "RAID member"
	KindLVM       Kind = "LVM volume"
	KindSwap      Kind = "swap"
	KindEncrypted Kind = "encrypted volume"
	KindOther     Kind = "volume of another kind"
	KindData      Kind = "unknown data"
)

// Content is what was found on a device.
type Content struct {
	Kind  Kind
	Type  string // "ext4", "gpt", "LVM2"; empty where it is blank or unknown
	Label string
	UUID  string // as blkid(8) writes it
	Size  int64  // of the device, in bytes
}

// Blank tells whether nothing is on it.
func (c Content) Blank() bool { return c.Kind == KindBlank }

// String gives it for people: "ext4 file system (label DATA)".
func (c Content) String() string {
	s := string(c.Kind)
	if c.Type != "" {
		s = c.Type + " " + s
	}
	if c.Label != "" {
		s += fmt.Sprintf(" (label %.32q)", c.Label)
	}
	return s
}

// Probe says what is on the device (or image file) at path. It is blank only
// when no known signature is found and its first and last MiB are all zero. A
// device that cannot be read is an error, never blank.
func Probe(path string) (Content, error) {
	f, err := os.Open(path)
	if err != nil {
		return Content{}, fmt.Errorf("probe disk: %w", err)
	}
	defer f.Close()
	c, err := probe(f)
	if err != nil {
		return Content{}, fmt.Errorf("probe disk %s: %w", path, err)
	}
	return c, nil
}

type source interface {
	io.ReaderAt
	io.Seeker
}

func probe(f source) (Content, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Content{}, err
	}
	if size == 0 {
		return Content{}, errors.New("it has no size: is a medium in the drive?")
	}
	head := make([]byte, min(size, area))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return Content{}, fmt.Errorf("read the beginning: %w", err)
	}
	tail := make([]byte, min(size, area))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return Content{}, fmt.Errorf("read the end: %w", err)
	}
	v := view{size: size, head: head, tail: tail}
	c := v.identify()
	c.Size = size
	return c, nil
}

// view is what is known of a device.
type view struct {
	size       int64
	head, tail []byte
}

// at gives n bytes at an offset, or nil where they were not read. Negative
// offsets count from the end.
func (v view) at(off int64, n int) []byte {
	if off < 0 {
		off += v.size
	}
	if off < 0 || off+int64(n) > v.size {
		return nil
	}
	if off+int64(n) <= int64(len(v.head)) {
		return v.head[off : off+int64(n)]
	}
	if start := v.size - int64(len(v.tail)); off >= start {
		return v.tail[off-start : off-start+int64(n)]
	}
	return nil
}

func (v view) has(off int64, magic string) bool {
	return string(v.at(off, len(magic))) == magic
}

func (v view) identify() Content {
	// What says that the device is part of something larger comes before
	// file systems: a RAID-1 member looks like its file system otherwise.
	if c, ok := v.raid(); ok {
		return c
	}
	for _, s := range signatures() {
		for _, off := range s.at {
			if !v.has(off, s.magic) {
				continue
			}
			c := Content{Kind: s.kind, Type: s.name}
			if s.uuid != 0 {
				c.UUID = uuid(v.at(off+s.uuid, 16))
			}
			if s.label != 0 {
				c.Label = text(v.at(off+s.label, s.labelLen))
			}
			if s.name == "ext" {
				c.Type = v.extType()
			}
			return c
		}
	}
	if c, ok := v.partitions(); ok {
		return c
	}
	if !zero(v.head) || !zero(v.tail) {
		return Content{Kind: KindData}
	}
	return Content{Kind: KindBlank}
}

// raid looks for members of md arrays, whose superblock may be at the end,
// and of firmware RAIDs, whose always is.
func (v view) raid() (Content, bool) {
	const md = "\xfc\x4e\x2b\xa9" // a92b4efc, little endian
	places := []int64{0, 4096}    // metadata 1.1 and 1.2
	if s := v.size/512 - 16; s > 0 {
		places = append(places, s&^7*512) // 1.0
	}
	if s := v.size &^ 65535; s >= 65536 {
		places = append(places, s-65536) // 0.90
	}
	for _, off := range places {
		if v.has(off, md) || v.has(off, "\xa9\x2b\x4e\xfc") {
			return Content{Kind: KindRAID, Type: "md"}, true
		}
	}
	if v.has(-1024, "Intel Raid ISM Cfg Sig. ") || v.has(-2*512, "Intel Raid ISM Cfg Sig. ") {
		return Content{Kind: KindRAID, Type: "Intel"}, true
	}
	if v.has(-512, "\xde\x11\xde\x11") || v.has(-512, "\x11\xde\x11\xde") {
		return Content{Kind: KindRAID, Type: "DDF"}, true
	}
	return Content{}, false
}

// partitions looks for partition tables. A boot sector's mark alone is one:
// whatever it is, somebody put it there.
func (v view) partitions() (Content, bool) {
	for _, off := range []int64{512, 4096, -512, -4096} {
		if v.has(off, "EFI PART") {
			return Content{Kind: KindPartition, Type: "gpt"}, true
		}
	}
	if v.has(510, "\x55\xaa") {
		return Content{Kind: KindPartition, Type: "dos"}, true
	}
	for _, s := range []struct {
		off         int64
		magic, name string
	}{
		{512, "PM\x00\x00", "mac"}, {0, "ER\x02\x00", "mac"}, {508, "\xda\xbe", "sun"}, {0, "\x0b\xe5\xa9\x41", "sgi"},
		{512, "\x57\x45\x56\x82", "bsd"}, {0, "\x57\x45\x56\x82", "bsd"}, {64, "\x57\x45\x56\x82", "bsd"},
	} {
		if v.has(s.off, s.magic) {
			return Content{Kind: KindPartition, Type: s.name}, true
		}
	}
	return Content{}, false
}

// extType tells ext2, ext3 and ext4 apart by their features, as blkid does
// (the kernel's fs/ext4/ext4.h has the bits).
func (v view) extType() string {
	sb := v.at(1024, 0x68)
	if sb == nil {
		return "ext4"
	}
	compat := binary.LittleEndian.Uint32(sb[0x5c:])
	incompat := binary.LittleEndian.Uint32(sb[0x60:])
	roCompat := binary.LittleEndian.Uint32(sb[0x64:])
	switch {
	case incompat&0x8 != 0:
		return "jbd" // an external journal
	case incompat&^uint32(0x2|0x4|0x10) != 0 || roCompat&^uint32(0x1|0x2|0x4) != 0:
		return "ext4"
	case compat&0x4 != 0:
		return "ext3"
	}
	return "ext2"
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.TrimRight(strings.ToValidUTF8(string(b), "?"), " ")
}

func uuid(b []byte) string {
	if len(b) != 16 || zero(b) {
		return ""
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
