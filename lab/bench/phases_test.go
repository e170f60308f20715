package main

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/lab/figures"
)

// bootEvents is one boot as the server tells it; at is in seconds.
func bootEvents(at float64) []dsas.Event {
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	e := func(s float64, k dsas.Kind, took float64) dsas.Event {
		return dsas.Event{Time: zero.Add(time.Duration((at + s) * float64(time.Second))), Kind: k, Duration: time.Duration(took * float64(time.Second))}
	}
	return []dsas.Event{
		e(0, dsas.KindPower, 0), e(2, dsas.KindDHCP, 0), e(2.1, dsas.KindNBP, 0), e(4, dsas.KindDHCP, 0), e(5, dsas.KindScript, 0),
		e(9, dsas.KindKernel, 4), e(18, dsas.KindInitramfs, 9), e(33, dsas.KindInit, 2.5), e(33.5, dsas.KindFetch, 0),
		e(50, dsas.KindFetched, 16), e(51, dsas.KindSwitched, 0), e(53, dsas.KindReady, 26),
	}
}

func TestTimeBoot(t *testing.T) {
	// The kernel is 26 s old at 53, and ran /init when it was 3 s old: at 30.
	serial := []byte("[    0.000000] Linux\r\n[    3.000000] Run /init as init process\r\n")
	// An earlier boot and what came after ready must not count.
	events := append(append(bootEvents(0), bootEvents(1000)...), dsas.Event{Time: time.Now(), Kind: dsas.KindKernel}, dsas.Event{Time: time.Now(), Kind: dsas.KindReady})
	for _, c := range []struct {
		name   string
		serial []byte
		want   []float64
	}{
		{"kernel's log", serial, []float64{2, 3, 13, 12, 3.5, 16.5, 1, 2}},
		{"no log", nil, []float64{2, 3, 13, 12.5, 3, 16.5, 1, 2}},
		{"a log of another boot", []byte("[   99.000000] Run /init as init process"), []float64{2, 3, 13, 12.5, 3, 16.5, 1, 2}},
	} {
		got, err := timeBoot(events, c.serial)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, p := range got.Phases {
			if math.Abs(p.Seconds-c.want[i]) > 1e-6 {
				t.Errorf("timeBoot with %s: %s = %.3f; want %.3f", c.name, p.Name, p.Seconds, c.want[i])
			}
			sum += p.Seconds
		}
		if math.Abs(sum-got.Total) > 1e-6 || math.Abs(got.Total-53) > 1e-6 {
			t.Errorf("timeBoot with %s: total %.3f, phases add up to %.3f; want 53", c.name, got.Total, sum)
		}
		if want := c.name == "kernel's log"; got.FromKernel != want {
			t.Errorf("timeBoot with %s: FromKernel = %t; want %t", c.name, got.FromKernel, want)
		}
		if got.NetworkUp != 2.5 {
			t.Errorf("timeBoot with %s: NetworkUp = %.3f; want 2.5", c.name, got.NetworkUp)
		}
	}
}

func TestTimeBootIncomplete(t *testing.T) {
	for i, e := range bootEvents(0) {
		if e.Kind == dsas.KindNBP || e.Kind == dsas.KindKernel || e.Kind == dsas.KindDHCP {
			continue // there are boots without, or a second one
		}
		all := bootEvents(0)
		if _, err := timeBoot(append(all[:i:i], all[i+1:]...), nil); !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), string(e.Kind)) {
			t.Errorf("timeBoot without %s = %v; want ErrNotFound that names it", e.Kind, err)
		}
	}
}

func TestWriteTable(t *testing.T) {
	boot, err := timeBoot(bootEvents(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	boot.Node = "w101"
	r := report{Boots: []bootTime{boot}}
	r.add(figure("small", 3.14159, "MiB", "of %s", "it").atMost(4), figure("large", 12.34, "s", "").atMost(10), figure("free", 7, "s", ""), row{Name: "gone", Note: "not measured"}.atMost(3))
	var out strings.Builder
	if err := r.writeTable(&out); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range strings.Split(out.String(), "\n") {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	got := strings.Join(lines, "\n")
	for _, want := range []string{"small 3.14 MiB ≤ 4 ok of it", "large 12.3 s ≤ 10 MISSED", "free 7 s\n", "gone - ≤ 3 not measured", "\nfetch 16.50 ", "\ntotal 53.00"} {
		if !strings.Contains(got, want) {
			t.Errorf("writeTable lacks %q:\n%s", want, got)
		}
	}
}

func TestMachineBusy(t *testing.T) {
	for load, want := range map[string]bool{"0.20 3.00 4.00": false, "1.00 0.00 0.00": false, "1.01 0.00 0.00": true, "unknown": false} {
		if got := (figures.Machine{Cores: 2, LoadBefore: load}).Busy(); got != want {
			t.Errorf("busy at load %s on 2 cores = %t; want %t", load, got, want)
		}
	}
}
