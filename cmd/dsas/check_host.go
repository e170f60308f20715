package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/blobs"
)

// software looks for what dsas takes from elsewhere: Debian's loaders, the
// programs of image builds, the programs that go into the initramfs.
func (c *checker) software() {
	var missing, packages []string
	optional := map[string]bool{} // whole sets: what of them is there is the state folder's to say
	must := 0
	for _, l := range c.loaders {
		if l.Set != "" {
			_, err := os.Stat(filepath.Join(c.cfg.path("loaders"), l.Name))
			if _, known := optional[l.Set]; !known {
				optional[l.Set] = true
			}
			optional[l.Set] = optional[l.Set] && err == nil
			continue
		}
		must++
		if _, err := os.Stat(l.Source); err != nil {
			missing = append(missing, l.Source)
			if !slices.Contains(packages, l.Package) {
				packages = append(packages, l.Package)
			}
		}
	}
	if len(missing) > 0 {
		c.fail("boot loaders", "missing: "+strings.Join(missing, ", "), "They are what firmware is given first.", "apt-get install "+strings.Join(packages, " "))
	} else {
		c.ok("boot loaders", "%d, all there", must)
	}
	// Whether a node needs them is known when it asks: it is refused and told so.
	for _, set := range slices.Sorted(maps.Keys(optional)) {
		if optional[set] {
			c.ok("boot loaders for "+set, "all there")
		} else {
			c.ok("boot loaders for "+set, "not there; nodes that need them get them by: dsas loader fetch %s", set)
		}
	}
	missing, packages = nil, nil
	for _, p := range []struct{ program, pkg string }{
		{"mmdebstrap", "mmdebstrap"}, {"zstd", "zstd"}, {"xz", "xz-utils"}, {"depmod", "kmod"}, {"ssh", "openssh-client"},
	} {
		if _, err := exec.LookPath(p.program); err != nil {
			missing, packages = append(missing, p.program), append(packages, p.pkg)
		}
	}
	if len(missing) > 0 {
		c.warn("programs", "missing: "+strings.Join(missing, ", "), "Images cannot be built here (mmdebstrap, zstd, xz, depmod), or nodes not be logged in to (ssh).", "apt-get install "+strings.Join(packages, " "))
	} else {
		c.ok("programs", "of image builds and dsas ssh: all there")
	}
	var errs []error
	for _, name := range []string{"dsas-init", "bb"} {
		if _, err := c.lib(name); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		c.warn("programs for nodes", strings.ReplaceAll(err.Error(), "\n", "; "), "No image can be built.", "make build, then: install -m 755 -D -t /usr/lib/dsas build/dsas-init build/bb")
	} else {
		c.ok("programs for nodes", "dsas-init, bb")
	}
}

// images looks whether there is a kernel, and an image for each role in use.
func (c *checker) images() {
	dir := c.cfg.path("images")
	if _, err := os.Stat(dir); err != nil {
		c.fail("images", "none is built", "No node can boot.", "dsas image build web")
		return
	}
	store, err := blobs.Open(dir)
	if err != nil {
		c.fail("images", err.Error(), "No node can boot.", "see that "+dir+" can be read")
		return
	}
	rels, err := store.Releases()
	if err != nil {
		c.fail("images", err.Error(), "No node can boot.", "dsas image build web")
		return
	}
	newest := map[string]dsas.Release{} // they are in the order of their numbers
	for _, r := range rels {
		newest[r.Role] = r
	}
	var names, bad, broken []string
	for _, role := range slices.Sorted(maps.Keys(newest)) {
		r := newest[role]
		names = append(names, r.Name())
		if r.Damaged != "" {
			bad, broken = append(bad, r.Damaged), append(broken, role)
		}
		for _, p := range slices.Concat(r.Boot.Parts(), r.Manifest.Parts) {
			if why := missingPart(store, p); why != "" {
				bad = append(bad, fmt.Sprintf("release %s, %s", r.Name(), why))
				broken = append(broken, role)
			}
		}
	}
	switch {
	case len(bad) > 0:
		c.fail("images", strings.Join(bad, "; "), "Nodes of these roles cannot boot.", "dsas image build "+strings.Join(slices.Compact(broken), " "))
	case len(names) == 0:
		c.fail("images", "no release", "No node can boot.", "dsas image build web")
	default:
		c.ok("images", "%s", strings.Join(names, ", "))
	}
}

// missingPart says what is wrong with a part's content, "" for nothing.
func missingPart(store *blobs.Store, p dsas.Part) string {
	f, n, err := store.Blob(p.Digest)
	if err != nil {
		return p.Title + " is missing"
	}
	f.Close()
	if n != p.Size {
		return fmt.Sprintf("%s has %d bytes, not %d", p.Title, n, p.Size)
	}
	return ""
}

