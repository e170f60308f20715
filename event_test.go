package dsas

import "testing"

// TestPhaseAfter has one row per kind: what it makes of a node that is not
// running, and of one that is.
func TestPhaseAfter(t *testing.T) {
	idle := []Phase{PhaseNew, PhasePower, PhaseDHCP, PhaseLoader, PhaseKernel, PhaseInit, PhaseFetch, PhaseFailed, PhaseLost, PhaseOff}
	running := []Phase{PhaseServices, PhaseReady}
	const same = Phase("as it was")
	for _, c := range []struct {
		kind              Kind
		message           string
		whenIdle, whenRun Phase
	}{
		{KindDHCP, "", PhaseDHCP, same},
		{KindRefused, "", same, same},
		{KindNBP, "", PhaseLoader, same},
		{KindScript, "", PhaseLoader, same},
		{KindKernel, "", PhaseKernel, same},
		{KindInitramfs, "", PhaseKernel, same},
		{KindConfigTaken, "", PhaseInit, same},
		{KindLoaderFailed, "", PhaseFailed, same},
		{KindInit, "", PhaseInit, PhaseInit},
		{KindFetch, "", PhaseFetch, PhaseFetch},
		{KindFetched, "", same, same},
		{KindPartBad, "", PhaseFailed, PhaseFailed},
		{KindConf, "", same, same},
		{KindConfError, "", same, same},
		{KindSwitched, "", PhaseServices, PhaseServices},
		{KindService, "", same, same},
		{KindReady, "", PhaseReady, PhaseReady},
		{KindFailed, "", PhaseFailed, PhaseFailed},
		{KindLink, "", same, same},
		{KindFiles, "", same, same},
		{KindInventory, "", same, same},
		{KindWarning, "", same, same},
		{KindLost, "", same, PhaseLost},
		{KindBack, "", PhaseReady, PhaseReady},
		{KindPower, PowerOn, PhasePower, PhasePower},
		{KindPower, PowerCycle, PhasePower, PhasePower},
		{KindPower, PowerOff, PhaseOff, PhaseOff},
		{KindAssigned, "", same, same},
		{KindChanged, "", same, same},
		{KindSiteChanged, "", same, same},
		{KindUnknown, "", same, same},
		{KindPublished, "", same, same},
		{KindServer, "", same, same},
		{"of.tomorrow", "", same, same},
	} {
		for _, p := range append(append([]Phase{""}, idle...), running...) {
			want := c.whenIdle
			if p == PhaseServices || p == PhaseReady {
				want = c.whenRun
			}
			if want == same {
				want = p
			}
			if got := PhaseAfter(p, Event{Kind: c.kind, Message: c.message}); got != want {
				t.Errorf("PhaseAfter(%q, %s %s) = %q; want %q", p, c.kind, c.message, got, want)
			}
		}
	}
}

// TestPhaseAfterSequences are boots as they go.
func TestPhaseAfterSequences(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds []Kind
		want  []Phase
	}{
		{"iPXE through an NBP, power-cycled", []Kind{KindPower, KindDHCP, KindNBP, KindDHCP, KindScript, KindKernel, KindInitramfs, KindConfigTaken,
			KindInit, KindFetch, KindFetched, KindConf, KindSwitched, KindService, KindReady, KindLink, KindFiles},
			[]Phase{PhasePower, PhaseDHCP, PhaseLoader, PhaseDHCP, PhaseLoader, PhaseKernel, PhaseInit, PhaseFetch, PhaseServices, PhaseReady}},
		{"PXELINUX", []Kind{KindDHCP, KindNBP, KindNBP, KindScript, KindKernel, KindInitramfs, KindConfigTaken, KindInit},
			[]Phase{PhaseDHCP, PhaseLoader, PhaseKernel, PhaseInit}},
		{"a part is bad, then mended", []Kind{KindInit, KindFetch, KindPartBad, KindFailed, KindDHCP, KindScript, KindKernel, KindInit, KindFetch, KindSwitched, KindReady},
			[]Phase{PhaseInit, PhaseFetch, PhaseFailed, PhaseDHCP, PhaseLoader, PhaseKernel, PhaseInit, PhaseFetch, PhaseServices, PhaseReady}},
		{"reset by hand while ready", []Kind{KindReady, KindDHCP, KindNBP, KindScript, KindKernel, KindConfigTaken, KindInit},
			[]Phase{PhaseReady, PhaseInit}},
		{"silent, and then reset by hand", []Kind{KindReady, KindLost, KindDHCP, KindNBP, KindScript, KindKernel},
			[]Phase{PhaseReady, PhaseLost, PhaseDHCP, PhaseLoader, PhaseKernel}},
		{"silent, and back", []Kind{KindReady, KindLost, KindBack}, []Phase{PhaseReady, PhaseLost, PhaseReady}},
		{"a service ends for good", []Kind{KindReady, KindService, KindFailed, KindService}, []Phase{PhaseReady, PhaseFailed}},
	} {
		var p Phase
		var got []Phase
		for _, k := range c.kinds {
			if next := PhaseAfter(p, Event{Kind: k, Message: PowerCycle}); next != p {
				got, p = append(got, next), next
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: phases %v; want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: phases %v; want %v", c.name, got, c.want)
				break
			}
		}
	}
}
