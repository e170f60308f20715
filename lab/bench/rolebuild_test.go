package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"dsas"
)

func TestInstalled(t *testing.T) {
	name := filepath.Join(t.TempDir(), "status")
	text := "Package: a\nStatus: install ok installed\n\nPackage: gone\nStatus: deinstall ok config-files\n\nPackage: b\nVersion: 1\nStatus: install ok installed\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := installed(name); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("installed() = %v, %v; want a and b", got, err)
	}
}

func TestChangedNamesNewLayers(t *testing.T) {
	run := func(diffIDs ...dsas.Digest) (r roleRun) {
		for _, d := range diffIDs {
			r.manifest.Parts = append(r.manifest.Parts, dsas.Part{Title: string(d), DiffID: d, Size: 2 * mib})
		}
		return r
	}
	if got, want := run("base", "files2").changed(run("base", "files1")), "new of 2 layers: files2 (2.0 MiB)"; got != want {
		t.Errorf("changed() = %q; want %q", got, want)
	}
}

// The child unpacks from files, and tells time and memory.
func TestUnpackChild(t *testing.T) {
	dir, dest := t.TempDir(), t.TempDir()
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5, Uid: os.Geteuid(), Gid: os.Getegid()}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	blob := z.EncodeAll(tarred.Bytes(), nil)
	sum := sha256.Sum256(blob)
	name := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(dir, name), blob, 0o644); err != nil {
		t.Fatal(err)
	}
	part := dsas.Part{Digest: dsas.Digest("sha256:" + name), Size: int64(len(blob)), MediaType: dsas.MediaTarZstd}
	job, err := json.Marshal(unpackJob{Blobs: dir, Dest: dest, Manifest: dsas.Manifest{Role: "x", Parts: []dsas.Part{part}}})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := unpackChild(context.Background(), bytes.NewReader(job), &out); err != nil {
		t.Fatal(err)
	}
	var got unpacked
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got.Seconds <= 0 || got.Peak < mib || got.CPU <= 0 {
		t.Errorf("unpackChild() = %s, %v; want time, memory and processor time", out.String(), err)
	}
	if text, err := os.ReadFile(filepath.Join(dest, "f")); err != nil || string(text) != "hello" {
		t.Errorf("f = %q, %v; want hello", text, err)
	}
}