// permissions looks who else may read the secrets or decide who logs in.
func (c *checker) permissions() {
	st, err := os.Stat(c.cfg.State)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.warn("state folder", c.cfg.State+" is not there", "dsas serve makes it when it starts.", "none needed, unless you expected nodes to be there already: then --state is wrong")
		c.keys()
		return
	case err != nil:
		c.fail("state folder", err.Error(), "Nothing can be kept.", "sudo dsas check, or another --state")
		return
	case !st.IsDir():
		c.fail("state folder", c.cfg.State+" is no folder", "Nothing can be kept.", "name a folder in state, or with --state")
		return
	case st.Mode().Perm()&0o022 != 0:
		c.fail("state folder", fmt.Sprintf("%s may be written by others (%#o)", c.cfg.State, st.Mode().Perm()), "They could replace the state and its key.", "chmod go-w "+c.cfg.State)
	default:
		c.ok("state folder", "%s", c.cfg.State)
	}
	private := []string{"dsas.db", "key", "tls.key"}
	good := 0
	for _, name := range private {
		p := c.cfg.path(name)
		st, err := os.Stat(p)
		if err != nil {
			if name == "key" && isFile(c.cfg.path("dsas.db")) {
				c.fail("key", p+" is missing", "The secrets in dsas.db (BMC passwords, host keys) cannot be read without it.", "put it back from the back-up")
			}
			continue
		}
		if st.Mode().Perm()&0o077 != 0 {
			c.fail(name, fmt.Sprintf("%s may be read by others (%#o)", p, st.Mode().Perm()), "It holds secrets, or opens them.", "chmod 600 "+p)
			continue
		}
		good++
	}
	if good > 0 {
		c.ok("secrets", "%s, for %s owner alone", dsas.Count(good, "file"), dsas.Agree(good, "its", "their"))
	}
	c.keys()
	c.forServer()
	c.writable()
}

// keys looks at the file that says who is root on every node.
func (c *checker) keys() {
	path := c.cfg.AuthorizedKeys
	if path == "" {
		path = c.keysOf()
	}
	const check = "authorized keys"
	if path == "" {
		c.warn(check, "none", "Nobody can log in to a node by ssh.", "put your public key into /etc/dsas/authorized_keys")
		return
	}
	if err := checkKeys(path); err != nil {
		c.fail(check, err.Error(), "dsas serve refuses to start.", "correct the line, or name another file in authorizedKeys")
		return
	}
	st, err := os.Stat(path)
	if err == nil && st.Mode().Perm()&0o022 != 0 {
		c.fail(check, fmt.Sprintf("%s may be written by others (%#o)", path, st.Mode().Perm()), "Who may write it is root on every node.", "chmod go-w "+path)
		return
	}
	c.ok(check, "%s", path)
}

// writable looks whether the state folder's file system takes a file.
func (c *checker) writable() {
	var st unix.Statfs_t
	if err := unix.Statfs(c.cfg.State, &st); err == nil && st.Flags&unix.ST_RDONLY != 0 {
		c.fail("state folder", c.cfg.State+" is on a file system that is mounted read-only", "No lease and no event can be kept.", "mount -o remount,rw it, and look in dmesg for what made it so")
	}
}

// database has SQLite look whether the state is whole. A server that runs has
// it open in WAL mode, and it is read beside it; else a copy is read, so that
// looking leaves no files behind that the server's user could not write.
func (c *checker) database(ctx context.Context) {
	const check = "database"
	path := c.cfg.path("dsas.db")
	if !isFile(path) {
		return // the state folder's finding says it
	}
	dsn := "file:" + path + "?mode=ro&_busy_timeout=5000"
	if c.running == 0 {
		dir, err := os.MkdirTemp("", "dsas-check-")
		if err != nil {
			c.warn(check, "not checked: "+err.Error(), "", "")
			return
		}
		defer os.RemoveAll(dir)
		copied := filepath.Join(dir, "dsas.db")
		for _, suffix := range []string{"", "-wal"} {
			if err := copyFile(copied+suffix, path+suffix); err != nil && !(suffix != "" && errors.Is(err, fs.ErrNotExist)) {
				c.warn(check, "not checked: "+err.Error(), "", "sudo dsas check, with as much room in "+os.TempDir()+" as dsas.db takes")
				return
			}
		}
		dsn = "file:" + copied
	}
	said, err := quickCheck(ctx, dsn)
	const why = "State that is damaged is lost bit by bit."
	const mend = "stop the server and put dsas.db back from the back-up"
	switch {
	case errors.Is(err, os.ErrPermission):
		c.warn(check, "not checked: "+err.Error(), "", "sudo dsas check")
	case err != nil:
		c.fail(check, fmt.Sprintf("%s: %v", path, err), why, mend)
	case said != "ok":
		c.fail(check, fmt.Sprintf("%s: %s", path, said), why, mend)
	default:
		c.ok(check, "sound (quick_check)")
	}
}

