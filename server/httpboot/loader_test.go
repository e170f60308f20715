package httpboot_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/boot"
	"dsas/server/httpboot"
)

// loaderDir makes a folder with one loader in it, and a file that is none.
func loaderDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{boot.FileSNPOnly: "MZ an EFI program", "secret": "none of anyone's"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoaderByHTTP(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.LoaderDir = loaderDir(t) })
	path := "/" + boot.TFTPPath(mac101, boot.FileSNPOnly)
	if a := f.do(w101, http.MethodHead, path, ""); a.code != 200 || a.header.Get("Content-Length") != "17" || a.body != "" {
		t.Errorf("HEAD %s = %d, length %s, %q; want 200, 17 and no body", path, a.code, a.header.Get("Content-Length"), a.body)
	}
	if e := f.events(dsas.KindNBP); len(e) != 0 {
		t.Errorf("events after HEAD = %+v; want none", e)
	}
	if a := f.get(addr("127.77.0.9"), path); a.code != 200 {
		t.Errorf("GET from an address that is not the node's = %d; want 200: it is public", a.code)
	}
	if e := f.events(dsas.KindNBP); len(e) != 0 {
		t.Errorf("events after another's GET = %+v; want none", e)
	}
	if a := f.get(w101, path); a.code != 200 || a.body != "MZ an EFI program" || a.header.Get("Content-Type") != "application/efi" {
		t.Errorf("GET %s = %d %q %q; want the loader", path, a.code, a.header.Get("Content-Type"), a.body)
	}
	if e := f.events(dsas.KindNBP); len(e) != 1 || e[0].Node != "w101" || e[0].Message != boot.FileSNPOnly || e[0].Bytes != 17 {
		t.Errorf("events = %+v; want one tftp.nbp of w101", e)
	}
	if a := f.get(w101, "/nbp/"+boot.FileSNPOnly); a.code != 200 {
		t.Errorf("GET without a MAC = %d; want 200", a.code)
	}
	for _, bad := range []string{"/nbp/secret", "/nbp/52-54-00-00-01-01/secret", "/nbp/52-54-00-00-01-01/..%2Fsecret", "/nbp/52-54-00-00-01-01/../../etc/passwd",
		"/nbp/zz/" + boot.FileSNPOnly, "/nbp/52-54-00-00-01-01/" + boot.FileShimX64, "/nbp/", "/nbp/52-54-00-00-01-01/"} {
		if a := f.get(w101, bad); a.code != 404 && a.code != 400 {
			t.Errorf("GET %s = %d; want 404 or 400", bad, a.code)
		}
	}
}

var grubToken = regexp.MustCompile(`dsas\.boot=([0-9a-f]+)' 'dsas\.token=([0-9a-f]+)`)

func TestGRUB(t *testing.T) {
	f := open(t, nil)
	ask := func(path string) (string, *os.File, error) {
		t.Helper()
		text, file, err := f.srv.GRUB(t.Context(), path, w101)
		if file != nil {
			t.Cleanup(func() { file.Close() })
		}
		return text, file, err
	}
	first, _, err := ask("grub/grub.cfg")
	if err != nil || !strings.Contains(first, "source $dsas_dir/boot-$grub_cpu$1.cfg") {
		t.Errorf("the first configuration = %q, %v; want one that sources the box's", first, err)
	}
	dir := "grub/" + mac101.String() + "/"
	text, _, err := ask(dir + "boot-x86_64.cfg")
	m := grubToken.FindStringSubmatch(text)
	if err != nil || m == nil || !strings.Contains(text, "linux /grub/"+mac101.Dashed()+"/blob/"+f.boot.Kernel.Digest.Hex()) {
		t.Fatalf("the box's configuration = %q, %v; want kernel, boot and token", text, err)
	}
	if b, err := f.Boot(t.Context(), m[1]); err != nil || b.Node != "w101" || b.Address != w101 {
		t.Errorf("the boot on record = %+v, %v; want w101's", b, err)
	}
	if text, _, err := f.srv.GRUB(t.Context(), dir+"boot-x86_64.cfg", addr("127.77.0.9")); err != nil || strings.Contains(text, "token") || !strings.Contains(text, "127.77.0.9 asks") {
		t.Errorf("asked for from another address: %q, %v; want the reason and no token", text, err)
	}
	boots := len(f.events(dsas.KindScript))
	if text, _, err := ask(dir + "boot-arm64.cfg"); err != nil || strings.Contains(text, "linux") || !strings.Contains(text, "no kernel for uefi-arm64") {
		t.Errorf("arm64's configuration = %q, %v; want the reason", text, err)
	}
	if n := len(f.events(dsas.KindScript)); n != boots {
		t.Errorf("%d boots after arm64 asked; want %d as before", n, boots)
	}
	_, file, err := ask(dir + "blob/" + f.boot.Kernel.Digest.Hex())
	if err != nil || file == nil {
		t.Fatalf("kernel = %v; want its file", err)
	}
	f.srv.GRUBSent(t.Context(), dir+"blob/"+f.boot.Kernel.Digest.Hex(), w101, 7, time.Second)
	if e := f.events(dsas.KindKernel); len(e) != 1 || e[0].Boot != m[1] || e[0].Bytes != 7 {
		t.Errorf("events = %+v; want one boot.kernel of boot %s", e, m[1])
	}
	part := f.put("a part of a role's image")
	for _, bad := range []string{dir + "blob/" + part.Digest.Hex(), dir + "boot-mips.cfg", dir + "failed-x", "grub/x86_64-efi/command.lst", "shimx64.efi"} {
		if text, file, err := ask(bad); !errors.Is(err, dsas.ErrNotFound) || file != nil {
			t.Errorf("%s = %q, %v; want not found", bad, text, err)
		}
	}
	for range 3 {
		if _, _, err := ask(dir + "failed-kernel"); err != nil {
			t.Fatal(err)
		}
	}
	if e := f.events(dsas.KindLoaderFailed); len(e) != 1 || e[0].Node != "w101" || e[0].Message != "the loader could not go on: kernel" {
		t.Errorf("events = %+v; want one boot.loader-failed", e)
	}
	if _, _, err := f.srv.GRUB(t.Context(), fmt.Sprintf("grub/%s/failed-kernel", macNew), w101); err != nil || len(f.events(dsas.KindLoaderFailed)) != 1 {
		t.Errorf("a report of an unknown MAC: %v, %+v; want no error and no event", err, f.events(dsas.KindLoaderFailed))
	}
}
