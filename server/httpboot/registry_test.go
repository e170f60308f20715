package httpboot_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/server/httpboot"
)

// realRelease publishes a release whose one layer is a tar with zstd.
func (f *fixture) realRelease(role, content string) dsas.Release {
	f.t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := w.WriteHeader(&tar.Header{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		f.t.Fatal(err)
	}
	w.Write([]byte(content))
	w.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.t.Fatal(err)
	}
	sum := sha256.Sum256(plain.Bytes())
	part := f.put(string(enc.EncodeAll(plain.Bytes(), nil)))
	part.DiffID, part.Unpacked, part.Title = dsas.Digest("sha256:"+hex.EncodeToString(sum[:])), 4096, "files"
	r, err := f.blobs.AddRelease(f.t.Context(), dsas.Release{Role: role, Boot: f.boot, Manifest: dsas.Manifest{Kernel: "6.1", Parts: []dsas.Part{part}}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.blobs.mu.Lock()
	defer f.blobs.mu.Unlock()
	f.blobs.current[role] = &r
	return r
}

func (f *fixture) ask(method, path string, header ...string) (*http.Response, []byte) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.base+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, b
}

func TestRegistryManifests(t *testing.T) {
	f := open(t, nil)
	first := f.blobs.current["web"]
	second := f.publish("web", "second")
	f.blobs.current["web"] = first // as after a roll-back
	lb := f.blobs.current["lb"]
	media := "application/vnd.oci.image.manifest.v1+json"
	for _, tt := range []struct {
		ref  string
		want dsas.Digest // "" for none
		code string
	}{
		{"1", first.Manifest.Digest, ""},
		{"2", second.Manifest.Digest, ""},
		{"latest", first.Manifest.Digest, ""}, // what nodes follow, not what was built last
		{string(second.Manifest.Digest), second.Manifest.Digest, ""},
		{strings.Replace(string(second.Manifest.Digest), ":", "%3A", 1), second.Manifest.Digest, ""},
		{string(second.Boot.Digest), second.Boot.Digest, ""},
		{string(lb.Manifest.Digest), "", "MANIFEST_UNKNOWN"},              // another role's
		{string(second.ID), "", "MANIFEST_UNKNOWN"},                       // a config is no manifest
		{string(second.Manifest.Parts[0].Digest), "", "MANIFEST_UNKNOWN"}, // nor is a layer
		{"sha256:" + strings.Repeat("0", 64), "", "MANIFEST_UNKNOWN"},     // nothing
		{"3", "", "MANIFEST_UNKNOWN"},
		{"01", "", "MANIFEST_UNKNOWN"},
		{"..%2F..%2Findex.json", "", "MANIFEST_UNKNOWN"},
		{"sha256:..%2F..%2Findex.json", "", "DIGEST_INVALID"},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			resp, body := f.ask(method, "/v2/dsas/web/manifests/"+tt.ref)
			if v := resp.Header.Get("Docker-Distribution-API-Version"); v != "registry/2.0" {
				t.Errorf("%s %s: API version %q; want registry/2.0", method, tt.ref, v)
			}
			if tt.want == "" {
				if resp.StatusCode/100 != 4 || method == http.MethodGet && errorCode(body) != tt.code {
					t.Errorf("%s %s = %s %s; want %s", method, tt.ref, resp.Status, body, tt.code)
				}
				continue
			}
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != media || resp.Header.Get("Docker-Content-Digest") != string(tt.want) {
				t.Errorf("%s %s = %s, %v; want 200 with %s", method, tt.ref, resp.Status, resp.Header, tt.want)
			}
			if sum := sha256.Sum256(body); method == http.MethodGet && string(tt.want) != "sha256:"+hex.EncodeToString(sum[:]) {
				t.Errorf("%s %s: body has digest %x; want %s", method, tt.ref, sum, tt.want)
			}
			if resp.ContentLength <= 0 {
				t.Errorf("%s %s: length %d", method, tt.ref, resp.ContentLength)
			}
		}
	}
	if resp, _ := f.ask(http.MethodGet, "/v2/dsas/web/manifests/1", "If-None-Match", `"`+string(first.Manifest.Digest)+`"`); resp.StatusCode != http.StatusNotModified {
		t.Errorf("If-None-Match: %s; want 304", resp.Status)
	}
	if resp, body := f.ask(http.MethodGet, "/v2/dsas/nosuch/manifests/1"); resp.StatusCode != 404 || errorCode(body) != "NAME_UNKNOWN" {
		t.Errorf("unknown role = %s %s; want NAME_UNKNOWN", resp.Status, body)
	}
	delete(f.blobs.current, "lb")
	if resp, body := f.ask(http.MethodGet, "/v2/dsas/lb/manifests/latest"); resp.StatusCode != 404 || errorCode(body) != "MANIFEST_UNKNOWN" {
		t.Errorf("latest where nothing is published = %s %s; want MANIFEST_UNKNOWN", resp.Status, body)
	}
	if resp, body := f.ask(http.MethodGet, "/v2/dsas/web/blobs/sha256:"+strings.Repeat("0", 64)); resp.StatusCode != 404 || errorCode(body) != "BLOB_UNKNOWN" {
		t.Errorf("unknown blob = %s %s; want BLOB_UNKNOWN", resp.Status, body)
	}
}