func quickCheck(ctx context.Context, dsn string) (string, error) {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return "", err
	}
	defer db.Close()
	var said string
	err = db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&said)
	return said, err
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// wantBuffer is what DHCP asks for: a rack's DISCOVERs at once.
const wantBuffer = 4 << 20

// receiveBuffers looks whether a burst fits the sockets.
func (c *checker) receiveBuffers() {
	const check = "receive buffers"
	limit, err := readInt(filepath.Join(c.proc, "sys/net/core/rmem_max"))
	if err != nil {
		c.warn(check, "not checked: "+err.Error(), "", "")
		return
	}
	const why = "400 boxes that ask at the same second overflow a smaller buffer, and ask again after 4 s."
	const mend = "sysctl -w net.core.rmem_max=4194304 (and in /etc/sysctl.d/dsas.conf), or give the server CAP_NET_ADMIN"
	pid := "self"
	if c.running > 0 {
		pid = strconv.Itoa(c.running)
	}
	if limit >= wantBuffer {
		c.ok(check, "net.core.rmem_max = %d", limit)
	} else if has, err := capable(filepath.Join(c.proc, pid, "status"), unix.CAP_NET_ADMIN); err == nil && has {
		c.ok(check, "forced beyond net.core.rmem_max = %d by CAP_NET_ADMIN", limit)
	} else {
		c.warn(check, fmt.Sprintf("net.core.rmem_max = %d", limit), why, mend)
	}
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// capable reads CapEff of a process's status (proc_pid_status(5)).
func capable(status string, cp int) (bool, error) {
	b, err := os.ReadFile(status)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return n&(1<<cp) != 0, err
		}
	}
	return false, fmt.Errorf("%s: no CapEff: %w", status, dsas.ErrNotFound)
}

// clock looks whether the time can be right. Nodes take the server's.
func (c *checker) clock() {
	const check = "clock"
	const why = "Nodes take their time from the server; leases, tokens and certificates go by it."
	now := c.now()
	if built := buildTime(); now.Before(built) {
		c.fail(check, fmt.Sprintf("%s, before this program was made (%s)", now.UTC().Format(time.DateTime), built.UTC().Format(time.DateTime)), why, "timedatectl set-ntp true, or date -s")
		return
	}
	if secs, err := readInt(c.rtc); err == nil {
		if off := now.Sub(time.Unix(secs, 0)).Abs().Round(time.Second); off > time.Minute {
			found := fmt.Sprintf("%s off the hardware clock", off)
			mend := "find out which is right (timedatectl); then hwclock --systohc, or date -s"
			if off%(30*time.Minute) < 5*time.Second {
				mend = "the hardware clock seems to be in local time: timedatectl set-local-rtc 0"
			}
			c.warn(check, found, "After a restart the time would jump. "+why, mend)
			return
		}
	}
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil && (state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0) {
		c.warn(check, now.UTC().Format(time.DateTime)+" UTC, not synchronised", why, "timedatectl set-ntp true, or install chrony")
		return
	}
	c.ok(check, "%s UTC, synchronised", now.UTC().Format(time.DateTime))
}

// buildTime is the commit's, as the toolchain stamped it, and at the least when
// this was written.
func buildTime() time.Time {
	t := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				if v, err := time.Parse(time.RFC3339, s.Value); err == nil && v.After(t) {
					t = v
				}
			}
		}
	}
	return t
}

// Room below which state or the next image may not fit, bytes.
const (
	fewBytes     = 2 << 30
	tooFewBytes  = 200 << 20
	tooFewInodes = 1000
)

// space looks for room where the state is.
func (c *checker) space() {
	dir := c.cfg.State
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir) // it will be made there
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.warn("disk space", "not checked: "+err.Error(), "", "")
		return
	}
	c.room(dir, int64(st.Bavail)*st.Bsize, int64(st.Files), int64(st.Ffree))
}

func (c *checker) room(dir string, free, files, freeFiles int64) {
	const check = "disk space"
	const mend = "make room; cache/ of the state folder may be removed between image builds"
	switch {
	case files > 0 && freeFiles < tooFewInodes:
		c.fail(check, fmt.Sprintf("%s: %d files can still be made", dir, freeFiles), "No lease can be given when the state cannot be written.", mend)
	case free < tooFewBytes:
		c.fail(check, fmt.Sprintf("%s: %d MiB free", dir, free>>20), "No lease can be given when the state cannot be written.", mend)
	case free < fewBytes:
		c.warn(check, fmt.Sprintf("%s: %d MiB free", dir, free>>20), "An image build needs some 2 GiB.", mend)
	default:
		c.ok(check, "%s: %.1f GiB free", dir, float64(free)/(1<<30))
	}
}
