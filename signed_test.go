package dsas_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"dsas"
)

// bootLayer is one part of a boot manifest, in JSON.
func bootLayer(title, digest, unpacked string) string {
	note := ""
	if unpacked != "" {
		note = fmt.Sprintf(`, "dsas.unpacked": %q`, unpacked)
	}
	return fmt.Sprintf(`{"mediaType": "m", "digest": %q, "size": 5, "annotations": {"dsas.title": %q, "dsas.diff-id": %q%s}}`, digest, title, digest, note)
}

func bootManifest(kind string, layers ...string) string {
	return fmt.Sprintf(`{"schemaVersion": 2, "artifactType": %q, "layers": [%s], "annotations": {"dsas.kernel.release": "6.1", "dsas.keys": "one two"}}`, kind, strings.Join(layers, ","))
}

func TestParseBootManifest(t *testing.T) {
	sum := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	part := func(title, c string) dsas.Part {
		return dsas.Part{Digest: dsas.Digest(sum(c)), DiffID: dsas.Digest(sum(c)), Size: 5, MediaType: "m", Title: title}
	}
	kernel, initramfs := bootLayer("kernel", sum("a"), ""), bootLayer("initramfs", sum("b"), "7")
	want := dsas.BootSet{Release: "6.1", Keys: []string{"one", "two"}, Kernel: part("kernel", "a"), Initramfs: part("initramfs", "b")}
	want.Initramfs.Unpacked = 7
	if got, err := dsas.ParseBootManifest([]byte(bootManifest(dsas.BootArtifact, initramfs, kernel))); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseBootManifest = %+v, %v; want %+v", got, err, want)
	}
	firmware := part("firmware", "c")
	want.Firmware = &firmware
	if got, err := dsas.ParseBootManifest([]byte(bootManifest(dsas.BootArtifact, kernel, initramfs, bootLayer("firmware", sum("c"), "")))); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseBootManifest with firmware = %+v, %v; want %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"no JSON":           "{",
		"another artifact":  bootManifest("application/x", kernel, initramfs),
		"no initramfs":      bootManifest(dsas.BootArtifact, kernel),
		"two kernels":       bootManifest(dsas.BootArtifact, kernel, kernel, initramfs),
		"an unknown part":   bootManifest(dsas.BootArtifact, kernel, initramfs, bootLayer("dtb", sum("c"), "")),
		"no digest":         bootManifest(dsas.BootArtifact, kernel, bootLayer("initramfs", "sha256:../x", "")),
		"no number":         bootManifest(dsas.BootArtifact, kernel, bootLayer("initramfs", sum("b"), "-1")),
		"a size below zero": strings.Replace(bootManifest(dsas.BootArtifact, kernel, initramfs), `"size": 5`, `"size": -5`, 1),
		"5 MiB":             bootManifest(dsas.BootArtifact, kernel, initramfs) + strings.Repeat(" ", 5<<20),
	} {
		if got, err := dsas.ParseBootManifest([]byte(text)); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("ParseBootManifest(%s) = %+v, %v; want ErrInvalid", name, got, err)
		}
	}
}

func FuzzParseBootManifest(f *testing.F) {
	f.Add([]byte(bootManifest(dsas.BootArtifact, bootLayer("kernel", "sha256:"+strings.Repeat("a", 64), ""), bootLayer("initramfs", "sha256:"+strings.Repeat("b", 64), "7"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := dsas.ParseBootManifest(b)
		if err != nil {
			return
		}
		for _, p := range set.Parts() {
			if _, err := dsas.ParseDigest(string(p.DiffID)); err != nil || p.Size < 0 || p.Unpacked < 0 {
				t.Errorf("part %+v; want digests and sizes", p)
			}
		}
	})
}