// errorCode gives the first code of an answer in the specification's form.
func errorCode(body []byte) string {
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 || answer.Errors[0].Message == "" {
		return ""
	}
	return answer.Errors[0].Code
}

func TestRegistryTags(t *testing.T) {
	f := open(t, nil)
	for i := range 11 {
		f.publish("web", fmt.Sprint("more ", i))
	}
	want := []string{"1", "10", "11", "12", "2", "3", "4", "5", "6", "7", "8", "9", "latest"}
	list := func(path string) (tags []string, next string) {
		t.Helper()
		resp, body := f.ask(http.MethodGet, path)
		var got struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(body, &got); err != nil || resp.StatusCode != http.StatusOK || got.Name != "dsas/web" || got.Tags == nil {
			t.Fatalf("GET %s = %s %s", path, resp.Status, body)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		return got.Tags, next
	}
	if got, next := list("/v2/dsas/web/tags/list"); !slices.Equal(got, want) || next != "" {
		t.Errorf("tags = %v, next %q; want %v, none", got, next, want)
	}
	var all []string
	pages := 0
	for at := "/v2/dsas/web/tags/list?n=5"; at != ""; pages++ {
		var some []string
		some, at = list(at)
		all = append(all, some...)
	}
	if !slices.Equal(all, want) || pages != 3 {
		t.Errorf("in pages of 5: %v in %d pages; want %v in 3", all, pages, want)
	}
	if got, _ := list("/v2/dsas/web/tags/list?n=0"); len(got) != 0 {
		t.Errorf("n=0: %v; want none", got)
	}
	if resp, body := f.ask(http.MethodGet, "/v2/dsas/web/tags/list?n=-1"); resp.StatusCode != 400 || errorCode(body) == "" {
		t.Errorf("n=-1 = %s %s; want 400", resp.Status, body)
	}
}

// Nothing can be written: the specification's code says so for each verb.
func TestRegistryIsReadOnly(t *testing.T) {
	f := open(t, nil)
	d := string(f.blobs.current["web"].Manifest.Digest)
	for _, tt := range [][2]string{
		{"POST", "/v2/dsas/web/blobs/uploads/"},
		{"POST", "/v2/dsas/web/blobs/uploads/?mount=" + d + "&from=dsas/lb"},
		{"PATCH", "/v2/dsas/web/blobs/uploads/1"},
		{"PUT", "/v2/dsas/web/blobs/uploads/1?digest=" + d},
		{"PUT", "/v2/dsas/web/manifests/1"},
		{"DELETE", "/v2/dsas/web/manifests/" + d},
		{"DELETE", "/v2/dsas/web/blobs/" + d},
		{"DELETE", "/v2/dsas/web/manifests/latest"},
	} {
		resp, body := f.ask(tt[0], tt[1])
		if resp.StatusCode != http.StatusMethodNotAllowed || errorCode(body) != "UNSUPPORTED" || resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s = %s %s; want 405 UNSUPPORTED", tt[0], tt[1], resp.Status, body)
		}
	}
	for _, path := range []string{"/v2/", "/v2"} {
		if resp, _ := f.ask("GET", path); resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s = %s; want 200", path, resp.Status)
		}
	}
	for _, path := range []string{"/v2/_catalog", "/v2/other/web/manifests/1", "/v2/dsas/web/referrers/" + d} {
		if resp, body := f.ask("GET", path); resp.StatusCode != http.StatusNotFound || errorCode(body) == "" {
			t.Errorf("GET %s = %s %s; want 404", path, resp.Status, body)
		}
	}
}

