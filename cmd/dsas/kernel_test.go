package main

import (
	"bytes"
	"strings"
	"testing"

	"dsas"
	"dsas/imagebuild"
)

// TestKernelToIsRefused: what would reach apt or the file system is wrong usage,
// and is never taken for the newest kernel.
func TestKernelToIsRefused(t *testing.T) {
	c := newCLI(t)
	for _, to := range []string{"", "6.1.0-50", "../../etc/passwd", "--option=x", "linux-image-amd64", "6.1.0-50-amd64=1"} {
		c.fails(2, []string{"kernel", "update", "--to=" + to}, "--to: kernel", "6.1.0-50-rt-amd64", "dsas kernel ls --available")
	}
}

func TestKernelUpdated(t *testing.T) {
	older, newer := imagebuild.KernelID{Release: "6.1.0-8-amd64", Version: "6.1.8-1"}, imagebuild.KernelID{Release: "6.1.0-9-amd64", Version: "6.1.9-1"}
	step := func(role, kernel, next string) kernelStep {
		return kernelStep{Role: role, Old: role + ":1", OldKernel: kernel, New: next}
	}
	for _, tt := range []struct {
		name string
		u    kernelUpdate
		dry  bool
		want []string
	}{
		{"back", kernelUpdate{Built: &newer, Kernel: older, Held: true, Releases: []kernelStep{step("web", newer.Release, "web:2")}}, false,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1) -> 6.1.0-8-amd64 (6.1.8-1), which builds keep until the next dsas kernel update", "web web:1 6.1.0-9-amd64 web:2 6.1.0-8-amd64"}},
		{"a rehearsal of it", kernelUpdate{Built: &newer, Kernel: older, Held: true, Releases: []kernelStep{step("lb", older.Release, ""), step("web", newer.Release, "")}}, true,
			[]string{"(6.1.8-1), which builds would keep", "lb lb:1 6.1.0-8-amd64 as it is, unless its package", "web web:1 6.1.0-9-amd64 would be made 6.1.0-8-amd64"}},
		{"to stay", kernelUpdate{Built: &newer, Kernel: newer, Held: true, Releases: []kernelStep{step("web", newer.Release, "web:1")}}, false,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1), which builds keep", "web web:1 6.1.0-9-amd64 as it is"}},
		{"before the first build", kernelUpdate{Kernel: older, Held: true}, false, []string{"kernel 6.1.0-8-amd64 (6.1.8-1), which builds keep", "No role has a release yet"}},
		{"nothing new", kernelUpdate{Built: &newer, Kernel: newer, Releases: []kernelStep{step("web", newer.Release, "")}}, true,
			[]string{"kernel 6.1.0-9-amd64 (6.1.9-1), the newest", "web web:1 6.1.0-9-amd64 as it is, unless dsas has a newer initramfs"}},
	} {
		var out bytes.Buffer
		a := &app{stdout: &out}
		if err := a.kernelUpdated(tt.u, tt.dry); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		got := strings.Join(strings.Fields(out.String()), " ")
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: it says\n%s\nwant %q in it", tt.name, out.String(), want)
			}
		}
	}
}

func TestAvailableKernels(t *testing.T) {
	id := func(abi string) imagebuild.KernelID {
		return imagebuild.KernelID{Release: "6.1.0-" + abi + "-amd64", Version: "6.1." + abi + "-1"}
	}
	held := id("8")
	got := availableKernels(imagebuild.KernelList{Newest: id("9"), Built: &held, Held: &held, All: []imagebuild.KernelID{id("9"), id("8"), id("7")}}, []kernelView{
		{Kernel: "6.1.0-8-amd64", Current: []string{"web"}, Releases: []string{"web:3"}, Running: []string{"w101"}},
		{Kernel: "6.1.0-8-amd64", Releases: []string{"web:2"}}, // with another initramfs
		{Kernel: "5.10.0-1-amd64", Current: []string{"old"}, Releases: []string{"old:1"}},
	})
	if len(got) != 3 {
		t.Fatalf("availableKernels = %+v; want the mirrors' three", got)
	}
	if k := got[0]; !k.Newest || k.Built || k.Held || k.Releases != nil {
		t.Errorf("availableKernels = %+v first; want the newest, which nobody uses", k)
	}
	if k := got[1]; k.Newest || !k.Built || !k.Held || strings.Join(k.Current, " ") != "web" || strings.Join(k.Releases, " ") != "web:3 web:2" || strings.Join(k.Running, " ") != "w101" {
		t.Errorf("availableKernels = %+v second; want it asked for, and in use by web", k)
	}
	if k := got[2]; k.Newest || k.Built || k.Held || k.Current != nil {
		t.Errorf("availableKernels = %+v third; want it in no use", k)
	}
}

// TestProposeAll: a release that was rolled back is not published by asking for
// its kernel once more, and that is said.
func TestProposeAll(t *testing.T) {
	c := newCLI(t)
	one, two := addRelease(t, c.releases.Store, "web", "one"), addRelease(t, c.releases.Store, "web", "two")
	var said bytes.Buffer
	a := &app{stderr: &said}
	a.Server = c.socket
	propose := func(old, made dsas.Release) string {
		t.Helper()
		said.Reset()
		if err := a.proposeAll(t.Context(), c.releases.Store, []dsas.Release{old}, []dsas.Release{made}); err != nil {
			t.Fatal(err)
		}
		return said.String()
	}
	if got := propose(dsas.Release{}, one) + propose(one, two) + propose(two, two); got != "" {
		t.Errorf("publishing says %q; want nothing", got)
	}
	c.wantLine(c.ok("image", "ls", "web"), "web:2", "current")
	c.ok("image", "rollback", "web")
	if got := propose(one, two); !strings.Contains(got, "nodes do not get release web:2") || !strings.Contains(got, "dsas image publish web:2") {
		t.Errorf("after a roll-back it says %q; want that nodes stay, and the way out", got)
	}
}
