package modindex

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"dsas"
)

func TestFnmatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"virtio:d00000001v*", "virtio:d00000002v00001AF4", false},
		{"pci:v00008086d00001533sv*sd*bc*sc*i*", "pci:v00008086d00001533sv00001028sd0000076Dbc02sc00i00", true},
		{"pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", true},
		{"pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc06i01", false},
		{"usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*", "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00", true},
		{"of:N*T*Cfoo-bar", "of:NxTyCfoo_bar", true},
		{"crypto-crc32c", "crypto_crc32c", true},
		{"cpu:type:x86,ven*fam*mod*:feature:*0080*", "cpu:type:x86,ven0000fam0006mod0006:feature:,0001,0080,0094", true},
		{"a/*c", "a/b/c", true},
		{"?", ".", true},
		{"?", "", false},
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"[a-c]x", "bx", true},
		{"[!a-c]x", "bx", false},
		{"[]a]", "]", true},
		{"[_]", "-", false},
		{"[a", "[a", true},
		{`\*a`, "*a", true},
		{`\*a`, "ba", false},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbYbZ", false},
	} {
		if got := Fnmatch(tc.pattern, tc.s); got != tc.want {
			t.Errorf("Fnmatch(%q, %q) = %v; want %v", tc.pattern, tc.s, got, tc.want)
		}
	}
}

func testIndex() *Index {
	return &Index{
		Release: "1.2.3",
		Modules: map[string]Module{
			"virtio":     {Path: "kernel/virtio.ko"},
			"virtio_pci": {Path: "kernel/virtio_pci.ko", Depends: []string{"virtio", "vring"}},
			"vring":      {Path: "kernel/vring.ko", Depends: []string{"virtio"}},
			"ext4":       {Path: "kernel/ext4.ko", Depends: []string{"jbd2"}, SoftPre: []string{"crypto-crc32c", "gone"}, SoftPost: []string{"after"}},
			"jbd2":       {Path: "kernel/jbd2.ko"},
			"crc32c_gen": {Path: "kernel/crc.ko"},
			"after":      {Path: "kernel/after.ko", SoftPre: []string{"ext4"}},
			"broken":     {Path: "kernel/broken.ko", Depends: []string{"missing"}},
			"onbuiltin":  {Path: "kernel/ob.ko", Depends: []string{"unix"}},
		},
		Aliases: []Alias{{"crypto-crc32c", "crc32c_gen"}, {"fs-ext4", "ext4"}, {"pci:v00001AF4d*", "virtio_pci"}, {"pci:v0000*", "virtio_pci"}, {"pci:v*", "gone"}},
		Builtin: []string{"unix"},
	}
}

func TestMatch(t *testing.T) {
	ix := testIndex()
	for in, want := range map[string][]string{
		"pci:v00001AF4d00001000": {"virtio_pci"},
		"fs-ext4":                {"ext4"},
		"virtio-pci":             {"virtio_pci"},
		"unix":                   nil,
	} {
		if got := ix.Match(in); !reflect.DeepEqual(got, want) {
			t.Errorf("Match(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestClosure(t *testing.T) {
	ix := testIndex()
	got, err := ix.Closure("virtio-pci", "fs-ext4", "unix", "onbuiltin")
	want := []string{"virtio", "vring", "virtio_pci", "crc32c_gen", "jbd2", "ext4", "after", "onbuiltin"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Closure = %q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{"nothere", "broken"} {
		if got, err := ix.Closure(bad); !errors.Is(err, dsas.ErrNotFound) {
			t.Errorf("Closure(%q) = %q, %v; want ErrNotFound", bad, got, err)
		}
	}
}

func TestReadWrite(t *testing.T) {
	var a, b bytes.Buffer
	if err := testIndex().Write(&a); err != nil {
		t.Fatal(err)
	}
	first := a.String()
	ix, err := Read(&a)
	if err != nil || !reflect.DeepEqual(ix, testIndex()) {
		t.Fatalf("Read(Write(ix)) = %+v, %v; want %+v", ix, err, testIndex())
	}
	if err := ix.Write(&b); err != nil || b.String() != first {
		t.Errorf("Write(Read(x)) = %s, %v; want %s", b.String(), err, first)
	}
}

func FuzzFnmatch(f *testing.F) {
	f.Add("pci:v*[a-c]?", "pci:vxb-")
	f.Add("[!", "[")
	f.Add("a*b*c*d", "abcd")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		_ = Fnmatch(pattern, s) // neither panics nor loops
		if !Fnmatch("*", s) {
			t.Errorf("Fnmatch(*, %q) = false; want true", s)
		}
	})
}
