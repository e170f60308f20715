package imagebuild

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
)

func TestHostSources(t *testing.T) {
	etc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := hostSources(etc, "bookworm"); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("hostSources(nothing) = %q, %v; want ErrInvalid", got, err)
	}
	write("sources.list", `# a comment
deb [arch=amd64,arm64 signed-by=/k.gpg] http://one.test/debian bookworm main contrib # why
deb-src http://one.test/debian bookworm main
deb http://vendor.test/apt any main
deb http://one.test/sec bookworm-security main
`)
	write("sources.list.d/off.sources", "Enabled: no\nTypes: deb\nURIs: http://off.test\nSuites: bookworm\n")
	write("sources.list.d/x.sources", `Types: deb
# a comment inside
URIs: http://two.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://vendor2.test
Suites: bookwormish
Components: main
`)
	got, err := hostSources(etc, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	want := `Types: deb
URIs: http://one.test/debian
Suites: bookworm
Components: main contrib
architectures: amd64 arm64
signed-by: /k.gpg

Types: deb
URIs: http://one.test/sec
Suites: bookworm-security
Components: main

Types: deb
URIs: http://two.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
`
	if got != want {
		t.Errorf("hostSources = %s\nwant %s", got, want)
	}
}

func TestReachTextDropsHooks(t *testing.T) {
	got := reachText("Acquire::http::Proxy \"http://proxy.test:3128\";\nDPkg::Post-Invoke:: \"rm -f /var/cache/apt/archives/*.deb\";\nAcquire::IndexTargets::deb::DEP-11 \"\";\n")
	if !strings.Contains(got, "proxy.test") || strings.Contains(got, "Invoke") || strings.Contains(got, "DEP-11") {
		t.Errorf("reachText = %s; want the proxy and no hook", got)
	}
}

func TestHostSuite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "os-release")
	for text, want := range map[string]string{"ID=debian\nVERSION_CODENAME=bookworm\n": "bookworm", "VERSION_CODENAME=\"trixie\"\n": "trixie", "ID=x\n": ""} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := hostSuite(name); got != want || (err == nil) != (want != "") {
			t.Errorf("hostSuite(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}
