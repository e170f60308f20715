package web

import (
	"slices"
	"time"

	"dsas"
)

// Boot is a node's latest boot, made of its events.
type Boot struct {
	Steps   []Step
	Parts   []Part        // the bar, from left to right
	Legend  []Part        // the same, each phase once
	Total   time.Duration // until it was ready, or its last event
	Start   time.Time
	Ready   bool
	Since   []dsas.Event // after it was ready, the newest first
	Earlier []dsas.Event // before it, the newest first
}

// Step is one event of a boot with its place on the time line.
type Step struct {
	dsas.Event
	At          time.Duration // since the boot's first event
	Left, Width int           // per mille of the boot's length: the time it took
	Took        time.Duration // 0: not said
	Phase       dsas.Phase    // the node was in when it happened
}

// Part is one phase of a boot, on the bar that shows where the time went.
type Part struct {
	Phase       dsas.Phase
	Took        time.Duration
	Left, Width int // per mille
}

// latestBoot finds the latest boot in a node's events, which ascend. A boot
// that goes on lasts until now.
func latestBoot(events []dsas.Event, goesOn bool, now time.Time) Boot {
	start := bootStart(events)
	b := Boot{Earlier: slices.Clone(events[:start])}
	slices.Reverse(b.Earlier)
	events = events[start:]
	if i := slices.IndexFunc(events, func(e dsas.Event) bool { return e.Kind == dsas.KindReady }); i >= 0 {
		b.Ready = true
		b.Since = slices.Clone(events[i+1:]) // its life, no part of its boot
		slices.Reverse(b.Since)
		events = events[:i+1]
	}
	if len(events) == 0 {
		return b
	}
	b.Start = events[0].Time
	end := b.Start
	for _, e := range events {
		if end.Before(e.Time) {
			end = e.Time
		}
	}
	if goesOn && !b.Ready && end.Before(now) {
		end = now
	}
	b.Total = end.Sub(b.Start)
	b.Steps = steps(events, b.Start, max(b.Total, time.Millisecond))
	b.Parts, b.Legend = parts(events, b.Start, end)
	return b
}

// bootStart gives the index of the latest boot's first event, and len(events)
// where no boot is seen. A boot begins where the power was switched, or, by
// hand, where the firmware asked for the address under which it then took a
// loader or its script; each round of a loader that fails is a boot.
func bootStart(events []dsas.Event) int {
	taken, scripted := false, false // a loader or a script, later than i
	start := len(events)
	for i, e := range slices.Backward(events) {
		switch e.Kind {
		case dsas.KindPower:
			if e.Message == dsas.PowerOff {
				if taken {
					return start
				}
				continue
			}
			return i
		case dsas.KindNBP, dsas.KindScript:
			if scripted && e.Kind == dsas.KindScript && events[start].Kind == dsas.KindDHCP {
				return start // that script was an earlier boot's
			}
			taken, start = true, i
			scripted = scripted || e.Kind == dsas.KindScript
		case dsas.KindDHCP, dsas.KindRefused:
			if taken {
				start = i
			}
		case dsas.KindAssigned, dsas.KindChanged, dsas.KindWarning:
			// Of operators, at any time.
		default:
			if taken {
				return start
			}
		}
	}
	return start
}

func steps(events []dsas.Event, start time.Time, total time.Duration) []Step {
	var out []Step
	prev, phase := start, dsas.PhasePower
	for _, e := range events {
		s := Step{Event: e, At: max(0, e.Time.Sub(start)), Phase: phase}
		if phase = dsas.PhaseAfter(phase, e); e.Duration > 0 && e.Kind != dsas.KindReady {
			s.Phase = phase // the time is that of its own work
		}
		from := prev
		// What "ready" says is the time since the kernel's start.
		if e.Duration > 0 && e.Kind != dsas.KindReady {
			s.Took = e.Duration
			if from = e.Time.Add(-e.Duration); from.Before(start) {
				from = start
			}
		}
		if e.Time.Before(from) {
			from = e.Time // its clock is a little off
		}
		s.Left = permille(from.Sub(start), total)
		s.Width = max(6, permille(s.At, total)-s.Left)
		s.Left = min(s.Left, 1000-s.Width)
		out = append(out, s)
		if prev.Before(e.Time) {
			prev = e.Time
		}
	}
	return out
}

// parts tells how long each phase took. A phase begins with its first event,
// or, where that says how long its work took, that much before it.
func parts(events []dsas.Event, start, end time.Time) (bar, legend []Part) {
	type mark struct {
		phase dsas.Phase
		at    time.Time
	}
	var marks []mark
	phase := dsas.Phase("")
	for _, e := range events {
		phase = dsas.PhaseAfter(phase, e)
		at := e.Time
		if e.Kind != dsas.KindReady {
			at = at.Add(-e.Duration)
		}
		least, last := start, len(marks)-1
		switch {
		case last >= 0 && marks[last].phase == phase:
			// Init's own word comes after its config was given to it.
			if last > 0 {
				least = marks[last-1].at
			}
			if at.Before(marks[last].at) && e.Kind == dsas.KindInit {
				marks[last].at = later(at, least)
			}
		case phase != "":
			if last >= 0 {
				least = marks[last].at
			}
			marks = append(marks, mark{phase, later(at, least)})
		}
	}
	total := max(end.Sub(start), time.Millisecond)
	for i, m := range marks {
		until := end
		if i+1 < len(marks) {
			until = marks[i+1].at
		}
		took := until.Sub(m.at)
		if took <= 0 {
			continue
		}
		left := permille(m.at.Sub(start), total)
		p := Part{Phase: m.phase, Took: took, Left: left, Width: permille(until.Sub(start), total) - left}
		bar = append(bar, p)
		// A node goes through some phases twice: firmware and loader both ask
		// for an address.
		if j := slices.IndexFunc(legend, func(o Part) bool { return o.Phase == p.Phase }); j >= 0 {
			legend[j].Took += took
		} else {
			legend = append(legend, p)
		}
	}
	return bar, legend
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func permille(d, total time.Duration) int {
	return min(max(int(1000*d/total), 0), 1000)
}
