package boot

import (
	"strings"
	"testing"

	"dsas"
)

func TestParseGRUB(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	for _, tt := range []struct {
		path string
		want GRUBFile
	}{
		{"grub/52:54:00:00:01:01/boot-x86_64.cfg", GRUBFile{MAC: mac, CPU: "x86_64"}},
		{"grub/52:54:00:00:01:01/boot-x86_64-rescue.cfg", GRUBFile{MAC: mac, CPU: "x86_64", Role: "rescue"}},
		{"grub/52:54:00:00:01:01/boot-x86_64-lb-2.cfg", GRUBFile{MAC: mac, CPU: "x86_64", Role: "lb-2"}},
		{"grub/52-54-00-00-01-01/boot-arm64.cfg", GRUBFile{MAC: mac, CPU: "arm64"}},
		{"grub/52-54-00-00-01-01/blob/" + hex, GRUBFile{MAC: mac, Blob: dsas.Digest("sha256:" + hex)}},
		{"grub/52:54:00:00:01:01/failed-kernel", GRUBFile{MAC: mac, Failed: "kernel"}},
	} {
		if got, ok := ParseGRUB(tt.path); !ok || got != tt.want {
			t.Errorf("ParseGRUB(%q) = %+v, %t; want %+v", tt.path, got, ok, tt.want)
		}
	}
	for _, bad := range []string{"", "grub", "grub/", GRUBFirst, "grub/x86_64-efi/command.lst", "grub/52:54:00:00:01/boot-x86_64.cfg",
		"grub/52:54:00:00:01:01/", "grub/52:54:00:00:01:01/boot-", "grub/52:54:00:00:01:01/boot-.cfg", "grub/52:54:00:00:01:01/boot-x/y.cfg",
		"grub/52:54:00:00:01:01/boot-x86_64-.cfg", "grub/52:54:00:00:01:01/boot-x86_64-WEB.cfg", "grub/52:54:00:00:01:01/boot-x86_64-a/b.cfg", "grub/52:54:00:00:01:01/boot-x86_64-...cfg",
		"grub/52:54:00:00:01:01/boot--web.cfg", "grub/52:54:00:00:01:01/boot-x86_64-web", "grub/52:54:00:00:01:01/boot-x86_64-" + strings.Repeat("a", 64) + ".cfg",
		"grub/52:54:00:00:01:01/blob/" + hex[1:], "grub/52:54:00:00:01:01/blob/../" + hex, "grub/52:54:00:00:01:01/failed-", "grub/52:54:00:00:01:01/failed-rm",
		"nbp/52:54:00:00:01:01/boot-x86_64.cfg", "grub/525400000101/boot-x86_64.cfg"} {
		if got, ok := ParseGRUB(bad); ok {
			t.Errorf("ParseGRUB(%q) = %+v; want none", bad, got)
		}
	}
}

func FuzzParseGRUB(f *testing.F) {
	f.Add("grub/52:54:00:00:01:01/boot-x86_64.cfg")
	f.Add("grub/52-54-00-00-01-01/blob/" + strings.Repeat("ab", 32))
	f.Add("grub/52:54:00:00:01:01/failed-kernel")
	f.Add("grub/52:54:00:00:01:01/boot-x86_64-lb-2.cfg")
	f.Fuzz(func(t *testing.T, path string) {
		q, ok := ParseGRUB(path)
		if !ok {
			return
		}
		set := 0
		for _, is := range []bool{q.CPU != "", q.Blob != "", q.Failed != ""} {
			if is {
				set++
			}
		}
		if set != 1 || q.Role != "" && (q.CPU == "" || dsas.CheckName("role", q.Role) != nil) {
			t.Errorf("ParseGRUB(%q) = %+v; want one of the three", path, q)
		}
	})
}
