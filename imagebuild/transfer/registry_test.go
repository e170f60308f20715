package transfer_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"dsas/imagebuild/transfer"
	"dsas/initramfs/rootfs"
)

// debianRegistry runs Debian's docker-registry on loopback and gives its address.
func debianRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		// Its package would start it, so make test unpacks it (Makefile, TEST_PEERS).
		program = "../../build/peers/usr/bin/docker-registry"
		if _, err := os.Stat(program); err != nil {
			if os.Getenv("DSAS_CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close() // it binds the port itself
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", filepath.Join(dir, "data"), addr), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	for {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return addr
		}
		select {
		case <-ended:
			t.Fatalf("docker-registry ended:\n%s", said.Bytes())
		case <-t.Context().Done():
			t.Fatalf("docker-registry does not answer: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A release goes into Debian's docker-registry, nodes' fetching takes its parts
// from there and asks the server for nothing, and another store gets the very
// same release out of it.
func TestDebianRegistry(t *testing.T) {
	addr := debianRegistry(t)
	from := open(t)
	r := seed(t, from)
	var lines []string
	at, err := (transfer.Export{Store: from, Release: r, Dest: "registry://" + addr + "/dsas/web", Registry: transfer.Registry{Insecure: true},
		Progress: func(l string) { lines = append(lines, l) }}).Run(t.Context())
	if err != nil || at != "registry://"+addr+"/dsas/web:1" {
		t.Fatalf("Export = %q, %v; want registry://%s/dsas/web:1", at, err, addr)
	}
	if len(lines) == 0 {
		t.Error("nothing was said on the way")
	}

	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.NotFound(w, r)
	}))
	defer server.Close()
	dest := t.TempDir()
	stats, err := rootfs.Fetch(t.Context(), rootfs.Options{BaseURL: server.URL, Registry: "http://" + addr, Manifest: r.Manifest, Dest: dest})
	if err != nil || asked != 0 || stats.FromRegistry != r.Manifest.Size() {
		t.Errorf("Fetch = %+v, %v, the server was asked %d times; want all %d bytes from the registry", stats, err, asked, r.Manifest.Size())
	}
	if b, err := os.ReadFile(filepath.Join(dest, "etc/motd")); err != nil || string(b) != "hello" {
		t.Errorf("etc/motd = %q, %v; want hello", b, err)
	}
	if _, err := os.Stat(filepath.Join(dest, "etc/gone")); err == nil {
		t.Error("etc/gone is there; a whiteout removes it")
	}

	to := open(t)
	im := importer(to, at)
	im.Registry.Insecure = true
	out := run(t, im)
	if out.Release.ID != r.ID || out.Release.Boot.Digest != r.Boot.Digest || out.Release.Manifest.Digest != r.Manifest.Digest {
		t.Errorf("imported %+v; want the release %s as it was", out.Release, r.ID)
	}

	b := skopeo(t, "inspect", "--tls-verify=false", "docker://"+addr+"/dsas/web:1")
	var seen struct {
		Digest   string
		RepoTags []string
	}
	err = json.Unmarshal(b, &seen)
	slices.Sort(seen.RepoTags)
	if err != nil || seen.Digest != string(r.Manifest.Digest) || !slices.Equal(seen.RepoTags, []string{"1", "1-boot"}) {
		t.Errorf("skopeo inspect = %s, %v; want %s with tags 1 and 1-boot", b, err, r.Manifest.Digest)
	}
}

// A log-in is taken from where docker and podman keep theirs.
func TestRegistryLogIn(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	from := open(t)
	r := seed(t, from)
	ex := transfer.Export{Store: from, Release: r, Dest: "docker://" + addr + "/team/web:stable"}
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if _, err := ex.Run(t.Context()); err == nil {
		t.Error("Export without a log-in = nil; want an error")
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"username": "me", "password": "secret"}}}`, addr), 0o600); err != nil {
		t.Fatal(err)
	}
	at, err := ex.Run(t.Context())
	if err != nil {
		t.Fatalf("Export = %v; want nil", err)
	}
	if out := run(t, importer(open(t), at)); out.Release.ID != r.ID {
		t.Errorf("imported %s; want %s", out.Release.ID, r.ID)
	}
	if _, err := importer(open(t), "registry://"+addr+"/team/web:none").Run(t.Context()); err == nil || !strings.Contains(err.Error(), "team/web:none") {
		t.Errorf("Import of what is not there = %v; want an error that names it", err)
	}
}

// skopeo runs Debian's, for what other tools write and read.
func skopeo(t *testing.T, args ...string) []byte {
	t.Helper()
	program, err := exec.LookPath("skopeo")
	if err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"--insecure-policy", "--tmpdir", t.TempDir()}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, said.Bytes())
	}
	return out
}

// What skopeo makes of an exported release, in the formats of docker and podman,
// comes back as that release; and it reads what is exported for docker load.
func TestSkopeosFormats(t *testing.T) {
	s := open(t)
	r := seed(t, s)
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	export(t, s, r, layout, "")
	archive := filepath.Join(dir, "oci.tar")
	skopeo(t, "copy", "oci:"+layout+":web:1", "oci-archive:"+archive)
	if out := run(t, importer(s, archive)); out.Kind != "OCI archive" || out.Release.ID != r.ID {
		t.Errorf("skopeo's OCI archive: %s with %s; want %s", out.Kind, out.Release.ID, r.ID)
	}
	ours := filepath.Join(dir, "ours.tar")
	export(t, s, r, ours, transfer.FormatDocker)
	var seen struct {
		Layers []string
		Labels map[string]string
	}
	b := skopeo(t, "inspect", "docker-archive:"+ours)
	if err := json.Unmarshal(b, &seen); err != nil || seen.Labels["dsas.role"] != "web" || len(seen.Layers) != 3 || seen.Layers[0] != string(r.Manifest.Parts[0].DiffID) {
		t.Errorf("skopeo inspect of what is for docker load = %s, %v; want its three diffIDs", b, err)
	}
	// An archive as skopeo itself writes it; from our layout it makes none, since
	// Docker's format has no zstd for it.
	theirs := filepath.Join(dir, "theirs.tar")
	skopeo(t, "copy", "docker-archive:"+ours, "docker-archive:"+theirs+":web:stable")
	if out := run(t, importer(s, theirs)); out.Kind != "docker archive" || out.Release.ID != r.ID {
		t.Errorf("skopeo's docker archive: %s with %s; want %s", out.Kind, out.Release.ID, r.ID)
	}
	back := filepath.Join(dir, "back")
	skopeo(t, "copy", "docker-archive:"+ours, "oci:"+back+":x")
	if out := run(t, importer(s, back)); out.Release.ID != r.ID {
		t.Errorf("from skopeo's copy of it: %s; want %s", out.Release.ID, r.ID)
	}
}
