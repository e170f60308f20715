package imagebuild

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"dsas"
)

func TestAllowance(t *testing.T) {
	all := []Finding{
		{Path: "files/b", Line: 2, Rule: "r", Reason: "why", Way: "out"}, {Path: "files/a.key", Line: 9, Rule: "r"}, {Path: "files/a.key", Line: 3, Rule: "r"},
		{Path: "/etc/shadow", Line: 1, Rule: "password"}, {Path: "files/b", Line: 2, Rule: "r", Reason: "why", Way: "out"},
	}
	a, err := newAllowance([]dsas.Allow{{Path: "files/*.key", Reason: "a test's"}, {Path: "files/none", Reason: "x"}}, []dsas.Allow{{Path: "/etc/shadow", Reason: "lab"}, {Path: "other", Reason: "of another role"}})
	if err != nil {
		t.Fatal(err)
	}
	refused, passed := a.split(all)
	if len(refused) != 1 || refused[0].Path != "files/b" {
		t.Errorf("refused = %v; want files/b alone", refused)
	}
	var got []string
	for _, f := range passed {
		got = append(got, f.String())
	}
	if want := []string{"/etc/shadow:1: password: allowed: lab", "files/a.key:3: r: allowed: a test's", "files/a.key:9: r: allowed: a test's"}; !slices.Equal(got, want) {
		t.Errorf("passed = %q; want %q", got, want)
	}
	if got := a.unused(); !slices.Equal(got, []string{"files/none"}) {
		t.Errorf("unused = %q; want the role's own", got)
	}
	err = &CheckError{refused}
	if !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "files/b:2: r: why; out") || !strings.Contains(err.Error(), "--allow") {
		t.Errorf("CheckError = %v; want ErrInvalid with file, line, rule, reason and the way out", err)
	}
	for _, bad := range []dsas.Allow{{Path: "", Reason: "x"}, {Path: "x", Reason: " "}, {Path: "[", Reason: "x"}} {
		if _, err := newAllowance(nil, []dsas.Allow{bad}); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("newAllowance(%+v) = %v; want ErrInvalid", bad, err)
		}
	}
	if refused, _ := (*allowance)(nil).split(all); len(refused) != 4 {
		t.Errorf("split of nobody's = %v; want all, each once", refused)
	}
}

func TestCheckSources(t *testing.T) {
	key := "AKIA" + "Z7QW3ERT5YUI2OPA"
	found, err := checkSources([]source{
		{"files/etc/app.conf", []byte("# c\naws = " + key + "\n")},
		{"templates/app.conf", []byte("aws = " + key + "\n")},
		{"services/a/run", []byte("#!/bin/sh\n\nAWS=" + key + " exec a\n")},
		{"files/etc/shadow", []byte("root:*:1::::::\njoe::1::::::\n")},
		{"files/usr/bin/prog", []byte("\x7fELF\x00" + key)},
		{"files/etc/fine", []byte("listen 80;\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, f.Path+" "+f.Rule)
		if f.Line == 0 || f.Reason == "" || f.Way == "" || strings.Contains(f.String(), key) {
			t.Errorf("finding %+v; want line, reason and way out, and not the secret", f)
		}
	}
	want := []string{"files/etc/app.conf aws-access-token", "templates/app.conf aws-access-token", "services/a/run aws-access-token", "files/etc/shadow empty-password"}
	if !slices.Equal(got, want) {
		t.Errorf("checkSources = %q; want %q", got, want)
	}
}
