package main

import (
	"fmt"
	"io/fs"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dsas/internal/signing"
)

// reader is a user as file modes see it. Access lists (acl(5)) are not looked at.
type reader struct {
	name   string
	uid    int
	groups []int
	hidden []string // folders that are empty to it
}

// serverUser is whose the state is: who dsas serve runs as. Where that is who
// checks, or root, opening a file has said all.
func (c *checker) serverUser() (r reader, other bool) {
	o, err := stateOwner(c.cfg.State)
	if err != nil || o.uid == 0 || o.uid == unix.Geteuid() {
		return r, false
	}
	r = reader{name: userName(o.uid), uid: o.uid, groups: []int{o.gid}}
	if u, err := user.LookupId(strconv.Itoa(o.uid)); err == nil {
		ids, _ := u.GroupIds() // what is not known gives no right
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				r.groups = append(r.groups, n)
			}
		}
	}
	if r.name == "dsas" {
		r.hidden = []string{"/root", "/home", "/run/user"} // the unit's ProtectHome
	}
	return r, true
}

// may tells whether the mode bits (inode(7)) give r all of want: 4 to read, 1 to
// enter.
func (r reader) may(st *unix.Stat_t, want uint32) bool {
	mode := st.Mode & 7
	switch {
	case int(st.Uid) == r.uid:
		mode = st.Mode >> 6 & 7
	case slices.Contains(r.groups, int(st.Gid)):
		mode = st.Mode >> 3 & 7
	}
	return mode&want == want
}

// reads says what keeps r from reading a file or listing a folder, "" for
// nothing. A path that is not there is somebody else's finding.
func (r reader) reads(path string) (why string) {
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return ""
	}
	for _, dir := range r.hidden {
		if strings.HasPrefix(path, dir+"/") {
			return path + ": the service does not see " + dir
		}
	}
	want := uint32(4)
	for p := path; ; p = filepath.Dir(p) {
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil {
			return ""
		}
		need := want
		if p == path && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			need |= 1
		}
		if !r.may(&st, need) {
			return fmt.Sprintf("user %s may not read %s (%#o)", r.name, p, st.Mode&0o777)
		}
		if p == filepath.Dir(p) {
			return ""
		}
		want = 1
	}
}

// forServer looks whether the server's user may read what was made for it,
// mostly by root with a strict umask.
func (c *checker) forServer() {
	const check = "files for the server"
	r, other := c.serverUser()
	if !other {
		return
	}
	paths := []string{c.cfg.ConsolePasswordFile, c.cfg.AuthorizedKeys}
	for _, top := range []string{c.cfg.Roles, c.cfg.path("loaders"), c.cfg.path("images", "roles"), c.cfg.path("images", "blobs", "sha256")} {
		if top, err := filepath.EvalSymlinks(top); err == nil {
			filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
				if err == nil && (e.IsDir() || e.Type().IsRegular()) {
					paths = append(paths, p)
				}
				return nil
			})
		}
	}
	public, _ := filepath.Glob(filepath.Join(c.cfg.Keys, "*"+signing.PubExt)) // the pattern is well-formed
	paths = append(paths, public...)
	var bad []string
	for _, p := range paths {
		if p == "" {
			continue
		}
		if why := r.reads(p); why != "" && !slices.Contains(bad, why) {
			bad = append(bad, why)
		}
	}
	if len(bad) == 0 {
		c.ok(check, "user %s may read them", r.name)
		return
	}
	if more := len(bad) - 3; more > 0 {
		bad = append(bad[:3], fmt.Sprintf("and %d more", more))
	}
	c.fail(check, strings.Join(bad, "; "), "dsas serve runs as that user: it refuses to start, or nodes do not get them.",
		"chmod o+r the files and o+rx the folders, or chgrp "+r.name+" them; keys and passwords belong below "+defaultConfigDir)
}

// keysOf is defaultKeys as the server's user sees it.
func (c *checker) keysOf() string {
	path := defaultKeys()
	if r, other := c.serverUser(); other && path != "" && path != defaultConfigDir+"/authorized_keys" {
		home := ""
		if u, err := user.LookupId(strconv.Itoa(r.uid)); err == nil {
			home = u.HomeDir
		}
		path = filepath.Join(home, ".ssh", "authorized_keys")
		if !isFile(path) {
			return ""
		}
	}
	return path
}
