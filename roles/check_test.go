package roles

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"dsas"
)

func TestParseErrors(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "name: x\npackges: [a]\n", []string{"line 2", `"packges"`, `"packages"`}},
		{"unknown nested key", "name: x\nservices:\n  - name: a\n    chek: {tcp: \"a:1\"}\n", []string{"line 4", `"chek"`, `"check"`}},
		{"key like no other", "name: x\nzzzzzzzz: 1\n", []string{"line 2", "known keys are", "carriesSites"}},
		{"twice", "name: x\nname: y\n", []string{"line 2", "name"}},
		{"wrong kind", "name: x\npackages: {a: b}\n", []string{"line 2"}},
		{"duration", "name: x\nservices:\n  - name: a\n    timeout: soon\n", []string{"line 4", "soon"}},
		{"syntax", "name: [x\n", []string{"line 1"}},
		{"empty", "", []string{"empty"}},
		{"two documents", "name: x\n---\nname: y\n", []string{"more than one document"}},
	} {
		_, err := Parse([]byte(c.text))
		if !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("%s: Parse error = %v; want ErrInvalid", c.name, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: Parse error = %v; want it to say %s", c.name, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: Parse error has several lines: %q", c.name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{commonDir, "lb", "web", "db"} {
		text, err := fs.ReadFile(shipped, name+"/role.yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		role, err := Parse(text)
		if err != nil {
			return
		}
		// Whatever parses can be checked without a panic.
		_ = Check(Definition{Role: role, FS: fstest.MapFS{}})
	})
}

// checkYAML checks a role.yaml beside the given files.
func checkYAML(t *testing.T, text string, files map[string]string) error {
	t.Helper()
	role, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return Check(Definition{Role: role, FS: m})
}

func TestCheck(t *testing.T) {
	run := map[string]string{"services/a/run": "#!/bin/sh\n", "services/b/run": "#!/bin/sh\n"}
	tmpl := func(text string) map[string]string { return map[string]string{"templates/t": text} }
	for _, c := range []struct {
		name, text string
		files      map[string]string
		want       string // "" for: is right
	}{
		{"right", "name: x\nservices: [{name: a, check: {tcp: \"127.0.0.1:1\"}}, {name: b, after: [a]}]\n", run, ""},
		{"name", "name: X_\n", nil, "role name"},
		{"package", "name: x\npackages: [\"a;reboot\"]\n", nil, "package"},
		{"package twice", "name: x\npackages: [aa, aa]\n", nil, "twice"},
		{"module", "name: x\nmodules: [\"a b\"]\n", nil, "module"},
		{"memory", "name: x\nmemory: 512 megs\n", nil, "512MiB"},
		{"boot time", "name: x\nbootTime: -1s\n", nil, "a time that a boot may take"},
		{"remove", "name: x\nremove: [/]\n", nil, "remove"},
		{"no run", "name: x\nservices: [{name: c}]\n", nil, "services/c/run is missing"},
		{"no shebang", "name: x\nservices: [{name: a}]\n", map[string]string{"services/a/run": "exec x\n"}, "#!/"},
		{"DOS", "name: x\nservices: [{name: a}]\n", map[string]string{"services/a/run": "#!/bin/sh\r\nexec x\r\n"}, "DOS"},
		{"service twice", "name: x\nservices: [{name: a}, {name: a}, {name: b}]\n", run, "twice"},
		{"not listed", "name: x\nservices: [{name: a}]\n", run, "services/b"},
		{"after", "name: x\nservices: [{name: a, after: [c]}, {name: b}]\n", run, `after "c"`},
		{"cycle", "name: x\nservices: [{name: a, after: [b]}, {name: b, after: [a]}]\n", run, "a after b after a"},
		{"self", "name: x\nservices: [{name: a, after: [a]}, {name: b}]\n", run, "a after a"},
		{"two kinds", "name: x\nservices: [{name: a, check: {tcp: \"h:1\", exec: \"true\"}}, {name: b}]\n", run, "exactly one"},
		{"no kind", "name: x\nservices: [{name: a, check: {interval: 1s}}, {name: b}]\n", run, "exactly one"},
		{"check file too", "name: x\nservices: [{name: a, check: {exec: \"true\"}}]\n",
			map[string]string{"services/a/run": "#!/bin/sh\n", "services/a/check": "#!/bin/sh\n"}, "keep one"},
		{"https", "name: x\nservices: [{name: a, check: {http: \"localhost/x\"}}, {name: b}]\n", run, "http://"},
		{"tcp", "name: x\nservices: [{name: a, check: {tcp: \"localhost\"}}, {name: b}]\n", run, "127.0.0.1:22"},
		{"negative", "name: x\nservices: [{name: a, timeout: -1s}, {name: b}]\n", run, "timeout -1s"},
		{"device key", "name: x\ndevices: [{key: DBDISK}]\n", nil, "DEVICE"},
		{"device fs", "name: x\ndevices: [{key: DBDEVICE, mount: /data, fs: ntfs}]\n", nil, "ext4"},
		{"device mount", "name: x\ndevices: [{key: DBDEVICE, mount: data, fs: ext4}]\n", nil, "absolute"},
		{"device twice", "name: x\ndevices: [{key: DBDEVICE}, {key: DBDEVICE}]\n", nil, "twice"},
		{"template path", "name: x\ntemplates: [{source: t, path: /etc/../t}]\n", tmpl(""), "absolute"},
		{"template at dsas.conf", "name: x\ntemplates: [{source: t, path: /etc/dsas.conf}]\n", tmpl(""), "not a role's"},
		{"template out", "name: x\ntemplates: [{source: ../t, path: /etc/t}]\n", tmpl(""), "below templates/"},
		{"template missing", "name: x\ntemplates: [{source: u, path: /etc/t}]\n", nil, "templates/u is missing"},
		{"template mode", "name: x\ntemplates: [{source: t, path: /etc/t, mode: \"4755\"}]\n", tmpl(""), "mode"},
		{"template service", "name: x\ntemplates: [{source: t, path: /etc/t, service: c}]\n", tmpl(""), `"c"`},
		{"template parses", "name: x\ntemplates: [{source: t, path: /etc/t}]\n", tmpl("{{if}}"), "t:1"},
		{"template field", "name: x\ntemplates: [{source: t, path: /etc/t}]\n", tmpl("{{.Nod}}"), "Nod"},
		{"template variable", "name: x\ntemplates: [{source: t, path: /etc/t}]\n", tmpl("{{.Settings.Variables.X}}"), "X"},
		{"template only with sites", "name: x\ntemplates: [{source: t, path: /etc/t}]\n", tmpl("{{(index .Sites 0).Name}}"), "sample"},
		{"usrmerge", "name: x\n", map[string]string{"files/lib/x": ""}, "files/usr/lib"},
		{"dsas.conf", "name: x\n", map[string]string{"dsas.conf": "{{.Nod}}"}, "Nod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkYAML(t, c.text, c.files)
			if c.want == "" {
				if err != nil {
					t.Errorf("Check = %v; want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, dsas.ErrInvalid) {
				t.Errorf("Check = %v; want ErrInvalid that says %q", err, c.want)
			}
		})
	}
}

func TestAllowNeedsReason(t *testing.T) {
	for _, a := range []dsas.Allow{{Path: "files/x"}, {Path: "files/x", Reason: " "}, {Reason: "why"}, {Path: "[", Reason: "why"}} {
		err := Check(Definition{Role: dsas.Role{Name: "x", Allow: []dsas.Allow{a}}, FS: fstest.MapFS{}})
		if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "allow") {
			t.Errorf("Check(allow %+v) = %v; want ErrInvalid that names it", a, err)
		}
	}
	if err := Check(Definition{Role: dsas.Role{Name: "x", Allow: []dsas.Allow{{Path: "files/*.key", Reason: "a sample"}}}, FS: fstest.MapFS{}}); err != nil {
		t.Errorf("Check(allow with a reason) = %v; want nil", err)
	}
}
