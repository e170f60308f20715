package main

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"dsas"
)

// bootTime is one boot, phase after phase without a gap: they add up to Total.
type bootTime struct {
	Node     string  `json:"node"`
	Role     string  `json:"role"`
	Firmware string  `json:"firmware"`
	Loader   string  `json:"loader"`
	Phases   []phase `json:"phases"`
	Total    float64 `json:"total"` // s, from the power command to ready
	// NetworkUp is node.init's own duration (s): drivers and network, without
	// what PID 1 did before.
	NetworkUp float64 `json:"networkUp"`
	// FromKernel tells that init's start was read off the kernel's log.
	FromKernel bool `json:"fromKernel"`
}

// phase is one step of a boot.
type phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Means   string  `json:"means"`
}

// The phases, in their order, and by what each begins and ends.
var phaseNames = []struct{ name, means string }{
	{"firmware", "power command to the first DHCP answer"},
	{"loader", "to the boot script: NBP by TFTP, a second DHCP round"},
	{"load", "to the last byte of kernel and initramfs"},
	{"kernel", "to the start of /init: unpack and boot the kernel, unpack the initramfs"},
	{"init", "to the first request for the image: drivers, bond, address, node config"},
	{"fetch", "to the image unpacked in tmpfs"},
	{"conf", "to the role's root: dsas.conf, files, disks, switch_root"},
	{"services", "to ready: every service healthy"},
}

// initAt finds when the kernel started /init on the serial console, as the
// kernel's own clock had it.
func initAt(serial []byte) (sinceKernel time.Duration, ok bool) {
	m := runInitRE.FindSubmatch(serial)
	if m == nil {
		return 0, false
	}
	s, err := strconv.ParseFloat(string(m[1]), 64)
	return time.Duration(s * float64(time.Second)), err == nil
}

var runInitRE = regexp.MustCompile(`\[ *([0-9]+\.[0-9]+)\] Run /init as init process`)

// timeBoot makes a boot's phases of its events, from the last power command
// to the first ready after it, and its serial log.
func timeBoot(events []dsas.Event, serial []byte) (bootTime, error) {
	var t bootTime
	at := map[dsas.Kind]dsas.Event{}
	for _, e := range events {
		if e.Kind == dsas.KindPower {
			clear(at) // an earlier boot's
		}
		if _, ready := at[dsas.KindReady]; ready {
			continue
		}
		// A box that tried twice gets a script twice: the last one counts,
		// but the first answer is where the firmware's part ends.
		if _, seen := at[e.Kind]; !seen || e.Kind != dsas.KindDHCP {
			at[e.Kind] = e
		}
	}
	for _, k := range []dsas.Kind{dsas.KindPower, dsas.KindDHCP, dsas.KindScript, dsas.KindInitramfs, dsas.KindInit, dsas.KindFetch, dsas.KindFetched, dsas.KindSwitched, dsas.KindReady} {
		if _, ok := at[k]; !ok {
			return t, fmt.Errorf("time boot: no event %s among %d: %w", k, len(events), dsas.ErrNotFound)
		}
	}
	ready, up := at[dsas.KindReady], at[dsas.KindInit]
	t.NetworkUp = up.Duration.Seconds()
	start := up.Time.Add(-up.Duration)
	if since, ok := initAt(serial); ok && ready.Duration > since {
		// ready's duration is the kernel's age then (agent), so this is when
		// the kernel ran /init, on the clock of the events.
		start, t.FromKernel = ready.Time.Add(since-ready.Duration), true
	}
	marks := []time.Time{at[dsas.KindPower].Time, at[dsas.KindDHCP].Time, at[dsas.KindScript].Time, at[dsas.KindInitramfs].Time,
		start, at[dsas.KindFetch].Time, at[dsas.KindFetched].Time, at[dsas.KindSwitched].Time, ready.Time}
	for i, p := range phaseNames {
		t.Phases = append(t.Phases, phase{p.name, marks[i+1].Sub(marks[i]).Seconds(), p.means})
	}
	t.Total = ready.Time.Sub(marks[0]).Seconds()
	return t, nil
}

// seconds gives a phase's time.
func (t bootTime) seconds(name string) float64 {
	for _, p := range t.Phases {
		if p.Name == name {
			return p.Seconds
		}
	}
	return 0
}

// writeBoots writes a column per node.
func writeBoots(w io.Writer, boots []bootTime) {
	fmt.Fprint(w, "\nBOOT, s")
	for _, b := range boots {
		fmt.Fprintf(w, "\t%s %s", b.Node, b.Role)
	}
	fmt.Fprint(w, "\n")
	for _, b := range boots {
		fmt.Fprintf(w, "\t%s, %s", b.Firmware, b.Loader)
	}
	for i, p := range phaseNames {
		fmt.Fprintf(w, "\n%s", p.name)
		for _, b := range boots {
			fmt.Fprintf(w, "\t%.2f", b.Phases[i].Seconds)
		}
		fmt.Fprintf(w, "\t%s", p.means)
	}
	fmt.Fprint(w, "\ntotal")
	for _, b := range boots {
		fmt.Fprintf(w, "\t%.2f", b.Total)
	}
	fmt.Fprintln(w)
}
