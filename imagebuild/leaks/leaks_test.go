package leaks

import (
	"slices"
	"strings"
	"testing"
)

// The samples are put together here, so that no scanner takes this file for a leak.
func samples() map[string]string {
	return map[string]string{
		"aws-access-token":   "id = AKIA" + "Z7QW3ERT5YUI2OPA",
		"github-pat":         "token: ghp_" + "wJ8sK2mQ9xL4vB7nT1cR6yF3hD5gA0pZ8eUi",
		"private-key":        "-----BEGIN OPENSSH " + "PRIVATE KEY-----\n" + strings.Repeat("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n", 4) + "-----END OPENSSH " + "PRIVATE KEY-----",
		"generic-api-key":    "api_key = \"" + "x9Kq2vLm8TzR4wYb7NcJ5hGf\"",
		"password-hash":      "root:$" + "y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7:",
		"ldap-password-hash": "joe:{" + "SSHA}0c0blFTXXNuAMHECS4uxrj3ZieMoWImr",
		"url-password":       "redis://app:" + "s3cr3tw0rd@10.0.0.5:6379/0",
	}
}

func TestScanFinds(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for rule, text := range samples() {
		got := s.Scan("files/etc/x.conf", []byte("# first line\n\n"+text+"\n"))
		i := slices.IndexFunc(got, func(f Finding) bool { return f.Rule == rule })
		if i < 0 {
			t.Errorf("Scan(%s) = %v; want rule %s", text[:12], got, rule)
			continue
		}
		if got[i].Line != 3 || got[i].Reason == "" {
			t.Errorf("Scan(%s) = %+v; want line 3 and a reason", text[:12], got[i])
		}
	}
	if got := s.Scan("files/etc/ssh/ssh_host_ed25519_key", []byte("x")); len(got) != 1 || got[0].Rule != "ssh-host-key" || got[0].Line != 0 {
		t.Errorf("Scan(ssh host key) = %v; want ssh-host-key", got)
	}
}

func TestScanPasses(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", "password = {{ .Settings.Variables.PASSWORD }}\n", "url = http://user:$PASSWORD@db/\n",
		"proxy_pass http://10.0.0.1:8080/;\n", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "root:*:19000::::::\n",
		"HostKey /etc/ssh/ssh_host_ed25519_key\n", "auth: $6$\n",
	} {
		if got := s.Scan("files/etc/x.conf", []byte(text)); len(got) > 0 {
			t.Errorf("Scan(%q) = %v; want nothing", text, got)
		}
	}
}

// Every expression of rules.json compiles; they are compiled late.
func TestRulesCompile(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.rules) < 200 {
		t.Errorf("New() has %d rules; want at least 200", len(s.rules))
	}
	for _, r := range s.rules {
		r.ready()
		for _, k := range r.Keywords {
			if k != strings.ToLower(k) {
				t.Errorf("rule %s: keyword %q is not lower-case and never found", r.ID, k)
			}
		}
	}
}

func TestAllowLists(t *testing.T) {
	rule := Rule{ID: "r", Regex: `key=(\w+)`, Allow: []Allow{
		{StopWords: []string{"sample"}}, {Regexes: []string{"^zero$"}}, {Target: "line", Regexes: []string{"# none"}},
		{All: true, Paths: []string{`^docs/`}, Regexes: []string{"^doc$"}},
	}}
	s := NewScanner(RuleSet{Rules: []Rule{rule}, Allow: []Allow{{Paths: []string{`\.png$`}}}})
	for _, c := range []struct {
		path, text string
		want       int
	}{
		{"a", "key=mine\nkey=other\nkey=mine", 3}, {"a", "key=SampleX", 0}, {"a", "key=zero", 0}, {"a", "key=zeros", 1},
		{"a", "key=mine # none", 0}, {"docs/a", "key=doc", 0}, {"a", "key=doc", 1}, {"docs/a", "key=mine", 1}, {"a.png", "key=mine", 0},
	} {
		if got := s.Scan(c.path, []byte(c.text)); len(got) != c.want {
			t.Errorf("Scan(%s, %q) = %v; want %d", c.path, c.text, got, c.want)
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, text := range samples() {
		f.Add("files/etc/x", []byte(text))
	}
	s, err := New()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string, text []byte) {
		lines := 1 + strings.Count(string(text), "\n")
		for _, got := range s.Scan(path, text) {
			if got.Line < 0 || got.Line > lines || got.Rule == "" {
				t.Errorf("Scan(%q, %q) = %+v; want a line of %d and a rule", path, text, got, lines)
			}
		}
	})
}