// Skopeo and go-containerregistry, the library below crane, take a release as
// they take any image.
func TestRegistryByOthers(t *testing.T) {
	f := open(t, nil)
	r := f.realRelease("web", "hello")
	host := strings.TrimPrefix(f.base, "http://")

	repo, err := name.NewRepository(host+"/dsas/web", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(repo, remote.WithContext(t.Context()))
	if err != nil || !slices.Equal(tags, []string{"1", "2", "latest"}) {
		t.Errorf("remote.List = %v, %v", tags, err)
	}
	img, err := remote.Image(repo.Tag("latest"), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := img.ConfigName(); err != nil || got.String() != string(r.ID) {
		t.Errorf("config = %v, %v; want %s", got, err, r.ID)
	}
	boot, err := remote.Get(repo.Digest(string(r.Boot.Digest)), remote.WithContext(t.Context()))
	if err != nil || !bytes.Contains(boot.Manifest, []byte("application/vnd.dsas.boot.v1")) {
		t.Errorf("boot artifact = %v, %v", boot, err)
	}

	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{"--insecure-policy", "--tmpdir", t.TempDir()}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
		}
		return out
	}
	var seen struct {
		Digest string
		Layers []string
		Labels map[string]string
	}
	out := run("inspect", "--tls-verify=false", "docker://"+host+"/dsas/web:latest")
	if err := json.Unmarshal(out, &seen); err != nil || seen.Digest != string(r.Manifest.Digest) || seen.Labels["dsas.role"] != "web" ||
		!slices.Equal(seen.Layers, []string{string(r.Manifest.Parts[0].Digest)}) {
		t.Errorf("skopeo inspect = %s (%v); want %s with its layer", out, err, r.Manifest.Digest)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	run("copy", "--src-tls-verify=false", "docker://"+host+"/dsas/web:2", "oci:"+dir+":web")
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest.String() != string(r.Manifest.Digest) {
		t.Errorf("skopeo copied %+v, %v; want the very manifest %s", m, err, r.Manifest.Digest)
	}
	layer := filepath.Join(dir, "blobs", "sha256", r.Manifest.Parts[0].Digest.Hex())
	if fi, err := os.Stat(layer); err != nil || fi.Size() != r.Manifest.Parts[0].Size {
		t.Errorf("skopeo's copy of the layer: %v, %v; want %d bytes", fi, err, r.Manifest.Parts[0].Size)
	}
}

// A booting node is told of the registry with its node config.
func TestNodeConfigNamesRegistry(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.Registry = "http://127.77.0.9:5000" })
	_, token := f.begin(w101, mac101)
	a := f.get(w101, "/node/config", "Authorization", "Bearer "+token)
	var cfg dsas.NodeConfig
	if err := json.Unmarshal([]byte(a.body), &cfg); err != nil || cfg.Registry != "http://127.77.0.9:5000" {
		t.Errorf("node config = %d, registry %q, %v; want the one configured", a.code, cfg.Registry, err)
	}
}
