// Package xattr has the extended attributes (xattr(7)) that images keep: file
// capabilities, POSIX ACLs and user attributes. It reads them from files and
// from a tar's PAX records, and reads and writes them as a text in the form of
// getfattr --dump.
package xattr

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// PAX is what a tar's PAX record for an attribute begins with (star's extension).
const PAX = "SCHILY.xattr."

// Names of attributes.
const (
	Capability = "security.capability"      // struct vfs_cap_data (capabilities(7))
	ACL        = "system.posix_acl_access"  // acl(5)
	DefaultACL = "system.posix_acl_default" // of a folder alone
)

// Bounds of Linux (xattr(7), limits.h): of one value, of a file's names together,
// in bytes.
const (
	MaxValue = 64 << 10
	maxNames = 64 << 10
)

// Classes are the beginnings of the names that images keep. A file system holds
// all of a class or none: tmpfs has user attributes since Linux 6.6 alone.
var Classes = []string{Capability, "system.posix_acl_", "user."}

// probes are names by which to ask a file system for a class.
var probes = []string{Capability, ACL, "user.dsas"}

// Class gives the class of an attribute's name; "": images do not keep it. What
// overlayfs notes for itself in a user namespace is none of the file's.
func Class(name string) string {
	if strings.HasPrefix(name, "user.overlay.") {
		return ""
	}
	for _, c := range Classes {
		if name == c || c != Capability && strings.HasPrefix(name, c) {
			return c
		}
	}
	return ""
}

// List is a file's attributes as a value that can be compared: of the same
// attributes it is the same. Each is its name and its value in hex, both ended by
// NUL, sorted by name.
type List string

// Of makes a list of values by name. An ACL that says no more than a mode is left
// out: Linux keeps it as that.
func Of(values map[string]string) List {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name == ACL && len(values[name]) == aclHeader+3*aclEntry {
			continue
		}
		b.WriteString(name + "\x00" + hex.EncodeToString([]byte(values[name])) + "\x00")
	}
	return List(b.String())
}

// OfPAX makes a list of a tar's PAX records; all attributes there are, kept or not.
func OfPAX(records map[string]string) List {
	var out map[string]string
	for record, value := range records {
		if name, ok := strings.CutPrefix(record, PAX); ok {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return Of(out)
}

// All gives the attributes by name.
func (l List) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for rest := string(l); rest != ""; {
			name, more, _ := strings.Cut(rest, "\x00")
			digits, more, _ := strings.Cut(more, "\x00")
			value, _ := hex.DecodeString(digits) // Of wrote it
			if !yield(name, string(value)) {
				return
			}
			rest = more
		}
	}
}

// Map gives values by name.
func (l List) Map() map[string]string { return maps.Collect(l.All()) }

// Kept is what of a list an image keeps.
func (l List) Kept() List {
	out := l.Map()
	maps.DeleteFunc(out, func(name, _ string) bool { return Class(name) == "" })
	return Of(out)
}

// Over gives what a file with the attributes below has when those of l are set.
func (l List) Over(below List) List {
	if below == "" {
		return l
	}
	out := below.Map()
	maps.Copy(out, l.Map())
	return Of(out)
}

// Records gives the PAX records of a tar; nil for none.
func (l List) Records() map[string]string {
	var out map[string]string
	for name, value := range l.All() {
		if out == nil {
			out = map[string]string{}
		}
		out[PAX+name] = value
	}
	return out
}

// Read gives what of a file's attributes an image keeps; of a symlink its own.
func Read(file string) (List, error) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(file, names)
	if errors.Is(err, unix.ERANGE) {
		names = make([]byte, maxNames)
		n, err = unix.Llistxattr(file, names)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: list attributes: %w", file, err)
	}
	out := map[string]string{}
	for raw := range bytes.SplitSeq(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		name := string(raw)
		if Class(name) == "" {
			continue
		}
		value := make([]byte, MaxValue)
		n, err := unix.Lgetxattr(file, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: attribute %s: %w", file, name, err)
		}
		out[name] = string(value[:n])
	}
	return Of(out), nil
}

// Unheld gives the classes that the file system of a folder cannot hold.
func Unheld(folder string) (classes []string) {
	for i, name := range probes {
		if _, err := unix.Lgetxattr(folder, name, nil); errors.Is(err, unix.ENOTSUP) {
			classes = append(classes, Classes[i])
		}
	}
	return classes
}

// Sizes of an ACL's parts in bytes, its version and the tags of its entries
// (linux/posix_acl_xattr.h, linux/posix_acl.h).
const (
	aclHeader = 4
	aclEntry  = 8

	aclVersion  = 2
	aclUserObj  = 0x01
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
)

// Mode gives the mode of a file that has these attributes and had this mode
// before: an ACL has its permissions, and its mask is what a mode shows as the
// group's (acl(5), "Correspondence between ACL entries and file permission bits").
func (l List) Mode(mode uint32) uint32 {
	acl := []byte(l.Map()[ACL])
	if len(acl) < aclHeader || binary.LittleEndian.Uint32(acl) != aclVersion {
		return mode
	}
	var user, group, mask, other uint16
	masked := false
	for e := acl[aclHeader:]; len(e) >= aclEntry; e = e[aclEntry:] {
		perm := binary.LittleEndian.Uint16(e[2:]) & 0o7
		switch binary.LittleEndian.Uint16(e) {
		case aclUserObj:
			user = perm
		case aclGroupObj:
			group = perm
		case aclMask:
			mask, masked = perm, true
		case aclOther:
			other = perm
		}
	}
	if masked {
		group = mask
	}
	return mode&^0o777 | uint32(user)<<6 | uint32(group)<<3 | uint32(other)
}
