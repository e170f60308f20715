package transfer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// An initramfs of others: whatever stands in it, reading it ends and gives no
// more than the budget.
func FuzzPlainCpios(f *testing.F) {
	entry := "070701" + "0000000100000000000000000000000000000001000000000000000400000000000000000000000000000000" + "00000002" + "00000000"
	f.Add([]byte(entry + "a\x00body"))
	f.Add([]byte("\x00\x00\x00\x00" + entry + "a\x00body\x28\xb5\x2f\xfd"))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		left := int64(1 << 20)
		var out bytes.Buffer
		if err := plainCpios(bytes.NewReader(b), &out, &left); err == nil && len(b) > 0 && out.Len() == 0 && b[0] == '0' {
			t.Errorf("plainCpios(%q) = nothing, nil; want what stands there", b)
		}
		if out.Len() > 1<<20+len(b) {
			t.Errorf("%d bytes came of %d; want at most 1 MiB more", out.Len(), len(b))
		}
	})
}

// Any file may be named as a source: what it is is found out without harm.
func FuzzArchiveKind(f *testing.F) {
	f.Add([]byte("x"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		kind, err := archiveKind(path)
		if (kind == "") != (err != nil) {
			t.Errorf("archiveKind = %q, %v", kind, err)
		}
		dir := t.TempDir()
		if err := unpackLayout(t.Context(), path, dir); err != nil {
			return
		}
		entries, err := os.ReadDir(filepath.Dir(dir))
		if err != nil || len(entries) != 2 {
			t.Errorf("beside the folder there are %v, %v; want nothing", entries, err)
		}
	})
}
