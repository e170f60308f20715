package imagebuild

import (
	"bytes"
	"os"
	"path"
	"regexp"
	"strings"
)

// What of an installed tree is no part of an image: caches, logs, what a build
// leaves, and whatever is secret or one machine's own. Patterns of path.Match
// over the path without its leading slash.
var (
	dropped = []string{
		"etc/ssh/ssh_host_*", "etc/ssl/private/*", // keys: a node's come from its server
		"etc/shadow-", "etc/gshadow-", "etc/passwd-", "etc/group-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
		"etc/apt/sources.list", "etc/apt/sources.list.d/*", "etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/auth.conf", "etc/apt/auth.conf.d/*",
		"etc/resolv.conf", "etc/hostname", // the agent writes them
		"usr/sbin/policy-rc.d",
		"var/lib/apt/lists/*", "var/cache/apt/*", "var/lib/apt/periodic", "var/lib/apt/mirrors",
		"var/cache/debconf/*-old", "var/cache/ldconfig/*", "var/cache/man/*", "var/cache/fontconfig/*",
		"var/lib/dpkg/*-old", "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock",
		"var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
		"var/backups/*", "var/tmp/*", "root/.*_history", "root/.wget-hsts",
		"usr/share/doc-base/*", "usr/share/lintian/*",
	}
	// Filled by the kernel and by tmpfs at boot.
	emptied = []string{"dev", "proc", "sys", "run", "tmp", "boot", "etc/machine-id"}
)

// imageRule tells what becomes of a path of an installed tree.
func imageRule(name string, dir bool) verdict {
	for _, p := range dropped {
		if ok, _ := path.Match(p, name); ok {
			return drop
		}
	}
	for _, p := range emptied {
		if name == p {
			return empty
		}
	}
	// Folders of logs stay: daemons want theirs with its owner.
	if strings.HasPrefix(name, "var/log/") && !dir {
		return drop
	}
	return keep
}

// maxSecretFile bounds the files that are searched for private keys, in bytes:
// keys stand in small files.
const maxSecretFile = 1 << 20

// privateKeyRE wants the beginning of a key's body behind the marker, since
// the programs that read keys have the marker alone.
var privateKeyRE = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\r?\n(?:[A-Za-z-]+: [^\n]*\n|\r?\n)*[A-Za-z0-9+/=]{32}`)

// checkSecrets looks for a private key or a password in a file of a built
// tree: everyone on the boot network can fetch an image. These rules are
// cheaper than those for a role's own files (checkSources): a tree has
// thousands of files, which come from signed packages.
func checkSecrets(name, file string, size int64) ([]Finding, error) {
	if size > maxSecretFile {
		return nil, nil
	}
	if name != "etc/shadow" && name != "etc/gshadow" && size < 64 {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return secretsIn(name, b), nil
}

const whySecret = "images hold no secrets, everyone on the boot network can fetch them"

// secretsIn looks into the content of the tree's file of this name (without
// leading slash).
func secretsIn(name string, b []byte) []Finding {
	if name == "etc/shadow" || name == "etc/gshadow" {
		return passwordsIn(name, b)
	}
	if !bytes.Contains(b, []byte("PRIVATE KEY-----")) {
		return nil
	}
	at := privateKeyRE.FindIndex(b)
	if at == nil {
		return nil
	}
	return []Finding{{
		Path: "/" + name, Line: 1 + bytes.Count(b[:at[0]], []byte("\n")), Rule: "private-key", Reason: "it holds a private key; " + whySecret,
		Way: "leave it out, or name its folder under remove: in role.yaml",
	}}
}

func passwordsIn(name string, b []byte) (out []Finding) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 2 {
			continue
		}
		if name == "etc/shadow" && f[1] == "" {
			out = append(out, Finding{
				Path: "/" + name, Line: n, Rule: "empty-password", Reason: "user " + f[0] + " has an empty password",
				Way: "lock it (usermod -L) in the package or file that makes it",
			})
		}
		if f[1] != "" && f[1][0] != '*' && f[1][0] != '!' {
			out = append(out, Finding{
				Path: "/" + name, Line: n, Rule: "password", Reason: f[0] + " has a password; " + whySecret,
				Way: "lock it (usermod -L) in the package or file that makes it; log in by key",
			})
		}
	}
	return out
}
