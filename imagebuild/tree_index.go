package imagebuild

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"

	"dsas/imagebuild/layers"
	"dsas/internal/xattr"
)

// index is what a layer has, as far as the checks ask.
type index struct {
	// Names has every file and link: "x" for what can be executed, "" for what
	// cannot, "@TARGET" for a link.
	Names map[string]string `json:",omitempty"`
	Gone  []string          `json:",omitempty"` // whiteouts
	Empty []string          `json:",omitempty"` // folders that hide those below
	// Privileged are the files whose users get more rights than they have.
	Privileged []Privileged `json:",omitempty"`
	Found      []Finding    `json:",omitempty"`
}

// note records an entry of a layer's tar other than a folder.
func (x *index) note(h *tar.Header) {
	switch removes, opaque, is := layers.Whiteout(h.Name); {
	case opaque:
		x.Empty = append(x.Empty, removes)
		return
	case is && removes != "":
		x.Gone = append(x.Gone, removes)
		return
	case is:
		return
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		x.Names[h.Name] = "@" + h.Linkname
		return
	case tar.TypeLink:
		x.Names[h.Name] = x.Names[h.Linkname]
	case tar.TypeReg:
		x.Names[h.Name] = ""
		if h.Mode&0o111 != 0 {
			x.Names[h.Name] = "x"
		}
	default:
		x.Names[h.Name] = ""
		return
	}
	caps := capabilities(h.PAXRecords[xattr.PAX+xattr.Capability])
	if h.Mode&0o6000 != 0 || len(caps) > 0 {
		x.Privileged = append(x.Privileged, Privileged{Path: "/" + h.Name, Mode: fmt.Sprintf("%04o", h.Mode), UID: h.Uid, GID: h.Gid, Capabilities: caps})
	}
}

// Privileged is a file that gives who runs it rights of its own.
type Privileged struct {
	Path         string   `json:"path"`                   // absolute
	Mode         string   `json:"mode"`                   // "4755"
	UID          int      `json:"uid"`                    // owner
	GID          int      `json:"gid"`                    // group
	Capabilities []string `json:"capabilities,omitempty"` // "cap_net_raw"; permitted or inheritable
}

// merged is the tree that layers make together.
type merged struct {
	names      map[string]string
	dirs       map[string]bool
	privileged map[string]Privileged
}

func merge(layers ...*layer) *merged {
	m := &merged{names: map[string]string{}, dirs: map[string]bool{"": true}, privileged: map[string]Privileged{}}
	for _, l := range layers {
		if l == nil {
			continue
		}
		for _, n := range l.Gone {
			m.remove(n, true)
		}
		for _, n := range l.Empty {
			m.remove(n, false)
		}
		for n := range l.Dirs {
			delete(m.names, n)
			m.dirs[n] = true
		}
		for n, kind := range l.Names {
			m.names[n] = kind
			delete(m.privileged, n)
		}
		for _, p := range l.Privileged {
			m.privileged[strings.TrimPrefix(p.Path, "/")] = p
		}
	}
	return m
}

// remove takes out what is below name, and name itself where asked.
func (m *merged) remove(name string, self bool) {
	below := func(n string) bool { return self && n == name || strings.HasPrefix(n, name+"/") }
	for n := range m.names {
		if below(n) {
			delete(m.names, n)
			delete(m.privileged, n)
		}
	}
	for n := range m.dirs {
		if below(n) {
			delete(m.dirs, n)
		}
	}
}

// resolve follows the links on the way to an absolute path and gives what is
// there: "x", "" or "dir"; false where nothing is.
func (m *merged) resolve(name string) (kind string, ok bool) {
	rest := strings.TrimPrefix(path.Clean("/"+name), "/")
	at := ""
	for hops := 0; rest != ""; {
		first, more, _ := strings.Cut(rest, "/")
		next := path.Join(at, first)
		kind, isName := m.names[next]
		if target, isLink := strings.CutPrefix(kind, "@"); isName && isLink {
			if hops++; hops > 40 { // as the kernel, ELOOP
				return "", false
			}
			if !path.IsAbs(target) {
				target = path.Join("/", at, target)
			}
			at, rest = "", strings.TrimPrefix(path.Join(target, more), "/")
			continue
		}
		if isName {
			return kind, more == ""
		}
		if !m.dirs[next] {
			return "", false
		}
		at, rest = next, more
	}
	return "dir", true
}

// capabilities names what struct vfs_cap_data (capabilities(7), "File
// capability extended attribute versioning") permits or lets be inherited.
func capabilities(attr string) []string {
	if len(attr) < 12 {
		return nil
	}
	var bits uint64
	for i, words := 4, 0; i+8 <= len(attr) && words < 2; i, words = i+8, words+1 {
		for j := range 8 { // permitted, then inheritable: 4 bytes each, little-endian
			bits |= uint64(attr[i+j]) << (8*(j%4) + 32*words)
		}
	}
	var out []string
	for i, n := range capNames {
		if bits&(1<<i) != 0 {
			out = append(out, "cap_"+n)
		}
	}
	return out
}

// capNames are in the order of linux/capability.h.
var capNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
	net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct
	sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap
	mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

// filesIndex is the index of a role's own files.
func filesIndex(files roleFiles) *layer {
	l := &layer{Dirs: map[string]dirAttr{}, index: index{Names: map[string]string{}}}
	for _, f := range files {
		switch {
		case f.Link != "":
			l.Names[f.Path] = "@" + f.Link
		case f.Mode&0o111 != 0:
			l.Names[f.Path] = "x"
		default:
			l.Names[f.Path] = ""
		}
		if caps := capabilities(f.Attrs.Map()[xattr.Capability]); len(caps) > 0 {
			l.Privileged = append(l.Privileged, Privileged{Path: "/" + f.Path, Mode: fmt.Sprintf("%04o", f.Mode), Capabilities: caps})
		}
		for d := path.Dir(f.Path); d != "."; d = path.Dir(d) {
			l.Dirs[d] = dirAttr{}
		}
	}
	return l
}

// lineOf gives the line of the first text line that has word, or 0.
func lineOf(text []byte, word string) int {
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if strings.Contains(line, word) {
			return n
		}
	}
	return 0
}
