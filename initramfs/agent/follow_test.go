package agent

import (
	"context"
	"os"
	"slices"
	"testing"

	"dsas"
	"dsas/initramfs/service"
)

// testFollower is a follower over a folder, with services in given states.
func testFollower(t *testing.T, states map[string]service.State) (f *follower, reloaded *[]string) {
	reloaded = new([]string)
	return &follower{
		root: t.TempDir(), event: func(dsas.Event) {},
		reload: func(_ context.Context, name string) error { *reloaded = append(*reloaded, name); return nil },
		states: func() map[string]service.State { return states },
	}, reloaded
}

func TestAFileThatCannotBeWrittenKeepsNoOtherFromItsService(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	f, reloaded := testFollower(t, map[string]service.State{"nginx": service.Healthy, "db": service.Healthy})
	files := []dsas.File{
		{Path: "/etc/a.conf", Mode: 0o644, Content: []byte("a"), Service: "nginx"},
		{Path: "/etc/bad", Mode: 0o644, Owner: "nobody-here", Content: []byte("b"), Service: "nginx"},
		{Path: "/etc/c.conf", Mode: 0o644, Content: []byte("c"), Service: "db"},
	}
	if err := f.take(t.Context(), "", files); err == nil {
		t.Error("take() with a bad owner = nil; want an error")
	}
	f.reloadPending(t.Context())
	if want := []string{"nginx", "db"}; !slices.Equal(*reloaded, want) {
		t.Errorf("reloaded %v; want %v", *reloaded, want)
	}
	if len(f.pending) > 0 {
		t.Errorf("pending %v; want none", f.pending)
	}
}

func TestAServiceThatStartsIsReloadedLater(t *testing.T) {
	states := map[string]service.State{"keepalived": service.Starting}
	f, reloaded := testFollower(t, states)
	if err := f.take(t.Context(), "", []dsas.File{{Path: "/etc/k", Mode: 0o644, Content: []byte("1"), Service: "keepalived"}}); err != nil {
		t.Fatal(err)
	}
	f.reloadPending(t.Context())
	if len(*reloaded) > 0 {
		t.Errorf("reloaded %v while it starts; want nothing", *reloaded)
	}
	// The same files again: nothing differs, and still the reload is owed.
	if err := f.take(t.Context(), "", []dsas.File{{Path: "/etc/k", Mode: 0o644, Content: []byte("1"), Service: "keepalived"}}); err != nil {
		t.Fatal(err)
	}
	states["keepalived"] = service.Healthy
	f.reloadPending(t.Context())
	f.reloadPending(t.Context())
	if want := []string{"keepalived"}; !slices.Equal(*reloaded, want) {
		t.Errorf("reloaded %v; want it once", *reloaded)
	}
}

func TestAChangedConfIsWrittenAndObeyed(t *testing.T) {
	f, _ := testFollower(t, nil)
	var obeyed []string
	f.applyConf = func(_ context.Context, text string) { obeyed = append(obeyed, text) }
	for _, conf := range []string{"A=1\n", "A=1\n", "A=2\n", ""} {
		if err := f.take(t.Context(), conf, nil); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"A=1\n", "A=2\n"}; !slices.Equal(obeyed, want) {
		t.Errorf("obeyed %q; want each change once: %q", obeyed, want)
	}
	if got, err := os.ReadFile(f.root + "/etc/dsas.conf"); err != nil || string(got) != "A=2\n" {
		t.Errorf("dsas.conf = %q, %v; want A=2", got, err)
	}
}

func TestRecovered(t *testing.T) {
	err := recovered(func() error { panic("slip") })
	if err == nil {
		t.Error("recovered(panic) = nil; want an error")
	}
}
