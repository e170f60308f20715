package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

func TestListInitramfs(t *testing.T) {
	var file bytes.Buffer
	for _, entries := range [][]cpio.Header{
		{{Name: "init", Mode: cpio.TypeReg | 0o755, Size: 1000}, {Name: "etc", Mode: cpio.TypeDir | 0o755}},
		{{Name: "lib/modules/6.1/kernel/e1000.ko", Mode: cpio.TypeReg | 0o644, Size: 50}, {Name: "etc/index", Mode: cpio.TypeReg | 0o644, Size: 7}},
	} {
		z, err := zstd.NewWriter(&file)
		if err != nil {
			t.Fatal(err)
		}
		w := cpio.NewWriter(z)
		for _, h := range entries {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := listInitramfs(bytes.NewReader(file.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if got.total != 1057 || got.programs != 1000 || got.moduleBytes != 50 || len(got.modules) != 1 || !got.modules["e1000.ko"] {
		t.Errorf("listInitramfs = %+v; want 1057 bytes, 1000 of programs and e1000.ko of 50", got)
	}
	if _, err := listInitramfs(bytes.NewReader(file.Bytes()[:file.Len()-20])); err == nil {
		t.Error("listInitramfs of a file cut short = nil; want an error")
	}
	if _, err := listInitramfs(strings.NewReader("no archive at all")); err == nil {
		t.Error("listInitramfs of text = nil; want an error")
	}
}
