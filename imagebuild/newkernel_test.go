package imagebuild

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"dsas"
	"dsas/server/blobs"
)

// putPart stores content as a layer.
func putPart(t *testing.T, s *blobs.Store, title, content string) dsas.Part {
	t.Helper()
	d, n, err := s.Put(t.Context(), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return dsas.Part{Digest: d, DiffID: d, Size: n, Title: title, MediaType: dsas.MediaTarZstd}
}

// oldRelease stores a release with a kernel of long ago.
func oldRelease(t *testing.T, s *blobs.Store, role string, titles ...string) dsas.Release {
	t.Helper()
	var parts []dsas.Part
	for _, title := range titles {
		parts = append(parts, putPart(t, s, title, role+title))
	}
	r, err := s.AddRelease(t.Context(), dsas.Release{Role: role, Definition: []byte("frozen " + role),
		Boot:     dsas.BootSet{Release: "4.19.0-1-amd64", Kernel: putPart(t, s, "kernel", "k"), Initramfs: putPart(t, s, "initramfs", "i")},
		Manifest: dsas.Manifest{Kernel: "4.19.0-1-amd64", Memory: 7, Parts: parts}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkOnlyKernel fails unless now is was with another kernel.
func checkOnlyKernel(t *testing.T, was, now dsas.Release) {
	t.Helper()
	if now.Boot.Release == was.Boot.Release || now.Manifest.Kernel != now.Boot.Release || now.Boot.Kernel.DiffID == was.Boot.Kernel.DiffID {
		t.Errorf("%s boots %s with modules of %s; want another kernel with its own", now.Role, now.Boot.Release, now.Manifest.Kernel)
	}
	if len(now.Manifest.Parts) != len(was.Manifest.Parts) || now.Manifest.Memory != was.Manifest.Memory || !reflect.DeepEqual(now.Definition, was.Definition) {
		t.Fatalf("release = %+v; want %+v but for the kernel", now, was)
	}
	for i, p := range now.Manifest.Parts {
		if same := p.DiffID == was.Manifest.Parts[i].DiffID; same == (p.Title == "modules") || p.Title != was.Manifest.Parts[i].Title {
			t.Errorf("%s: layer %s, was %s: the same is %v; want only the modules to change", now.Role, p.Title, was.Manifest.Parts[i].Title, same)
		}
	}
}

func TestWithKernel(t *testing.T) {
	s := testStore(t, t.TempDir())
	boot := dsas.BootSet{Release: "6.1.0-1-amd64", Kernel: putPart(t, s, "kernel", "new"), Initramfs: putPart(t, s, "initramfs", "new")}
	was := oldRelease(t, s, "web", "base", "packages", "modules", "files")
	before := was.Manifest.Parts[2]
	now, err := withKernel(was, boot, putPart(t, s, "modules", "new modules"))
	if err != nil {
		t.Fatal(err)
	}
	checkOnlyKernel(t, was, now)
	if was.Manifest.Parts[2] != before {
		t.Error("withKernel has changed the release it was given")
	}
	for _, titles := range [][]string{{"base"}, {"base", "modules", "modules"}} {
		if _, err := withKernel(oldRelease(t, s, "db", titles...), boot, before); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("withKernel of layers %v = %v; want ErrInvalid", titles, err)
		}
	}
}

// TestUpdateKernel gives releases of a kernel of long ago Debian's newest.
func TestUpdateKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads a kernel")
	}
	need(t, "apt-get", "dpkg-deb", "zstd", "depmod")
	s := testStore(t, t.TempDir())
	opt := bootOptions(t, s)
	web, lb := oldRelease(t, s, "web", "base", "packages", "modules", "files"), oldRelease(t, s, "lb", "base", "modules")
	foreign := oldRelease(t, s, "foreign", "base")
	list := []RoleRelease{{Release: web}, {Release: lb, Modules: []string{"ip_vs"}}}
	if _, _, err := UpdateKernel(t.Context(), opt, append(list, RoleRelease{Release: foreign}), ""); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("UpdateKernel of an image without modules = %v; want ErrInvalid", err)
	}
	if all, err := s.Releases(); err != nil || len(all) != 3 {
		t.Errorf("a refused update left %d releases, %v; want the 3 there were", len(all), err)
	}
	boot, made, err := UpdateKernel(t.Context(), opt, list, "")
	if err != nil || len(made) != 2 {
		t.Fatalf("UpdateKernel = %v, %v; want two releases", made, err)
	}
	checkOnlyKernel(t, web, made[0])
	checkOnlyKernel(t, lb, made[1])
	if made[0].Name() != "web:2" || made[1].Name() != "lb:2" {
		t.Errorf("UpdateKernel makes %s and %s; want web:2 and lb:2", made[0].Name(), made[1].Name())
	}
	for _, r := range []dsas.Release{web, lb} {
		if old, err := s.Release(r.ID); err != nil || !hasBoot(s, old.Boot) || !hasParts(s, old.Manifest.Parts) {
			t.Errorf("%s after the update: %v; want it whole, to roll back to", r.Name(), err)
		}
	}
	entries := readLayer(t, s, made[1].Manifest.Parts[1])
	if find(entries, "usr/lib/modules/"+boot.Release+"/kernel/net/netfilter/ipvs/ip_vs.ko") == nil {
		t.Error("lb's modules lack ip_vs, which its role names")
	}
	_, again, err := UpdateKernel(t.Context(), opt, []RoleRelease{{Release: made[0]}, {Release: made[1], Modules: []string{"ip_vs"}}}, "")
	if err != nil || len(again) != 2 || again[0].ID != made[0].ID || again[1].ID != made[1].ID {
		t.Errorf("a second UpdateKernel = %v, %v; want the same releases", again, err)
	}
	was, now, err := KernelNews(t.Context(), opt, "")
	if err != nil || was == nil || *was != now || now.Release != boot.Release {
		t.Errorf("KernelNews = %v, %v, %v; want no news of %s", was, now, err, boot.Release)
	}
}
