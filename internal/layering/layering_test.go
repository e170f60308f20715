// Package layering holds the rule of docs/architecture.md about who may
// import whom, as a test over go list.
package layering

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
}

// allowed lists, by package, which of our own packages it may import beside
// the root package. What is not listed may import the root package alone.
var allowed = map[string][]string{
	"dsas/server":            nil,
	"dsas/server/dhcp":       {"dsas/server/boot"},
	"dsas/server/tftp":       {"dsas/server/boot"},
	"dsas/server/loaders":    {"dsas/server/boot"},
	"dsas/server/httpboot":   {"dsas/server/boot", "dsas/client/sign"},
	"dsas/server/blobs":      {"dsas/internal/diskio"},
	"dsas/server/backup":     {"dsas/internal/diskio"},
	"dsas/server/store":      {"dsas/internal/diskio"},
	"dsas/imagebuild":        {"dsas/initramfs/modindex", "dsas/imagebuild/layers", "dsas/imagebuild/leaks", "dsas/internal/diskio", "dsas/internal/signing", "dsas/internal/xattr", "dsas/internal/zframes"},
	"dsas/imagebuild/layers": {"dsas/internal/xattr"},
	"dsas/capture":           {"dsas/imagebuild/layers", "dsas/internal/xattr"},
	"dsas/client":            {"dsas/client/sign"},
	"dsas/initramfs/disk":    {"dsas/initramfs/uevent"},
	"dsas/initramfs/kmod":    {"dsas/initramfs/modindex", "dsas/initramfs/uevent"},
	"dsas/initramfs/netcfg":  {"dsas/initramfs/dsasconf"},
	"dsas/initramfs/rootfs":  {"dsas/internal/zframes"},
	"dsas/initramfs/agent":   {"dsas/client", "dsas/initramfs/...", "dsas/internal/signing"},
	"dsas/lab":               {"dsas/client", "dsas/server/netns"},
	"dsas/lab/storm":         {"dsas/client"},
	"dsas/lab/bench":         {"dsas/client", "dsas/initramfs/rootfs", "dsas/lab", "dsas/lab/figures"},
	"dsas/lab/figures":       {},
	"dsas/lab/benchnet":      {"dsas/client", "dsas/lab/figures", "dsas/client/sign", "dsas/internal/signing", "dsas/lab/load", "dsas/server/blobs", "dsas/server/boot", "dsas/server/dhcp", "dsas/server/httpboot", "dsas/lab/storm", "dsas/server/netns", "dsas/server/tftp"},
	"dsas/lab/e2e":           {"dsas/lab"},
	"dsas/lab/load":          {"dsas/client", "dsas/client/sign"},
	"dsas/cmd/dsas":          {"..."},
	"dsas/cmd/dsas-init":     {"dsas/initramfs/agent"},
	"dsas/internal/layering": nil,
	"dsas/internal/signing":  nil,

	"dsas/imagebuild/transfer": {"dsas/imagebuild/layers", "dsas/initramfs/modindex", "dsas/internal/diskio", "dsas/internal/zframes"},
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Deps,Standard", "dsas/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func ours(path string) bool { return path == "dsas" || strings.HasPrefix(path, "dsas/") }

func TestLayers(t *testing.T) {
	seen := 0
	for _, p := range list(t) {
		if !ours(p.ImportPath) {
			continue
		}
		seen++
		for _, imp := range p.Imports {
			switch {
			case p.ImportPath == "dsas" && strings.Contains(imp, "."):
				t.Errorf("the root package imports %s; want the standard library alone", imp)
			case p.ImportPath == "dsas" && ours(imp):
				t.Errorf("the root package imports %s; want nothing of ours", imp)
			case imp == "dsas" || !ours(imp):
			case !may(p.ImportPath, imp):
				t.Errorf("%s imports %s; it may import dsas and %v", p.ImportPath, imp, allowed[p.ImportPath])
			}
		}
		if slices.Contains(p.Deps, "github.com/mattn/go-sqlite3") && p.ImportPath != "dsas/server/store" && p.ImportPath != "dsas/cmd/dsas" {
			t.Errorf("%s reaches go-sqlite3; only server/store and cmd/dsas may", p.ImportPath)
		}
	}
	if seen < 10 {
		t.Errorf("go list showed %d packages of ours; want them all", seen)
	}
}

func may(importer, imported string) bool {
	for _, rule := range allowed[importer] {
		if rule == "..." || rule == imported {
			return true
		}
		if prefix, ok := strings.CutSuffix(rule, "..."); ok && strings.HasPrefix(imported, prefix) {
			return true
		}
	}
	return false
}
