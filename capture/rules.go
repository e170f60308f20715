package capture

import (
	"path"
	"slices"
	"strings"

	"dsas/internal/xattr"
)

// noise is what a running node has and no image should: what is made at run
// time, what the server gives each node, what is one machine's own, and the
// bookkeeping of packages. With a slash at the end: all below, too.
var noise = []string{
	"proc/", "sys/", "dev/", "run/", "tmp/", "boot/", "sysroot/", "lost+found/",
	"var/tmp/", "var/log/", "var/cache/", "var/backups/", "var/mail/", "var/spool/",
	"var/lib/",                                                              // packages' bookkeeping, and what services keep: data is no part of an image
	"usr/lib/modules/",                                                      // the served kernel's
	"usr/sbin/reboot", "usr/sbin/poweroff", "usr/sbin/halt", "usr/sbin/svc", // links our init makes
	"etc/dsas.conf", "etc/dsas/console-password", "etc/hostname", "etc/hosts", "etc/resolv.conf", // the server's
	"etc/machine-id", "etc/mtab", "etc/adjtime", "etc/ld.so.cache", "etc/.pwd.lock",
	"etc/shadow", "etc/gshadow", // passwords; the console's is put there at each boot
	"root/.ssh/", "root/.cache/", "root/.local/", "root/.config/", "root/.lesshst", "root/.viminfo",
}

// noisy are names of what editors, shells and our own writing leave.
var noisy = []string{"*.dsas-new", ".*.sw[a-p]", "*~", "#*#", ".*_history", "*.pid"}

// secret are names of what is one machine's or one person's key.
var secret = []string{
	"etc/ssh/ssh_host_*", "etc/ssl/private/*", "etc/letsencrypt/archive/*", "etc/letsencrypt/accounts/*", "etc/krb5.keytab", "etc/wireguard/*",
	"home/*/.ssh/*", "*/id_rsa", "*/id_ed25519", "*/id_ecdsa", "etc/apt/auth.conf", "etc/apt/auth.conf.d/*",
}

// Rules say what is no change of a role's.
type Rules struct {
	// Rendered are the absolute paths of what the server writes per node.
	Rendered []string
	// LeftOut tells what no image holds (imagebuild.LeftOut); nil: nothing.
	LeftOut func(name string, dir bool) bool
	// Unheld are the classes of extended attributes (package xattr) that the tree's
	// file system cannot hold, or of which nothing is known. They are taken to be
	// as the release has them.
	Unheld []string
}

// attrs gives a file's attributes as they count: what the file system could not
// take from the release is no change, and is carried with the file.
func (r Rules) attrs(w, g Entry) xattr.List {
	if w.Attrs == "" || w.Type != g.Type {
		return g.Attrs
	}
	out := g.Attrs.Map()
	for name, value := range w.Attrs.All() {
		// A symlink holds no others on any file system (xattr(7)).
		if class := xattr.Class(name); slices.Contains(r.Unheld, class) || g.Type == 'l' && class != xattr.Capability {
			out[name] = value
		}
	}
	return xattr.Of(out)
}

// ignores tells whether a path (no leading slash) is of no interest.
func (r Rules) ignores(name string, dir bool) bool {
	for _, n := range noise {
		if top, below := strings.CutSuffix(n, "/"); name == top || below && strings.HasPrefix(name, n) {
			return true
		}
	}
	base := path.Base(name)
	for _, n := range noisy {
		if ok, _ := path.Match(n, base); ok {
			return true
		}
	}
	for _, n := range secret {
		full := name
		if strings.HasPrefix(n, "*/") {
			full = "x/" + base
		}
		if ok, _ := path.Match(n, full); ok {
			return true
		}
	}
	if slices.Contains(r.Rendered, "/"+name) {
		return true
	}
	if r.LeftOut == nil {
		return false
	}
	if r.LeftOut(name, dir) {
		return true
	}
	// What is below a folder that is left out, is.
	for up := path.Dir(name); up != "."; up = path.Dir(up) {
		if r.LeftOut(up, true) {
			return true
		}
	}
	return false
}
