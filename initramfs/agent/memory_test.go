package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dsas"
	"dsas/initramfs/netcfg"
	"dsas/initramfs/rootfs"
)

// Too little memory ends a boot before one byte of the image was asked for.
func TestTooLittleMemoryIsSaidBeforeTheFetch(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1); http.NotFound(w, r) }))
	defer srv.Close()
	meminfo := filepath.Join(t.TempDir(), "meminfo")
	if err := os.WriteFile(meminfo, []byte("MemTotal: 524288 kB\nMemAvailable: 409600 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	part := dsas.Part{Digest: dsas.Digest("sha256:" + strings.Repeat("a", 64)), Size: 100 << 20, Unpacked: 320 << 20, MediaType: dsas.MediaTarZstd}
	for name, c := range map[string]struct {
		memory   int64
		rootSize string
		want     string
	}{
		"programs": {128 << 20, "", "468 MiB are needed (the root file system takes 340 MiB, its programs 128 MiB (memory in the role)) and 400 of the node's 512 MiB are available: give the node 68 MiB more, or another role"},
		"fetching": {0, "", "404 MiB are needed (the root file system takes 340 MiB, fetching it 64 MiB) and 400"},
		"rootSize": {0, "nonsense", "role web: rootSize"},
	} {
		b := &boot{con: &Console{start: time.Now(), out: devNull(t)}, params: netcfg.Params{Server: srv.URL}, meminfo: meminfo,
			cfg: dsas.NodeConfig{Role: dsas.Role{Name: "web", RootSize: c.rootSize}, Manifest: dsas.Manifest{Role: "web", Memory: c.memory, Parts: []dsas.Part{part}}}}
		err := b.fetch(context.Background())
		var m *rootfs.MemoryError
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &m) != (c.rootSize == "") {
			t.Errorf("%s: fetch() = %v; want %q", name, err, c.want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the server was asked %d times; want not once", n)
	}
}
