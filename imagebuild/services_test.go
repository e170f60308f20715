package imagebuild

import (
	"slices"
	"strings"
	"testing"

	"dsas"
)

// sampleTree has a usrmerged root with a shell, an alternative and a broken link.
func sampleTree(files roleFiles) *merged {
	l := &layer{Dirs: map[string]dirAttr{}, index: index{Names: map[string]string{
		"bin": "@usr/bin", "sbin": "@usr/sbin", "usr/bin/dash": "x", "usr/bin/sh": "@dash", "usr/bin/env": "x", "usr/bin/awk": "@/etc/alternatives/awk",
		"etc/alternatives/awk": "@../../usr/bin/mawk", "usr/bin/mawk": "x", "usr/bin/loop": "@loop", "usr/bin/gone": "@/nowhere", "usr/sbin/daemon": "x",
		"usr/bin/data": "", "opt/app/bin/app": "x", "usr/bin/bash": "x", "usr/bin/removed": "x", "usr/lib/hidden/tool": "x", "usr/bin/dir": "@../lib",
	}}}
	for _, d := range []string{"usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib/hidden", "etc", "etc/alternatives", "opt", "opt/app", "opt/app/bin"} {
		l.Dirs[d] = dirAttr{}
	}
	over := &layer{Dirs: map[string]dirAttr{}, index: index{Names: map[string]string{}, Gone: []string{"usr/bin/removed"}, Empty: []string{"usr/lib/hidden"}}}
	return merge(l, nil, over, filesIndex(files))
}

func TestResolve(t *testing.T) {
	tree := sampleTree(nil)
	for name, want := range map[string]string{
		"/bin/sh": "x", "/usr/bin/awk": "x", "/sbin/daemon": "x", "/usr/bin/data": "", "/opt/app/bin/app": "x", "/usr/../bin/dash": "x", "/usr": "dir", "/usr/bin/dir": "dir",
		"/usr/bin/loop": "none", "/usr/bin/gone": "none", "/usr/bin/removed": "none", "/usr/lib/hidden/tool": "none", "/usr/bin/data/x": "none", "/nowhere": "none",
	} {
		got, ok := tree.resolve(name)
		if !ok {
			got = "none"
		}
		if got != want {
			t.Errorf("resolve(%s) = %q; want %q", name, got, want)
		}
	}
}

func TestCheckServices(t *testing.T) {
	role := dsas.Role{
		Name: "x", Services: []dsas.Service{{Name: "a"}},
		Templates: []dsas.Template{{Source: "t", Path: "/usr/local/bin/made"}}, Devices: []dsas.Device{{Key: "DBDEVICE", Mount: "/srv"}},
	}
	for _, c := range []struct{ name, run, want string }{
		{"plain", "#!/bin/sh\nset -eu\nexec daemon -f\n", ""},
		{"absolute", "#!/bin/sh\nexec /usr/sbin/daemon\n", ""},
		{"by link", "#! /usr/bin/env bash\nexec /opt/app/bin/app\n", ""},
		{"quoted", "#!/bin/sh\nexec \"/usr/sbin/daemon\" 'x'\n", ""},
		{"redirection", "#!/bin/sh\nexec 2>&1\nexec daemon\n", ""},
		{"variable", "#!/bin/sh\nexec $cmd\n", ""},
		{"variable in quotes", "#!/bin/sh\nexec \"$dir/prog\"\n", ""},
		{"own PATH", "#!/bin/sh\nPATH=/opt/other/bin:$PATH\nexec special\n", ""},
		{"asked for", "#!/bin/sh\nif command -v fast >/dev/null; then exec fast; fi\nexec daemon\n", ""},
		{"asked by test", "#!/bin/sh\n[ -x /usr/bin/fast ] && exec /usr/bin/fast\nexec daemon\n", ""},
		{"made on the node", "#!/bin/sh\nexec /run/x/prog\n", ""},
		{"on a disk", "#!/bin/sh\nexec /srv/prog\n", ""},
		{"rendered", "#!/bin/sh\nexec /usr/local/bin/made\n", ""},
		{"in a text", "#!/bin/sh\ncat <<E\nexec nothing\nE\nexec daemon\n", ""},
		{"own file", "#!/bin/sh\nexec ./helper\n", ""},
		{"program", "\x7fELF\x02", ""},
		{"not a shell's", "#!/usr/bin/awk -f\nBEGIN { exec nothing }\n", ""},
		{"no such command", "#!/bin/sh\nset -e\nexec nosuch --x\n", "services/a/run:3: command-missing"},
		{"no such path", "#!/bin/sh\nexec /usr/bin/nosuch\n", "services/a/run:2: command-missing"},
		{"no program", "#!/bin/sh\nexec /usr/bin/data\n", "services/a/run:2: command-missing"},
		{"removed", "#!/bin/sh\nexec removed\n", "services/a/run:2: command-missing"},
		{"broken link", "#!/bin/sh\nexec gone\n", "services/a/run:2: command-missing"},
		{"nested", "#!/bin/bash\nif true; then\n  exec \\\n    nosuch\nfi\n", "services/a/run:4: command-missing"},
		{"interpreter", "#!/usr/bin/python3\n", "services/a/run:1: interpreter-missing"},
		{"interpreter by env", "#!/usr/bin/env python3\n", "services/a/run:1: interpreter-missing"},
		{"none", "exec daemon\n", "services/a/run:1: interpreter-missing"},
		{"empty", "", "services/a/run:1: interpreter-missing"},
		{"relative", "#!bin/sh\n", "services/a/run:1: interpreter-missing"},
	} {
		files := roleFiles{
			{Path: "etc/dsas/services/a/run", Mode: 0o755, Data: []byte(c.run)},
			{Path: "etc/dsas/services/a/helper", Mode: 0o755, Data: []byte("#!/bin/sh\n")},
		}
		got := checkServices(role, files, sampleTree(files))
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0].String(), c.want)) {
			t.Errorf("%s: checkServices = %v; want %q", c.name, got, c.want)
		}
	}
	files := roleFiles{{Path: "etc/dsas/services/a/log/run", Mode: 0o644, Data: []byte("#!/bin/sh\n")}, {Path: "etc/dsas/services/a/check", Mode: 0o777, Link: "/usr/bin/nosuch"}}
	var rules []string
	for _, f := range checkServices(role, files, sampleTree(files)) {
		rules = append(rules, f.Path+" "+f.Rule)
	}
	want := []string{"services/a/run run-missing", "services/a/log/run not-executable", "services/a/check command-missing"}
	if !slices.Equal(rules, want) {
		t.Errorf("checkServices = %q; want %q", rules, want)
	}
}

func TestCapabilities(t *testing.T) {
	// struct vfs_cap_data, revision 2: cap_net_raw (13) permitted and effective;
	// checkpoint_restore (40) is in the second word.
	for attr, want := range map[string]string{
		"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00": "cap_net_raw",
		"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00": "cap_net_bind_service cap_checkpoint_restore",
		"\x00\x00\x00\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00": "cap_chown",
		"": "",
	} {
		if got := strings.Join(capabilities(attr), " "); got != want {
			t.Errorf("capabilities(%q) = %s; want %s", attr, got, want)
		}
	}
}
